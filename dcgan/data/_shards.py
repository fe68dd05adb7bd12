"""Images in shards: uncompressed tar archives in the layout of WebDataset, of which any image can be read.

Files of a shard that share their path up to the first dot of the name are one sample, and the rest of the name tells
which part of it a file is (https://github.com/webdataset/webdataset, "The WebDataset Format"): `000042.jpg` is an
image and `000042.cls` its class, a decimal number. WebDataset reads shards from front to end. Here an index, made once,
says where each image begins, so that shards are read in the order of any other dataset.

Shapes: N images.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np

from dcgan._errors import InputError
from dcgan._files import atomic_write
from dcgan.data._formats import ending_of, image_endings
from dcgan.data._sources import EncodedImage, Source, describe_left_out, expect_image_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)

_VERSION = 2  # of the index: raise it when the same shards give another one
_ESCAPED = "surrogateescape"  # how tarfile reads names that are not UTF-8
_MAX_SHARDS = 100_000
_MAX_NAME_BYTES = 1024  # in the index, each name takes as much as the longest
_MAX_LABEL_BYTES = 32
_MAX_SHOWN = 3  # of the missing shards, in a message
_RESERVED = re.compile("__[^/]*__($|/)")
NO_LABEL = -1


@dataclass
class IndexedSource(Source):
    """A dataset whose labels are known without its images.

    Attributes:
        num_classes: Number of classes; None without labels.
        indexed: The images.
    """

    labels_known = True
    num_classes: int | None = None
    indexed: IndexedItems = field(kw_only=True)

    @cached_property
    def left_out(self) -> dict[str, int]:
        return self.indexed.left_out

    def label(self, index: int) -> str:
        return self.indexed.name(index)

    def fingerprint(self) -> str:
        """Hash also how many images were found, since with another package more formats can be read."""
        return hashlib.sha256(f"{super().fingerprint()} {len(self.indexed)}".encode()).hexdigest()


class IndexedItems:
    """Images that can be named without reading them."""

    left_out: dict[str, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int, /) -> str | EncodedImage:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return where image `index` is."""
        raise NotImplementedError


def open_shards(pattern: Path, cache: Path) -> IndexedSource:
    """Return the images of some shards, after indexing them, unless that was done before.

    Args:
        pattern: The shards, such as `shards/train-{000000..000099}.tar`, or a folder of them.
        cache: Folder of the index.

    Raises:
        FileNotFoundError: If shards are missing.
        ValueError: If a shard is damaged or not one, or the pattern is none.
    """
    paths = expand_pattern(pattern)
    shards = [_Shard.of(path) for path in paths]
    key = repr((_VERSION, sorted(image_endings()), [(str(s.path), s.size, s.mtime_ns) for s in shards]))
    path = cache / f"wds-index-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    index = _read_index(path)
    if index is None:
        logger.info("indexing %s, once", pattern)
        index = _index(shards)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, **index._asdict())
    items = ShardImages(shards, index)
    if not len(items):
        found = f"which hold {describe_left_out(items.left_out)}" if items.left_out else "which hold no file"
        raise FileNotFoundError(f"root must be shards with images, got {pattern}, {found}")
    labels, num_classes = complete_labels(items, index.labels, None)
    root = Path(os.path.commonpath([shard.path.parent for shard in shards]))
    return IndexedSource(
        "wds",
        root,
        [str(shard.path.relative_to(root)) for shard in shards],
        lambda _: items,
        labels=labels,
        num_classes=num_classes,
        indexed=items,
    )


def complete_labels(
    items: IndexedItems, labels: np.ndarray, num_classes: int | None
) -> tuple[np.ndarray | None, int | None]:
    """Return the labels `(N,)` of images and the number of classes, or None for both unless all have a label.

    Args:
        items: The images.
        labels: Their classes, negative where there is none.
        num_classes: Number of classes; None is the highest label and one.
    """
    missing = np.flatnonzero(labels < 0)
    if not len(missing):
        return labels, num_classes or int(labels.max()) + 1
    if len(missing) < len(items):
        example = items.name(int(missing[0]))
        logger.warning(
            "%d of %d images have no label, such as %s: all labels are left aside", len(missing), len(items), example
        )
    return None, None


