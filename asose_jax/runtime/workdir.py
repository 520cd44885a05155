"""The directory of a run: one process at a time writes there, and whole files only."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, is_primary_host: bool = True) -> Iterator[None]:
    """Makes `workdir`, and keeps every other run out until the context, or the process, ends.

    Args:
      workdir: of the run.
      is_primary_host: whether this process is the one, of all hosts, that writes.

    Raises:
      UserError: another run is there, or it cannot be made or written, now or later.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        directory = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(
            f'workdir {workdir} cannot be used: {error.strerror}. Choose another --workdir.'
        ) from error
    try:
        if is_primary_host:
            _lock(directory, workdir)
        if not os.access(workdir, os.W_OK | os.X_OK):
            raise UserError(
                f'workdir {workdir} is read-only. Allow writing, or choose another --workdir.'
            )
        yield
    except OSError as error:
        raise UserError(
            f'{error.filename or workdir}: {error.strerror or error}. Put that right; then the '
            'same command goes on from the last checkpoint.'
        ) from error
    finally:
        os.close(directory)  # which gives up the lock, as the end of the process does


def _lock(directory, workdir):
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f'another process is at work in {workdir}. Wait for it, stop it, or choose another '
            '--workdir.'
        ) from None
    except OSError as error:  # a file system without locks
        logger.warning(
            '%s cannot be locked (%s): start nothing else there', workdir, error.strerror
        )


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes the whole file or nothing, also if the process dies in between."""
    temporary = path.with_name(path.name + '.tmp')
    _write(temporary, 'w', text)
    temporary.replace(path)


def checksum(content: Any) -> int:
    """Of what JSON can hold: CRC-32, whatever the order of the keys."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def append(path: pathlib.Path, line: str) -> None:
    """Writes to the end of the file, and waits until the disk has it."""
    _write(path, 'a', line)


def _write(path, how, text):
    try:
        with open(path, how, encoding='utf-8', errors='backslashreplace') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # which names no file where it is the disk that is full
        raise OSError(error.errno, error.strerror, str(path)) from error
