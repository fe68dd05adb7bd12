"""Endless batches of images in a seeded order, on any device.

Shapes: N images, B a batch of them, K channels, H and W their sides.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dcgan._errors import InputError
from dcgan.data._images import PackedImages, channels_first
from dcgan.data._packing import prefetch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from dcgan.data._images import Images


class Batches:
    """Endless batches: their order is a function of `(seed, epoch)`, their flips of `(seed, step)`.

    Iteration from `start=t` gives what iteration from 0 gives after t batches, so a resumed run sees exactly the
    images of an uninterrupted one. An epoch's last, partial batch is dropped. The next two batches are prepared
    while one is in use.

    On a CUDA device, a packed dataset that takes at most a quarter of the free memory is copied there once, and
    batches are gathered there; others are prepared on the host and copied while the previous one is in use.

    Args:
        images: What to draw from, each image at most once per epoch.
        batch_size: B.
        seed: At least 0.
        flip: Mirror each image, left to right, with probability one half.
        start: Number of the first batch, counted over all epochs.
        device: Where the batches should be.
        rank: Number of this process among those that share each batch.
        processes: Their number, which divides `batch_size`: each gets B/processes of its images, in order.

    Attributes:
        steps_per_epoch: Batches per epoch.

    Raises:
        TypeError: If `images` is a dataset or a loader, which `from_dataset` makes into images.
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
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        _expect_images(images)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if len(images) < batch_size:
            raise InputError(f"batch_size must be at most the number of images, {len(images)}, got {batch_size}")
        if seed < 0 or start < 0:
            raise InputError(f"seed and start must be at least 0, got seed={seed} and start={start}")
        if not 0 <= rank < processes:
            raise InputError(f"rank must be from 0 to {processes - 1}, with processes={processes}, got {rank}")
        if batch_size % processes:
            raise InputError(
                f"batch_size must be a multiple of the number of processes, {processes}, got {batch_size}: each trains "
                "on its part of every batch"
            )
        self.images, self.batch_size, self.seed, self.flip, self.start = images, batch_size, seed, flip, start
        self.device = device
        self.steps_per_epoch = len(images) // batch_size
        self._share = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self._cached_order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield uint8 batches `(B, K, H, W)`, channels last in memory."""
        import torch

        device = torch.device(self.device)
        if device.type != "cuda":
            return self._prefetch_on_host()
        if self.images.path is not None and 4 * self.images.nbytes <= torch.cuda.mem_get_info(device)[0]:
            return self._gather_on_device(device)
        return _copy_ahead(self._prefetch_on_host(pin_memory=True), device)

    def with_labels(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return an endless iterator over the same batches with their labels, int64 `(B,)`, on the CPU.

        Raises:
            ValueError: If the images have no labels.
        """
        import torch

        labels = self.images.labels
        if labels is None:
            raise InputError(f"the images of {self.images.name} have no labels: open them with from_dataset")
        steps = itertools.count(self.start)
        return zip(self, (torch.from_numpy(labels[self._batch_indices(step)]) for step in steps), strict=False)

    def _prefetch_on_host(self, *, pin_memory: bool = False) -> Iterator[torch.Tensor]:
        def load_batch(step: int) -> torch.Tensor:
            batch = self.images.batch(self._batch_indices(step))  # (B, K, H, W)
            if self.flip:
                pixels, flipped = batch.permute(0, 2, 3, 1).numpy(), np.flatnonzero(self._flip_mask(step))
                # Whole images are copied, and mirrored by torch, which is fast in this layout.
                pixels[flipped] = channels_first(pixels[flipped]).flip(3).permute(0, 2, 3, 1).numpy()
            return batch.pin_memory() if pin_memory else batch

        executor = ThreadPoolExecutor(1, thread_name_prefix="dcgan-batches")
        try:
            yield from prefetch(executor, load_batch, itertools.count(self.start), depth=2)
        finally:
            if not sys.is_finalizing():  # by then the thread has ended, and modules are being taken apart
                executor.shutdown(wait=False, cancel_futures=True)

    def _gather_on_device(self, device: torch.device) -> Iterator[torch.Tensor]:
        import torch

        count = len(self.images)
        chunks = (self.images.batch(np.arange(i, min(i + 4096, count))) for i in range(0, count, 4096))
        images = torch.cat([chunk.permute(0, 2, 3, 1).to(device) for chunk in chunks])  # (N, H, W, K)
        if isinstance(self.images, PackedImages):
            self.images.finish_check()  # they are not asked for any more batches
        for step in itertools.count(self.start):
            indices = torch.from_numpy(self._batch_indices(step)).to(device, non_blocking=True)
            batch = images.index_select(0, indices)  # (B, H, W, K)
            if self.flip:
                flipped = torch.from_numpy(self._flip_mask(step)).to(device, non_blocking=True)
                batch = torch.where(flipped[:, None, None, None], batch.flip(2), batch)
            yield batch.permute(0, 3, 1, 2)

    def _flip_mask(self, step: int) -> np.ndarray:
        # The 1 keeps these draws apart from the orders; a 0 would not: seeds are padded with zeros.
        return np.random.default_rng((self.seed, step, 1)).random(self.batch_size)[self._share] < 0.5

    def _batch_indices(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        cached = self._cached_order
        if cached is None or cached[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            cached = self._cached_order = (epoch, order)
        return cached[1][position * self.batch_size : (position + 1) * self.batch_size][self._share]


def _expect_images(images: object) -> None:
    # Hugging Face's datasets have a method of this name too, which groups rows.
    if not hasattr(images, "batch") or hasattr(images, "column_names"):
        raise TypeError(
            f"images must be those of dcgan.data.load or from_dataset, got {type(images).__name__}: pass "
            "dcgan.data.from_dataset(dataset)"
        )


def _copy_ahead(pinned: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield batches on the device, each copied there while the previous one is in use."""
    import torch

    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it without types
    copies: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
    for batch in pinned:
        with torch.cuda.stream(copy_stream):
            copies.append((batch.to(device, non_blocking=True), copy_stream.record_event()))
        if len(copies) == 2:
            oldest, copied = copies.popleft()
            compute_stream = torch.cuda.current_stream(device)
            compute_stream.wait_event(copied)
            oldest.record_stream(compute_stream)  # else the next copy could reuse its memory while it is in use
            yield oldest
