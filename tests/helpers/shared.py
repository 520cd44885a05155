"""Directories that are made once, by whichever worker asks first, and read by all."""

import pathlib
from collections.abc import Callable

import filelock


class Shared:
    """A place below which each name is made once in a run of pytest.

    Args:
      place: a directory that all workers of this run share.
    """

    def __init__(self, place: pathlib.Path):
        self._place = place

    def __call__(self, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
        """Returns the directory called `name`; `make` fills it if no other worker has.

        Tests that use it must leave it as it is.
        """
        path, done = self._place / name, self._place / f'{name}.done'
        with filelock.FileLock(self._place / f'{name}.lock'):
            if not done.exists():
                make(path)
                done.touch()
        return path
