"""Sends the evaluations of a run to a tracker such as MLflow, while the run trains.

A thread of its own sends, so that no step waits for a server. Nothing is lost while the server is
away: it is asked which steps it has, and gets the others from memory or, when a run goes on, from
metrics.jsonl. So no record of what was sent is kept here, which could be wrong after a kill.
"""

import collections
import json
import logging
import pathlib
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from asose_jax.metrics import run_record
from asose_jax.report import page
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import counted

logger = logging.getLogger('asose_jax')

FILE = 'tracker.json'  # has the id under which trackers know the run
FINISHED, STOPPED, FAILED = 'finished', 'stopped', 'failed'
_RETRY_SECONDS = 5.0  # after the first failure; twice as long after each further one
_LONGEST_RETRY_SECONDS = 120.0
_BYTES_PER_SECOND = 1e6  # of files; a slower server does not get all of them
# What `asose_jax.load` needs beside the last checkpoint.
_MODEL_FILES = ('config.json', 'run.json', 'genotype.json', 'summary.json')
_REPORT_FILES = (page.NAME, 'config.json', 'genotype.json', 'network.txt', 'summary.json')


class Point(NamedTuple):
    """The scalars of one evaluation.

    Attributes:
      step: of the run.
      seconds: when it was evaluated, since 1970.
      scalars: finite numbers by name, as in TensorBoard.
    """

    step: int
    seconds: float
    scalars: dict[str, float]


class Files(NamedTuple):
    """Files of a finished run, by the names that they get in the tracker.

    Attributes:
      report: results to be read.
      model: a folder that `asose_jax.load` reads.
    """

    report: dict[str, pathlib.Path]
    model: dict[str, pathlib.Path]


class Client(Protocol):
    """Talks to one kind of tracker. Any call may raise, wait for a while, and be repeated.

    Attributes:
      place: name and address of the tracker, for the log.
      finish_seconds: how long the end of a run may wait for it, without the time for files.
    """

    place: str
    finish_seconds: float

    def open(self) -> Collection[int]:
        """Finds the run by its id, or creates it; returns the steps that the tracker has."""
        ...

    def send(self, points: Sequence[Point]) -> None:
        """Sends evaluations, in the order of steps."""
        ...

    def finish(self, status: str, files: Files | None) -> None:
        """Sends the files of a finished run, and closes it as finished, stopped or failed."""
        ...


