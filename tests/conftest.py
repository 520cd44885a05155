"""Two simulated devices, strict promotion, and one compilation cache that all runs share."""

import gc
import os
import pathlib
import shutil

import jax
import pytest
from helpers import compiler, costs, laws
from helpers.shared import Shared

from asose_jax.runtime import compilation_cache

ROOT = pathlib.Path(__file__).parent.parent
TFDS = ROOT.parent / 'shared' / 'tfds'
CACHE = ROOT / '.cache'

compiler.be_quick()
jax.config.update('jax_num_cpu_devices', int(os.environ.get('TEST_DEVICES', '2')))
jax.config.update('jax_numpy_rank_promotion', 'raise')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'programs'))  # of all processes
compilation_cache.install(pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']))


pytest_addoption = laws.pytest_addoption


def pytest_configure(config):
    config.pluginmanager.register(costs.Costs(config, CACHE / 'seconds.json'))


def pytest_collection_modifyitems(config, items):
    """Long tests first, by what they took before, so that none runs alone at the end."""
    if config.getoption('laws'):
        laws.write(ROOT, items)
    known = costs.seconds(CACHE / 'seconds.json')
    files = {}
    for item in items:
        files[item.path] = files.get(item.path, 0) + known.get(item.nodeid, _guess(item))
    items.sort(key=lambda item: (-files[item.path], item.path))


def pytest_collection_finish():
    """Spares the collector what has been imported: tests then take a fifth less."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _guess(item):
    """Seconds of a test that has not been run here."""
    slow = {'slow', 'soak'} & {marker.name for marker in item.iter_markers()}
    return 0.1 if not slow else 60 if 'root' in item.fixturenames else 10  # it starts processes


@pytest.fixture(autouse=True, scope='module')
def _programs_do_not_pile_up():
    """Each compiled program maps memory, and Linux allows a process some 65,000 maps."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _programs_of_long_tests_go_at_once(request):
    """One such test may map 11,000 times; what the next one needs is in the cache on disk."""
    yield
    if {'slow', 'soak'} & {marker.name for marker in request.node.iter_markers()}:
        jax.clear_caches()


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
    """The project's directory."""
    return ROOT


@pytest.fixture(scope='session')
def shared(tmp_path_factory, worker_id) -> Shared:
    """Finished runs that several tests only read, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    return Shared(base if worker_id == 'master' else base.parent)


@pytest.fixture
def cifar_dir() -> pathlib.Path:
    """Prepared CIFAR-10, where there is some."""
    if not (TFDS / 'cifar10').is_dir():
        pytest.skip('no prepared CIFAR-10 in ../shared/tfds')
    return TFDS


@pytest.fixture(scope='module')
def browser():
    """A real one, where there is one."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip('no Chromium here: apt-get install chromium')
    api = pytest.importorskip('playwright.sync_api', reason='no playwright here')
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield started
        started.close()
