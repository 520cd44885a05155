"""The directory of a run: one process at a time writes to it, and files appear in full or not."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')


@contextlib.contextmanager
def locked(workdir: pathlib.Path, is_primary_host: bool = True) -> Iterator[None]:
    """Creates `workdir` and locks it against other runs until the context or the process ends.

    Args:
      workdir: the directory of the run.
      is_primary_host: whether this process is the one host that writes; only it takes the lock.

    Raises:
      UserError: another run holds the lock, or the directory cannot be created or written. An
        `OSError` in the body, for example of a full disk, is reported in the same way.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(
            f'workdir {workdir} cannot be used: {error.strerror}. Choose another --workdir.'
        ) from error
    try:
        if is_primary_host:
            _lock(descriptor, workdir)
        if not os.access(workdir, os.W_OK | os.X_OK):
            raise UserError(
                f'workdir {workdir} is read-only. Allow writing, or choose another --workdir.'
            )
        yield
    except OSError as error:
        raise UserError(
            f'{error.filename or workdir}: {error.strerror or error}. Fix this, then run the same '
            'command again: it resumes from the last checkpoint.'
        ) from error
    finally:
        os.close(descriptor)  # this releases the lock, as the end of the process does


def _lock(descriptor: int, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f'another process is at work in {workdir}. Wait for it, stop it, or choose another '
            '--workdir.'
        ) from None
    except OSError as error:  # the file system has no locks
        logger.warning(
            '%s cannot be locked (%s): do not start a second run with this --workdir',
            workdir,
            error.strerror,
        )


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path` in full or not at all, even if the process dies meanwhile."""
    temporary = path.with_name(path.name + '.tmp')
    _write(temporary, 'w', text)
    temporary.replace(path)


def checksum(content: Any) -> int:
    """Returns the CRC-32 of a JSON-compatible value; the order of keys does not matter."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def append_durably(path: pathlib.Path, line: str) -> None:
    """Appends `line` to the file and waits until it is on the disk."""
    _write(path, 'a', line)


def _write(path: pathlib.Path, mode: Literal['a', 'w'], text: str) -> None:
    try:
        with open(path, mode, encoding='utf-8', errors='backslashreplace') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # the error of a full disk does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
