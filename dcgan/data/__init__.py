"""Training images as uint8: any dataset or folder, packed once, served in batches in a seeded order.

Shapes: N images, B a batch of them, K channels, H and W their sides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dcgan._choices import Resize
from dcgan._errors import InputError
from dcgan.data._batches import Batches
from dcgan.data._datasets import DatasetItems, MapDataset
from dcgan.data._decoding import Decoder, natural_shape
from dcgan.data._hub import open_hub
from dcgan.data._images import BadImages, Images, StreamedImages
from dcgan.data._packing import load_packed
from dcgan.data._shards import IndexedSource, open_shards
from dcgan.data._sources import DATASETS, Source, open_source, warn_about_splits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NEEDS_ROOT = {
    "folder": "the folder of images",
    "wds": "the shards, such as train-{000000..000099}.tar, or a folder of them",
    "hf": "a name on the Hugging Face Hub, or a folder that its datasets library reads",
}

__all__ = ["DATASETS", "BadImages", "Batches", "Images", "cache_folder", "from_dataset", "load"]


def load(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    resize: Resize = "crop",
    classes: Sequence[str] = (),
    cache: bool = True,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Open a dataset, decoding it into a packed file the first time.

    Of a named dataset this is the training split; of stl10, the 100,000 unlabelled images. "digits" and "fake"
    need neither files nor network; the others are read under `root`, where torchvision downloads those that it can.

    Args:
        name: One of `DATASETS`; "folder" is any folder of images, at any depth, "wds" shards in the layout of
            WebDataset, "hf" a dataset that Hugging Face's library reads; the labels of these two are kept.
        root: Where datasets are kept, by default `sets` in `cache_folder()`; for "folder", the folder itself; for
            "wds", a pattern such as `train-{000000..000099}.tar`, or a folder of shards; for "hf", a folder, or a name
            on the Hub.
        image_size: `(H, W)`, or the side of a square.
        channels: K: 1 grey or 3 RGB, composited over white where an image is transparent; 4 RGBA.
        resize: "crop" scales an image to cover `image_size` and keeps the centre; "squash" scales each side.
        classes: For lsun, its categories, such as `["bedroom"]`, short for `"bedroom_train"`.
        cache: Keep a packed file. Otherwise images are decoded whenever they are asked for, to the same bytes.
        cache_dir: Where packed files are kept, by default `cache_folder()`.
        workers: Decoding threads, by default one per core; 0 decodes a stream in the calling thread.
        skip_bad: Leave out unreadable images, and record them, instead of raising.
        max_pixels: Refuse larger images, h·w; by default those above `PIL.Image.MAX_IMAGE_PIXELS`, 89 million, against
            files that fill the memory when they are decoded. Of a JPEG, the size at which it is decoded counts, of
            which `image_size` needs only a fraction.
        progress: Called as `progress(done, total)`, from the calling thread, while a packed file is made.

    Raises:
        BadImages: If images are unreadable; it lists them all. Without a packed file, `Images.batch` raises it.
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the dataset is not under `root` and cannot be downloaded, and the message says how to get
            it; if a shard is missing; or if there is no home folder and none of `root`, `cache_dir` and `$DCGAN_CACHE`
            takes its place.
        NotADirectoryError: If `root` is a file.
        PermissionError: If `root`, a folder in it or that of packed files may not be read.
        ImportError: If a package is missing: lmdb, which lsun needs, or datasets, which hf needs.
        OSError: If the packed file does not fit on its disk. `Images.batch` raises it when the check of a large packed
            file, which goes on after `load`, finds it damaged.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    kept = None if name == "wds" else cache_dir  # without packed files, it still holds the index of shards
    _expect_options(image_size, channels, resize, workers, max_pixels, cache=cache, cache_dir=kept, skip_bad=skip_bad)
    if name in _NEEDS_ROOT and root is None:
        raise InputError(f"the dataset {name!r} needs root, {_NEEDS_ROOT[name]}")
    if name in ("digits", "fake") and root is not None:
        raise InputError(f"the dataset {name!r} takes no root, got {root}: 'folder' reads the images of a folder")

    if name in ("digits", "fake"):
        root = Path()
    elif root is None:
        root = cache_folder() / "sets"
    if name in ("wds", "hf") and not classes:
        source: Source = open_indexed(name, root, cache_dir)
    else:
        source = open_source(name, _expand(root), classes)
        warn_about_splits(source)
    decoder = Decoder(source, _sides(image_size), channels, resize, max_pixels)
    if not cache:
        return StreamedImages(decoder, workers)
    fingerprint = decoder.source.fingerprint()
    return load_packed(cache_folder(cache_dir), decoder, fingerprint, workers, progress, skip_bad=skip_bad)


def open_indexed(name: str, root: str | Path, cache_dir: str | Path | None) -> IndexedSource:
    """Return the dataset "wds" or "hf" at `root`, whose labels are known without its images.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged, or of another kind.
        ImportError: If the package datasets, which hf needs, is missing.
    """
    return open_shards(_expand(root), cache_folder(cache_dir)) if name == "wds" else open_hub(_expand(root))


def from_dataset(
    dataset: MapDataset,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: Resize = "crop",
    image_key: str | int | None = None,
    label_key: str | int | None = None,
    value_range: tuple[float, float] | None = None,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    workers: int = 0,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Open a map-style dataset of torch, torchvision or Hugging Face, decoding it into a packed file the first time.

    An item is an image, or a tuple, list or mapping that holds one. An image is one of Pillow; or an array `(h, w)` or
    `(h, w, K)`, or a tensor `(h, w)` or `(K, h, w)`, of uint8 or floating-point values. Integer labels are kept, as
    `Images.labels`.

    Later calls reuse the packed file if the dataset has the same class, length, `repr` and, from Hugging Face,
    fingerprint, and if its items still give the same pixels and labels. All items of a list, tuple, array, tensor or
    `TensorDataset` are compared, which takes about as long as packing them. Of any other dataset these are 32, spread
    over it; without a fingerprint, a change to the rest goes unnoticed: to pack anew, delete the file, as in
    `images.path.unlink()`.

    Args:
        dataset: A dataset with a length and items by index.
        image_size: `(H, W)`, or the side of a square; by default that of the first image.
        channels: K, as for `load`; by default that of the first image, where anything but grey and RGBA gives 3.
        resize: As for `load`.
        image_key: Where the image is in an item: the column of a mapping, or the position in a tuple. Needed only if
            there are several images.
        label_key: Where the label is. By default, in a tuple, the integer that follows the image; in a mapping, the
            integer in the column "label", "labels", "target" or "class", if there is one.
        value_range: What floating-point images hold, as the values of black and white. By default (-1, 1) if a value
            in the sample is negative, and (0, 1) otherwise.
        cache: As for `load`.
        cache_dir: As for `load`.
        workers: Threads that read the dataset, which must allow that; 0 reads it in the calling thread, which for
            `Batches` without a packed file is a thread of its own.
        skip_bad: Leave out unreadable images, and their labels, and record them, instead of raising.
        max_pixels: As for `load`, for images of Pillow.
        progress: As for `load`.

    Raises:
        BadImages: As for `load`: for images whose file is missing or damaged. Other errors of the dataset are raised
            as they are.
        TypeError: If the dataset is not map-style, or an item does not hold exactly one image.
        ValueError: If the dataset is empty, or random, so that it cannot be packed; if an image has another shape, or
            values outside of its range; or if an argument is out of its range.
        OSError: If the packed file does not fit on its disk.
    """
    items = DatasetItems(dataset, image_key, label_key, value_range)
    height, width, natural_channels = natural_shape(items.first)
    image_size = (height, width) if image_size is None else image_size
    channels = natural_channels if channels is None else channels
    _expect_options(
        image_size, channels, resize, workers, max_pixels, cache=cache, cache_dir=cache_dir, skip_bad=skip_bad
    )
    source = Source(items.name, Path(), (), lambda _: items, description=items.describe(), labels=items.labels)
    decoder = Decoder(source, _sides(image_size), channels, resize, max_pixels)
    if not cache:
        return StreamedImages(decoder, workers)
    fingerprint = items.fingerprint(decoder)
    return load_packed(cache_folder(cache_dir), decoder, fingerprint, workers, progress, skip_bad=skip_bad)


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return where packed files are kept: `cache_dir`, `$DCGAN_CACHE`, `$XDG_CACHE_HOME/dcgan` or `~/.cache/dcgan`.

    Raises:
        FileNotFoundError: If none of them is set and there is no home folder.
    """
    if cache_dir is not None:
        return _expand(cache_dir)
    if folder := os.environ.get("DCGAN_CACHE"):
        return _expand(folder)
    return _expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dcgan"


def _expand(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"there is no home folder for {path}: name folders with root and cache_dir, or one for both in the "
            "environment variable DCGAN_CACHE"
        ) from error


def _sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def _expect_options(
    image_size: int | tuple[int, int],
    channels: int,
    resize: Resize,
    workers: int,
    max_pixels: int | None,
    *,
    cache: bool,
    cache_dir: str | Path | None,
    skip_bad: bool,
) -> None:
    if min(_sides(image_size)) < 1:
        raise InputError(f"image_size must be positive, a side or (height, width), got {image_size}")
    if channels not in {1, 3, 4}:
        raise InputError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    if resize not in get_args(Resize):
        raise InputError(f"resize must be one of {', '.join(get_args(Resize))}, got {resize!r}")
    if workers < 0:
        raise InputError(f"workers must be at least 0, got {workers}")
    if max_pixels is not None and max_pixels < 1:
        raise InputError(f"max_pixels must be at least 1, got {max_pixels}")
    if skip_bad and not cache:
        raise InputError("skip_bad needs cache=True: only packing looks at every image before the run")
    if cache_dir is not None and not cache:
        raise InputError(
            f"cache_dir {cache_dir} is for packed files, which cache=False leaves out: omit one of the two"
        )
