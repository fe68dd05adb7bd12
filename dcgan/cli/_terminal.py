"""How the command line speaks: text, progress, mistakes, failures and signals."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class UsageError(Exception):
    """Something the user can mend, said without a traceback."""


class RunError(Exception):
    """A run that could not go on through no fault of the program."""


@contextmanager
def mistakes() -> Iterator[None]:
    """Answer for what the user gave: refusals by the library are mistakes, and need no traceback."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of a pipe went away: nobody's mistake
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error


@contextmanager
def breakdowns() -> Iterator[None]:
    """Answer for divergence and for a full device."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"the device is out of memory; try a smaller --batch-size ({error})") from error
    except FloatingPointError as error:
        raise RunError(str(error)) from error


@contextmanager
def failures() -> Iterator[None]:
    """Answer for what befalls a run: also a full disk, or a file that went bad."""
    from dcgan.data import BadImages

    with breakdowns():
        try:
            yield
        except (OSError, BadImages) as error:
            raise RunError(str(error)) from error


@contextmanager
def remarks() -> Iterator[None]:
    """Show what the trainer has to say of itself, above the bar."""
    handler = _Remarks(logging.INFO)
    loggers = [logging.getLogger(name) for name in ("dcgan.trainer", "dcgan._cuda_graphs")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
            logger.removeHandler(handler)


class _Remarks(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(record.getMessage(), file=sys.stderr)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; the second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that draws a bar, from its first call on."""
    bars: list[tqdm[Any]] = []

    def update(done: int, total: int) -> None:
        if not bars:
            from tqdm import tqdm

            bars.append(tqdm(total=total, desc=label, unit=unit, disable=None, dynamic_ncols=True))
        bars[0].update(done - bars[0].n)

    try:
        yield update
    finally:
        for bar in bars:
            bar.close()


def say(text: str, *, error: bool = False) -> None:
    """Print a line, to standard error if it is one."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
