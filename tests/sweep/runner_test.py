"""Several searches in one command: real processes."""

import concurrent.futures
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import types

import pytest
from helpers import recorded, several_searches
from helpers.command import Run, on_one_core, wait_until_free
from helpers.pages import SHORT, Parsed
from helpers.pictures import config_of, picture
from helpers.runs import lines_of

import asose_jax
from asose_jax.config import retrain
from asose_jax.config.consistency import flatten, require_same_config
from asose_jax.data import dataset
from asose_jax.pipeline import initialization
from asose_jax.report import page
from asose_jax.runtime.errors import UserError
from asose_jax.sweep import placement, runner
from configs.search import get_config

FIELDS = {
    'data.name': 'digits',
    'data.valid_fraction': 0.8,
    'data.flip': False,
    'batch_size': 64,
    'model.channels': 4,
    'model.depth': 3,
    'model.reductions': (1,),
    'warmup.epochs': 1,
    'search.epochs': 2,
    'optimize.epochs': 1,
    'retrain.epochs': 1,
    'retrain.batch_size': 64,
    'checkpoint.every_seconds': 0,
}


FEW = ('none', 'skip_connect', 'nor_conv_1x1')  # quickly compiled


def _config(**fields):
    config = get_config('nasbench201')
    config.update_from_flattened_dict({**FIELDS, **fields})
    return config


def test_what_stopped_one_of_the_runs_is_told_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.placement, 'available_slots', lambda: [runner.placement.Slot({}, 0)])
    nowhere = {'data.name': 'folder', 'data.dir': str(tmp_path / 'pts')}
    with pytest.raises(UserError) as error:
        runner.run_sweep(_config(seeds=(5,), **nowhere), tmp_path)
    for part in ('seed_5 ended with status 2', 'log.txt', "pts': there is no such folder"):
        assert part in str(error.value)


