"""One image of any kind to uint8 of a given shape.

Shapes: H and W the sides asked for, K channels.
"""

from __future__ import annotations

import contextlib
import errno
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dcgan.data._sources import Item, Source

Resize = Literal["crop", "squash"]

# Pillow reads far more, some of it by running other programs (EPS): images from anywhere are not worth that.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class Decoder:
    """Decodes the images of a source, by their indices, to one shape.

    Attributes:
        source: The undecoded images.
        image_size: `(H, W)`.
        channels: K: 1 grey or 3 RGB, composited over white where an image is transparent; 4 RGBA.
        resize: "crop" scales an image to cover `(H, W)` and keeps the centre; "squash" scales each side.
    """

    source: Source
    image_size: tuple[int, int]
    channels: int
    resize: Resize

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, K)`."""
        return (*self.image_size, self.channels)

    def __call__(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Return the readable images `(n, H, W, K)` and `(file, reason)` for each of the others."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        failures: list[tuple[str, str]] = []
        for position, index in enumerate(indices):
            try:
                images[position - len(failures)] = self._decode(self.source.items[index])
            except ValueError as error:
                failures.append((self.source.label(index), str(error)))
        return images[: len(indices) - len(failures)], failures

    def _decode(self, item: Item) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            if isinstance(item, np.ndarray):
                return self._fit(_flatten(Image.fromarray(np.ascontiguousarray(item)), self.channels))
            if isinstance(item, str) and not Path(item).is_file():
                # Checked first: to open a named pipe would be to wait for ever.
                raise ValueError("is not a file")  # noqa: TRY301 - the last handler below words it like the rest
            # Read at once: Pillow's many small reads would each give up the interpreter's lock.
            encoded = item if isinstance(item, bytes) else Path(item).read_bytes()
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                _develop(image, 2 * max(self.image_size))
                return self._fit(_flatten(image, self.channels))
        except UnidentifiedImageError as error:
            raise ValueError(f"is not of a known format ({', '.join(_FORMATS)})") from error
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise  # a fault of the machine, which says nothing of the image
            # Damaged files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and more.
            raise ValueError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error

    def _fit(self, image: Picture) -> np.ndarray:
        """Resample to `(H, W, K)`, antialiased where that shrinks and smooth where it grows."""
        from PIL import Image

        (height, width), tall, wide = self.image_size, float(image.height), float(image.width)
        if self.resize == "crop":
            # The largest rectangle of the target's proportions; divided last, so that it cannot overshoot.
            tall, wide = min(tall, wide * height / width), min(wide, tall * width / height)
        left, top = (image.width - wide) / 2, (image.height - tall) / 2
        box = (left, top, left + wide, top + tall)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box)).reshape(self.shape)


def _develop(image: Picture, enough: int) -> None:
    """Read the pixels, no finer than needed for `enough` of them a side, and turn the image upright."""
    from PIL import Image, ImageOps

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        # Pillow itself only warns up to twice its limit; what is read must not depend on warning filters.
        raise ValueError(f"has {image.width}x{image.height} pixels, more than Image.MAX_IMAGE_PIXELS = {limit}")
    image.draft(None, (enough, enough))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    image.load()
    with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, struct.error):
        # Unreadable metadata do not spoil readable pixels.
        ImageOps.exif_transpose(image, in_place=True)


def _flatten(image: Picture, channels: int) -> Picture:
    """Bring an image of any mode to "L", "RGB" or "RGBA"."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        # 16 or 32 bits. The modes do not tell which range is meant: the smallest that holds the image is.
        values = np.nan_to_num(np.asarray(image, np.float64))
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
        full = next((scale for scale in scales if values.max() <= scale), scales[-1])
        image = Image.fromarray(np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8))
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
