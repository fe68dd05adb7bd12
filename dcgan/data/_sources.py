"""Where images come from: named datasets and folders of files, not yet decoded.

Shapes: N images, h and w the sides of one of them.

A dataset is read as torchvision lays it out under `root`, and for its images alone: where these are plain files,
the annotations that torchvision would require need not be there.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import stat
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np

from dcgan._choices import DatasetName
from dcgan._errors import InputError, MissingPackageError
from dcgan.data._formats import HEIF_ENDINGS, HEIF_REMEDY, ending_of, image_endings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from PIL.Image import Image as PilImage

    # One image: a path, an encoded file, uint8 pixels (h, w), (h, w, 3) or (h, w, 4), or an image of Pillow.
    Item: TypeAlias = "str | bytes | EncodedImage | np.ndarray | PilImage"

DATASETS: tuple[str, ...] = get_args(DatasetName)
"""The names that `load` knows."""

SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_MAX_BYTES = 2**30  # of an image file: 89 million pixels, Pillow's limit, with 16 bits in four channels take 0.7 GB
_MAX_ENDINGS = 6  # of files that are left out, in a message
LSUN_CLASSES = (
    *("bedroom_train", "bridge_train", "church_outdoor_train", "classroom_train", "conference_room_train"),
    *("dining_room_train", "kitchen_train", "living_room_train", "restaurant_train", "tower_train"),
    *("bedroom_val", "bridge_val", "church_outdoor_val", "classroom_val", "conference_room_val"),
    *("dining_room_val", "kitchen_val", "living_room_val", "restaurant_val", "tower_val", "test"),
)


logger = logging.getLogger(__name__)


class UnreadableImage(Exception):  # noqa: N818 (an image that is left out, or listed in `BadImages`)
    """One image cannot be read; the text is the reason."""


def expect_image_size(nbytes: int) -> None:
    """Raise `UnreadableImage` for a file too large for an image, which would fill the memory."""
    if nbytes > _MAX_BYTES:
        raise UnreadableImage(f"has {nbytes:,} bytes, more than {_MAX_BYTES:,}, the most that an image file may have")


class EncodedImage(NamedTuple):
    """An encoded file, and what it was called where it comes from, which tells formats apart that bytes do not."""

    name: str
    content: bytes


class Items(Protocol):
    """A sequence of images that are read one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item:
        """Return image `index`, or raise `UnreadableImage`."""
        ...


