"""Settings of the C library's allocator, which the command line applies."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's <malloc.h>


def keep_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it to the system; return whether it does.

    By default glibc maps every large tensor anew and each of its pages faults on first use, which takes a tenth of a
    training step on a CPU. Without glibc, as on Windows and macOS, nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