def expand_pattern(pattern: Path) -> list[Path]:
    """Return the shards that a pattern or a folder stands for, which all exist.

    Raises:
        FileNotFoundError: If one does not.
        ValueError: If braces of the pattern hold neither a range nor a list, or it stands for too many shards or is a
            URL.
    """
    if re.match(r"[A-Za-z]{2,}:|[A-Za-z][\w+.-]+:[/\\]", str(pattern)):
        raise InputError(
            f"root must be shards on this machine, got {str(pattern)!r}: URLs are not read, since a stream cannot be "
            "resumed exactly; download the shards first"
        )
    if pattern.is_dir():
        shards = sorted(path for path in pattern.glob("*.tar") if not path.name.startswith("."))
        if not shards:
            raise FileNotFoundError(f"root must be shards, or a folder of them, got {pattern} without any *.tar")
        return [shard.absolute() for shard in shards]
    names = list(itertools.islice(_expand_braces(str(pattern)), _MAX_SHARDS + 1))
    if len(names) > _MAX_SHARDS:
        raise InputError(f"root must stand for at most {_MAX_SHARDS:,} shards, got {str(pattern)!r}, which has more")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"root must name each shard once, got {str(pattern)!r}, which names {repeated[0]} again")
    shards = [Path(name).absolute() for name in names]
    if missing := [shard for shard in shards if not shard.is_file()]:
        shown = ", ".join(map(str, missing[:_MAX_SHOWN])) + (", …" if len(missing) > _MAX_SHOWN else "")
        if len(shards) == 1:
            raise FileNotFoundError(f"there is no shard {shown}")
        raise FileNotFoundError(f"{len(missing)} of the {len(shards)} shards {pattern} are missing: {shown}")
    return shards


def _expand_braces(pattern: str) -> Iterator[str]:
    """Write out `{000..099}` and `{a,b}`, as a shell does."""
    if (found := re.search(r"\{([^{}]*)\}", pattern)) is None:
        yield pattern
        return
    before = pattern[: found.start()]
    if before.count("{") > before.count("}"):
        raise InputError(f"braces must not hold others, got {pattern!r}: write the list out")
    words: Iterable[str]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = bounds.groups()
        padded = any(bound.startswith("0") and bound != "0" for bound in (first, last))
        width = max(len(first), len(last)) if padded else 0
        numbers = range(int(first), int(last) + 1)
        words = (f"{number:0{width}}" for number in numbers) if numbers else ()
    else:
        words = found[1].split(",") if "," in found[1] else []
    if not words:
        raise InputError(f"braces must hold a rising range, as {{000..099}}, or a list, as {{a,b}}; got {found[0]}")
    for word in words:
        yield from _expand_braces(before + word + pattern[found.end() :])


