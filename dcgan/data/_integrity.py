"""Whether a packed file still holds what was packed.

The checksum is CRC-32: on accidents as good as any, and it reads a file as fast as most disks do. It runs over the
pixels and then the labels. The `.json` next to the packed file records it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dcgan._files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 2**20  # read at a time: stays in the processor's cache


def format_checksum(crc: int) -> str:
    """Write a checksum as it is recorded."""
    return f"crc32:{crc:08x}"


def add_labels(crc: int, labels: np.ndarray | None) -> int:
    """Continue the CRC-32 of the pixels over labels `(N,)`."""
    return crc if labels is None else zlib.crc32(labels.astype("<i8").tobytes(), crc)


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Write the `.json` next to a packed file."""
    with atomic_write(path.with_suffix(".json")) as file:
        file.write(f"{json.dumps(metadata, indent=1)}\n".encode())


class IntegrityCheck:
    """The checksum of a packed file, computed once, in a thread, so that nothing has to wait for it.

    A file found damaged is marked as such in its `.json`, so that it is packed anew when it is opened again. One of an
    earlier version, without a checksum, gets that of its present content.

    Args:
        path: The packed file.
        nbytes: Size of its pixels, which are its end.
        labels: int64 `(N,)`.
        metadata: What its `.json` holds.

    Attributes:
        damage: What has been found to be wrong with it so far.
    """

    def __init__(self, path: Path, nbytes: int, labels: np.ndarray | None, metadata: dict[str, Any]) -> None:
        self._path, self._nbytes, self._labels, self._metadata = path, nbytes, labels, metadata
        self.damage: str | None = None
        self._checksum: str | None = metadata.get("checksum")
        # A daemon, which does not keep a finished process waiting.
        self._thread = threading.Thread(target=self._run, name="dcgan-checksum", daemon=True)
        self._thread.start()

    @property
    def checksum(self) -> str:
        """What was recorded; of a file of an earlier version, what has been computed, or will be in a moment."""
        if self._checksum is None:
            self.wait()
        self.raise_if_damaged()
        return self._checksum or self._compute()  # in a process that was forked, there is no thread

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the file has been read, or for so long."""
        self._thread.join(seconds)

    def raise_if_damaged(self) -> None:
        """Raise `OSError` if the file has been found damaged by now."""
        if self.damage is not None:
            raise OSError(
                f"the packed file {self._path} is damaged: {self.damage}. Start again: it is then packed anew"
            )

    def _run(self) -> None:
        try:
            computed = self._compute()
        except OSError as error:  # such as a bad sector
            self._mark_damaged(f"it cannot be read: {error.strerror}")
            return
        if self._checksum is None:
            self._checksum = computed
            self._record(checksum=computed)
        elif computed != self._checksum:
            self._mark_damaged(f"its checksum is {computed}, but was {self._checksum} when it was packed")

    def _compute(self) -> str:
        # Read, rather than mapped: a bad sector under a map kills the process.
        crc, block = 0, memoryview(bytearray(_BLOCK_BYTES))
        with self._path.open("rb", buffering=0) as file:
            file.seek(-self._nbytes, 2)
            while size := file.readinto(block):
                crc = zlib.crc32(block[:size], crc)
        return format_checksum(add_labels(crc, self._labels))

    def _mark_damaged(self, damage: str) -> None:
        self.damage = damage
        self._record(damage=damage)

    def _record(self, **fields: str) -> None:
        with contextlib.suppress(OSError):  # on a disk that is full or read-only
            write_metadata(self._path, self._metadata | fields)
