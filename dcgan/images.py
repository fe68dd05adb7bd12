"""Conversion of tensors to pictures.

Shapes: N batch, K channels (1 grey, 3 colour, 4 colour and alpha), H height, W width.
"""

from collections.abc import Sequence
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from dcgan._files import atomic_write

VALUE_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
"""Range of a generator's images, by its `output`."""


def to_uint8(images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Scale images of any shape from `value_range` to uint8, rounded and clipped."""
    low, high = value_range
    # In place after the first operation, since images are large and memory is the limit.
    return (images.float() - low).mul_(255 / (high - low)).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(
    images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scale uint8 images of any shape to `value_range`: the inverse of `to_uint8`."""
    low, high = value_range
    return images.to(dtype).div_(255 / (high - low)).add_(low)


def grid(images: Tensor, *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Arrange uint8 images `(N, K, H, W)` in rows, `gap` black pixels apart, as one image `(K, H', W')`.

    By default the grid is as square as possible.

    Raises:
        ValueError: If there is no image, or `columns` is below 1.
    """
    if not len(images):
        raise ValueError("a grid needs at least one image")
    columns = ceil(sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    padded = pad(images, (0, gap, 0, gap, 0, 0, 0, -len(images) % columns))
    joined = rearrange(padded, "(rows columns) k h w -> k (rows h) (columns w)", columns=columns)
    return pad(joined, (gap, 0, gap, 0))


def encode_png(pixels: np.ndarray, *, level: int = 6) -> bytes:
    """Return a PNG of uint8 pixels `(H, W, K)`, K = 1, 3 or 4, compressed at `level` 0 to 9.

    For small images, level 1 takes half the time of level 6 and 2 % more space.
    """
    from PIL import Image

    buffer = BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()  # a view that outlives its buffer, as in a traceback, crashes Python 3.12.1


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image `(K, H, W)` to a PNG file, atomically.

    Raises:
        ValueError: If it has another shape or type.
    """
    if image.dtype != torch.uint8 or image.dim() != 3 or len(image) not in (1, 3, 4):
        raise ValueError(f"image must be uint8 (1, 3 or 4, H, W), got {tuple(image.shape)} of {image.dtype}")
    pixels = rearrange(image, "k h w -> h w k").cpu().contiguous().numpy()
    with atomic_write(path) as file:
        file.write(encode_png(pixels))


def save_gif(path: Path, frames: Sequence[Path], *, seconds: float = 0.2, last: float = 2.0) -> None:
    """Write a looping GIF of image files, atomically.

    Args:
        path: File to write.
        frames: Image files of one size, at least one.
        seconds: Duration of each frame but the last.
        last: Duration of the last frame, in seconds.
    """
    from PIL import Image

    pictures = [Image.open(frame).convert("RGB") for frame in frames]
    milliseconds = [round(seconds * 1000)] * (len(pictures) - 1) + [round(last * 1000)]
    with atomic_write(path) as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
            optimize=False,
        )
