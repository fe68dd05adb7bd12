"""Images of one shape as uint8: mapped from a packed file, or decoded whenever they are asked for.

Shapes: N images, B a batch of them, K channels, H and W their sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from dcgan._errors import DcganError
from dcgan.data._sources import UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from dcgan.data._decoding import Decoder
    from dcgan.data._integrity import IntegrityCheck


_ADVISED_BYTES = 2**30  # of a packed file: smaller ones are in memory soon


class Images(Protocol):
    """N images as uint8, all of one shape.

    Attributes:
        name: The dataset, one of `DATASETS`, or its class for `from_dataset`.
        image_size: `(H, W)`.
        channels: K.
        path: The packed file; None where images are decoded whenever they are asked for.
        nbytes: Size of all images, decoded, in bytes.
        skipped: `(file, reason)` of each image that `skip_bad` left out.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    path: Path | None
    nbytes: int
    skipped: list[tuple[str, str]]

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files of a folder of images have an ending that is not read, by ending; "" is none."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells whether two sets hold the same images, wherever they are; comparable up to its colon.

        "crc32:..." is the checksum of all pixels and labels, which a packed file records. "files:...", without a packed
        file, hashes the names and sizes of the dataset's files, so that an edit that keeps a size goes unnoticed.
        """
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each image, int64 `(N,)`, where `from_dataset`, "wds" or "hf" found labels; otherwise None.

        Without a packed file, they are read when they are first asked for, together with all images.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return an image as uint8 `(K, H, W)`, as a `DataLoader` asks for it; `Batches` gathers them far faster."""
        ...

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images `indices` `(B,)` as uint8 `(B, K, H, W)`, new and channels last in memory."""
        ...


class BadImages(DcganError, ValueError):  # noqa: N818 (it holds images, not one error)
    """Some files cannot be read as images.

    Attributes:
        failures: `(file, reason)` of each of them; the message shows the first 20.
    """

    def __init__(self, failures: list[tuple[str, str]], *, nothing_left: bool = False, packed: bool = True) -> None:
        super().__init__(failures)
        # Unpacked, so that a mere message is refused: a DataLoader then raises what a worker met as a RuntimeError.
        self.failures = [(file, reason) for file, reason in failures]
        self.nothing_left, self.packed = nothing_left, packed

    def __str__(self) -> str:
        rest = "which skip_bad would leave out"
        if self.nothing_left:
            rest = "and no readable one"
        elif not self.packed:
            rest = "which skip_bad leaves out of a packed set, not with cache=False"
        lines = [f"{len(self.failures)} unreadable image(s), {rest}:"]
        lines += [f"{file}: {reason}" for file, reason in self.failures[:20]]
        if len(self.failures) > 20:
            lines.append(f"and {len(self.failures) - 20} more")
        return "\n  ".join(lines)


class _SingleImages:
    """Images one by one, for those that come in batches."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def __getitem__(self, index: int) -> torch.Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, the number of images, got {index}")
        return self.batch(np.array([index % len(self)]))[0]


