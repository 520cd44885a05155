"""A cache of compiled programs on disk that survives a kill at any moment.

JAX's own cache writes each entry in place. A process that is killed meanwhile leaves half an entry,
which JAX never replaces; with a maximum size JAX takes a lock, and a kill between an entry and its
time stamp then blocks every later write. `_Entries` replaces that storage. It has the three methods
that JAX calls on a cache, renames finished files into place, checks a digest on every read, and
treats a disk error as a missing entry.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import tempfile
import time
import warnings

import jax
import jaxlib
from jax._src import compilation_cache as jax_cache
from jax._src.compilation_cache_interface import CacheInterface

logger = logging.getLogger('asose_jax')

# Six of seven programs compile faster: a file for each would be thousands of them.
MIN_COMPILE_SECONDS = 0.1
MAX_BYTES = 2 * 2**30
_UNUSED_SECONDS = 30 * 24 * 3600  # directories of other versions are removed after this
_UNFINISHED_SECONDS = 3600  # temporary files that were never renamed are removed after this
_DIGEST_BYTES = 16
_FEATURES = ('model name', 'flags', 'Features', 'CPU part')  # lines of /proc/cpuinfo


def directory(base: pathlib.Path) -> pathlib.Path:
    """Returns the directory below `base` for these versions of JAX and this processor.

    Compiled code uses the instructions of the processor that it was compiled on, and several
    machines may share one home directory.
    """
    info, features = pathlib.Path('/proc/cpuinfo'), {platform.processor()}
    if info.exists():
        features = {line for line in info.read_text().splitlines() if line.startswith(_FEATURES)}
    processor = hashlib.blake2b('\n'.join(sorted(features)).encode(), digest_size=4).hexdigest()
    jaxlib_version = jaxlib.__version__  # pyright: ignore[reportPrivateImportUsage]  # is public
    name = f'jax-{jax.__version__}-jaxlib-{jaxlib_version}-{platform.machine()}-{processor}'
    return base / name


def install(base: pathlib.Path, max_bytes: int = MAX_BYTES) -> pathlib.Path | None:
    """Makes this process cache its compiled programs below `base`, shared with other processes.

    Call it before the first program is compiled. `JAX_ENABLE_COMPILATION_CACHE=false` turns the
    cache off; `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` sets which programs are worth keeping.

    Args:
      base: a local directory, which may begin with `~`; it is created if missing.
      max_bytes: limit for all entries together; the least recently used ones beyond it are removed.

    Returns:
      The directory of the entries, or `None` if the cache is off or the directory cannot be
      written or is unknown; the latter is logged as one warning and does not fail the run.
    """
    # Options are attributes that JAX adds at import.
    if not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    try:
        base = base.expanduser()
    except RuntimeError:
        logger.warning(
            'compiled programs are not kept, so every start compiles them again: the home '
            'directory of %s is unknown. Set HOME, or JAX_COMPILATION_CACHE_DIR to a directory.',
            base,
        )
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    entries_dir = directory(base)
    try:
        entries_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=entries_dir):
            pass
    except OSError as error:
        logger.warning(
            'compiled programs are not kept, so every start compiles them again: %s cannot be '
            'written (%s). Set JAX_COMPILATION_CACHE_DIR to a directory that can be written.',
            entries_dir,
            error.strerror,
        )
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    jax_cache.reset_cache()
    jax_cache.get_file_cache = lambda path: (_Entries(pathlib.Path(path)), path)
    jax.config.update('jax_compilation_cache_dir', str(entries_dir))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
    # JAX warns about an entry that XLA cannot load; the program is simply compiled again.
    warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation')
    with contextlib.suppress(OSError):  # entries of another user, which stay
        prune(base, entries_dir, max_bytes)
    return entries_dir


def prune(base: pathlib.Path, entries_dir: pathlib.Path, max_bytes: int) -> None:
    """Removes the least recently used entries, and directories that no version uses any more.

    Args:
      base: holds one directory for each pair of versions and processor.
      entries_dir: the one in use.
      max_bytes: limit for the entries that stay in `entries_dir`, together.
    """
    now = time.time()
    for sibling in base.glob('jax-*'):
        if sibling != entries_dir and now - _last_used(sibling) > _UNUSED_SECONDS:
            for path in sibling.glob('*'):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                sibling.rmdir()
    entries = []
    for path in entries_dir.iterdir():
        try:
            status = path.stat()
        except OSError:  # another process has just removed it
            continue
        if path.suffix == _Entries.SUFFIX:
            entries.append((status.st_mtime, status.st_size, path))
        elif now - status.st_mtime > _UNFINISHED_SECONDS:
            path.unlink(missing_ok=True)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size


def _last_used(entries_dir: pathlib.Path) -> float:
    paths = (entries_dir, *entries_dir.glob('*'))
    return max((path.stat().st_mtime for path in paths), default=0.0)


class _Entries(CacheInterface):
    """Stores each entry as a file that ends with a digest of its content."""

    SUFFIX = '.program'

    def __init__(self, path: pathlib.Path) -> None:
        """Stores entries in the existing directory `path`."""
        self._path = path

    def get(self, key: str) -> bytes | None:
        """Returns the value stored under `key`, or `None` if it is missing or damaged."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        value, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if _digest(value) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `prune` removes the entries with the oldest time stamps
        return value

    def put(self, key: str, value: bytes) -> None:
        """Writes a temporary file and renames it, so that no reader sees part of an entry."""
        path, temporary = self._file(key), None
        try:
            with tempfile.NamedTemporaryFile(dir=self._path, delete=False) as file:
                temporary = pathlib.Path(file.name)
                file.write(value + _digest(value))
            temporary.replace(path)
        except OSError:  # a full disk must not stop the run: the program is compiled already
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all entries."""
        for path in self._path.glob(f'*{self.SUFFIX}'):
            path.unlink(missing_ok=True)

    def _file(self, key: str) -> pathlib.Path:
        return self._path / f'{key}{self.SUFFIX}'


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_DIGEST_BYTES).digest()
