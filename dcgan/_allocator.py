"""What a process does with memory it has freed: a choice of the command line, never made on import."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_memory() -> bool:
    """Have glibc keep freed memory for the next step; return whether it does (elsewhere nothing is changed).

    By default every large tensor is mapped anew, and its pages are faulted in one by one: a tenth of a training step.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
