"""A tracker gets every number once, whatever happens to it, and no run waits for it."""

import contextlib
import json
import math
import threading

import pytest

from asose_jax.report import tracker
from asose_jax.runtime.errors import Stopped, UserError


class Server:
    """A tracker: what it has got, and what is wrong with it.

    Args:
      away: requests fail.
      loses_answers: requests are carried out, and fail then.
      hangs: requests wait until `released`.
    """

    place, finish_seconds = 'Fake at nowhere', 20.0

    def __init__(self, away=False, loses_answers=False, hangs=False):
        self.away, self.loses_answers, self.hangs = away, loses_answers, hangs
        self.points, self.status, self.files, self.tries = [], None, None, 0
        self.asked, self.released = threading.Event(), threading.Event()

    def open(self):
        self.tries += 1
        self._arrive()
        return {point.step for point in self.points}

    def send(self, points):
        self._arrive()
        self.points += points
        if self.loses_answers:
            self.loses_answers = False
            raise ConnectionError('no answer')

    def finish(self, status, files):
        self._arrive()
        self.status, self.files = status, files

    def _arrive(self):
        self.asked.set()
        if self.hangs:
            self.released.wait()
        if self.away:
            raise ConnectionError('away,\nas ever')

    def got(self):
        return [(point.step, point.scalars) for point in self.points]


def _line(step):
    return {'step': step, 'phase': 'warmup', 'train/loss': 0.5 * step, 'seconds': 0.1}


def _written(*steps):
    """Lists the points that a tracker should have of `_line`."""
    return [(step, {'train/loss': 0.5 * step, 'seconds': 0.1}) for step in steps]


def _finished(workdir, *steps):
    """Files of a finished run."""
    (workdir / 'checkpoints' / '8' / 'state').mkdir(parents=True)
    (workdir / 'checkpoints' / '10' / 'state').mkdir(parents=True)
    for name in (
        'config.json',
        'summary.json',
        'report.html',
        'checkpoints/10/state/d',
        'run.json',
    ):
        (workdir / name).write_text('{}')
    (workdir / 'checkpoints' / '8' / 'state' / 'd').touch()
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(_line(s)) + '\n' for s in steps))


def _messages(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_what_was_evaluated_while_the_server_was_away_arrives_once_it_is_back(tmp_path, caplog):
    _finished(tmp_path)
    server = Server(away=True)
    with tracker.Tracker(server, tmp_path, retry_seconds=0.001) as sender:
        sender.write(_line(4))
        sender.write(_line(8))
        while server.tries < 3:
            threading.Event().wait(0.001)
        server.away = False
        sender.write(_line(10))
    assert server.got() == _written(4, 8, 10)
    assert server.status == tracker.FINISHED
    (warning,) = _messages(caplog, 'cannot be reached')
    assert '(ConnectionError: away, as ever)' in warning
    assert 'metrics.jsonl has all numbers' in warning


def test_points_whose_answer_was_lost_are_not_sent_again(tmp_path):
    _finished(tmp_path)
    server = Server(loses_answers=True)
    with tracker.Tracker(server, tmp_path, retry_seconds=0.001) as sender:
        sender.write(_line(4))
        while server.loses_answers:
            threading.Event().wait(0.001)
        sender.write(_line(8))
    assert server.got() == _written(4, 8)


def test_run_that_goes_on_sends_what_the_server_has_not(tmp_path):
    _finished(tmp_path, 2, 4, 6)
    server = Server()
    server.points = [tracker.Point(step, 0.0, dict(_written(step)[0][1])) for step in (2, 6, 8)]
    with tracker.Tracker(server, tmp_path) as sender:
        for step in (8, 10):  # 8 was sent before the process was killed
            sender.write(_line(step))
    assert sorted(step for step, _ in server.got()) == [2, 4, 6, 8, 10]


def test_end_of_a_run_does_not_wait_for_a_server_that_is_away(tmp_path, caplog):
    _finished(tmp_path)
    server = Server(away=True)
    server.finish_seconds = 1200.0  # is not waited for
    with tracker.Tracker(server, tmp_path) as sender:
        sender.write(_line(4))
        sender.write(_line(8))
    (warning,) = _messages(caplog, 'has not got all')
    assert '2 evaluations and files are missing (ConnectionError' in warning
    assert 'The same command sends them' in warning


def test_end_of_a_run_waits_a_bounded_time_for_a_server_that_hangs(tmp_path, caplog):
    _finished(tmp_path)
    server = Server(hangs=True)
    server.finish_seconds = 0.05
    with tracker.Tracker(server, tmp_path) as sender:
        assert server.asked.wait(20)
        sender.write(_line(4))  # does not wait either
    (warning,) = _messages(caplog, 'has not got all')
    assert '1 evaluation and files are missing (no answer in 0 s' in warning
    server.released.set()


@pytest.mark.parametrize(
    ('error', 'status'),
    [(None, 'finished'), (Stopped('by SIGTERM'), 'stopped'), (UserError('diverged'), 'failed')],
)
def test_tracker_learns_how_a_run_ended_and_gets_files_of_a_finished_one(tmp_path, error, status):
    _finished(tmp_path)
    server = Server()
    ends = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with ends, tracker.Tracker(server, tmp_path):
        if error is not None:
            raise error
    assert server.status == status
    if error is not None:
        assert server.files is None
        return
    assert set(server.files.report) == {'report.html', 'config.json', 'summary.json'}
    model = {'config.json', 'run.json', 'summary.json', 'checkpoints/10/state/d'}
    assert set(server.files.model) == model


def test_numbers_that_are_not_finite_are_left_out_as_in_tensorboard(tmp_path):
    _finished(tmp_path)
    server = Server()
    with tracker.Tracker(server, tmp_path) as sender:
        line = {
            'valid/loss': math.nan,
            'tau': None,
            'arch/loss': math.inf,
            'alarms': [],
            'ok': True,
        }
        sender.write({**_line(4), **line})
    assert server.got() == _written(4)


def test_id_of_a_run_stays_and_a_damaged_one_is_replaced(tmp_path):
    drawn = tracker.identity(tmp_path)
    assert tracker.identity(tmp_path) == drawn
    (tmp_path / tracker.FILE).write_text('{"id": "')
    assert tracker.identity(tmp_path) not in ('', drawn)
    assert {path.name for path in tmp_path.iterdir()} == {tracker.FILE}


def test_name_of_a_run_is_its_folder_and_that_of_its_sweep(tmp_path):
    single, sweep, front = (tmp_path / name for name in ('digits', 'several', 'front'))
    for directory, config in (
        (single, {'seeds': []}),
        (sweep, {'seeds': [0, 1]}),
        (front, {'seeds': [0], 'cost.targets': [1e5, 2e5]}),
    ):
        directory.mkdir()
        (directory / 'config.json').write_text(json.dumps(config))
    assert tracker.name_of(single) == 'digits'
    assert tracker.name_of(front / 'flops_100000' / 'seed_0') == 'front/flops_100000/seed_0'
    assert tracker.name_of(sweep / 'seed_0') == 'several/seed_0'
    assert tracker.name_of(sweep / 'plain' / 'none' / 'seed_1') == 'several/plain/none/seed_1'
