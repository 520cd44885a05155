"""The program as its user starts it: real processes, which tests watch and kill."""

import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from helpers.runs import CHEAP, GROWING, TINY

# Every phase and a growth: 4 + 12 + 24 + 4 steps, and a checkpoint after each call.
FIELDS = {
    **TINY,
    **GROWING,
    'growth.epochs': 4,
    'growth.kinds': ('width',),
    'model.primitives': CHEAP,
    'chunk_steps': 2,
    'checkpoint.every_seconds': 0,
}


class Run:
    """One process of `main.py`, its lines read as they come.

    Args:
      root: the project's directory.
      workdir: of the run.
      fields: of the config, on top of `FIELDS`.
      options: further arguments.
      environment: further variables.
      program: what Python runs.
    """

    def __init__(
        self,
        root: pathlib.Path,
        workdir: pathlib.Path,
        fields: dict[str, object] | None = None,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = ('main.py',),
    ):
        chosen = {**FIELDS, **(fields or {})}
        self.command = [
            sys.executable,
            *program,
            '--config=configs/search.py:digits',
            f'--workdir={workdir}',
            *(f'--config.{name}={value}' for name, value in chosen.items()),
            *options,
        ]
        self.workdir, self.lines = workdir, []
        self.process = subprocess.Popen(
            self.command,
            cwd=root,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu', **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip('\n'))

    @property
    def told(self) -> str:
        return '\n'.join(self.lines)

    def wait_for(self, holds: Callable[['Run'], bool], seconds: float = 300) -> bool:
        """Waits until `holds(self)`; False if the process ended before."""
        end = time.monotonic() + seconds
        while not holds(self):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, f'waited in vain; so far:\n{self.told}'
            time.sleep(0.005)
        return True

    def wait(self, seconds: float = 300) -> int:
        """The exit status of the ended process."""
        try:
            status = self.process.wait(seconds)
        finally:
            self.process.kill()
            self._reader.join()
            self.process.stderr.close()
        return status

    def kill(self) -> None:
        """SIGKILL: nothing in the process gets to run any more."""
        self.process.kill()
        self.wait()

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


def says(text: str) -> Callable[[Run], bool]:
    """Whether the run has said so."""
    return lambda run: text in run.told
