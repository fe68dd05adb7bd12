"""A whole dataset, decoded into one packed file.

Shapes: N images, H and W their sides, K channels, last in memory. A packed file is a plain `.npy` of
`(N, H, W, K)`, which `np.load(path, mmap_mode="r")` opens anywhere; the `.json` next to it records its origin, and the
`.labels.npy`, where the dataset has labels, holds these.
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
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from dcgan._files import atomic_write
from dcgan.data._images import BadImages, PackedImages

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from dcgan.data._decoding import Decoded, Decoder

    Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_VERSION = 1  # part of every key: raise it when the same source is decoded to other bytes
_MAX_CHUNK_BYTES = 2**22  # decoded at a time: few transfers, yet little memory whatever the image size


def load_packed(
    folder: Path, decoder: Decoder, fingerprint: str, workers: int, progress: Progress | None, *, skip_bad: bool
) -> PackedImages:
    """Open the packed file of what `decoder` decodes, after making it if it is missing or damaged.

    Only one process makes it, even if several need it; a file appears under its name only when it is complete.

    Args:
        folder: Where packed files are kept.
        decoder: What to pack.
        fingerprint: A hash of the source, which decides with the decoder's options whether a packed file is reused.
        workers: Decoding threads; 0 decodes in the calling thread.
        progress: Called as `progress(done, total)` while the file is made.
        skip_bad: Leave out unreadable images, and record them.

    Raises:
        BadImages: If images are unreadable and `skip_bad` is false, or if all are unreadable.
        OSError: If the file does not fit on its disk.
    """
    from filelock import FileLock

    key = repr((_VERSION, fingerprint, decoder.shape, decoder.resize))
    name = "-".join([decoder.source.name, "x".join(map(str, decoder.shape)), decoder.resize])
    path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    images = _open_packed(path, decoder)
    if images is None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_files(folder)
        with FileLock(f"{path}.lock"):
            images = _open_packed(path, decoder)  # another process may have made it while this one waited
            if images is None:
                _write_packed(path, decoder, workers, progress, skip_bad=skip_bad)
                images = _open_packed(path, decoder)
    if images is None:
        raise OSError(errno.EIO, "the packed file was written but cannot be read back", str(path))
    if images.skipped and not skip_bad:
        raise BadImages(images.skipped)
    logger.debug("%d images of %s, %.1f MB in %s", len(images), images.name, images.nbytes / 1e6, path)
    _read_ahead(path)
    return images


def _open_packed(path: Path, decoder: Decoder) -> PackedImages | None:
    """Map a packed file, or return None if it is missing or damaged."""
    try:
        metadata = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        array = np.load(path, mmap_mode="r")
        if array.shape != (metadata["count"], *decoder.shape):
            return None
        skipped = [(file, reason) for file, reason in metadata["skipped"]]
        labels = np.load(_labels_path(path)) if metadata.get("labels") else None
        if labels is not None and labels.shape != (len(array),):
            return None
    except FileNotFoundError:
        return None
    except (EOFError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged; packing again: %s", path, error)
        return None
    return PackedImages(path, decoder.source.name, array, skipped, labels)


def _labels_path(path: Path) -> Path:
    return path.with_suffix(".labels.npy")


def _remove_stale_files(folder: Path) -> None:
    """Remove the temporary files of killed processes; a live one holds its lock."""
    from filelock import FileLock, Timeout

    for stale in folder.glob("*.npy.tmp"):
        with contextlib.suppress(Timeout), FileLock(f"{stale.with_suffix('')}.lock", timeout=0):
            logger.info("removing %s, left by an interrupted process", stale)
            stale.unlink(missing_ok=True)


def _write_packed(path: Path, decoder: Decoder, workers: int, progress: Progress | None, *, skip_bad: bool) -> None:
    """Decode all images into `path`, completely or not at all, with only a few chunks in memory."""
    total, image_bytes = len(decoder.source.items), math.prod(decoder.shape)
    needed, free = total * image_bytes, shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{total} packed images take {needed} bytes, but only {free} are free", str(path))
    chunk_size = max(1, min(64, _MAX_CHUNK_BYTES // image_bytes))
    chunks = [range(start, min(start + chunk_size, total)) for start in range(0, total, chunk_size)]
    readable: list[int] = []
    failures: list[tuple[str, str]] = []
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            _write_header(file, (total, *decoder.shape))
            with contextlib.closing(_decode_chunks(decoder, chunks, workers)) as decoded:
                for chunk, (images, indices, failed) in zip(chunks, decoded, strict=True):
                    readable += indices
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
        # The labels and metadata first: a packed file is never without them, nor a damaged one with those of another.
        path.unlink(missing_ok=True)
        if decoder.source.labels is not None:
            with atomic_write(_labels_path(path)) as file:
                np.save(file, decoder.source.labels[readable])
        metadata = json.dumps(_metadata(decoder, total - len(failures), failures), indent=1)
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(f"{metadata}\n".encode())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRNOS:
            raise
        message = f"{total} packed images take {needed} bytes: {error.strerror}"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _decode_chunks(decoder: Decoder, chunks: list[range], workers: int) -> Generator[Decoded]:
    with warnings.catch_warnings():
        # Pillow's warnings about odd metadata do not affect the pixels. Filters belong to the whole process, so the
        # calling thread sets them, never a decoding thread.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if not workers:
            yield from map(decoder, chunks)
            return
        with ThreadPoolExecutor(workers) as executor:
            yield from prefetch(executor, decoder, chunks, depth=2 * workers)


def prefetch(
    executor: Executor, function: Callable[[Job], Result], jobs: Iterable[Job], depth: int
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, while at most `depth` later ones are under way."""
    pending: deque[Future[Result]] = deque()
    for job in jobs:
        pending.append(executor.submit(function, job))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _metadata(decoder: Decoder, count: int, failures: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "source": decoder.source.name,
        "description": decoder.source.description,
        "root": str(decoder.source.root.resolve()) if decoder.source.paths else None,
        "parts": list(decoder.source.paths),
        "image_size": decoder.image_size,
        "channels": decoder.channels,
        "resize": decoder.resize,
        "count": count,
        "nbytes": count * math.prod(decoder.shape),
        "labels": decoder.source.labels is not None,
        "skipped": failures,
    }


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write the header of a uint8 `.npy`, which NumPy pads so that any N takes the same space."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _read_ahead(path: Path) -> None:
    """Have the system read a file that fits in memory in order: random reads from a cold disk are far slower."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    if path.stat().st_size < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