def test_seeds_may_be_added_and_nothing_else_may_change(tmp_path):
    (tmp_path / 'config.json').write_text(
        json.dumps({**flatten(_config(seeds=(0,))), 'search.epochs': 7})
    )
    with pytest.raises(UserError, match=r'another config:\n  search.epochs: 7 -> 2\n'):
        runner.run_sweep(_config(seeds=(0, 1)), tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The jobs that were to be run, a list for each time; none of them is."""
    found = []
    monkeypatch.setattr(runner.placement, 'available_slots', list)
    monkeypatch.setattr(runner, 'run_jobs', lambda jobs, *rest, **how: found.append(jobs))
    return found


def test_random_cells_keep_their_seed_and_network_when_seeds_are_added(tmp_path, asked):
    several_searches.write(tmp_path, seeds=(0, 1, 2))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    for seeds in ((0, 1), (0, 1, 2)):
        runner.run_sweep(_config(seeds=seeds, random_cells=3), tmp_path)
        job = next(job for job in asked[-1] if job.name == 'random/2')
        assert job.config.seed == 0
        begun = tmp_path / job.name
        begun.mkdir(exist_ok=True)
        (begun / 'config.json').write_text(json.dumps(flatten(job.config)))


def test_controls_of_searches_that_began_with_another_run_begin_anew(tmp_path, asked):
    several_searches.write(tmp_path, seeds=(0,))
    (tmp_path / 'config.json').unlink()
    fields = {'init_from': '/warm', 'optimize.frozen': True}
    fields |= {f'{phase}.epochs': 0 for phase in ('warmup', 'search', 'growth')}
    runner.run_sweep(_config(seeds=(0,), random_cells=1, **fields), tmp_path)
    begun = [[(job.config.init_from, job.config.optimize.frozen) for job in jobs] for jobs in asked]
    assert (begun[0], {*begun[1]}) == ([('/warm', True)], {(None, False)})


@pytest.mark.parametrize(
    ('split_by', 'random_cells', 'told'),
    [
        (('position', 'position'), 0, False),
        (('content', 'content'), 1, False),
        (('position', 'content'), 0, True),
        (('position', None), 1, True),  # has not begun
        (('position', 'position'), 1, True),  # trainings begin now
    ],
)
@pytest.mark.usefixtures('asked')
def test_runs_that_split_a_folder_in_two_ways_are_told_once(
    tmp_path, split_by, random_cells, told, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    several_searches.write(tmp_path, seeds=(0, 1))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    for seed, how in enumerate(split_by):
        path = tmp_path / f'seed_{seed}' / 'run.json'
        content = json.loads(path.read_text())
        content.pop('data', None)
        if how == 'content':
            content['data'] = {'name': 'folder', 'split_by': 'content'}
        path.write_text(json.dumps(content if how else {}))
    folder = {'data.name': 'folder', 'data.dir': str(tmp_path / 'gone')}  # needed by no run here
    runner.run_sweep(_config(seeds=(0, 1), random_cells=random_cells, **folder), tmp_path)
    lines = [line for line in caplog.messages if 'have another test split than the other' in line]
    assert len(lines) == told
    assert all('seed_0' in line for line in lines)


# --- Paths


@pytest.mark.parametrize(
    ('spelled', 'moved'),
    [('./runs/m/', False), ('{here}/runs/m', False), ('link/m', False), ('renamed', True)],
)
def test_controls_know_the_networks_of_the_searches_wherever_the_workdir_is(
    tmp_path, monkeypatch, asked, spelled, moved
):
    monkeypatch.chdir(tmp_path)
    several_searches.write(tmp_path / 'runs' / 'm', seeds=(0,))
    config = _config(seeds=(0,), random_cells=1, plain_cells=('skip_connect',))
    for name in ('config.json', page.NAME):
        (tmp_path / 'runs' / 'm' / name).unlink()
    runner.run_sweep(config, 'runs/m')
    for job in asked[-1]:
        begun = tmp_path / 'runs' / 'm' / job.name
        begun.mkdir(parents=True, exist_ok=True)
        (begun / 'config.json').write_text(json.dumps(flatten(job.config)))
    if moved:
        shutil.move('runs/m', 'renamed')
    (tmp_path / 'link').symlink_to('runs')
    spelled = spelled.format(here=tmp_path)
    runner.run_sweep(config, spelled)
    assert {job.name.split('/')[0] for job in asked[-1]} == {'found', 'random', 'plain'}
    for job in asked[-1]:
        how = {'movable': initialization.START_FIELDS} if moved else {}
        changed = require_same_config(flatten(job.config), tmp_path / spelled / job.name, **how)
        assert changed == ({'genotype'} if moved else set())


def _of_pictures(tmp_path):
    """A finished search on a folder of pictures, and the config of a sweep with one more."""
    for k, name in enumerate(('cat', 'dog')):
        for i in range(4):
            picture(tmp_path / 'pics' / name / f'{i}.png', seed=10 * k + i)
    several_searches.write(tmp_path / 'm', seeds=(0,), controls=False)
    config = config_of('pics', seeds=(0, 1), **{'search.epochs': 1})
    (tmp_path / 'm' / 'config.json').write_text(json.dumps(flatten(config)))
    identity = dataset.identify(config.data, 'content')
    path = tmp_path / 'm' / 'seed_0' / 'run.json'
    content = {**json.loads(path.read_text()), 'data': identity.record}
    path.write_text(json.dumps(content))
    (tmp_path / 'm' / 'seed_0' / dataset.FILES).write_text(json.dumps(identity.files))
    several_searches.write(tmp_path / 'n', seeds=(1,), controls=False)
    shutil.move(tmp_path / 'n' / 'seed_1', tmp_path / 'm' / 'seed_1')  # so that all are finished
    return config


@pytest.mark.parametrize('place', ['pics/', '{here}/pics', 'moved'])
def test_sweep_goes_on_with_the_same_pictures_wherever_they_are(
    tmp_path, monkeypatch, asked, place
):
    monkeypatch.chdir(tmp_path)
    config = _of_pictures(tmp_path)
    if place == 'moved':
        shutil.move('pics', 'moved')
    config.data.dir = place.format(here=tmp_path)
    runner.run_sweep(config, 'm')
    assert [job.config.data.dir for job in asked[-1]] == [config.data.dir] * 2


@pytest.mark.parametrize('place', ['pics', 'other'])
@pytest.mark.usefixtures('asked')
def test_sweep_does_not_go_on_with_other_pictures(tmp_path, monkeypatch, place):
    """A finished search would be compared with searches on other pictures."""
    monkeypatch.chdir(tmp_path)
    config = _of_pictures(tmp_path)
    if place == 'other':
        shutil.copytree('pics', 'other')
    picture(tmp_path / place / 'cat' / 'new.png', seed=99)
    config.data.dir = place
    with pytest.raises(UserError, match=r"differ from .*seed_0: 1 picture is new: 'cat/new.png'"):
        runner.run_sweep(config, 'm')


# --- Scripts and pipes


@pytest.mark.parametrize('seeds', [(), (0, 1)])
def test_process_that_imports_its_script_again_searches_nothing(tmp_path, monkeypatch, seeds):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(multiprocessing.current_process(), '_inheriting', True, raising=False)
    monkeypatch.setattr(runner.process, 'exit_now', leave)
    with pytest.raises(SystemExit, match='1'):
        asose_jax.search(_config(seeds=seeds), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_process_that_ends_before_it_has_counted_devices_is_one_line(monkeypatch):
    class Broken(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, workers, mp_context):
            super().__init__(workers)

        def submit(self, *_):
            raise concurrent.futures.process.BrokenProcessPool('a process ended')

    monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Broken)
    with pytest.raises(UserError, match=r"under if __name__ == '__main__':") as told:
        placement.available_slots()
    assert '\n' not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize('way', ['file', 'standard input'])
def test_script_without_a_guard_is_told_of_it(root, tmp_path, way):
    (tmp_path / 'script.py').write_text(
        'import asose_jax\n'
        'from asose_jax.config import presets\n'
        "config = presets.get_config('digits')\n"
        'config.seeds = (0, 1)\n'
        "asose_jax.search(config, 'run')\n"
    )
    arguments = ['script.py'] if way == 'file' else ['-']
    with (tmp_path / 'script.py').open() as script:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
            stdin=script,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "under if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'run').exists()


def test_runs_are_followed_in_a_pipe_line_by_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    running = {k: types.SimpleNamespace(job=runner.Job(f'seed_{k}', _config())) for k in range(2)}
    for k in running:
        (tmp_path / f'seed_{k}').mkdir()

    def told():
        caplog.clear()
        update()
        return caplog.messages

    def evaluated(k, epoch):
        line = {'phase': 'search', 'epoch': epoch, 'valid/accuracy': 0.5}
        with (tmp_path / f'seed_{k}' / 'metrics.jsonl').open('a') as file:
            file.write(json.dumps(line) + '\n')

    caplog.set_level(logging.INFO, 'asose_jax')
    with runner._progress([], [], running, tmp_path, None) as update:
        assert told() == []  # before the first evaluation
        evaluated(0, 1)
        assert told() == ['seed_0: search 1, valid 50.0%']
        assert told() == []
        evaluated(0, 2)
        evaluated(1, 1)
        assert told() == ['seed_0: search 2, valid 50.0%', 'seed_1: search 1, valid 50.0%']


def test_log_of_each_run_is_named_when_it_starts(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    child = types.SimpleNamespace(start=lambda: None)
    context = types.SimpleNamespace(Process=lambda **_: child)
    monkeypatch.setattr(runner.process, 'SPAWN_CONTEXT', context)
    with caplog.at_level(logging.INFO, 'asose_jax'):
        for name in ('seed_0', 'found/seed_0', 'random/3'):
            runner._started(runner.Job(name, _config()), placement.Slot({}), tmp_path)
            assert caplog.messages[-1] == f'{name}: started; its log is {tmp_path / name}/log.txt'


@pytest.mark.parametrize('mode', ['search', 'retrain'])
@pytest.mark.parametrize('finished', [True, False])
def test_sweep_and_single_run_do_not_take_over_the_workdir_of_each_other(tmp_path, mode, finished):
    several_searches.write(tmp_path / 'sweep', seeds=(0, 1), controls=False)
    recorded.write(tmp_path / 'single', 'nasbench201', finished=finished, **SHORT)
    cell = '|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|'
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for name, seeds in (('sweep', ()), ('single', (0, 1))):
        config = _config(seeds=seeds, genotype=cell if mode == 'retrain' else None)
        config = retrain.retrain_config(config) if mode == 'retrain' else config
        with pytest.raises(UserError, match=r'Choose another --workdir') as told:
            runner.search(config, tmp_path / name)
        assert '\n' not in str(told.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


def test_several_hosts_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.jax.distributed, 'is_initialized', lambda: True)
    with pytest.raises(UserError, match=r'seeds=\(0, 1\): .* has joined other hosts'):
        runner.run_sweep(_config(seeds=(0, 1)), tmp_path / 'all')
    assert not (tmp_path / 'all').exists()


@pytest.mark.usefixtures('asked')
def test_the_end_of_all_leaves_a_page_of_all(tmp_path):
    several_searches.write(tmp_path, seeds=(0, 1))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    runner.run_sweep(_config(seeds=(0, 1), random_cells=3, plain_cells=('skip_connect',)), tmp_path)
    text = (tmp_path / page.NAME).read_text(encoding='utf-8')
    assert '2 of 2 searches are finished, 7 of 7 trainings from scratch.' in text


@pytest.mark.parametrize(
    ('stops', 'several', 'fields'),
    [
        pytest.param(
            (signal.SIGKILL,),
            {'seeds': (1,), 'random_cells': 1},
            {**FIELDS, 'model.depth': 1, 'model.reductions': (), 'model.primitives': FEW},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (signal.SIGTERM, signal.SIGKILL),
            {'seeds': (0, 1), 'random_cells': 2, 'plain_cells': ('nor_conv_3x3',)},
            FIELDS,
            marks=pytest.mark.soak,
        ),
    ],
    ids=['killed', 'stopped and killed'],
)
def test_searches_and_random_cells_go_on_after_a_stop_and_end_as_single_runs_do(
    root, tmp_path, stops, several, fields
):
    together, alone = tmp_path / 'together', tmp_path / 'alone'
    how = {'config': 'configs/search.py:nasbench201', 'environment': {'JAX_NUM_CPU_DEVICES': '1'}}
    for number in stops:
        stopped = Run(root, together, several, base=fields, **how)
        evaluations = 1 if number == signal.SIGTERM else 2
        assert stopped.wait_for(lambda _, n=evaluations: _evaluated(together, n)), stopped.output
        stopped.signal(number)
        status = stopped.wait()
        if number == signal.SIGTERM:
            assert status == 0, stopped.output
            assert 'to resume: python main.py' in stopped.output
        for seed in several['seeds']:
            wait_until_free(together / f'seed_{seed}')
    whole = Run(root, together, several, base=fields, **how)
    assert whole.wait() == 0, whole.output
    summary = json.loads((together / 'summary.json').read_text())
    seeds = [f'seed_{seed}' for seed in several['seeds']]
    assert [row['name'] for row in summary['searches']] == seeds
    plain = several.get('plain_cells', ())
    groups = (summary['random'], summary['found'], *(summary['plain'][name] for name in plain))
    counts = (several['random_cells'], *(len(seeds) for _ in ('found', *plain)))
    assert tuple(group['count'] for group in groups) == counts
    for name in plain:
        text = (together / 'plain' / name / 'seed_1' / 'genotype.txt').read_text()
        assert text.count(name) == 6
    assert (together / 'summary.md').read_text().strip() in whole.output
    links = Parsed((together / page.NAME).read_text(encoding='utf-8')).links
    assert {f'{name}/report.html' for name in seeds} <= set(links)

    with on_one_core():
        single = Run(root, alone, {'seed': 1}, base=fields, **how)
    assert single.wait() == 0, single.output
    assert lines_of(alone) == lines_of(together / 'seed_1')


def _evaluated(directory, count):
    """Whether one of the searches has left so many lines, and a checkpoint."""
    return any(
        _lines(seed) >= count and any((seed / 'checkpoints').glob('[0-9]*'))
        for seed in directory.glob('seed_*')
    )


def _lines(directory):
    try:
        return len((directory / 'metrics.jsonl').read_text().splitlines())
    except OSError:
        return 0