@dataclass
class Source:
    """One dataset: where its files are and how to read them.

    Attributes:
        name: One of `DATASETS`, or the class of a dataset.
        root: The folder that holds the dataset.
        paths: Files or folders under `root` that hold the images; none for a dataset without files.
        read: Returns the images, after downloading or unpacking the dataset where needed and possible.
        remedy: What to download, from where, and where to put it when `read` fails.
        description: What else is known of where the images come from.
        labels: The classes of the images, int64 `(N,)`, each set when its image is read; None without labels.
    """

    name: str
    root: Path
    paths: Sequence[str]
    read: Callable[[Path], Items]
    remedy: str = ""
    description: str = ""
    labels: np.ndarray | None = None
    labels_known: ClassVar[bool] = False  # from the beginning, without reading any image

    @cached_property
    def items(self) -> Items:
        """The undecoded images.

        Raises:
            FileNotFoundError: If the dataset is not readable under `root` and cannot be downloaded.
        """
        missing = [self.root / path for path in self.paths if not os.path.exists(self.root / path)]  # noqa: PTH110
        if self.remedy and missing and (found := self._find(self.root.resolve().parents[:2])):
            raise FileNotFoundError(self._elsewhere(found))  # instead of downloading it once more
        absent = {folder for path in missing for folder in path.parents if not os.path.exists(folder)}  # noqa: PTH110
        try:
            return self.read(self.root)
        except (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            if not self.remedy:
                raise
            for folder in sorted(absent, reverse=True):  # what torchvision made for a download; the innermost first
                with contextlib.suppress(OSError):
                    folder.rmdir()
            remedy = self.remedy.format(root=self.root)
            if missing and self.root.is_dir() and (found := self._find(self.root.iterdir())):
                remedy = f"{self._elsewhere(found)}. {remedy}"
            elif self.root.is_dir() and list_images(self.root):
                remedy += f" To train on the images that are in {self.root}, use the dataset 'folder'."
            raise FileNotFoundError(
                f"{self.name} is not readable in {self.root} and could not be downloaded ({error}): {remedy}"
            ) from error

    def _find(self, folders: Iterable[Path]) -> Path | None:
        """Return the first of some folders that holds this dataset, if its files have names of their own."""
        if self.name == "imagenet":  # any folder may have one that is called train
            return None
        # Path.exists raises an error where nothing may be read.
        return next((folder for folder in folders if all(os.path.exists(folder / path) for path in self.paths)), None)  # noqa: PTH110

    def _elsewhere(self, folder: Path) -> str:
        return f"root must be the folder that holds {self.paths[0]}, {folder}, got {self.root}"

    def __getstate__(self) -> dict[str, Any]:
        """Hold the items instead of `read`, which may be of a kind that cannot be pickled."""
        state = vars(self) | {"items": self.items}
        del state["read"]
        state.pop("_scans", None)  # as long as the items
        return state

    def label(self, index: int) -> str:
        """Name image `index` for a message."""
        item = self.items[index] if isinstance(self.items, list) else None  # only a list gives what it holds at no cost
        return item if isinstance(item, str) else f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """Hash every file's path, size and modification time, so that a changed dataset is packed again."""
        digest = hashlib.sha256(f"{self.name}\0".encode())
        for file, status in self._files():
            digest.update(os.fsencode(f"{file}\0"))
            if status is not None:
                digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def portable_fingerprint(self) -> str:
        """Hash what a copy of the dataset in another folder shares: the files' names and sizes, without their times."""
        digest = hashlib.sha256(repr((self.name, self.description, len(self.items))).encode())
        prefix = len(os.fspath(self.root.resolve())) + 1
        for file, status in self._files():
            digest.update(os.fsencode(f"{file[prefix:]}\0{status and status.st_size}\0"))
        return digest.hexdigest()

    @cached_property
    def left_out(self) -> dict[str, int]:
        """How many files in the folders of `paths` have an ending that is not read, by ending; "" is none."""
        return dict(sum((scan.left_out for scan in self._scans), Counter()))

    @cached_property
    def _scans(self) -> list[FolderScan]:
        """What is at each of `paths`, after a download if one is missing."""
        if not all((self.root / path).exists() for path in self.paths):
            _ = self.items
        root = self.root.resolve()
        paths = [root / relative for relative in self.paths]
        return [scan_folder(path) if path.is_dir() else FolderScan([str(path)], Counter()) for path in paths]

    def _files(self) -> Iterator[tuple[str, os.stat_result | None]]:
        for scan in self._scans:
            for file in scan.files:
                try:
                    yield file, os.stat(file)  # noqa: PTH116 (a million files: a Path for each takes longer)
                except OSError:  # a dangling link, which decoding will report
                    yield file, None


def source_of_files(files: Sequence[str]) -> Source:
    """Return some image files as a dataset."""
    return Source("files", Path(), (), lambda _: list(files))


def open_source(name: str, root: Path, classes: Sequence[str] = ()) -> Source:
    """Return the dataset called `name`, without reading or downloading it yet.

    Args:
        name: One of `DATASETS`.
        root: Where datasets are kept; for "folder", the folder itself.
        classes: For lsun, its categories, such as "bedroom_train".

    Raises:
        ValueError: If `name` or one of `classes` is unknown, or if `classes` are missing or do not apply.
        FileNotFoundError: If `name` is "folder" and `root` does not exist.
        NotADirectoryError: If `root` is a file.
    """
    if name not in DATASETS:
        raise InputError(f"name must be one of {', '.join(DATASETS)}; got {name!r}{_suggest(name, DATASETS)}")
    if classes and name != "lsun":
        raise InputError(f"classes apply to lsun only, got {list(classes)} for {name}")
    _expect_folder(root, must_exist=name == "folder")
    if name == "lsun":
        return _lsun(root, classes)
    return Source(name, root, **_READERS[name]._asdict())


def warn_about_splits(source: Source) -> None:
    """Warn of a folder that holds one for training and one for testing, of which the images of both are taken."""
    # os.path.isdir is false where nothing may be read, which decoding reports.
    has = [any(os.path.isdir(source.root / folder) for folder in split) for split in SPLIT_FOLDERS.values()]  # noqa: PTH112
    if source.name == "folder" and all(has):
        logger.warning("%s has folders for training and for testing, and the images of both are taken", source.root)


class FolderScan(NamedTuple):
    """What is in a folder and below it.

    Attributes:
        files: Paths of the image files, sorted.
        left_out: Number of other files by their endings, in lower case; "" is none.
    """

    files: list[str]
    left_out: Counter[str]


def list_images(folder: str | Path) -> list[str]:
    """List the image files in and below `folder`, sorted by path, as `scan_folder` finds them."""
    return scan_folder(folder).files


def scan_folder(folder: str | Path) -> FolderScan:
    """List the image files in and below `folder`, sorted by path, and count the others.

    Links are followed; a folder that is reached twice, as in a cycle of links, is listed once. Hidden names
    are left out. Whatever is named like an image is listed, even a directory: decoding reports what is wrong.

    Raises:
        OSError: If a folder cannot be read; the message names it.
    """
    files: list[str] = []
    left_out: Counter[str] = Counter()
    endings = image_endings()
    folders, seen = [os.fspath(folder)], set()
    while folders:
        current = folders.pop()
        try:
            status = os.stat(current)  # noqa: PTH116 (as in `_files`)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                # In order: where several links lead to a folder, the first decides the paths of its files.
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise rephrase(error, f"the folder {current} cannot be read: {error.strerror}") from error
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if (ending := ending_of(entry.name)) in endings:
                files.append(entry.path)
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112
                folders.append(entry.path)
            else:
                left_out[ending] += 1
    return FolderScan(sorted(files), left_out)


def describe_left_out(counts: Mapping[str, int]) -> str:
    """Say how many files of which endings are left out, the most frequent first, and how to read those that can be."""
    common = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [f"{count:,} {ending or 'without ending'}" for ending, count in common[:_MAX_ENDINGS]]
    if rest := sum(count for _, count in common[_MAX_ENDINGS:]):
        parts.append(f"{rest:,} others")
    remedy = f" (to read HEIC: {HEIF_REMEDY})" if counts.keys() & set(HEIF_ENDINGS) else ""
    return ", ".join(parts) + remedy


def rephrase(error: OSError, message: str) -> OSError:
    """Return an error of the same type and number that reads as the message alone."""
    rephrased = type(error)(message)
    rephrased.errno = error.errno
    return rephrased


def _expect_folder(root: Path, *, must_exist: bool) -> None:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except PermissionError as error:
        raise rephrase(error, f"the folder {root} cannot be read: {error.strerror}") from error
    except OSError as error:
        if must_exist:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is none: {error.strerror}"
            raise FileNotFoundError(f"{root} must be a folder of images, but {reason}") from error
        return
    if not is_folder:
        raise NotADirectoryError(f"expected a folder, got the file {root}")


def _suggest(word: str, words: Sequence[str]) -> str:
    match = difflib.get_close_matches(str(word).lower(), words, n=1)
    return f": did you mean {match[0]!r}?" if match else ""


def _torchvision_datasets() -> ModuleType:
    """Import torchvision's datasets; with `download=True` they look for the files before asking the network."""
    from torchvision import datasets

    return datasets  # type: ignore[no-any-return, unused-ignore]


def _folder(root: Path) -> list[str]:
    files, left_out = scan_folder(root)
    if not files:
        found = describe_left_out(left_out) if left_out else "no file"
        endings = ", ".join(sorted(image_endings()))
        raise FileNotFoundError(f"{root} must hold images at any depth, but holds {found}; images end in {endings}")
    return files


def _digits(_: Path) -> Items:
    from sklearn.datasets import load_digits

    return list(np.rint(load_digits().images * (255 / 16)).astype(np.uint8))  # 1797 of 8x8 in 0 ... 16


def _fake(_: Path) -> Items:
    import torch

    # The pixels of torchvision's FakeData, which reseeds the global generator and obeys the default device and dtype.
    def image(seed: int) -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(seed)
        pixels = torch.randn(3, 64, 64, generator=generator, device="cpu", dtype=torch.float32)
        return pixels.mul(255).byte().permute(1, 2, 0).numpy()

    return [image(seed) for seed in range(1000)]


def _celeba(root: Path) -> list[str]:
    images, partition = root / "celeba/img_align_celeba", root / "celeba/list_eval_partition.txt"
    if not (images.is_dir() and partition.is_file()):
        _torchvision_datasets().CelebA(root, download=True)
    rows = (line.split() for line in partition.read_text(encoding="utf-8").splitlines())
    return [str(images / name) for name, split in rows if split == "0"]


def _lfw(root: Path) -> list[str]:
    images = root / "lfw-py/lfw_funneled"
    if not images.is_dir():
        _torchvision_datasets().LFWPeople(root, image_set="funneled", download=True)
    return _folder(images)


def _imagenet(root: Path) -> list[str]:
    images = root / "train"
    if not images.is_dir():
        _torchvision_datasets().ImageNet(root, split="train")  # unpacks the archives
    return _folder(images)


def _lsun(root: Path, classes: Sequence[str]) -> Source:
    if isinstance(classes, str) or not classes:
        raise InputError(f"classes must be a list of names from {', '.join(LSUN_CLASSES)}; got {classes!r}")
    classes = [f"{name}_train" if f"{name}_train" in LSUN_CLASSES else name for name in classes]
    for name in classes:
        if name not in LSUN_CLASSES:
            expected = f"classes must be from {', '.join(LSUN_CLASSES)}"
            raise InputError(f"{expected}; got {name!r}{_suggest(name, LSUN_CLASSES)}")
    archives = ", ".join(f"http://dl.yf.io/lsun/scenes/{name}_lmdb.zip" for name in classes)
    remedy = f"Download {archives} (the authors' server) and unpack into {{root}}/{classes[0]}_lmdb and so on."
    folders = [f"{name}_lmdb" for name in classes]
    paths = [f"{folder}/data.mdb" for folder in folders]
    return Source("lsun", root, paths, lambda root: _LmdbImages([root / folder for folder in folders]), remedy)


class _LmdbImages:
    """The encoded images of some LMDB folders, in the order of their keys.

    torchvision's reader would leave a pickle of the keys in the working directory and trust any it finds there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise MissingPackageError('reading lsun needs lmdb: pip install "dcgan[lsun]"') from error
        try:
            self._databases = [
                lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False, max_readers=1024)
                for folder in folders
            ]
        except lmdb.Error as error:
            raise FileNotFoundError(str(error)) from error
        self._folders = folders
        self._keys: list[tuple[int, bytes]] = []
        for number, database in enumerate(self._databases):
            with database.begin() as transaction:
                self._keys += ((number, key) for key in transaction.cursor().iternext(keys=True, values=False))

    def __reduce__(self) -> tuple[type[_LmdbImages], tuple[Sequence[Path]]]:
        return _LmdbImages, (self._folders,)  # each process opens the databases for itself

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int, /) -> bytes:
        number, key = self._keys[index]
        with self._databases[number].begin() as transaction:
            return transaction.get(key) or b""


class _Reader(NamedTuple):
    """The fields of a `Source` that belong to the dataset."""

    paths: tuple[str, ...]
    read: Callable[[Path], Items]
    remedy: str = ""


def _mnist_reader(folder: str, host: str) -> _Reader:
    return _Reader(
        (f"{folder}/raw/train-images-idx3-ubyte",),
        lambda root: getattr(_torchvision_datasets(), folder)(root, download=True).data.numpy(),
        f"Download the four *-ubyte.gz files from {host} and put them, unpacked, into {{root}}/{folder}/raw.",
    )


_READERS = {
    "celeba": _Reader(
        ("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        _celeba,
        "Google Drive limits downloads: get img_align_celeba.zip and list_eval_partition.txt from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put both into {root}/celeba and unpack the "
        "archive there; with the images alone, use the dataset 'folder'.",
    ),
    "cifar10": _Reader(
        tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        lambda root: _torchvision_datasets().CIFAR10(root, download=True).data,
        "Download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and put it into {root}.",
    ),
    "digits": _Reader((), _digits),
    "fake": _Reader((), _fake),
    "fashion-mnist": _mnist_reader("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    "folder": _Reader(("",), _folder),
    "imagenet": _Reader(
        ("train",),
        _imagenet,
        "ImageNet is for registered users: download ILSVRC2012_img_train.tar and ILSVRC2012_devkit_t12.tar.gz "
        "from https://image-net.org/download-images and put both into {root}, or images into {root}/train.",
    ),
    "lfw": _Reader(
        ("lfw-py/lfw_funneled",),
        _lfw,
        "The original host is gone: download lfw-funneled.tgz from https://ndownloader.figshare.com/files/5976015 "
        "(scikit-learn's copy) and unpack it, so that there is {root}/lfw-py/lfw_funneled.",
    ),
    "mnist": _mnist_reader("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "stl10": _Reader(  # the 100,000 unlabelled images, which are what it is for
        ("stl10_binary/unlabeled_X.bin",),
        lambda root: _torchvision_datasets().STL10(root, split="unlabeled", download=True).data.transpose(0, 2, 3, 1),
        "Download http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and put it into {root}.",
    ),
    "svhn": _Reader(
        ("train_32x32.mat",),
        lambda root: _torchvision_datasets().SVHN(root, split="train", download=True).data.transpose(0, 2, 3, 1),
        "Download http://ufldl.stanford.edu/housenumbers/train_32x32.mat and put it into {root}.",
    ),
}