class Tracker:
    """Sends a run to its tracker, from when this context is entered until it is left.

    Leaving it waits for a bounded time; a warning says what the tracker has not got.

    Args:
      client: of the tracker; `None` sends nothing.
      directory: workdir of the run.
      retry_seconds: time between two tries to reach a tracker that is away, at first.
    """

    def __init__(
        self,
        client: Client | None,
        directory: pathlib.Path,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Sends nothing yet; see the class for the arguments."""
        self._client, self._directory = client, directory
        self._retry_seconds = retry_seconds
        self._pending: collections.deque[Point] = collections.deque()
        self._news = threading.Condition()
        self._ending: str | None = None  # the status of a run that has ended
        self._files: Files | None = None
        self._error: Exception | None = None  # why sending ended early
        self._thread = threading.Thread(target=self._work, name='tracker', daemon=True)

    def __enter__(self) -> 'Tracker':
        """Begins with what metrics.jsonl has already."""
        if self._client is not None:
            for line in run_record.read(self._directory).lines:
                self.write(line)
            self._thread.start()
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        """Has an evaluation sent, soon; does not wait.

        Args:
          record: the line of metrics.jsonl.
        """
        if self._client is not None:
            with self._news:
                point = Point(record['step'], time.time(), run_record.scalars(record))
                self._pending.append(point)
                self._news.notify()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        """Sends the rest, and the files of a run that has ended without an error."""
        if self._client is None:
            return
        seconds = self._client.finish_seconds
        with self._news:
            self._ending = FINISHED
            if kind is not None:
                self._ending = FAILED if issubclass(kind, Exception) else STOPPED
            else:
                self._files = files_of(self._directory)
                paths = {*self._files.report.values(), *self._files.model.values()}
                seconds += sum(path.stat().st_size for path in paths) / _BYTES_PER_SECOND
            self._news.notify()
        self._thread.join(seconds)
        if self._thread.is_alive() or self._error is not None:
            logger.warning(
                '%s has not got all of this run: %s and %s are missing (%s). The same command '
                'sends them; metrics.jsonl has all numbers.',
                self._client.place,
                counted(len(self._pending), 'evaluation'),
                'its status' if self._files is None else 'files',
                f'no answer in {seconds:.0f} s' if self._error is None else _line(self._error),
            )

    def _work(self) -> None:
        """Sends until the run has ended; the thread's main function."""
        assert self._client is not None
        known: Collection[int] | None = None  # steps that the tracker had when it was last asked
        is_away, delay = False, self._retry_seconds
        while True:
            try:
                if known is None:
                    known = self._client.open()
                    logger.info('%s gets the numbers of this run', self._client.place)
                self._send_pending(known)
                is_away, delay = False, self._retry_seconds
                if self._ending is not None and not self._pending:
                    self._client.finish(self._ending, self._files)
                    return
                with self._news:
                    self._news.wait_for(lambda: self._pending or self._ending is not None)
            except Exception as error:  # each tracker, and each kind of storage, has its own
                if self._ending is not None:
                    self._error = error
                    return
                if not is_away:
                    logger.warning(
                        '%s cannot be reached (%s). The run goes on; metrics.jsonl has all '
                        'numbers, which are sent when it answers.',
                        self._client.place,
                        _line(error),
                    )
                known, is_away = None, True  # it may have got more than it could say
                with self._news:
                    self._news.wait_for(lambda: self._ending is not None, delay)
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    def _send_pending(self, known: Collection[int]) -> None:
        """Sends the evaluations that wait, but for those of steps that the tracker has."""
        assert self._client is not None
        with self._news:
            points = list(self._pending)
        # A run that goes on computes some of its evaluations again, with the same numbers.
        if missing := [point for point in points if point.step not in known]:
            self._client.send(missing)
        with self._news:
            for _ in points:
                self._pending.popleft()


def identity(directory: pathlib.Path) -> str:
    """Returns the id under which trackers know the run in a workdir.

    It is drawn before any tracker hears of the run and kept in tracker.json, so that a run which is
    killed at any moment, or whose first request got no answer, is one run there.
    """
    path = directory / FILE
    known = workdir.read_json_object(path).get('id')
    if isinstance(known, str) and known.isalnum():
        return known
    drawn = uuid.uuid4().hex[:16]
    workdir.write_atomically(path, json.dumps({'id': drawn}) + '\n')
    return drawn


def name_of(directory: pathlib.Path) -> str:
    """Returns the name of a run: its folder or, in a sweep or a front, SWEEP/FOLDER."""
    directory = directory.resolve()
    for parent in directory.parents[:3]:  # plain/OPERATION/seed_N is the deepest
        if workdir.read_json_object(parent / 'config.json').get('seeds'):
            return f'{parent.name}/{directory.relative_to(parent)}'
    return directory.name


def files_of(directory: pathlib.Path) -> Files:
    """Returns the files of a finished run that a tracker gets."""
    report = {name: directory / name for name in _REPORT_FILES if (directory / name).exists()}
    model = {name: directory / name for name in _MODEL_FILES if (directory / name).exists()}
    checkpoints = directory / 'checkpoints'
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]
    for path in sorted((checkpoints / str(max(steps))).rglob('*')):
        if path.is_file():
            model[str(path.relative_to(directory))] = path
    return Files(report, model)


def _line(error: Exception) -> str:
    """Returns what an error says, in one short line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
