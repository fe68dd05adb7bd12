"""Training images as uint8: named sets and folders, packed once, served in batches of a seeded order.

Shapes: N images, B a batch of them, K channels, H and W their sides.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dcgan.data._decoding import Decoder, Resize
from dcgan.data._packing import BadImages, Progress, ahead, channels_first, pack
from dcgan.data._sources import NAMES, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

__all__ = ["NAMES", "BadImages", "Batches", "Images", "cache_folder", "load"]


class Images(Protocol):
    """N images as uint8, all of one shape.

    Attributes:
        name: The set, one of `NAMES`.
        image_size: `(H, W)`.
        channels: K.
        path: The packed file; None where images are decoded whenever they are asked for.
        nbytes: Size of all images, decoded, in bytes.
        skipped: `(file, reason)` of each that `skip_bad` left out.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    path: Path | None
    nbytes: int
    skipped: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images `indices` `(B,)` as uint8 `(B, K, H, W)`, new and channels last in memory."""
        ...


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
    progress: Progress | None = None,
) -> Images:
    """Open a set of images, decoding it into a packed file unless that was done before.

    Of a named set this is the training split; of stl10, the 100,000 unlabelled images. "digits" and "fake"
    need neither files nor network; others are read under `root`, where torchvision puts them if it can.

    Args:
        name: One of `NAMES`; "folder" is any folder of images, at any depth.
        root: Where sets live, by default `sets` in `cache_folder()`; for "folder", the folder itself.
        image_size: `(H, W)`, or the side of a square.
        channels: K: 1 grey or 3 RGB, composited over white where an image is transparent; 4 RGBA.
        resize: "crop" scales an image to cover `image_size` and keeps the centre; "squash" scales each side.
        classes: For lsun, its categories, such as `["bedroom"]`, short for `"bedroom_train"`.
        cache: Keep a packed file. Without, images are decoded whenever they are asked for, to the same bytes.
        cache_dir: Where packed files live, by default `cache_folder()`.
        workers: Threads that decode, by default one per core, each with a process of its own while a large packed
            file is made; 0 decodes a stream in the thread that asks.
        skip_bad: Leave unreadable images out, and record them, instead of raising.
        progress: Called as `progress(done, total)`, from this thread, while a packed file is made.

    Raises:
        BadImages: If images are unreadable: a list of all. Without a packed file, `Images.batch` raises it.
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the set is not under `root` and cannot be fetched: the message says how to.
        NotADirectoryError: If `root` is a file.
        ImportError: If lsun is asked for without lmdb.
        OSError: If the packed file does not fit on its disk.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be positive, a side or (height, width), got {image_size}")
    if channels not in {1, 3, 4}:
        raise ValueError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    if resize not in {"crop", "squash"}:
        raise ValueError(f"resize must be 'crop' or 'squash', got {resize!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if skip_bad and not cache:
        raise ValueError("skip_bad needs a packed file, and the cache is off: only a full pass finds what is bad")
    if name == "folder" and root is None:
        raise ValueError("the set 'folder' needs root, the folder of images")

    folder = cache_folder() / "sets" if root is None else Path(root).expanduser()
    decoder = Decoder(find(name, folder, classes), (height, width), channels, resize)
    threads = (os.cpu_count() or 1) if workers is None else workers
    if not cache:
        return _Streamed(decoder, threads)
    packed = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    return pack(packed, decoder, threads, progress, skip_bad=skip_bad)


def cache_folder() -> Path:
    """Return where packed files live: `$DCGAN_CACHE`, `$XDG_CACHE_HOME/dcgan` or `~/.cache/dcgan`."""
    if own := os.environ.get("DCGAN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dcgan"


class _Streamed:
    """Images decoded whenever they are asked for, by `workers` threads. Attributes as in `Images`."""

    def __init__(self, decoder: Decoder, workers: int) -> None:
        self.path: Path | None = None
        self.name, self.image_size, self.channels = decoder.source.name, decoder.image_size, decoder.channels
        self.skipped: list[tuple[str, str]] = []
        self.nbytes = len(decoder.source.items) * math.prod(decoder.shape)
        self._decoder, self._workers = decoder, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dcgan-decode") if workers else None

    def __len__(self) -> int:
        return len(self._decoder.source.items)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        if self._pool is None:
            parts = [self._decoder(indices)]
        else:
            parts = list(self._pool.map(self._decoder, np.array_split(indices, min(self._workers, len(indices)))))
        if failures := [failure for _, failed in parts for failure in failed]:
            raise BadImages(failures)
        return channels_first(np.concatenate([images for images, _ in parts]))


class Batches:
    """Endless batches, their order a function of `(seed, epoch)`, their flips of `(seed, step)`.

    Iteration from `start=t` gives what iteration from 0 gives after t batches, so a resumed run sees the very
    images that an unbroken one sees. An epoch's last, partial batch is dropped. The next two batches are made
    while one is in use.

    On a CUDA device, a packed set that takes at most a quarter of the free memory is copied there once, and batches
    are gathered there; others are made on the host and copied while the one before is in use.

    Args:
        images: What to draw from, each image at most once an epoch.
        batch_size: B.
        seed: At least 0.
        flip: Mirror each image, left to right, with probability one half.
        start: Number of the first batch, counted over all epochs.
        device: Where batches are wanted.

    Attributes:
        steps_per_epoch: Batches in an epoch.

    Raises:
        ValueError: If there are fewer images than `batch_size`, or if a number is out of its range.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int = 0,
        flip: bool = False,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(images) < batch_size:
            raise ValueError(f"batch_size must be at most the number of images, {len(images)}, got {batch_size}")
        if seed < 0 or start < 0:
            raise ValueError(f"seed and start must be at least 0, got seed={seed} and start={start}")
        self.images, self.batch_size, self.seed, self.flip, self.start = images, batch_size, seed, flip, start
        self.device = device
        self.steps_per_epoch = len(images) // batch_size
        self._last_order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield uint8 batches `(B, K, H, W)`, channels last in memory."""
        import torch

        device = torch.device(self.device)
        if device.type != "cuda":
            return self._made(lambda batch: batch)
        if self.images.path is not None and 4 * self.images.nbytes <= torch.cuda.mem_get_info(device)[0]:
            return self._gathered(device)
        return _copied(self._made(lambda batch: batch.pin_memory()), device)

    def _made(self, finish: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield batches made on the host, ahead of time."""

        def make(step: int) -> torch.Tensor:
            batch = self.images.batch(self._indices(step))  # (B, K, H, W)
            if self.flip:
                pixels, chosen = batch.permute(0, 2, 3, 1).numpy(), np.flatnonzero(self._mirrored(step))
                # Whole images are copied, and mirrored by torch, which is fast in this layout.
                pixels[chosen] = channels_first(pixels[chosen]).flip(3).permute(0, 2, 3, 1).numpy()
            return finish(batch)

        pool = ThreadPoolExecutor(1, thread_name_prefix="dcgan-batches")
        try:
            yield from ahead(pool, make, itertools.count(self.start), depth=2)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _gathered(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Yield batches gathered on the device, where all images are."""
        import torch

        count = len(self.images)
        parts = (self.images.batch(np.arange(i, min(i + 4096, count))) for i in range(0, count, 4096))
        images = torch.cat([part.permute(0, 2, 3, 1).to(device) for part in parts])  # (N, H, W, K)
        for step in itertools.count(self.start):
            indices = torch.from_numpy(self._indices(step)).to(device, non_blocking=True)
            batch = images.index_select(0, indices)  # (B, H, W, K)
            if self.flip:
                chosen = torch.from_numpy(self._mirrored(step)).to(device, non_blocking=True)
                batch = torch.where(chosen[:, None, None, None], batch.flip(2), batch)
            yield batch.permute(0, 3, 1, 2)

    def _mirrored(self, step: int) -> np.ndarray:
        """Tell which images of a batch are mirrored."""
        # The 1 keeps these draws apart from the orders; a 0 would not: seeds are padded with zeros.
        return np.random.default_rng((self.seed, step, 1)).random(self.batch_size) < 0.5

    def _indices(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        known = self._last_order
        if known is None or known[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            known = self._last_order = (epoch, order)
        return known[1][position * self.batch_size : (position + 1) * self.batch_size]


def _copied(pinned: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield batches on the device, each copied there while the one before is in use."""
    import torch

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it without types
    ready: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
    for batch in pinned:
        with torch.cuda.stream(stream):
            ready.append((batch.to(device, non_blocking=True), stream.record_event()))
        if len(ready) == 2:
            oldest, arrived = ready.popleft()
            using = torch.cuda.current_stream(device)
            using.wait_event(arrived)
            oldest.record_stream(using)  # its memory is not to be taken for the next copy before it was used
            yield oldest
