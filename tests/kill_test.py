"""Whatever ends the process, the same command goes on, and ends as if nothing had happened."""

import pathlib
import random
import re
import resource
import signal
import statistics

import chex
import pytest
from helpers.command import ForkedRun, more, says
from helpers.damage import flip
from helpers.runs import WHOLE, assert_same_end, final_state, make_whole, tiny

from asose_jax.pipeline import single_run
from asose_jax.runtime.errors import UserError
from asose_jax.runtime.workdir import locked

CONFIG = tiny(**WHOLE)
OFTEN = {'checkpoint.every_seconds': 0}  # after every call; else at the ends of phases and growths
COLD = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # shares no programs with those before


@pytest.fixture(scope='session')
def whole(shared):
    """A run that nothing has disturbed, in the process of a test."""
    return shared('whole', make_whole) / 'run'


def _more(run):
    """Whether there is a checkpoint that was not there when this was made."""
    before = run.steps()
    return lambda run: bool(run.steps() - before)


# What to wait for before a kill; a random number of events, less than that, comes on top.
MOMENTS = {
    'start': (lambda run: lambda _: True, 25),
    'progress': (_more, 10),
    'saving': (lambda run: lambda run: run.saving(), 2),
    'after a save': (_more, 2),
    'search begins': (lambda run: says('search: 2 epochs'), 10),
    'growth begins': (lambda run: says('growth: 6 epochs'), 10),
    'grown': (lambda run: says('logits changed by'), 6),
    'optimize begins': (lambda run: says('optimize: 1 epochs'), 6),
    'end': (lambda run: says('optimize 1/1'), 10),
}


def _killed(root, workdir, name, chance):
    """Runs the command, killed at this moment; tells whether it was, or had ended before."""
    run = ForkedRun(root, workdir, OFTEN)
    wait, events = MOMENTS[name]
    if run.wait_for(wait(run)):
        run.wait_for(more(chance.randrange(events)))
    ended = run.status()
    run.kill()
    assert ended in (None, 0), run.output
    return ended is None


def _kill_until(root, workdir, moments, chance):
    """Runs the command again and again, killed at these moments, until it ends; tells the kills."""
    kills = []
    for name in moments:
        if not _killed(root, workdir, name, chance):
            return kills
        kills.append(name)
    run = ForkedRun(root, workdir, OFTEN)
    assert run.wait() == 0, run.output
    return kills


def test_process_that_is_killed_leaves_the_checkpoint_of_the_whole_one(root, tmp_path, whole):
    """The end of warmup; single_run_test has what goes on from a checkpoint."""
    killed = ForkedRun(root, tmp_path)
    assert killed.wait_for(lambda run: 4 in run.steps()), killed.output
    killed.kill()
    ours, theirs = (final_state(workdir, CONFIG, step=4) for workdir in (tmp_path, whole))
    assert ours[:2] == theirs[:2]
    chex.assert_trees_all_equal(ours[2], theirs[2])


def _stopped_in_good_order(root, workdir, moment, number):
    """The step at which the run was saved, because of the signal."""
    run = ForkedRun(root, workdir)
    assert run.wait_for(moment), run.output
    run.signal(number)
    assert run.wait() == 0, run.output
    stopped = re.search(
        r'stopped and saved at step (\d+) of 56 \(\w+\); to resume: (.*)', run.output
    )
    assert stopped, run.output
    assert int(stopped[1]) in run.steps()
    assert f'--workdir={workdir}' in stopped[2]
    assert 'Traceback' not in run.output
    return int(stopped[1])


@pytest.mark.soak
@pytest.mark.parametrize('seed', [1, 2])
def test_runs_killed_fifty_times_end_bit_for_bit_as_the_whole_one(root, tmp_path, whole, seed):
    """Half of the times with each seed."""
    chance, kills, number = random.Random(seed), [], 0
    while len(kills) < 25:
        moments = chance.choices([*MOMENTS], k=25 - len(kills))
        workdir = tmp_path / str(number)
        kills += _kill_until(root, workdir, moments, chance)
        assert_same_end(workdir, whole, CONFIG)
        number += 1
    assert len(set(kills)) > len(MOMENTS) / 2


@pytest.mark.slow
def test_run_killed_and_asked_to_stop_and_killed_ends_bit_for_bit_as_the_whole_one(
    root, tmp_path, whole
):
    """The last process compiles anew."""
    chance = random.Random(7)  # few events: no run has ended by then
    assert _killed(root, tmp_path, 'saving', chance)
    _stopped_in_good_order(root, tmp_path, says('growth 2/6'), signal.SIGTERM)
    assert _killed(root, tmp_path, 'grown', chance)
    last = ForkedRun(root, tmp_path, environment=COLD)
    assert last.wait() == 0, last.output
    assert_same_end(tmp_path, whole, CONFIG)


