"""Training images as uint8: named datasets and folders, packed once, served in batches in a seeded order.

Shapes: N images, B a batch of them, K channels, H and W their sides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dcgan._choices import Resize
from dcgan.data._batches import Batches
from dcgan.data._decoding import Decoder
from dcgan.data._images import BadImages, Images, StreamedImages
from dcgan.data._packing import load_packed
from dcgan.data._sources import DATASETS, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DATASETS", "BadImages", "Batches", "Images", "cache_folder", "load"]


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
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Open a dataset, decoding it into a packed file the first time.

    Of a named dataset this is the training split; of stl10, the 100,000 unlabelled images. "digits" and "fake"
    need neither files nor network; the others are read under `root`, where torchvision downloads those that it can.

    Args:
        name: One of `DATASETS`; "folder" is any folder of images, at any depth.
        root: Where datasets are kept, by default `sets` in `cache_folder()`; for "folder", the folder itself.
        image_size: `(H, W)`, or the side of a square.
        channels: K: 1 grey or 3 RGB, composited over white where an image is transparent; 4 RGBA.
        resize: "crop" scales an image to cover `image_size` and keeps the centre; "squash" scales each side.
        classes: For lsun, its categories, such as `["bedroom"]`, short for `"bedroom_train"`.
        cache: Keep a packed file. Otherwise images are decoded whenever they are asked for, to the same bytes.
        cache_dir: Where packed files are kept, by default `cache_folder()`.
        workers: Decoding threads, by default one per core; 0 decodes a stream in the calling thread.
        skip_bad: Leave out unreadable images, and record them, instead of raising.
        progress: Called as `progress(done, total)`, from the calling thread, while a packed file is made.

    Raises:
        BadImages: If images are unreadable; it lists them all. Without a packed file, `Images.batch` raises it.
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the dataset is not under `root` and cannot be downloaded; the message says how to get it.
        NotADirectoryError: If `root` is a file.
        ImportError: If the package lmdb, which lsun needs, is missing.
        OSError: If the packed file does not fit on its disk.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be positive, a side or (height, width), got {image_size}")
    if channels not in {1, 3, 4}:
        raise ValueError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    if resize not in get_args(Resize):
        raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}, got {resize!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if skip_bad and not cache:
        raise ValueError("skip_bad needs cache=True: only packing looks at every image before the run")
    if name == "folder" and root is None:
        raise ValueError("the dataset 'folder' needs root, the folder of images")

    root = cache_folder() / "sets" if root is None else Path(root).expanduser()
    decoder = Decoder(open_source(name, root, classes), (height, width), channels, resize)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not cache:
        return StreamedImages(decoder, workers)
    cache_dir = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    return load_packed(cache_dir, decoder, workers, progress, skip_bad=skip_bad)


def cache_folder() -> Path:
    """Return where packed files are kept: `$DCGAN_CACHE`, `$XDG_CACHE_HOME/dcgan` or `~/.cache/dcgan`."""
    if folder := os.environ.get("DCGAN_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dcgan"
