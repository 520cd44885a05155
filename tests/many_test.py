"""Several searches in one command: real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import several_searches
from helpers.runs import lines_of

from asose_jax import many, page
from asose_jax.config import flatten
from asose_jax.errors import UserError
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


def test_what_stopped_one_of_the_runs_is_told_with_its_log(tmp_path):
    with pytest.raises(UserError) as error:
        many.run(_config(**{'seeds': (5,), 'data.name': 'cifar11'}), tmp_path)
    for part in ('seed_5 ended with status 2', 'log.txt', "data.name='cifar11'", 'Did you mean'):
        assert part in str(error.value)


def test_seeds_may_be_added_and_nothing_else_may_change(tmp_path):
    (tmp_path / 'config.json').write_text(
        json.dumps({**flatten(_config(seeds=(0,))), 'search.epochs': 7})
    )
    with pytest.raises(UserError, match=r'another config:\n  search.epochs: 7 -> 2\n'):
        many.run(_config(seeds=(0, 1)), tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The jobs that were to be run, a list for each time; none of them is."""
    found = []
    monkeypatch.setattr(many.process, 'places', list)
    monkeypatch.setattr(many, 'run_all', lambda jobs, *rest, **how: found.append(jobs))
    return found


def test_random_cells_keep_their_seed_and_network_when_seeds_are_added(tmp_path, asked):
    several_searches.write(tmp_path, seeds=(0, 1, 2))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    for seeds in ((0, 1), (0, 1, 2)):
        many.run(_config(seeds=seeds, random_cells=3), tmp_path)
        job = next(job for job in asked[-1] if job.name == 'random/2')
        assert job.config.seed == 0
        begun = tmp_path / job.name
        begun.mkdir(exist_ok=True)
        (begun / 'config.json').write_text(json.dumps(flatten(job.config)))


def test_controls_of_searches_that_began_with_another_run_begin_anew(tmp_path, asked):
    several_searches.write(tmp_path, seeds=(0,))
    (tmp_path / 'config.json').unlink()
    many.run(_config(seeds=(0,), random_cells=1, init_from='/warm'), tmp_path)
    searches, controls = asked
    assert [job.config.init_from for job in searches] == ['/warm']
    assert {job.config.init_from for job in controls} == {None}


def test_several_hosts_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(many.jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match=r'seeds=\(0, 1\): .* these are 2 hosts'):
        many.run(_config(seeds=(0, 1)), tmp_path / 'all')
    assert not (tmp_path / 'all').exists()


@pytest.mark.usefixtures('asked')
def test_the_end_of_all_leaves_a_page_of_all(tmp_path):
    several_searches.write(tmp_path, seeds=(0, 1))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    many.run(_config(seeds=(0, 1), random_cells=3, plain_cells=('skip_connect',)), tmp_path)
    text = (tmp_path / page.NAME).read_text(encoding='utf-8')
    assert '2 of 2 searches are finished, 7 of 7 trainings beside them.' in text


@pytest.mark.slow
def test_searches_and_random_cells_go_on_after_a_stop_and_end_as_single_runs_do(root, tmp_path):
    fields = {**FIELDS, 'seeds': (0, 1), 'random_cells': 2, 'plain_cells': ('nor_conv_3x3',)}
    command = [
        sys.executable,
        'main.py',
        '--config=configs/search.py:nasbench201',
        *(f'--config.{name}={value}' for name, value in fields.items()),
    ]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    together = tmp_path / 'together'

    def started():
        return subprocess.Popen(
            [*command, f'--workdir={together}'],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    for how in (signal.SIGTERM, signal.SIGKILL):
        stopped = started()
        waited = time.monotonic() + 240
        steps = 3 if how == signal.SIGTERM else 6
        while not any(
            len(list((together / f'seed_{s}' / 'checkpoints').glob('[0-9]*')))
            and _lines(together / f'seed_{s}') >= steps // 3
            for s in (0, 1)
        ):
            assert time.monotonic() < waited
            time.sleep(0.2)
        stopped.send_signal(how)
        told = stopped.communicate(timeout=120)[1]
        if how == signal.SIGTERM:
            assert stopped.returncode == 0
            assert 'to go on: python main.py' in told
        time.sleep(20 if how == signal.SIGKILL else 0)  # until its children have saved and ended
    whole = started()
    told = whole.communicate(timeout=500)[1]
    assert whole.returncode == 0, told
    summary = json.loads((together / 'summary.json').read_text())
    assert [row['name'] for row in summary['searches']] == ['seed_0', 'seed_1']
    groups = (summary['random'], summary['found'], summary['plain']['nor_conv_3x3'])
    assert [group['count'] for group in groups] == [2, 2, 2]
    text = (together / 'plain' / 'nor_conv_3x3' / 'seed_1' / 'genotype.txt').read_text()
    assert text.count('nor_conv_3x3') == 6
    assert (together / 'summary.md').read_text().strip() in told
    links = several_searches.Parsed((together / page.NAME).read_text(encoding='utf-8')).links
    assert {'seed_0/report.html', 'seed_1/report.html'} <= set(links)

    alone = tmp_path / 'alone'
    several = ('seeds', 'random_cells', 'plain_cells')
    single = [part for part in command if not any(field in part for field in several)]
    done = subprocess.run(
        ['taskset', '-c', '0', *single, '--config.seed=1', f'--workdir={alone}'],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert lines_of(alone) == lines_of(together / 'seed_1')


def _lines(directory):
    try:
        return len((directory / 'metrics.jsonl').read_text().splitlines())
    except OSError:
        return 0
