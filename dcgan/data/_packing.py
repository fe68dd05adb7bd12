"""A whole dataset, decoded into one packed file.

Shapes: N images, H and W their sides, K channels, last in memory. A packed file is a plain `.npy` of
`(N, H, W, K)`, which `np.load(path, mmap_mode="r")` opens anywhere; the `.json` next to it records its origin, and the
`.labels.npy`, where the dataset has labels, holds these.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tokenize
import warnings
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from dcgan._errors import InputError
from dcgan._files import atomic_write
from dcgan.data._images import BadImages, PackedImages
from dcgan.data._integrity import IntegrityCheck, add_labels, format_checksum, write_metadata
from dcgan.data._sources import rephrase

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
_MAX_WAIT = 1.0  # seconds for the check of a packed file when it is opened; that of a large one goes on beside training
# What damaged metadata and headers make the readers of JSON and NumPy raise.
_DAMAGE_ERRORS = (EOFError, ValueError, AttributeError, KeyError, TypeError, SyntaxError, tokenize.TokenError)


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

    path = _packed_path(folder, decoder, fingerprint)
    with contextlib.ExitStack() as stack:
        with _explain_errors(folder):
            images = _open_packed(path, decoder)
            if images is None:
                folder.mkdir(parents=True, exist_ok=True)
                _remove_stale_files(folder)
                stack.enter_context(FileLock(f"{path}.lock"))
                images = _open_packed(path, decoder, announce=True)  # another process may have made it in the meantime
        if images is None:
            _write_packed(path, decoder, workers, progress, skip_bad=skip_bad)
            images = _open_packed(path, decoder, announce=True)
    if images is None:
        raise OSError(errno.EIO, "the packed file was written but cannot be read back", str(path))
    if images.skipped and not skip_bad:
        raise BadImages(images.skipped)
    logger.debug("%d images of %s, %.1f MB in %s", len(images), images.name, images.nbytes / 1e6, path)
    return images


def _packed_path(folder: Path, decoder: Decoder, fingerprint: str) -> Path:
    limit = () if decoder.max_pixels is None else (decoder.max_pixels,)
    key = repr((_VERSION, fingerprint, decoder.shape, decoder.resize, *limit))
    name = "-".join([decoder.source.name, "x".join(map(str, decoder.shape)), decoder.resize])
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def _open_packed(path: Path, decoder: Decoder, *, announce: bool = False) -> PackedImages | None:
    """Map a packed file, or return None if it is missing or damaged, which `announce` logs."""
    try:
        metadata = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if damage := metadata.get("damage"):  # found while it was in use
            raise InputError(damage)
        array = np.load(path, mmap_mode="r")
        _expect_layout(array, (metadata["count"], *decoder.shape), np.uint8)
        labels = np.load(_labels_path(path)) if metadata.get("labels") else None
        if labels is not None:
            _expect_layout(labels, (len(array),), np.int64)
        skipped = [(file, reason) for file, reason in metadata["skipped"]]
        check = IntegrityCheck(path, array.nbytes, labels, metadata)
        check.wait(_MAX_WAIT)
        if check.damage is not None:
            raise InputError(check.damage)
    except FileNotFoundError:
        return None
    except _DAMAGE_ERRORS as error:
        if announce:
            logger.warning("%s is damaged; packing again: %s", path, error)
        return None
    return PackedImages(path, decoder.source.name, array, labels, skipped, decoder.source.left_out, check)


def _expect_layout(array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
    in_order = array.flags.c_contiguous
    if array.shape != shape or array.dtype != dtype or not in_order:
        order = "" if in_order else " in Fortran order"
        raise InputError(f"its header must say {shape} of {dtype.__name__}, got {array.shape} of {array.dtype}{order}")


@contextlib.contextmanager
def _explain_errors(folder: Path, content: str = "packed images need some space") -> Iterator[None]:
    """Say of an error of the folder of packed files what was being saved, what is still whole, and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            message = (
                f"{content}, but the disk of {folder} cannot take them ({error.strerror}). Nothing of them was kept, "
                "and what was there before is whole. Free some space, or name a folder on another disk with cache_dir"
            )
        else:
            at = "" if error.filename is None else f": {error.filename}"
            message = (
                f"{folder}, where packed images are kept, cannot be used ({error.strerror or error}{at}). Name another "
                "folder with cache_dir, or in the environment variable DCGAN_CACHE"
            )
        raise rephrase(error, message) from error


