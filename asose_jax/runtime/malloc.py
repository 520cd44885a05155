"""The memory of the host: freed by one step, used by the next."""

import ctypes
import platform

# Numbers of options in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, instead of giving it back to the system.

    XLA's CPU backend asks for the large arrays of every call anew. glibc by default maps fresh
    pages for them, and touching those for the first time can take longer than a step's own work.

    Returns:
      Whether this C library could be told; others than glibc are left as they are.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
