"""Text, progress bars, errors and signals of the command line; of several processes, only the first one speaks."""

import errno
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dcgan._errors import DcganError, InputError, MissingPackageError
from dcgan.cli._messages import in_options
from dcgan.cli._processes import process_rank

if TYPE_CHECKING:
    from tqdm import tqdm


_CPU_MEMORY = re.compile("DefaultCPUAllocator: (can't allocate|not enough) memory")
_came: list[type[KeyboardInterrupt]] = []  # what signals have raised in this command
_lost_output: list[OSError] = []  # errors of standard output, which is printed to no more


class Terminated(KeyboardInterrupt):
    """SIGTERM came, and what was begun is cleaned up as after Ctrl-C."""


class UsageError(Exception):
    """Something that the user can correct: exit code 2, without a traceback."""


class RunError(Exception):
    """A run that failed through no fault of the program: exit code 1, without a traceback.

    Attributes:
        everywhere: Whether all processes of the run end with this error.
    """

    def __init__(self, message: str, *, everywhere: bool = False):
        super().__init__(message)
        self.everywhere = everywhere


@contextmanager
def exit_on_error(*, running: bool = False) -> Iterator[None]:
    """Turn the library's errors into `UsageError` and `RunError`; other errors are bugs, and keep their traceback.

    Args:
        running: Whether the arguments have been accepted and the work is under way. A full disk or a broken image is a
            failure then, and an argument that is refused a bug; before, all of them are the user's to correct.
    """
    try:
        yield
    except FloatingPointError as error:
        raise RunError(str(error), everywhere=True) from error
    except (OSError, DcganError) as error:
        if isinstance(error, InputError | MissingPackageError if running else BrokenPipeError):
            raise
        message = in_options(_describe(error))
        if not running and getattr(error, "errno", None) != errno.ENOSPC:
            raise UsageError(message) from error
        # Such as a collapse, or the loss of another process.
        raise RunError(message, everywhere=isinstance(error, RuntimeError)) from error
    except MemoryError as error:
        raise RunError(f"memory ran out{f': {error}' if str(error) else ''}") from error
    except RuntimeError as error:
        if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise RunError(f"the device is out of memory; try a smaller --batch-size ({error})") from error
        if _CPU_MEMORY.search(str(error)):  # the CPU's allocator has no type of error of its own
            raise RunError(f"memory ran out: {str(error).partition(': ')[2] or error}") from error
        raise


def _describe(error: Exception) -> str:
    """Say what was done to which file without the number that Python puts before it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def log_above_progress_bar() -> Iterator[None]:
    """Show what the package logs, from INFO up, without tearing the progress bar."""
    logger, handler = logging.getLogger("dcgan"), _ProgressBarHandler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with _writable_stderr():
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def _writable_stderr() -> Iterator[None]:
    """Give tqdm a stream where standard error is closed, as it is in some services and in Windows without a console."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stderr(sys.stderr or nowhere):
        yield


class _ProgressBarHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if process_rank():
            return
        from tqdm import tqdm

        tqdm.write(_printable(record.getMessage()), file=sys.stderr)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that nothing half written stays; in the main thread alone.

    Python ignores what a handler raises in some places, such as a callback while a module is loaded: what came is
    raised again at the next progress.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {
        signal.SIGINT: (signal.default_int_handler, KeyboardInterrupt),
        signal.SIGTERM: (signal.SIG_DFL, Terminated),
    }

    def end(number: int, _: FrameType | None) -> None:
        _came.append(ours[signal.Signals(number)][1])
        raise _came[-1]

    before = {number: usual for number, (usual, _) in ours.items() if signal.getsignal(number) == usual}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        _came.clear()
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of stopping at once; a second Ctrl-C does stop at once.

    Only the main thread can: in another one, signals keep their effect.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def collect(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that draws a bar from its first call on."""
    bars: list[tqdm[Any]] = []

    def update(done: int, total: int) -> None:
        if _came:
            raise _came[-1]
        if not bars:
            from tqdm import tqdm

            bars.append(tqdm(total=total, desc=label, unit=unit, disable=hides_bars(), dynamic_ncols=True))
        bars[0].update(done - bars[0].n)

    with _writable_stderr():
        try:
            yield update
        finally:
            for bar in bars:
                bar.close()


def hides_bars() -> bool | None:
    """Return what tqdm takes for `disable`: None shows bars on a terminal."""
    return True if process_rank() else None


def say(text: str, *, error: bool = False) -> None:
    """Print a line to standard output, or to standard error; characters that its encoding lacks become escapes.

    Where the output cannot be written, the work goes on without it: its reader may have gone, as that of `head -1` has.
    """
    if process_rank() and not error:
        return
    text, stream = _printable(text), sys.stderr if error else sys.stdout
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:  # a path, where the output is not UTF-8, as in a pipe on Windows
            print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except OSError as failure:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, suppress(OSError):  # it may be no file
            os.dup2(nowhere.fileno(), stream.fileno())  # for what comes, and what Python flushes at its end
        if not error and not isinstance(failure, BrokenPipeError):
            _lost_output.append(failure)
            say(f"dcgan: standard output: {failure.strerror}; it goes on without", error=True)


def has_lost_output() -> bool:
    """Return whether something could not be printed that somebody may have wanted to read, and forget it."""
    lost = bool(_lost_output)
    _lost_output.clear()
    return lost


def _printable(text: str) -> str:
    """Write control characters, which the name of a file may hold, as escapes: a terminal would obey them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells as columns, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