@pytest.mark.soak
def test_stopped_from_the_keyboard_it_saves_and_goes_on_at_that_step(root, tmp_path, whole):
    step = _stopped_in_good_order(root, tmp_path, says('growth 2/6'), signal.SIGINT)
    again = ForkedRun(root, tmp_path)
    assert again.wait() == 0, again.output
    assert f'going on from step {step}' in again.output
    assert_same_end(tmp_path, whole, CONFIG)


_COMPILING_FOR_LONG = """
import sys, time
from asose_jax.train import pmap

def compile_for_ever(*_, **__):
    print('the compiler is at work', file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)

pmap._compile = compile_for_ever
"""


def test_asked_to_stop_before_training_it_stops_at_once(root, tmp_path):
    run = ForkedRun(root, tmp_path, code=_COMPILING_FOR_LONG)
    assert run.wait_for(says('the compiler is at work')), run.output
    run.signal(signal.SIGTERM)
    assert run.wait() == 0, run.output
    assert 'stopped by SIGTERM; to resume: ' in run.output
    assert 'Traceback' not in run.output


def test_workdir_in_which_a_run_is_at_work_is_refused(tmp_path):
    told = f'another process is at work in {tmp_path}'
    with locked(tmp_path), pytest.raises(UserError, match=told):
        single_run.run(CONFIG, tmp_path)


@pytest.mark.slow
def test_second_process_on_a_workdir_is_refused(root, tmp_path):
    with locked(tmp_path):
        second = ForkedRun(root, tmp_path)
        assert second.wait() == 2
    assert f'another process is at work in {tmp_path}' in second.output
    assert 'Traceback' not in second.output


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(root, tmp_path, whole):
    run = ForkedRun(root, tmp_path, OFTEN)
    assert run.wait_for(lambda run: len(run.steps()) > 2)
    run.kill()
    newest = tmp_path / 'checkpoints' / str(max(run.steps()))
    for path in (newest / 'state').rglob('*'):
        if path.is_file() and path.parent.name == 'd':
            flip(path)
    again = ForkedRun(root, tmp_path, OFTEN)
    assert again.wait() == 0, again.output
    assert f'checkpoint {newest / "state"} cannot be read' in again.output
    assert f'Moved it to {tmp_path / "damaged" / newest.name};' in again.output
    assert 'Traceback' not in again.output
    assert_same_end(tmp_path, whole, CONFIG)


@pytest.mark.slow
def test_full_disk_while_saving_is_told_and_the_checkpoint_before_is_whole(root, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    wide = {'model.channels': 64}  # its checkpoints are larger than all that is logged
    full = ForkedRun(root, tmp_path, {**OFTEN, **wide})
    assert full.wait_for(lambda run: run.steps())
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    kept = max(full.steps())
    assert full.wait() == 2, full.output
    assert 'could not be written' in full.output
    assert 'run the same command again' in ' '.join(full.output.split())
    assert 'Traceback' not in full.output
    assert f'checkpoints/{max(full.steps())}. Fix the disk' in full.output
    assert kept <= max(full.steps())
    final_state(tmp_path, tiny(**{**WHOLE, **wide}))  # reads it, checksums and all


@pytest.mark.soak
def test_full_disk_while_logging_is_told_and_nothing_is_lost(root, tmp_path, whole):
    full = ForkedRun(root, tmp_path)
    assert full.wait_for(says('search: 2 epochs'))
    size = (tmp_path / 'metrics.jsonl').stat().st_size + 100  # the next line is longer
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (size, size))
    assert full.wait() == 2, full.output
    assert 'metrics.jsonl cannot be written: File too large. Free some space' in full.output
    assert 'Traceback' not in full.output
    again = ForkedRun(root, tmp_path)
    assert again.wait() == 0, again.output
    assert_same_end(tmp_path, whole, CONFIG)


@pytest.mark.soak
def test_memory_does_not_creep(root, tmp_path):
    """Resident memory over a thousand evaluations of one network, without saves and pages.

    Orbax 0.12.8 keeps some 60 KB of each save for itself, which is not of this program's making. A
    page needs what it is told: it reads all of metrics.jsonl, and gives that back when it is drawn.
    """
    without_pages = 'from asose_jax.report import page; page.Page.draw = lambda *_, **__: None'
    fields = {'search.epochs': 0, 'growth.epochs': 0, 'optimize.epochs': 0, 'warmup.epochs': 1500}
    run = ForkedRun(root, tmp_path, fields, code=without_pages)
    samples = []
    for evaluation in range(400, 1400, 10):
        assert run.wait_for(says(f'warmup {evaluation}/1500')), run.output
        status = pathlib.Path(f'/proc/{run.process.pid}/statm').read_text().split()
        samples.append(int(status[1]) * resource.getpagesize() / 2**20)
    assert run.wait() == 0, run.output
    third = len(samples) // 3
    early, late = (statistics.median(part) for part in (samples[:third], samples[-third:]))
    assert late - early < 3, samples[:: max(1, len(samples) // 40)]
