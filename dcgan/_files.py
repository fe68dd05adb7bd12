"""Files that a kill leaves whole: atomic writes, and logs of JSON lines."""

import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dcgan._errors import InputError

_WINDOWS = os.name == "nt"
_RETRY_DELAYS = [0.01 * 2**attempt for attempt in range(8)]  # seconds: 2.5 in all


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that becomes `path` when the block ends.

    Until then `path` is unchanged. A kill at any moment, or an error in the block, leaves the old file or the new
    one, never part of one; with `durable`, which takes milliseconds, so does a power cut. Where `path` is a link, it
    stays one, and the file that it leads to is written.

    Raises:
        FileExistsError: If `path` is there and is no file, such as a folder, a device or a pipe.
        PermissionError: If the folder or file cannot be written; on Windows also if another program keeps `path` open.
        OSError: If the disk is full, or fails.
    """
    given = path = Path(path)
    if given.is_symlink():
        path = Path(os.path.realpath(given))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is there already, and is no file", str(given))
    # Processes of two machines that share a folder may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # the error of a full disk has none
            error.filename = str(given)
        raise
    finally:
        with suppress(PermissionError):  # on Windows, while a virus scanner reads it; it must not hide the first error
            temporary.unlink(missing_ok=True)
    if durable:
        _flush_folder(path.parent)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a log with one JSON object a line, without a line that a killed process left half written.

    Raises:
        ValueError: If another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("}\n")]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not a log of one JSON object a line: {error}") from error


def _replace(source: Path, target: Path) -> None:
    if not _WINDOWS:
        source.replace(target)
        return
    # Windows does not replace a file that is open or mapped. Virus scanners, indexers and the programs that synchronise
    # folders open every new file for some milliseconds.
    for delay in (*_RETRY_DELAYS, None):
        try:
            source.replace(target)
        except PermissionError as error:
            if delay is None:
                raise PermissionError(
                    error.errno,
                    "cannot be replaced: another program has the file open or mapped, such as one that displays it, a "
                    "virus scanner or a backup; or it is read-only",
                    str(target),
                ) from error
            time.sleep(delay)
        else:
            return


def _flush_folder(folder: Path) -> None:
    # The new name survives a power cut only once the folder itself is on the disk; Windows cannot open folders.
    if not _WINDOWS:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
