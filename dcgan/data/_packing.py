"""A whole set of images, decoded into one packed file.

Shapes: N images, H and W their sides, K channels, last in memory. A packed file is a plain `.npy` of
`(N, H, W, K)`, which `np.load(path, mmap_mode="r")` opens anywhere; the `.json` beside it tells its origin.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from dcgan._files import atomic_write
from dcgan.data._decoding import Decoder
from dcgan.data._pool import DecoderPool

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Job = TypeVar("Job")
Result = TypeVar("Result")

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_VERSION = 1  # part of every key: raise it when the same source is decoded to other bytes
_MANY = 2048  # images, for which it pays to start processes
_CHUNK_BYTES = 2**22  # decoded by one thread at a time: few hand-overs, yet little memory whatever the image size


class BadImages(ValueError):  # noqa: N818 (it holds images, not one error)
    """Some files are not readable as images.

    Attributes:
        failures: `(file, reason)` of each of them; the message shows the first 20.
    """

    def __init__(self, failures: list[tuple[str, str]], *, nothing_left: bool = False) -> None:
        super().__init__(failures)
        self.failures, self.nothing_left = failures, nothing_left

    def __str__(self) -> str:
        rest = "and no other" if self.nothing_left else "which skip_bad would leave out"
        lines = [f"{len(self.failures)} unreadable image(s), {rest}:"]
        lines += [f"{file}: {reason}" for file, reason in self.failures[:20]]
        if len(self.failures) > 20:
            lines.append(f"and {len(self.failures) - 20} more")
        return "\n  ".join(lines)


class Packed:
    """Images gathered from a packed file, memory-mapped. Attributes as in `dcgan.data.Images`."""

    def __init__(self, path: Path, name: str, array: np.ndarray, skipped: list[tuple[str, str]]) -> None:
        self.path: Path | None = path
        self.name, self.skipped, self.nbytes = name, skipped, array.nbytes
        self.image_size: tuple[int, int] = (array.shape[1], array.shape[2])
        self.channels: int = array.shape[3]
        self._array = np.asarray(array)  # (N, H, W, K); np.memmap's own indexing is the slower

    def __len__(self) -> int:
        return len(self._array)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """See `dcgan.data.Images.batch`."""
        return channels_first(self._array[indices])


def pack(folder: Path, decoder: Decoder, workers: int, progress: Progress | None, *, skip_bad: bool) -> Packed:
    """Open the packed file of what `decoder` yields, after making it if it is not there.

    One process makes it, however many ask; a file appears under its name only when it is complete.

    Args:
        folder: Where packed files live.
        decoder: What to pack.
        workers: Threads that decode, each with a process of its own where there is much to do.
        progress: Called as `progress(done, total)` while the file is made.
        skip_bad: Leave unreadable images out, and record them.

    Raises:
        BadImages: If images are unreadable and `skip_bad` is false, or if all are unreadable.
        OSError: If the file does not fit on its disk.
    """
    from filelock import FileLock

    key = repr((_VERSION, decoder.source.fingerprint(), decoder.shape, decoder.resize))
    name = "-".join([decoder.source.name, "x".join(map(str, decoder.shape)), decoder.resize])
    path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    images = _open(path, decoder)
    if images is None:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with FileLock(f"{path}.lock"):
            images = _open(path, decoder)  # another process may have made it while this one waited
            if images is None:
                _build(path, decoder, workers, progress, skip_bad=skip_bad)
                images = _open(path, decoder)
    if images is None:
        raise OSError(errno.EIO, "the packed file was written but cannot be read back", str(path))
    if images.skipped and not skip_bad:
        raise BadImages(images.skipped)
    logger.info("%d images of %s, %.1f MB in %s", len(images), images.name, images.nbytes / 1e6, path)
    _warm(path)
    return images


def _open(path: Path, decoder: Decoder) -> Packed | None:
    """Map a packed file, or return None if it is missing or damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        array = np.load(path, mmap_mode="r")
        if array.shape != (record["count"], *decoder.shape):
            return None
        skipped = [(file, reason) for file, reason in record["skipped"]]
    except FileNotFoundError:
        return None
    except (EOFError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and will be made anew: %s", path, error)
        return None
    return Packed(path, decoder.source.name, array, skipped)


def _sweep(folder: Path) -> None:
    """Remove what killed builds left behind; a build that lives holds its lock."""
    from filelock import FileLock, Timeout

    for leftover in folder.glob("*.npy.tmp"):
        with contextlib.suppress(Timeout), FileLock(f"{leftover.with_suffix('')}.lock", timeout=0):
            logger.info("removing %s, left by an interrupted build", leftover)
            leftover.unlink(missing_ok=True)


def _build(path: Path, decoder: Decoder, workers: int, progress: Progress | None, *, skip_bad: bool) -> None:
    """Decode everything into `path`, complete or not at all, with only a few chunks in memory."""
    total, image_bytes = len(decoder.source.items), math.prod(decoder.shape)
    needed, free = total * image_bytes, shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{total} packed images take {needed} bytes, {free} are free", str(path))
    size = max(1, min(64, _CHUNK_BYTES // image_bytes))
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    failures: list[tuple[str, str]] = []
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            _write_header(file, (total, *decoder.shape))
            with DecoderPool(decoder) as helpers, ThreadPoolExecutor(max(workers, 1)) as pool, _quiet_pillow():
                decode = helpers if workers > 1 and total >= _MANY else decoder
                decoded = ahead(pool, decode, chunks, depth=2 * workers)
                for chunk, (images, failed) in zip(chunks, decoded, strict=True):
                    failures += failed
                    file.write(images.data)
                    if progress is not None:
                        progress(chunk.stop, total)
            if failures and (not skip_bad or len(failures) == total):
                raise BadImages(failures, nothing_left=len(failures) == total)
            file.seek(0)
            _write_header(file, (total - len(failures), *decoder.shape))
            file.flush()
            os.fsync(file.fileno())
        # The record first: where there is a packed file, there is what belongs to it.
        record = json.dumps(_record(decoder, total - len(failures), failures), indent=1)
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(f"{record}\n".encode())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        message = f"{total} packed images take {needed} bytes: {error.strerror}"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _record(decoder: Decoder, count: int, failures: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "source": decoder.source.name,
        "root": str(decoder.source.root.resolve()) if decoder.source.parts else None,
        "parts": list(decoder.source.parts),
        "image_size": decoder.image_size,
        "channels": decoder.channels,
        "resize": decoder.resize,
        "count": count,
        "nbytes": count * math.prod(decoder.shape),
        "skipped": failures,
    }


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write the head of a uint8 `.npy`, which NumPy pads so that any other N takes the same room."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's remarks on odd metadata, which do not concern the pixels.

    Warning filters belong to the whole process, so the calling thread sets them, never one that decodes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _warm(path: Path) -> None:
    """Have a file that fits in memory read in order: random reads from a cold disk are far slower."""
    if not hasattr(os, "posix_fadvise"):
        return
    if path.stat().st_size < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Show `(N, H, W, K)` as a tensor `(N, K, H, W)`, channels last in memory, without a copy."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


def ahead(pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], depth: int) -> Iterator[Result]:
    """Yield the result of `work` on each job, in order, with at most `depth` more of them under way."""
    pending: deque[Future[Result]] = deque()
    for job in jobs:
        pending.append(pool.submit(work, job))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
