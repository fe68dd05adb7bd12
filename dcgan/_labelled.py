"""Labelled images of named sets and of folders, for classification: the training and the test split.

Shapes: N images, K channels, H and W their sides.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np

from dcgan import data
from dcgan._errors import InputError
from dcgan.data._datasets import LABEL_COLUMNS
from dcgan.data._formats import formats_of
from dcgan.data._sources import SPLIT_FOLDERS, UnreadableImage, expect_image_size, list_images, open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image as PilImage
    from torch import Tensor

LabelledName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "svhn", "stl10", "folder", "wds", "hf"]
Split = Literal["train", "test"]

_CLASSES = 10  # of each set with a name
_INDEXED = ("wds", "hf")  # whose labels are known without their images
_TEST_SHARE = 5  # where a set has no test split: a fifth of it


class LabelledImages(NamedTuple):
    """Images with their classes.

    Attributes:
        images: uint8 `(N, K, H, W)`.
        labels: int64 `(N,)`.
    """

    images: Tensor
    labels: Tensor


def load_labelled(
    name: LabelledName,
    split: Split,
    *,
    root: str | Path | None = None,
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    number: int | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    """Load a split of a labelled set into memory.

    "digits" has no test split, and a folder may have none: a fifth of the images, drawn once, is then the test split.

    Args:
        name: The set; "folder" is a folder with a folder of images for each class, or with folders `train` and `test`
            (or `val`) that hold these.
        split: Which split.
        root: As for `data.load`.
        image_size: `(H, W)`, or the side of a square.
        channels: K.
        number: Take so many images, drawn with `seed`; None takes all. More than there are is all.
        seed: Seed of the choice.
        cache: As for `data.load`, as are the following.
        cache_dir: Where packed files are kept.
        skip_bad: Leave out unreadable images instead of raising.
        progress: Called as `progress(done, total)` while a packed file is made.

    Raises:
        ValueError: If there is no such set, or `number` is below 1.
        FileNotFoundError: If the set is not under `root` and cannot be downloaded.
        BadImages: If images are unreadable.
    """
    import torch

    _expect_labelled(name)
    if number is not None and number < 1:
        raise InputError(f"number must be at least 1, got {number}")
    images, has_split = _open_images(
        name,
        split,
        root,
        image_size=image_size,
        channels=channels,
        cache=cache,
        cache_dir=cache_dir,
        workers=os.cpu_count() or 1,
        skip_bad=skip_bad,
        progress=progress,
    )
    indices = np.arange(len(images))
    if not has_split:
        order = np.random.default_rng(0).permutation(len(images))
        test = len(images) // _TEST_SHARE
        indices = order[:test] if split == "test" else order[test:]
    if number is not None:
        indices = np.random.default_rng(seed).permutation(indices)[:number]
    indices = np.sort(indices)
    pixels, labels = images.batch(indices).contiguous(), cast("np.ndarray", images.labels)
    return LabelledImages(pixels, torch.from_numpy(labels[indices]))


def open_training_set(name: str, *, root: str | Path | None, **options: Any) -> data.Images:
    """Open the training split of a labelled set, with its labels; `options` are those of `data.load`.

    Without a test split, it is the whole set.

    Raises:
        ValueError: If the set has no labels.
        FileNotFoundError: If the set is not under `root` and cannot be downloaded.
        BadImages: If images are unreadable.
    """
    _expect_labelled(name)
    return _open_images(name, "train", root, **options)[0]


def count_classes(name: str, *, root: str | Path | None, cache_dir: str | Path | None = None) -> int:
    """Return the number of classes of a labelled set, whose images need not be read for that.

    Raises:
        ValueError: If the set has no labels.
    """
    _expect_labelled(name)
    if name in _INDEXED and root is not None:
        if (classes := data.open_indexed(name, root, cache_dir).num_classes) is None:
            raise _no_labels(name, root)
        return classes
    if name != "folder":
        return _CLASSES
    dataset, _ = _open(name, "train", root)
    return len(dataset.classes)


def _expect_labelled(name: str) -> None:
    if name not in get_args(LabelledName):
        raise InputError(f"data must be one of the labelled sets {', '.join(get_args(LabelledName))}, got {name!r}")


def _open_images(name: str, split: Split, root: str | Path | None, **options: Any) -> tuple[data.Images, bool]:
    """Return the images of a split and their labels, or of a whole set without splits, and which of these it is."""
    dataset, has_split = (None, False) if name in _INDEXED else _open(name, split, root)
    images = data.load(name, root=root, **options) if dataset is None else data.from_dataset(dataset, **options)
    if images.labels is None:
        raise _no_labels(name, root)
    return images, has_split


def _no_labels(name: str, root: str | Path | None) -> InputError:
    remedy = {"wds": ": each image needs a .cls", "hf": f": each row needs an integer in {', '.join(LABEL_COLUMNS)}"}
    where = "" if root is None else f" in {root}"
    return InputError(f"the images of {name!r}{where} have no labels{remedy.get(name, '')}")


def _open(name: str, split: Split, root: str | Path | None) -> tuple[Any, bool]:
    """Return the dataset of a split, or the whole one if it has no splits, and which of these it is."""
    if name == "folder" and root is None:
        raise InputError("the dataset 'folder' needs root, the folder of images")
    if name == "digits" and root is not None:
        raise InputError(f"the dataset 'digits' takes no root, got {root}: 'folder' reads the images of a folder")
    folder = data.cache_folder() / "sets" if root is None else Path(root).expanduser()
    source = open_source(name, folder)
    if name == "digits":
        from sklearn.datasets import load_digits

        labels = load_digits().target.tolist()
        return [(source.items[index], label) for index, label in enumerate(labels)], False
    if name == "folder":
        return _open_folder(folder, split)
    from torchvision import datasets

    try:
        match name:
            case "svhn":
                return datasets.SVHN(folder, split, download=True), True
            case "stl10":
                return datasets.STL10(folder, split, download=True), True
        classes = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}
        return classes[name](folder, train=split == "train", download=True), True
    except (OSError, RuntimeError, ValueError) as error:
        remedy = f" {source.remedy.format(root=folder)}"
        raise FileNotFoundError(
            f"{name} is not readable in {folder} and could not be downloaded ({error}).{remedy}"
        ) from error


def _open_folder(root: Path, split: Split) -> tuple[ClassFolders, bool]:
    found = {
        name: next((root / folder for folder in folders if (root / folder).is_dir()), None)
        for name, folders in SPLIT_FOLDERS.items()
    }
    train, test = found["train"], found["test"]
    if train is None or test is None:
        return ClassFolders(root), False
    folders = ClassFolders(train), ClassFolders(test)
    if folders[0].classes != folders[1].classes:
        unshared = ", ".join(sorted(set(folders[0].classes) ^ set(folders[1].classes)))
        raise InputError(f"{train} and {test} must hold the same classes, but only one of them has {unshared}")
    return folders[0] if split == "train" else folders[1], True


class ClassFolders:
    """Images in a folder for each class, at any depth within it: `(image, label)`, labels in the order of the names.

    Attributes:
        classes: The names of the folders.

    Raises:
        ValueError: If there are images outside of such folders, or fewer than two classes.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._files = root, list_images(root)
        parts = [Path(file).relative_to(root).parts for file in self._files]
        if loose := next((part[0] for part in parts if len(part) == 1), None):
            raise InputError(f"root must hold a folder of images for each class, but {root} holds the image {loose}")
        self.classes = sorted({part[0] for part in parts})
        if len(self.classes) < 2:
            got = ", ".join(self.classes) or "none"
            raise InputError(f"root must hold folders of images for at least two classes, got {root} with {got}")
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = [numbers[part[0]] for part in parts]
        digest = hashlib.sha256()
        for file in self._files:
            try:
                status = Path(file).stat()
            except OSError:  # a dangling link, which decoding will report
                continue
            digest.update(os.fsencode(f"{file}\0{status.st_size} {status.st_mtime_ns}\0"))
        self._fingerprint = digest.hexdigest()  # of every file, where `data.from_dataset` compares only a sample

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"ClassFolders({str(self._root)!r})"

    def __getitem__(self, index: int) -> tuple[PilImage, int]:
        from PIL import Image

        file = self._files[index]
        if not Path(file).is_file():  # a named pipe would block for ever
            raise FileNotFoundError(f"{file} is not a file")
        try:
            expect_image_size(Path(file).stat().st_size)
            # From memory, since Pillow keeps files of formats that may move open.
            image = Image.open(io.BytesIO(Path(file).read_bytes()), formats=formats_of(file))
            image.load()
        except (OSError, UnreadableImage) as error:
            raise OSError(f"{file}: {error}") from error
        return image, self._labels[index]
