"""Exceptions that the command line reports as one message, without a traceback."""

import contextlib
import errno
import os
from collections.abc import Iterator


class UserError(ValueError):
    """Reports a mistake that the user can fix: what is wrong, the value, what is allowed."""


class Stopped(KeyboardInterrupt):
    """Reports that a run was stopped by a signal, after it saved what there was to save.

    It is not an error. It derives from `KeyboardInterrupt`, so that no `except Exception` catches
    it.
    """


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: 'no pictures', '1 picture', '2 pictures'.

    Args:
      number: how many there are.
      noun: the noun for one of them.
      plural: for any other number; `None` adds an s.
    """
    return f'{number or "no"} {noun if number == 1 else plural or f"{noun}s"}'


# Number of the error -> what failed, and what to do.
_ADVICE = {
    errno.ENOSPC: ('cannot be written', 'Free some space'),
    errno.EDQUOT: ('cannot be written', 'Free some space'),
    errno.EFBIG: ('cannot be written', 'Free some space, or raise the limit of file sizes'),
    errno.EROFS: ('cannot be written', 'Copy the directory to a disk that can be written'),
    errno.ENAMETOOLONG: ('cannot be used', 'Choose a shorter path'),
    errno.ENOTDIR: ('cannot be used', 'Choose another path: this one is, or goes through, a file'),
    errno.EEXIST: ('cannot be used', 'Move away what is in its place'),
    errno.EISDIR: ('cannot be used', 'Name a file, not a directory'),
    errno.ENOENT: ('cannot be used', 'Check the path'),
}
_OF_FILES = {*_ADVICE, errno.EACCES, errno.EPERM, errno.EIO}
_WRONG_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)
_OTHERWISE = ('cannot be used', 'Check the disk and the path')
_MAX_PATH = 200  # characters of a path in a message


@contextlib.contextmanager
def os_errors(task: str, resumes: bool = False) -> Iterator[None]:
    """Turns an error of the system into a `UserError` of one line.

    It belongs around the public functions and the command, so that the code below need not catch
    these errors. As a decorator, it covers every call of a function.

    Args:
      task: what the program is doing, as the beginning of the message.
      resumes: whether the same command goes on from a checkpoint, which the message then says.

    Raises:
      UserError: the body raised an `OSError`, or a path begins with `~` and the home directory is
        unknown.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in _OF_FILES:
            raise  # of the network, a thread or a library: not of a file
        text = f'{task}: {describe_os_error(error)}'
        if resumes and error.errno not in _WRONG_PATH:
            text += ' Then run the same command again: a run resumes from its last checkpoint.'
        raise UserError(text) from error
    except RuntimeError as error:
        if 'home directory' not in str(error):  # pathlib has no error of its own for this
            raise
        raise UserError(
            f'{task}: a path begins with ~, but the home directory is unknown ({error}). Set HOME, '
            'or write the path in full.'
        ) from error


def describe_os_error(error: OSError) -> str:
    """Returns the path, what could not be done with it, why, and what to do, in one line."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    reason = ' '.join(str(error.strerror or error).split())
    failed, advice = _ADVICE.get(error.errno or 0, _OTHERWISE)
    if error.errno in (errno.EACCES, errno.EPERM):
        failed = f'may not be {_refused_access(path)}'
        advice = 'Give yourself the permission, or choose another path'
    where = 'a file' if path is None else _shortened(path)
    return f'{where} {failed}: {reason}. {advice}.'


def _refused_access(path: str | None) -> str:
    """Returns what the system refused: 'read' or 'written'."""
    if path is None:
        return 'used'
    if os.path.exists(path):
        return 'written' if os.access(path, os.R_OK) else 'read'
    parent = os.path.dirname(os.path.abspath(path))
    return 'written' if os.access(parent, os.X_OK) else 'read'


def _shortened(path: str) -> str:
    if len(path) <= _MAX_PATH:
        return path
    return f'{path[: _MAX_PATH // 2]}...{path[-_MAX_PATH // 2 :]} ({len(path)} characters)'