class _Shard(NamedTuple):
    """A shard as it was when it was indexed: its file, and what tells whether that has changed."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _Shard:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def open(self) -> BinaryIO:
        """Open the file; `OSError` if it is not the one that was indexed any more."""
        file = self.path.open("rb", buffering=0)
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            file.close()
            raise OSError(f"the shard {self.path} has changed since it was opened: start again to read it anew")
        return file


class _Index(NamedTuple):
    """Where the images are.

    Attributes:
        shards: Number of the shard of each, int32 `(N,)`.
        offsets: Where it begins, in bytes, int64 `(N,)`.
        sizes: Its bytes, int64 `(N,)`.
        labels: Its class, or -1, int64 `(N,)`.
        names: Its name in the shard, in UTF-8 unless it is in another encoding there, `(N,)`.
        left_out: The files of samples without an image, by their endings, as JSON.
    """

    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    left_out: np.ndarray


class ShardImages(IndexedItems):
    """The encoded images of some shards, in their order."""

    def __init__(self, shards: list[_Shard], index: _Index) -> None:
        self._shards, self._index = shards, index
        self.left_out = json.loads(str(index.left_out))

    def __len__(self) -> int:
        return len(self._index.shards)

    def __getitem__(self, index: int, /) -> EncodedImage:
        # Opened for each image: thousands of shards would be more files than a process may keep open.
        size = int(self._index.sizes[index])
        expect_image_size(size)
        with self._shards[self._index.shards[index]].open() as file:
            file.seek(self._index.offsets[index])
            return EncodedImage(self.name(index), file.read(size))

    def name(self, index: int) -> str:
        """Return the path of the shard, and that within it."""
        return f"{self._shards[self._index.shards[index]].path}/{self._index.names[index].decode(errors=_ESCAPED)}"


def _read_index(path: Path) -> _Index | None:
    """Read an index, or return None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # of a damaged file, np.load leaves its own open
            return _Index(**{name: arrays[name] for name in _Index._fields})
    except (FileNotFoundError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _index(shards: list[_Shard]) -> _Index:
    samples: list[_Sample] = []
    numbers: list[int] = []
    left_out: Counter[str] = Counter()
    for number, shard in enumerate(shards):
        found = _index_shard(shard)
        for sample in found:
            if sample.name is None:
                left_out.update(sample.left_out)
        with_image = [sample for sample in found if sample.name is not None]
        samples += with_image
        numbers += [number] * len(with_image)
    return _Index(
        np.array(numbers, np.int32),
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.size for sample in samples], np.int64),
        np.array([sample.label for sample in samples], np.int64),
        np.array([(sample.name or "").encode(errors=_ESCAPED) for sample in samples], np.bytes_),
        np.array(json.dumps(left_out)),
    )


@dataclass(slots=True)
class _Sample:
    """The files of one key, as far as they matter."""

    name: str | None = None  # of its image
    offset: int = 0
    size: int = 0
    label: int = NO_LABEL
    left_out: list[str] = field(default_factory=list)  # the endings of files that are neither


def _index_shard(shard: _Shard) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    endings = image_endings()
    with shard.open() as file:
        if file.read(2) == b"\x1f\x8b":
            raise InputError(f"the shard {shard.path} is compressed, so that no image can be found in it: gunzip it")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    # Folders, links, hidden files and the reserved `__name__` belong to no sample.
                    if not member.isreg() or member.issparse() or name.startswith(".") or _RESERVED.match(member.name):
                        continue
                    _expect_short_name(member, shard.path)
                    stem, _, suffix = name.partition(".")
                    sample = samples.setdefault(f"{folder}/{stem}", _Sample())
                    if (ending := ending_of(name)) in endings:
                        if sample.name is not None:
                            raise InputError(
                                f"each sample must have one image, but in {shard.path} {sample.name} and {member.name} "
                                "have the same name up to its first dot"
                            )
                        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size
                    elif suffix.lower() == "cls":
                        if sample.label != NO_LABEL:
                            raise InputError(f"each sample must have one label, but {shard.path} has two {member.name}")
                        sample.label = _read_label(tar, member, shard.path)
                    else:
                        sample.left_out.append(ending)
                file.seek(tar.offset)
                # At a damaged header, and at the end of a file that lacks its end, tarfile stops without a word.
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end mark is missing")
        except tarfile.TarError as error:
            raise InputError(
                f"the shard {shard.path} is not a whole tar archive ({error}): download or pack it again"
            ) from error
    return list(samples.values())


def _expect_short_name(member: tarfile.TarInfo, path: Path) -> None:
    if (length := len(member.name.encode(errors=_ESCAPED))) > _MAX_NAME_BYTES:
        raise InputError(
            f"names in a shard must have at most {_MAX_NAME_BYTES:,} bytes, but one in {path} has {length:,}: "
            f"{member.name[:64]}…"
        )


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    content = tar.extractfile(member) if member.size <= _MAX_LABEL_BYTES else None
    text = b"" if content is None else content.read().strip()
    if not re.fullmatch(rb"\d{1,9}", text):
        raise InputError(f"a label must be a decimal number from 0, got {text!r} in {path}/{member.name}")
    return int(text)
