"""Whatever ends the process, the same command goes on, and ends as if nothing had happened."""

import pathlib
import random
import re
import resource
import signal
import statistics
import time

import chex
import pytest
from helpers.command import FIELDS, Run, says
from helpers.damage import flip
from helpers.runs import final_state, lines_of, page_of, summary_of, tiny


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    """A run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    run = Run(root, workdir)
    assert run.wait() == 0, run.told
    for phase in ('warmup', 'search', 'growth', 'optimize'):
        assert f'{phase}: ' in run.told
    return workdir, _end_of(workdir)


def _end_of(workdir):
    config = tiny(**FIELDS)
    return lines_of(workdir), summary_of(workdir), final_state(workdir, config)


def _assert_same_end(workdir, whole):
    (lines, summary, state), expected = _end_of(workdir), whole[1]
    assert lines == expected[0]
    assert summary == expected[1]
    assert state[:2] == expected[2][:2]
    chex.assert_trees_all_equal(state[2], expected[2][2])
    texts = [(place / 'genotype.json').read_text() for place in (workdir, whole[0])]
    assert texts[0] == texts[1]
    assert page_of(workdir) == page_of(whole[0])


def _more(run):
    """Whether there is a checkpoint that was not there when this was made."""
    before = run.steps()
    return lambda run: bool(run.steps() - before)


# What to wait for before a kill; a random part of `seconds` comes on top.
MOMENTS = {
    'start': (lambda run: lambda _: True, 6.0),
    'progress': (_more, 0.3),
    'saving': (lambda run: lambda run: run.saving(), 0.02),
    'after a save': (_more, 0.02),
    'search begins': (lambda run: says('search: 2 epochs'), 0.5),
    'growth begins': (lambda run: says('growth: 4 epochs'), 0.5),
    'grown': (lambda run: says('logits changed by'), 0.2),
    'optimize begins': (lambda run: says('optimize: 1 epochs'), 0.3),
    'end': (lambda run: says('optimize 1/1'), 0.5),
}


def _kill_until(root, workdir, moments, chance):
    """Runs the command again and again, killed at these moments, until it ends; tells the kills."""
    kills = []
    for name in moments:
        run = Run(root, workdir)
        wait, seconds = MOMENTS[name]
        reached = run.wait_for(wait(run))
        time.sleep(chance.uniform(0, seconds) if reached else 0)
        ended = run.process.poll()
        run.kill()
        if ended is not None:
            assert ended == 0, run.told
            return kills
        kills.append(name)
    run = Run(root, workdir)
    assert run.wait() == 0, run.told
    return kills


def test_run_killed_five_times_ends_bit_for_bit_as_the_whole_one(root, tmp_path, whole):
    moments = ['progress', 'saving', 'growth begins', 'grown', 'optimize begins']
    kills = _kill_until(root, tmp_path, moments, random.Random(0))
    assert kills == moments
    _assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_runs_killed_fifty_times_end_bit_for_bit_as_the_whole_one(root, tmp_path, whole):
    chance, kills, number = random.Random(1), [], 0
    while len(kills) < 50:
        moments = chance.choices([*MOMENTS], k=50 - len(kills))
        workdir = tmp_path / str(number)
        kills += _kill_until(root, workdir, moments, chance)
        _assert_same_end(workdir, whole)
        number += 1
    assert len(set(kills)) > len(MOMENTS) / 2


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_asked_to_stop_it_saves_says_how_to_go_on_and_exits_in_good_order(
    root, tmp_path, whole, number
):
    fields = {'checkpoint.every_seconds': 1000}  # it is the signal that saves
    run = Run(root, tmp_path, fields)
    assert run.wait_for(says('search 1/2'))
    run.process.send_signal(number)
    assert run.wait() == 0, run.told
    stopped = re.search(r'stopped and saved at step (\d+) of 44 \(\w+\); to go on: (.*)', run.told)
    assert stopped, run.told
    assert int(stopped[1]) in run.steps()
    assert f'--workdir={tmp_path}' in stopped[2]
    assert 'Traceback' not in run.told
    again = Run(root, tmp_path, fields)
    assert again.wait() == 0, again.told
    assert f'going on from step {stopped[1]}' in again.told
    _assert_same_end(tmp_path, whole)


def test_asked_to_stop_before_training_it_stops_at_once(root, tmp_path):
    slow = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # leaves seconds to ask in
    run = Run(root, tmp_path, {'model.depth': 12}, environment=slow)
    assert run.wait_for(says(' train, '))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0, run.told
    assert 'stopped by SIGTERM; to go on: ' in run.told
    assert 'Traceback' not in run.told


@pytest.mark.slow
def test_second_process_on_a_workdir_is_refused(root, tmp_path):
    first = Run(root, tmp_path)
    assert first.wait_for(lambda run: run.steps())
    second = Run(root, tmp_path)
    assert second.wait() == 2
    assert f'another process is at work in {tmp_path}' in second.told
    assert 'Traceback' not in second.told
    assert first.process.poll() is None, first.told
    first.kill()


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(root, tmp_path, whole):
    run = Run(root, tmp_path)
    assert run.wait_for(lambda run: len(run.steps()) > 2)
    run.kill()
    newest = tmp_path / 'checkpoints' / str(max(run.steps()))
    for path in (newest / 'state').rglob('*'):
        if path.is_file() and path.parent.name == 'd':
            flip(path)
    again = Run(root, tmp_path)
    assert again.wait() == 0, again.told
    assert f'checkpoint {newest / "state"} cannot be read' in again.told
    assert f'It is in {tmp_path / "damaged" / newest.name} now' in again.told
    assert 'Traceback' not in again.told
    _assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_full_disk_while_saving_is_told_and_the_checkpoint_before_is_whole(root, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    fields = {'chunk_steps': 1}
    full = Run(root, tmp_path, fields)
    assert full.wait_for(lambda run: run.steps())
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    kept = max(full.steps())
    assert full.wait() == 2, full.told
    assert 'could not be written' in full.told
    assert 'the same command goes on' in ' '.join(full.told.split())
    assert 'Traceback' not in full.told
    assert f'checkpoints/{max(full.steps())} is whole' in full.told
    assert kept <= max(full.steps())
    final_state(tmp_path, tiny(**FIELDS))  # reads it, checksums and all


@pytest.mark.slow
def test_full_disk_while_logging_is_told_and_nothing_is_lost(root, tmp_path, whole):
    fields = {'checkpoint.every_seconds': 1000}
    full = Run(root, tmp_path, fields)
    assert full.wait_for(says('search: 2 epochs'))
    size = (tmp_path / 'metrics.jsonl').stat().st_size + 100  # the next line is longer
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (size, size))
    assert full.wait() == 2, full.told
    assert 'metrics.jsonl: File too large. Put that right' in full.told
    assert 'Traceback' not in full.told
    again = Run(root, tmp_path, fields)
    assert again.wait() == 0, again.told
    _assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_memory_does_not_creep(root, tmp_path):
    """Resident memory over a thousand evaluations of one network, without saves and pages.

    Orbax 0.12.8 keeps some 60 KB of each save for itself, which is not of this program's making. A
    page needs what it is told: it reads all of metrics.jsonl, and gives that back when it is drawn.
    """
    without_pages = (
        'import runpy; from asose_jax import page; page.Page.draw = lambda *_, **__: None; '
        "runpy.run_path('main.py', run_name='__main__')"
    )
    phases = {'search.epochs': 0, 'growth.epochs': 0, 'optimize.epochs': 0}
    fields = {'checkpoint.every_seconds': 1000, 'warmup.epochs': 1500, **phases}
    run = Run(root, tmp_path, fields, program=('-c', without_pages))
    assert run.wait_for(says('warmup 400/1500'))
    samples = []
    while run.wait_for(lambda _: True) and 'warmup 1400/1500' not in run.told:
        status = pathlib.Path(f'/proc/{run.process.pid}/statm').read_text().split()
        samples.append(int(status[1]) * resource.getpagesize() / 2**20)
        time.sleep(0.25)
    assert run.wait() == 0, run.told
    third = len(samples) // 3
    early, late = (statistics.median(part) for part in (samples[:third], samples[-third:]))
    assert late - early < 3, samples[:: max(1, len(samples) // 40)]