class PackedImages(_SingleImages):
    """Images gathered from a memory-mapped packed file. Attributes as in `Images`."""

    def __init__(
        self,
        path: Path,
        name: str,
        array: np.memmap,
        labels: np.ndarray | None,
        skipped: list[tuple[str, str]],
        left_out: dict[str, int],
        check: IntegrityCheck,
    ) -> None:
        self.path: Path | None = path.absolute()  # a process that it is sent to may start in another folder
        self.name, self.labels, self.nbytes = name, labels, array.nbytes
        self.skipped, self.left_out = skipped, left_out
        self.image_size: tuple[int, int] = (array.shape[1], array.shape[2])
        self.channels: int = array.shape[3]
        self._map(array)
        self._check: IntegrityCheck | None = check

    def _map(self, array: np.memmap) -> None:
        self._array = np.asarray(array)  # (N, H, W, K); indexing an np.memmap is slower
        self._ahead = _ReadAhead(array) if array.nbytes >= _ADVISED_BYTES and hasattr(mmap, "MADV_RANDOM") else None

    def __getstate__(self) -> dict[str, Any]:
        # Mapped anew from the path, not copied into each process, nor checked there.
        return vars(self) | {"_array": None, "_ahead": None, "_check": None, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map(np.load(state["path"], mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._array)

    @cached_property
    def fingerprint(self) -> str:
        return self._check.checksum if self._check is not None else ""

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        if self._check is not None:
            self._check.raise_if_damaged()
        if self._ahead is not None:
            self._ahead(indices)
        return channels_first(self._array[indices])

    def finish_check(self) -> None:
        """Wait until the packed file has been read, and raise `OSError` if it is damaged."""
        if self._check is not None:
            self._check.wait()
            self._check.raise_if_damaged()


class _ReadAhead:
    """Reads images of a mapped file that may be larger than memory: these pages, all at once, and no others.

    Left to itself, the system reads what is around each page that is touched, up to megabytes for a few kilobytes, and
    waits for it before the next is touched.

    Args:
        array: The mapped file, `(N, H, W, K)`.
    """

    def __init__(self, array: np.memmap) -> None:
        self._mapping = cast("mmap.mmap", array.base)
        self._start = array.offset % mmap.ALLOCATIONGRANULARITY  # of the images in the mapping
        self._stride = array.strides[0]
        self._advise(mmap.MADV_RANDOM, 0, len(self._mapping))

    def __call__(self, indices: np.ndarray) -> None:
        for start in (self._start + indices * self._stride).tolist():
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._advise(mmap.MADV_WILLNEED, page, start + self._stride - page)

    def _advise(self, advice: int, start: int, length: int) -> None:
        with contextlib.suppress(OSError):  # as a file system may answer: the images are read all the same
            self._mapping.madvise(advice, start, length)


class StreamedImages(_SingleImages):
    """Images decoded whenever they are asked for, by `workers` threads. Attributes as in `Images`."""

    def __init__(self, decoder: Decoder, workers: int) -> None:
        self.path: Path | None = None
        self.name, self.image_size, self.channels = decoder.source.name, decoder.image_size, decoder.channels
        self.skipped: list[tuple[str, str]] = []
        self.nbytes = len(decoder.source.items) * math.prod(decoder.shape)
        self._decoder, self._workers = decoder, workers
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="dcgan-decode") if workers else None

    def __reduce__(self) -> tuple[type[StreamedImages], tuple[Decoder, int]]:
        return StreamedImages, (self._decoder, self._workers)  # threads cannot be sent to another process

    def __len__(self) -> int:
        return len(self._decoder.source.items)

    @property
    def left_out(self) -> dict[str, int]:
        return self._decoder.source.left_out

    @cached_property
    def fingerprint(self) -> str:
        decoder = self._decoder
        key = repr((decoder.source.portable_fingerprint(), decoder.shape, decoder.resize))
        return f"files:{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    @cached_property
    def labels(self) -> np.ndarray | None:
        source = self._decoder.source
        if source.labels is not None and not source.labels_known:
            for index in range(len(self)):
                try:
                    _ = source.items[index]
                except UnreadableImage as error:
                    raise BadImages([(source.label(index), str(error))], packed=False) from error
        return source.labels

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        # A single image is decoded here: the forked worker of a DataLoader has none of the pool's threads.
        if self._executor is None or len(indices) == 1:
            chunks = [self._decoder(indices)]
        else:
            splits = np.array_split(indices, min(self._workers, len(indices)))
            chunks = list(self._executor.map(self._decoder, splits))
        if failures := [failure for chunk in chunks for failure in chunk.failures]:
            raise BadImages(failures, packed=False)
        return channels_first(np.concatenate([chunk.images for chunk in chunks]))


def channels_first(images: np.ndarray) -> torch.Tensor:
    """View `(N, H, W, K)` as a tensor `(N, K, H, W)`, channels last in memory."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)
