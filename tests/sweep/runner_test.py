"""Several searches in one command: real processes."""

import contextlib
import json
import logging
import os
import signal

import pytest
from helpers import recorded, several_searches
from helpers.command import Run, wait_until_free
from helpers.pages import SHORT, Parsed
from helpers.runs import lines_of

from asose_jax.config import retrain
from asose_jax.config.consistency import flatten
from asose_jax.report import page
from asose_jax.runtime.errors import UserError
from asose_jax.sweep import runner
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
    runner.run_sweep(_config(seeds=(0,), random_cells=1, init_from='/warm'), tmp_path)
    searches, controls = asked
    assert [job.config.init_from for job in searches] == ['/warm']
    assert {job.config.init_from for job in controls} == {None}


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
    folder = {'data.name': 'folder', 'data.dir': str(tmp_path)}
    runner.run_sweep(_config(seeds=(0, 1), random_cells=random_cells, **folder), tmp_path)
    lines = [line for line in caplog.messages if 'have another test split than the other' in line]
    assert len(lines) == told
    assert all('seed_0' in line for line in lines)


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
    ('stops', 'several'),
    [
        pytest.param((signal.SIGKILL,), {'seeds': (1,), 'random_cells': 1}, marks=pytest.mark.slow),
        pytest.param(
            (signal.SIGTERM, signal.SIGKILL),
            {'seeds': (0, 1), 'random_cells': 2, 'plain_cells': ('nor_conv_3x3',)},
            marks=pytest.mark.soak,
        ),
    ],
    ids=['killed', 'stopped and killed'],
)
def test_searches_and_random_cells_go_on_after_a_stop_and_end_as_single_runs_do(
    root, tmp_path, stops, several
):
    together, alone = tmp_path / 'together', tmp_path / 'alone'
    how = {'config': 'configs/search.py:nasbench201', 'environment': {'JAX_NUM_CPU_DEVICES': '1'}}
    for number in stops:
        stopped = Run(root, together, several, base=FIELDS, **how)
        evaluations = 1 if number == signal.SIGTERM else 2
        assert stopped.wait_for(lambda _, n=evaluations: _evaluated(together, n)), stopped.output
        stopped.signal(number)
        status = stopped.wait()
        if number == signal.SIGTERM:
            assert status == 0, stopped.output
            assert 'to resume: python main.py' in stopped.output
        for seed in several['seeds']:
            wait_until_free(together / f'seed_{seed}')
    whole = Run(root, together, several, base=FIELDS, **how)
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

    with _on_one_core():
        single = Run(root, alone, {'seed': 1}, base=FIELDS, **how)
    assert single.wait() == 0, single.output
    assert lines_of(alone) == lines_of(together / 'seed_1')


@contextlib.contextmanager
def _on_one_core():
    """Of this thread, and of the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