def _labels_path(path: Path) -> Path:
    return path.with_suffix(".labels.npy")


def _remove_stale_files(folder: Path) -> None:
    """Remove the temporary files of killed processes; a live one holds its lock."""
    from filelock import FileLock, Timeout

    for stale in folder.glob("*.npy.tmp"):
        # One of another user, who shares the folder, may not be ours to remove.
        with contextlib.suppress(Timeout, PermissionError), FileLock(f"{stale.with_suffix('')}.lock", timeout=0):
            stale.unlink(missing_ok=True)
            logger.info("removed %s, left by an interrupted process", stale)


def _write_packed(path: Path, decoder: Decoder, workers: int, progress: Progress | None, *, skip_bad: bool) -> None:
    """Decode all images into `path`, completely or not at all, with only a few chunks in memory."""
    total, image_bytes = len(decoder.source.items), math.prod(decoder.shape)
    explain_errors = functools.partial(
        _explain_errors, path.parent, f"{total:,} packed images take {total * image_bytes / 1e6:,.1f} MB"
    )
    chunk_size = max(1, min(64, _MAX_CHUNK_BYTES // image_bytes))
    chunks = [range(start, min(start + chunk_size, total)) for start in range(0, total, chunk_size)]
    readable: list[int] = []
    failures: list[tuple[str, str]] = []
    crc = 0
    temporary = path.with_name(f"{path.name}.tmp")
    with contextlib.ExitStack() as stack:
        with explain_errors():
            free = shutil.disk_usage(path.parent).free
            if total * image_bytes > free:
                raise OSError(errno.ENOSPC, f"{free / 1e6:,.1f} MB are free")
            file = stack.enter_context(_temporary_file(temporary))
            _write_header(file, (total, *decoder.shape))
        decoded = stack.enter_context(contextlib.closing(_decode_chunks(decoder, chunks, workers)))
        for chunk, (images, indices, failed) in zip(chunks, decoded, strict=True):
            readable += indices
            failures += failed
            crc = zlib.crc32(images.data, crc)
            with explain_errors():
                file.write(images.data)
            if progress is not None:
                progress(chunk.stop, total)
        if failures and (not skip_bad or len(failures) == total):
            raise BadImages(failures, nothing_left=len(failures) == total)
        labels = None if decoder.source.labels is None else decoder.source.labels[readable]
        with explain_errors():
            file.seek(0)
            _write_header(file, (len(readable), *decoder.shape))
            file.flush()
            os.fsync(file.fileno())
            file.close()  # before it is renamed, for Windows
            # The labels and metadata first: a packed file is never without them, nor a damaged one with those of
            # another.
            path.unlink(missing_ok=True)
            if labels is not None:
                with atomic_write(_labels_path(path)) as labels_file:
                    np.save(labels_file, labels)
            checksum = format_checksum(add_labels(crc, labels))
            write_metadata(path, _metadata(decoder, len(readable), failures, checksum))
            temporary.replace(path)


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, and remove it in the end, if it still has this name."""
    file = path.open("wb")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # what did not fit on a full disk is written once more
            file.close()
        path.unlink(missing_ok=True)


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


def _metadata(decoder: Decoder, count: int, failures: list[tuple[str, str]], checksum: str) -> dict[str, object]:
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
        "checksum": checksum,
        "skipped": failures,
    }


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write the header of a uint8 `.npy`, which NumPy pads so that any N takes the same space."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
