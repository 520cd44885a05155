"""Eight simulated devices, strict promotion, and one compilation cache for the whole test run."""

import os
import pathlib
import shutil
import tempfile

# Before jax starts: the tests' programs run for milliseconds and compile for seconds.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
_CACHE = tempfile.TemporaryDirectory(prefix='asose_jax_test_cache_')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name  # for processes that tests start
jax.config.update('jax_compilation_cache_dir', _CACHE.name)

ROOT = pathlib.Path(__file__).parent.parent
TFDS = ROOT.parent / 'shared' / 'tfds'


LONG = ('commands', 'kill', 'pipeline', 'growing', 'steps', 'model')  # minutes each


def pytest_collection_modifyitems(items):
    """Long files first, so that none runs alone at the end."""
    items.sort(key=lambda item: item.path.stem.removesuffix('_test') not in LONG)


@pytest.fixture(autouse=True, scope='module')
def _programs_do_not_pile_up():
    """Each compiled program maps memory, and Linux allows a process some 65,000 maps."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _programs_of_slow_tests_go_at_once(request):
    """One such test may map 11,000 times; what the next one needs is in the cache on disk."""
    yield
    if request.node.get_closest_marker('slow'):
        jax.clear_caches()


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
    """The project's directory."""
    return ROOT


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
