"""Where images come from: the named sets and folders of files, not yet decoded.

A set is read as torchvision lays it out under `root`, and for its images alone: where these are plain files,
the annotations that torchvision would insist on need not be there.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tarfile
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import ModuleType

Item = str | bytes | np.ndarray  # one image: a path, an encoded file, or uint8 pixels (h, w) or (h, w, 3)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LSUN_CLASSES = (
    *("bedroom_train", "bridge_train", "church_outdoor_train", "classroom_train", "conference_room_train"),
    *("dining_room_train", "kitchen_train", "living_room_train", "restaurant_train", "tower_train"),
    *("bedroom_val", "bridge_val", "church_outdoor_val", "classroom_val", "conference_room_val"),
    *("dining_room_val", "kitchen_val", "living_room_val", "restaurant_val", "tower_val", "test"),
)


class Items(Protocol):
    """A sequence of images that are read one by one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Item: ...


@dataclass
class Source:
    """One set of images: where its files are and how to read them.

    Attributes:
        name: One of `NAMES`.
        root: The folder below which the set lives.
        parts: Paths under `root`, files or folders, that hold the images; none for a set that needs no files.
        read: Returns the images, after fetching or unpacking the set where that is needed and possible.
        remedy: What to fetch, from whom, and where to put it when `read` fails.
    """

    name: str
    root: Path
    parts: Sequence[str]
    read: Callable[[Path], Items]
    remedy: str = ""

    @cached_property
    def items(self) -> Items:
        """The undecoded images.

        Raises:
            FileNotFoundError: If the set is neither readable under `root` nor to be had from its host.
        """
        try:
            return self.read(self.root)
        except (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            if not self.remedy:
                raise
            remedy = self.remedy.format(root=self.root)
            raise FileNotFoundError(
                f"{self.name} is not readable in {self.root} and could not be downloaded ({error}). {remedy}"
            ) from error

    def label(self, index: int) -> str:
        """Name image `index` for a message."""
        item = self.items[index]
        return item if isinstance(item, str) else f"{self.name}[{index}]"

    def part(self, indices: Iterable[int]) -> Source:
        """Return the source with some of its images only, under their indices, for another process."""
        part = replace(self, read=_nothing, remedy="")
        part.__dict__["items"] = {index: self.items[index] for index in indices}
        return part

    def fingerprint(self) -> str:
        """Digest every file's path, size and time, so that a changed set is not taken for the old one."""
        if not all((self.root / part).exists() for part in self.parts):
            _ = self.items  # fetches the set
        digest = hashlib.sha256(f"{self.name}\0".encode())
        root = self.root.resolve()
        for part in self.parts:
            path = root / part
            for file in scan(path) if path.is_dir() else [str(path)]:
                try:
                    status = os.stat(file)  # noqa: PTH116 (a million files: a Path for each takes longer)
                except OSError:  # a dangling link, which decoding will report
                    digest.update(os.fsencode(f"{file}\0"))
                else:
                    digest.update(os.fsencode(f"{file}\0{status.st_size} {status.st_mtime_ns}\0"))
        return digest.hexdigest()


def _nothing(_: Path) -> Items:
    return ()


def find(name: str, root: Path, classes: Sequence[str] = ()) -> Source:
    """Return the set called `name`, without reading or fetching it yet.

    Args:
        name: One of `NAMES`.
        root: Where sets live; for "folder", the folder itself.
        classes: For lsun, its categories, such as "bedroom_train".

    Raises:
        ValueError: If `name` or one of `classes` is unknown, or if `classes` are missing or do not apply.
        FileNotFoundError: If `name` is "folder" and `root` does not exist.
        NotADirectoryError: If `root` is a file.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}{_nearest(name, NAMES)}")
    if classes and name != "lsun":
        raise ValueError(f"classes apply to lsun only, got {list(classes)} for {name}")
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"root must be a folder, got the file {root}")
    if name == "folder" and not root.exists():
        raise FileNotFoundError(f"root must be a folder of images, got {root}, which does not exist")
    if name == "lsun":
        return _lsun(root, classes)
    return Source(name, root, **_SETS[name]._asdict())


def scan(folder: str | Path) -> list[str]:
    """List the image files in and below `folder`, sorted by path.

    Links are followed; a folder that is reached twice, as in a cycle of links, is listed once. Hidden names
    are left out. What is named like an image is listed, even a directory: decoding tells what is wrong.
    """
    files: list[str] = []
    folders, seen = [os.fspath(folder)], set()
    while folders:
        current = folders.pop()
        status = os.stat(current)  # noqa: PTH116 (as in `fingerprint`)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            # In order, since the first way to a folder decides by which path its files are known.
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES):
                    files.append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.path)
    return sorted(files)


def _nearest(word: str, words: Sequence[str]) -> str:
    match = difflib.get_close_matches(str(word).lower(), words, n=1)
    return f": did you mean {match[0]!r}?" if match else ""


def _datasets() -> ModuleType:
    """Import torchvision's sets; told to download, they look for the files before asking the network."""
    from torchvision import datasets

    return datasets  # type: ignore[no-any-return, unused-ignore]


def _folder(root: Path) -> list[str]:
    files = scan(root)
    if not files:
        raise FileNotFoundError(f"root must hold images ({', '.join(SUFFIXES)}) at any depth, got {root}")
    return files


def _digits(_: Path) -> Items:
    from sklearn.datasets import load_digits

    return list(np.rint(load_digits().images * (255 / 16)).astype(np.uint8))  # 1797 of 8x8 in 0 ... 16


def _fake(_: Path) -> Items:
    # FakeData seeds and restores torch's global generator for every image: not to be left to a thread.
    fake = _datasets().FakeData(size=1000, image_size=(3, 64, 64))
    return [np.asarray(fake[index][0]) for index in range(len(fake))]


def _celeba(root: Path) -> list[str]:
    images, partition = root / "celeba/img_align_celeba", root / "celeba/list_eval_partition.txt"
    if not (images.is_dir() and partition.is_file()):
        _datasets().CelebA(root, download=True)
    rows = (line.split() for line in partition.read_text(encoding="utf-8").splitlines())
    return [str(images / name) for name, split in rows if split == "0"]


def _lfw(root: Path) -> list[str]:
    images = root / "lfw-py/lfw_funneled"
    if not images.is_dir():
        _datasets().LFWPeople(root, image_set="funneled", download=True)
    return _folder(images)


def _imagenet(root: Path) -> list[str]:
    images = root / "train"
    if not images.is_dir():
        _datasets().ImageNet(root, split="train")  # unpacks the archives
    return _folder(images)


def _lsun(root: Path, classes: Sequence[str]) -> Source:
    if isinstance(classes, str) or not classes:
        raise ValueError(f"classes must be a list of some of {', '.join(LSUN_CLASSES)}; got {classes!r}")
    classes = [f"{name}_train" if f"{name}_train" in LSUN_CLASSES else name for name in classes]
    for name in classes:
        if name not in LSUN_CLASSES:
            expected = f"classes must be of {', '.join(LSUN_CLASSES)}"
            raise ValueError(f"{expected}; got {name!r}{_nearest(name, LSUN_CLASSES)}")
    archives = ", ".join(f"http://dl.yf.io/lsun/scenes/{name}_lmdb.zip" for name in classes)
    remedy = f"Fetch {archives} (the authors' server) and unpack into {{root}}/{classes[0]}_lmdb and so on."
    folders = [f"{name}_lmdb" for name in classes]
    parts = [f"{folder}/data.mdb" for folder in folders]
    return Source("lsun", root, parts, lambda root: _Databases([root / folder for folder in folders]), remedy)


class _Databases:
    """The encoded images of some LMDB folders, in the order of their keys.

    torchvision's reader would leave a pickle of the keys in the working directory and trust any found there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise ImportError("LSUN comes as LMDB databases: pip install 'dcgan[lsun]'") from error
        try:
            self._open = [
                lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False, max_readers=1024)
                for folder in folders
            ]
        except lmdb.Error as error:
            raise FileNotFoundError(str(error)) from error
        self._keys: list[tuple[int, bytes]] = []
        for number, database in enumerate(self._open):
            with database.begin() as transaction:
                self._keys += ((number, key) for key in transaction.cursor().iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int, /) -> bytes:
        number, key = self._keys[index]
        with self._open[number].begin() as transaction:
            return transaction.get(key) or b""


class _Set(NamedTuple):
    parts: tuple[str, ...]
    read: Callable[[Path], Items]
    remedy: str = ""


def _idx(folder: str, host: str) -> _Set:
    return _Set(
        (f"{folder}/raw/train-images-idx3-ubyte",),
        lambda root: getattr(_datasets(), folder)(root, download=True).data.numpy(),
        f"Fetch the four *-ubyte.gz files from {host} and put them, unpacked, into {{root}}/{folder}/raw.",
    )


_SETS = {
    "celeba": _Set(
        ("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        _celeba,
        "Google Drive limits downloads: fetch img_align_celeba.zip and list_eval_partition.txt from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put both into {root}/celeba and unpack the "
        "archive there; with the images alone, use the set 'folder'.",
    ),
    "cifar10": _Set(
        tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        lambda root: _datasets().CIFAR10(root, download=True).data,
        "Fetch https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and put it into {root}.",
    ),
    "digits": _Set((), _digits),
    "fake": _Set((), _fake),
    "fashion-mnist": _idx("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    "folder": _Set(("",), _folder),
    "imagenet": _Set(
        ("train",),
        _imagenet,
        "ImageNet is for registered users: fetch ILSVRC2012_img_train.tar and ILSVRC2012_devkit_t12.tar.gz "
        "from https://image-net.org/download-images and put both into {root}, or images into {root}/train.",
    ),
    "lfw": _Set(
        ("lfw-py/lfw_funneled",),
        _lfw,
        "Its first host is gone: fetch lfw-funneled.tgz from https://ndownloader.figshare.com/files/5976015 "
        "(scikit-learn's copy) and unpack it, so that there is {root}/lfw-py/lfw_funneled.",
    ),
    "mnist": _idx("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "stl10": _Set(  # the 100,000 unlabelled images, which are what the set is for
        ("stl10_binary/unlabeled_X.bin",),
        lambda root: _datasets().STL10(root, split="unlabeled", download=True).data.transpose(0, 2, 3, 1),
        "Fetch http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and put it into {root}.",
    ),
    "svhn": _Set(
        ("train_32x32.mat",),
        lambda root: _datasets().SVHN(root, split="train", download=True).data.transpose(0, 2, 3, 1),
        "Fetch http://ufldl.stanford.edu/housenumbers/train_32x32.mat and put it into {root}.",
    ),
}
NAMES = tuple(sorted([*_SETS, "lsun"]))
