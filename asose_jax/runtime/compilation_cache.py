"""The cache of compiled programs on disk: an entry is whole or it is not there.

JAX writes an entry in its place, byte after byte. A process that is killed meanwhile leaves half of
one, which JAX never replaces; with a maximum size it locks, and then a kill between an entry and
its time stamp stops every later write. So the entries are kept by `_Entries` instead, which has the
three methods that JAX asks a cache for: it renames finished files, checks a digest when it reads,
and takes what is wrong with the disk for a program that is not there.
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

# A program that compiles faster is not worth a file: see docs/performance.md.
MIN_COMPILE_SECONDS = 0.1
MAX_BYTES = 2 * 2**30
_FORGOTTEN_SECONDS = 30 * 24 * 3600  # after which a directory of other versions is removed
_UNFINISHED_SECONDS = 3600  # after which a file that was never renamed is removed
_DIGEST_BYTES = 16
_FEATURES = ('model name', 'flags', 'Features', 'CPU part')  # lines of /proc/cpuinfo


def directory(base: pathlib.Path) -> pathlib.Path:
    """Returns where below `base` the programs of these versions and this processor belong.

    Compiled code uses the instructions of the processor that it was compiled on, and a home
    directory may be shared by several machines.
    """
    info, known = pathlib.Path('/proc/cpuinfo'), {platform.processor()}
    if info.exists():
        known = {line for line in info.read_text().splitlines() if line.startswith(_FEATURES)}
    processor = hashlib.blake2b('\n'.join(sorted(known)).encode(), digest_size=4).hexdigest()
    name = f'jax-{jax.__version__}-jaxlib-{jaxlib.__version__}-{platform.machine()}-{processor}'
    return base / name


def install(base: pathlib.Path, max_bytes: int = MAX_BYTES) -> pathlib.Path | None:
    """Keeps compiled programs below `base`, for this process and all others that do so.

    To be called before the first program is compiled. `JAX_ENABLE_COMPILATION_CACHE=false` turns
    the cache off, and `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` says what is worth keeping.

    Args:
      base: a local directory; it is made if it is not there.
      max_bytes: of the entries; those that were not used for longest are removed beyond.

    Returns:
      The directory of the entries; `None` if programs are not kept. A directory that cannot be
      written is said to be so, in one line.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    place = directory(base)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        logger.warning(
            'compiled programs are not kept, so every start compiles them again: %s cannot be '
            'written (%s). Set JAX_COMPILATION_CACHE_DIR to a directory that can.',
            place,
            error.strerror,
        )
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    jax_cache.reset_cache()
    jax_cache.get_file_cache = lambda path: (_Entries(pathlib.Path(path)), path)
    jax.config.update('jax_compilation_cache_dir', str(place))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
    # JAX's own word for an entry that XLA cannot load; the program is compiled again.
    warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation')
    prune(base, place, max_bytes)
    return place


def prune(base: pathlib.Path, place: pathlib.Path, max_bytes: int) -> None:
    """Removes from `place` what was not used for longest, and forgotten siblings of it in `base`.

    Args:
      base: holds a directory for every version and processor.
      place: the one in use.
      max_bytes: of the entries that stay.
    """
    now = time.time()
    for sibling in base.glob('jax-*'):
        if sibling != place and now - _used_at(sibling) > _FORGOTTEN_SECONDS:
            for path in sibling.glob('*'):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                sibling.rmdir()
    entries = []
    for path in place.iterdir():
        try:
            about = path.stat()
        except OSError:  # another process was faster
            continue
        if path.suffix == _Entries.SUFFIX:
            entries.append((about.st_mtime, about.st_size, path))
        elif now - about.st_mtime > _UNFINISHED_SECONDS:
            path.unlink(missing_ok=True)
    size = sum(each for _, each, _ in entries)
    for _, each, path in sorted(entries):
        if size <= max_bytes:
            break
        path.unlink(missing_ok=True)
        size -= each


def _used_at(place):
    return max((path.stat().st_mtime for path in (place, *place.glob('*'))), default=0.0)


class _Entries(CacheInterface):
    """Files of one directory, each with a digest of its content at the end."""

    SUFFIX = '.program'

    def __init__(self, path: pathlib.Path):
        self._path = path

    def get(self, key: str) -> bytes | None:
        """Returns what was put there; `None` if there is nothing, or not all of it."""
        path = self._of(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        value, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if _digest(value) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # for `prune`: it was used
        return value

    def put(self, key: str, value: bytes) -> None:
        """Writes beside and renames, so that no one ever finds a part."""
        path, made = self._of(key), None
        try:
            with tempfile.NamedTemporaryFile(dir=self._path, delete=False) as file:
                made = pathlib.Path(file.name)
                file.write(value + _digest(value))
            made.replace(path)
        except OSError:  # the disk is full: the program runs all the same
            if made is not None:
                made.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all entries."""
        for path in self._path.glob(f'*{self.SUFFIX}'):
            path.unlink(missing_ok=True)

    def _of(self, key):
        return self._path / f'{key}{self.SUFFIX}'


def _digest(value):
    return hashlib.blake2b(value, digest_size=_DIGEST_BYTES).digest()
