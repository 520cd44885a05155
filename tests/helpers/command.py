"""The program as its user starts it: real processes, which tests watch and kill."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from asose_jax.runtime import compilation_cache
from helpers import compiler
from helpers.runs import WHOLE

_LOOK_SECONDS = 0.02  # between looks at what no line tells: files, and that the process has ended
_HERE = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'}
# Has imported what the program imports, which takes longer than a small run; runs are forks of it.
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(
    ['asose_jax.sweep.runner', 'asose_jax.inference', 'asose_jax.config.retrain']
)


class Run:
    """One process of `main.py` on two devices, its lines read as they come.

    Args:
      root: the project's directory, and the current one.
      workdir: of the run.
      fields: of the config, on top of `base`.
      options: further arguments.
      environment: further variables.
      config: file and preset.
      base: fields of the config.
    """

    def __init__(
        self,
        root: pathlib.Path,
        workdir: pathlib.Path,
        fields: dict[str, object] | None = None,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        config: str = 'configs/search.py:digits',
        base: dict[str, object] = WHOLE,
    ):
        chosen = {**base, **(fields or {})}
        arguments = [
            'main.py',
            f'--config={config}',
            f'--workdir={workdir}',
            *(f'--config.{name}={value}' for name, value in chosen.items()),
            *options,
        ]
        self.workdir, self.lines = workdir, []
        self._news = threading.Condition()
        self._lines = self._start(root, arguments, {**_HERE, **(environment or {})})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self, root, arguments, environment):
        """Starts the process; returns what it tells."""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=root,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.signal = self.process.send_signal
        return self.process.stderr

    def status(self) -> int | None:
        """The exit status; `None` while the process is there."""
        return self.process.poll()

    def _read(self):
        for line in self._lines:
            with self._news:
                self.lines.append(line.rstrip('\n'))
                self._news.notify_all()

    @property
    def output(self) -> str:
        return '\n'.join(self.lines)

    def wait_for(self, holds: Callable[['Run'], bool]) -> bool:
        """Waits until `holds(self)`; False if the process ended before."""
        while True:
            ended = self.status() is not None
            if ended:
                self._reader.join()
            with self._news:
                if holds(self):
                    return True
                if ended:
                    return False
                self._news.wait(_LOOK_SECONDS)

    def wait(self) -> int:
        """The exit status of the ended process."""
        try:
            self._join()
        finally:
            self.process.kill()
            self._reader.join()
            self._lines.close()
        return self.status()

    def _join(self):
        self.process.wait()

    def kill(self) -> None:
        """SIGKILL: nothing in the process gets to run any more."""
        self.process.kill()
        self.wait()

    def __del__(self):
        """Of a test that failed, nothing stays behind."""
        if hasattr(self, '_reader') and not self._lines.closed:
            self.kill()

    def checkpoints(self) -> set[str]:
        """Names in the directory of checkpoints; those being written are not numbers."""
        place = self.workdir / 'checkpoints'
        return {path.name for path in place.iterdir()} if place.is_dir() else set()

    def steps(self) -> set[int]:
        """Of the finished checkpoints."""
        return {int(name) for name in self.checkpoints() if name.isdigit()}

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(not name.isdigit() for name in self.checkpoints())


class ForkedRun(Run):
    """A run whose process need not import everything again: a fork of one that has it all.

    Args:
      code: what it does before the program begins.
    """

    def __init__(self, *args: object, code: str = '', **rest: object):
        self._code = code
        super().__init__(*args, **rest)

    def _start(self, root, arguments, environment):
        told, tells = _SERVER.Pipe(duplex=False)
        given = (root, arguments, environment, self._code, tells)
        self.process = _SERVER.Process(target=_become, args=given)
        self.process.start()
        tells.close()
        lines = os.fdopen(os.dup(told.fileno()), encoding='utf-8')
        told.close()
        return lines

    def signal(self, number: int) -> None:
        """Sends it."""
        os.kill(self.process.pid, number)

    def status(self) -> int | None:
        """The exit status; `None` while the process is there."""
        return self.process.exitcode

    def _join(self):
        self.process.join()


def _become(root, arguments, environment, code, tells):
    """Becomes the program, in a process that has imported jax, but asked for no device."""
    os.chdir(root)
    os.dup2(tells.fileno(), sys.stderr.fileno())
    tells.close()
    os.environ.update(environment)
    jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])
    jax.config.update('jax_num_cpu_devices', int(os.environ['JAX_NUM_CPU_DEVICES']))
    kept = os.environ.get('JAX_ENABLE_COMPILATION_CACHE', 'true') == 'true'
    jax.config.update('jax_enable_compilation_cache', kept)
    compilation_cache.install(pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']))
    compiler.keep_runs_exact()
    sys.path.insert(0, str(root))
    sys.argv = arguments
    exec(code, {})
    runpy.run_path('main.py', run_name='__main__')


def says(text: str) -> Callable[[Run], bool]:
    """Whether the run has said so."""
    return lambda run: text in run.output


def more(count: int) -> Callable[[Run], bool]:
    """Whether lines or states of the checkpoints have come `count` times since it was first asked.

    What comes between two looks counts once.
    """
    seen: list[object] = []

    def holds(run: Run) -> bool:
        now = (len(run.lines), run.checkpoints())
        if not seen or seen[-1] != now:
            seen.append(now)
        return len(seen) > count

    return holds


def wait_until_free(workdir: pathlib.Path) -> None:
    """Waits until no process is at work there any more: each holds a lock until it has ended."""
    directory = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
    finally:
        os.close(directory)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Pins this thread, and the processes that it starts meanwhile, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
