"""Write a folder of images into shards, tar archives in the layout of WebDataset.

The shards of a folder are the same, byte for byte, wherever and whenever they are written with the same Pillow.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dcgan._files import atomic_write
from dcgan.data._decoding import Decoder, to_portable
from dcgan.data._images import BadImages
from dcgan.data._packing import prefetch
from dcgan.data._sources import open_source, warn_about_splits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dcgan.data._sources import Source

_SIDE = 64  # at which an image is decoded, to see whether it can be
_CLASSES = "classes.txt"
_SHARD = re.compile(r"shard-\d{6,}\.tar")
_OURS = re.compile(rf"{_SHARD.pattern}|{re.escape(_CLASSES)}|\.({_SHARD.pattern}|{re.escape(_CLASSES)})\.\d+\.tmp")


class WrittenShards(NamedTuple):
    """What was written.

    Attributes:
        pattern: The shards, as `dcgan train --data wds:` takes them.
        images: Number of images.
        classes: The names of the classes, in the order of their numbers; none without class folders.
        skipped: `(file, reason)` of each unreadable image.
    """

    pattern: Path
    images: int
    classes: list[str]
    skipped: list[tuple[str, str]]


def write_shards(
    root: Path,
    out: Path,
    *,
    shard_size: int,
    workers: int,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenShards:
    """Write the images in and below a folder, in the order of their paths, into a new folder of shards.

    JPEG, PNG and WebP keep their bytes; other formats, which not every reader of shards knows, become PNG of the same
    pixels. Where all images are in at least two folders, these are the classes, numbered in the order of their names
    and named, one a line, in `classes.txt`. The folder `out` appears when all is written, or not at all.

    Args:
        root: The images.
        out: The folder of shards.
        shard_size: Number of images in a shard.
        workers: Threads that decode images, to see whether they can be read.
        skip_bad: Leave out unreadable images instead of raising.
        max_pixels: Refuse larger images, as for `load`.
        force: Replace the shards in `out`, if it holds nothing but what this function writes.
        progress: Called as `progress(done, total)`.

    Raises:
        BadImages: If images are unreadable and `skip_bad` is false, or if all are.
        FileNotFoundError: If there is no such folder, or no image in it.
        FileExistsError: If `out` exists and `force` is false, it holds anything else, or another process is writing it.
        OSError: If the shards do not fit on their disk.
    """
    source = open_source("folder", root)
    warn_about_splits(source)
    classes, labels = _classes(source, root)
    given, out = out, out.resolve()  # which has a name, as "." has not
    with _workspace(out) as workspace:
        _expect_replaceable(out, force=force)
        new = workspace / "new"
        new.mkdir(parents=True)
        readable = _Readable(source, labels, workers, max_pixels, progress)
        shards = _write_all(new, readable, shard_size)
        if readable.failures and (not skip_bad or not readable.count):
            raise BadImages(readable.failures, nothing_left=not readable.count)
        if classes:
            with atomic_write(new / _CLASSES) as file:
                file.write(b"".join(os.fsencode(f"{name}\n") for name in classes))
        _expect_replaceable(out, force=force)  # decoding may have taken minutes
        if out.exists():
            out.rename(workspace / "old")
        new.rename(out)
    name = _shard_name(0) if shards == 1 else f"shard-{{000000..{shards - 1:06d}}}.tar"
    return WrittenShards(given / name, readable.count, classes, readable.failures)


def _classes(source: Source, root: Path) -> tuple[list[str], list[int] | None]:
    """Return the names of the class folders, and the class of each image; none where there are no such folders."""
    parts = [Path(source.label(index)).relative_to(root).parts for index in range(len(source.items))]
    classes = sorted({part[0] for part in parts})
    if len(classes) < 2 or any(len(part) == 1 for part in parts):
        return [], None
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[part[0]] for part in parts]


def _expect_replaceable(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file: --out takes a new folder")
    files = list(out.iterdir())
    shards = [path for path in files if _SHARD.fullmatch(path.name) and path.is_file() and not path.is_symlink()]
    ours = [*shards, *(path for path in files if path.name == _CLASSES and shards and _is_class_list(path))]
    if others := sorted({path.name for path in files} - {path.name for path in ours}):
        raise FileExistsError(
            f"{out} holds {others[0]}, which is not what pack writes: --out takes a new folder, and --force replaces "
            f"only shards called {_shard_name(0)} and so on, with their {_CLASSES}"
        )
    if files and not force:
        raise FileExistsError(f"{out} exists: --force replaces the shards in it")


def _is_class_list(path: Path) -> bool:
    """Tell whether a file may be one of `write_shards`: at least two names, sorted, one a line."""
    if path.is_symlink() or not path.is_file():
        return False
    *names, end = os.fsdecode(path.read_bytes()).split("\n")
    return not end and len(names) >= 2 and names == sorted(set(names))


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """Yield the path of a hidden folder next to `out`, for one process at a time; it is gone in the end."""
    from filelock import FileLock, Timeout

    out.parent.mkdir(parents=True, exist_ok=True)
    workspace = out.with_name(f".{out.name}.dcgan-pack")
    lock = FileLock(f"{workspace}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(f"another process is writing shards to {out}") from error
    try:
        _clean_up(workspace, out)  # after a killed process
        yield workspace
    finally:
        try:
            _clean_up(workspace, out)
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def _clean_up(workspace: Path, out: Path) -> None:
    """Put back what was to be replaced, if it has not been; remove what `write_shards` writes, and nothing else."""
    old = workspace / "old"
    if old.exists() and not out.exists():
        old.rename(out)
    for path in workspace.glob("*/*"):
        if _OURS.fullmatch(path.name):
            path.unlink()
    with contextlib.suppress(FileNotFoundError):
        for folder in (*workspace.iterdir(), workspace):
            folder.rmdir()


class _Readable:
    """The readable images of a folder, as `(label, ending, bytes)`, and how many there were of them and of others."""

    def __init__(
        self,
        source: Source,
        labels: list[int] | None,
        workers: int,
        max_pixels: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._decoder = Decoder(source, (_SIDE, _SIDE), 3, "crop", max_pixels)
        self._labels, self._workers, self._progress = labels, workers, progress
        self.failures: list[tuple[str, str]] = []
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int | None, str, bytes]]:
        total = len(self._decoder.source.items)
        with warnings.catch_warnings(), ThreadPoolExecutor(self._workers) as executor:
            warnings.filterwarnings("ignore", module=r"PIL\.")  # as when they are decoded for training
            results = prefetch(executor, self._read, range(total), depth=2 * self._workers)
            for index, (encoded, failures) in enumerate(results):
                self.failures += failures
                if self._progress is not None:
                    self._progress(index + 1, total)
                if encoded is not None:
                    self.count += 1
                    yield (None if self._labels is None else self._labels[index], *encoded)

    def _read(self, index: int) -> tuple[tuple[str, bytes] | None, list[tuple[str, str]]]:
        if failures := self._decoder([index]).failures:
            return None, failures
        path = self._decoder.source.label(index)
        return to_portable(Path(path).read_bytes(), path, self._decoder.max_pixels), []


def _write_all(folder: Path, readable: Iterable[tuple[int | None, str, bytes]], shard_size: int) -> int:
    """Write images into shards, and return the number of these."""
    samples, shards = enumerate(readable), 0
    for first in samples:
        with (
            atomic_write(folder / _shard_name(shards)) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number, (label, ending, content) in itertools.chain([first], itertools.islice(samples, shard_size - 1)):
                if label is not None:
                    _add(tar, f"{number:06d}.cls", f"{label}".encode())
                _add(tar, f"{number:06d}{ending}", content)
        shards += 1
    return shards


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no owner, in 1970
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
