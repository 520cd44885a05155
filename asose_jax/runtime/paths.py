"""Paths of the user: which of them this program can use at all."""

import contextlib
import errno
import os
import pathlib
import re
import reprlib
import stat

from asose_jax.runtime.errors import UserError

# Fields of the config with paths; `benchmark.table` may begin with `nats_bench:`.
FIELDS = ('data.dir', 'genotype', 'network', 'init_from', 'benchmark.table', 'cost.table')
_URL = re.compile(r'(?:^|:)([A-Za-z][A-Za-z0-9+.-]*)://')
_URL_AS_PATH = re.compile(r'^([A-Za-z][A-Za-z0-9+.-]*):/')  # pathlib merges the two slashes


def require_local(path: str | os.PathLike[str], name: str) -> None:
    """Refuses what can be no path of this machine: another type, nothing, or gs://BUCKET.

    Args:
      path: as the user gave it.
      name: of the flag or the field of the config.

    Raises:
      UserError: it is no path, is empty, or has a scheme; nothing was written.
    """
    if not isinstance(path, str | os.PathLike):
        text = ' '.join(reprlib.repr(path).split())
        raise UserError(f'{name}={text} is no path: it is {type(path).__name__}. Name a path.')
    text = os.fspath(path)
    if not text.strip() or '\0' in text:
        fault = 'is empty' if not text.strip() else 'has a character that no path can have'
        raise UserError(f'{name}={text!r} {fault}. Name a path.')
    pattern = _URL if isinstance(path, str) else _URL_AS_PATH
    if (found := pattern.search(os.fspath(path).strip())) is not None:
        raise UserError(
            f'{found[1]}:// paths are not supported yet: {name}={os.fspath(path)!r}. Name a path '
            'of this machine: copy the files to a disk, or mount the storage as a directory.'
        )


def require_local_fields(flat: dict[str, object]) -> None:
    """Refuses a flat config in which a path is not of this machine.

    Raises:
      UserError: names the first such field; nothing was written.
    """
    for name in FIELDS:
        value = flat.get(name)
        if isinstance(value, str):
            require_local(value, name)


def name_same(one: object, other: object, base: str | None = None) -> bool:
    """Returns whether two paths name the same file, however they are spelled.

    Args:
      one: a path as the user gave it; anything that is no text names nothing.
      other: likewise.
      base: directory from which `other` counts if it is relative; `None` means the current one.
    """
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    theirs = os.path.join(base or '', os.path.expanduser(other))
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(theirs)


def require_outside(workdir: pathlib.Path, folder: str) -> None:
    """Refuses a workdir inside the folder of pictures, where its files would be taken for a class.

    Folders whose names begin with a dot are never read, so there it may be.

    Raises:
      UserError: the workdir is the folder or in it; nothing was written.
    """
    home = os.path.realpath(os.path.expanduser(folder))
    inside = pathlib.PurePath(os.path.relpath(os.path.realpath(workdir), home)).parts
    if inside[:1] != ('..',) and not any(part.startswith('.') for part in inside):
        raise UserError(
            f'workdir={str(workdir)!r} is inside data.dir={folder!r}, so the files of the run '
            'would be taken for pictures of a class. Choose a workdir beside that folder.'
        )


def expand_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the workdir as a path, with `~` expanded.

    Raises:
      UserError: it is empty, no path or has a scheme, or the current directory is gone; nothing
        was written.
      OSError: it exists and is no directory, or may not be looked at.
    """
    require_local(workdir, 'workdir')
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError('the current directory was deleted: cd to one that is there.') from error
    path = pathlib.Path(workdir).expanduser()
    with contextlib.suppress(FileNotFoundError):  # of a run that has not begun
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path
