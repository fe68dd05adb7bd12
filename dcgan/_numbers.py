"""Limits on numbers, checks of them, and how messages write values."""

import operator
import reprlib
from contextlib import suppress

# What is larger is a mistake, which would fill the memory, or overflow, before it is noticed.
MAX_COUNT = 2**31 - 1  # of steps, of channels, of whatever is counted
MAX_PICTURED = 100_000  # images in one picture, which are in memory at once: at 64x64, a gigabyte in 8 bits
MAX_SEED = 2**63 - 1  # of runs and commands, which add to it to get other seeds

_BRIEF = reprlib.Repr()
_BRIEF.maxstring, _BRIEF.maxlevel = 80, 2


def whole_number(name: str, value: object) -> int:
    """Return a whole number, be it Python's own or NumPy's, as Python's own.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        with suppress(TypeError):  # a tensor of several numbers has it as well
            return operator.index(value)
    raise TypeError(f"{name} must be a whole number, got {value!r}")


def brief(value: object) -> str:
    """Return how Python writes a value, shortened where it is long, as that of a file may be."""
    return _BRIEF.repr(value)
