"""Settings of the C library's memory allocator."""

import ctypes
import platform

# Option numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed memory instead of returning it to the operating system.

    XLA's CPU backend allocates its large arrays again in every call. By default glibc maps fresh
    pages for them, and the first touch of those pages can take longer than the rest of a step.

    Returns:
      Whether the setting was applied; `False` with any other C library, which is left unchanged.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
