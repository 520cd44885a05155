"""The directory of a run: one process at a time writes to it, and files appear in full or not."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO

from asose_jax.runtime.errors import UserError, os_errors

logger = logging.getLogger('asose_jax')


@contextlib.contextmanager
def locked(workdir: pathlib.Path, is_primary_host: bool = True) -> Iterator[None]:
    """Creates `workdir` and locks it against other runs until the context or the process ends.

    Of several hosts, only the primary one takes the lock.

    Raises:
      UserError: another run holds the lock, or the directory cannot be created or written. An
        `OSError` in the body, for example of a full disk, is reported in the same way.
    """
    with os_errors(f'workdir {workdir}', resumes=True):
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if is_primary_host:
                _lock(descriptor, workdir)
            if not os.access(workdir, os.W_OK | os.X_OK):
                raise UserError(
                    f'workdir {workdir} is read-only. Allow writing, or choose another --workdir.'
                )
            yield
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


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the fields in the config.json of a workdir; `None` if it has none.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(config, dict):
            raise ValueError(f'it holds no object, but {type(config).__name__}')
        if not isinstance(config.get('seeds', []), list):
            raise ValueError(f'seeds is {config["seeds"]!r}')
    except ValueError as error:
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}): it is damaged. Restore it '
            'from a copy. To resume the run by the command that started it, delete the file; '
            'otherwise choose another --workdir.'
        ) from error
    return config


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if there is no file, or none that can be parsed."""
    return parse_object(path.read_text(encoding='utf-8', errors='replace')) if path.exists() else {}


def parse_object(text: str) -> dict[str, Any]:
    """Returns the JSON object in `text`, or an empty one if it is anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def require_kind(workdir: pathlib.Path, seeds: Sequence[int]) -> None:
    """Refuses a single run in the workdir of a sweep, and a sweep in that of a single run.

    `seeds` are those of the sweep, none for a single run. Nothing is written.

    Raises:
      UserError: the workdir is of the other kind, or its config.json is damaged.
    """
    config = read_config(workdir)
    if config is None:  # before the first file of a run, or the file was deleted
        is_single = any((workdir / name).exists() for name in ('metrics.jsonl', 'checkpoints'))
        is_sweep = not is_single and next(workdir.glob('seed_*/config.json'), None) is not None
        theirs = None
    else:
        theirs = config.get('seeds')
        is_sweep, is_single = bool(theirs), not theirs
    if seeds and is_single:
        raise UserError(
            f'config.seeds={tuple(seeds)}: workdir {workdir} holds a single run, not a sweep. '
            'Choose another --workdir for the sweep, or leave out --config.seeds to resume the run.'
        )
    if not seeds and is_sweep:
        what = f'the sweep config.seeds={tuple(theirs)}' if theirs else 'a sweep'
        raise UserError(
            f'workdir {workdir} holds {what}, not a single run. Choose another --workdir for this '
            'run, or set --config.seeds to resume the sweep.'
        )


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path` in full or not at all, even if the process dies meanwhile."""
    with written_atomically(path) as file:
        file.write(text)


@contextlib.contextmanager
def written_atomically(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a file for text that appears at `path` at the end, unless the body raises.

    A link stays a link to that file. A pipe or a device, such as /dev/stdout, is written directly.
    """
    if path.exists() and not path.is_file():
        with naming(path), open(path, 'w', encoding='utf-8', newline='') as file:
            yield file
        return
    path = pathlib.Path(os.path.realpath(path))
    temporary = path.with_name(path.name + '.tmp')
    try:
        with naming(path), _opened_durably(temporary, 'w') as file:
            yield file
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    temporary.replace(path)


def checksum(content: Any) -> int:
    """Returns the CRC-32 of a JSON-compatible value; the order of keys does not matter."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def append_durably(path: pathlib.Path, line: str) -> None:
    """Appends `line` to the file and waits until it is on the disk."""
    with naming(path), _opened_durably(path, 'a') as file:
        file.write(line)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an `OSError` of the body the path of the file; that of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def _opened_durably(path: pathlib.Path, mode: Literal['a', 'w']) -> Iterator[TextIO]:
    """Opens a file for text, with line ends as they are, that is on the disk when it is closed."""
    with open(path, mode, encoding='utf-8', errors='backslashreplace', newline='') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
