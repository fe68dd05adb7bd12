"""Decode one image of any format and mode to uint8 of a given shape.

Shapes: H and W the sides asked for, K channels.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcgan.data._formats import HEIF_REMEDY, formats_of
from dcgan.data._sources import UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image as PilImage
    from PIL.ImageFile import ImageFile

    from dcgan._choices import Resize
    from dcgan.data._sources import Item, Source

Indices = Sequence[int] | np.ndarray

MACHINE_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""Faults of the machine, which say nothing about the image."""

# Unreadable metadata do not matter to readable pixels.
_METADATA_ERRORS = (SyntaxError, ValueError, KeyError, TypeError, struct.error)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_PILLOW_LIMIT_LOCK = threading.Lock()


class Decoded(NamedTuple):
    """What became of some images.

    Attributes:
        images: The readable ones, `(n, H, W, K)`.
        indices: Their indices.
        failures: `(file, reason)` of each of the others.
    """

    images: np.ndarray
    indices: list[int]
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Decoder:
    """Decodes the images of a source, by their indices, to one shape.

    Attributes:
        source: The undecoded images.
        image_size: `(H, W)`.
        channels: K: 1 grey or 3 RGB, composited over white where an image is transparent; 4 RGBA.
        resize: "crop" scales an image to cover `(H, W)` and keeps the centre; "squash" scales each side.
        max_pixels: Refuse larger images; None is the limit of Pillow, `PIL.Image.MAX_IMAGE_PIXELS`.
    """

    source: Source
    image_size: tuple[int, int]
    channels: int
    resize: Resize
    max_pixels: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, K)`."""
        return (*self.image_size, self.channels)

    def __call__(self, indices: Indices) -> Decoded:
        images = np.empty((len(indices), *self.shape), np.uint8)
        readable: list[int] = []
        failures: list[tuple[str, str]] = []
        for index in map(int, indices):
            try:
                images[len(readable)] = self._decode(self.source.items[index])
            except UnreadableImage as error:
                failures.append((self.source.label(index), str(error)))
            else:
                readable.append(index)
        return Decoded(images[: len(readable)], readable, failures)

    def _decode(self, item: Item) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            if isinstance(item, np.ndarray):
                return self._resize(_convert_mode(Image.fromarray(np.ascontiguousarray(item)), self.channels))
            if isinstance(item, Image.Image):
                image = item.copy()  # the dataset may hold the original, which another thread may be reading
                _load_upright(image, 2 * max(self.image_size), self.max_pixels)
                return self._resize(_convert_mode(image, self.channels))
            path = item if isinstance(item, str) else None
            if path is not None and not Path(path).is_file():
                # Checked first, since opening a named pipe would block forever.
                raise ValueError("is not a file")  # noqa: TRY301 - for the last handler below
            # Read at once: each of Pillow's many small reads would release the interpreter's lock.
            encoded = item if isinstance(item, bytes) else Path(item).read_bytes()
            with _open_image(encoded, path, self.max_pixels) as image:
                _load_upright(image, 2 * max(self.image_size), self.max_pixels)
                return self._resize(_convert_mode(image, self.channels))
        except UnidentifiedImageError as error:
            raise UnreadableImage(_describe_unidentified(encoded)) from error
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise UnreadableImage(_too_large(int(pixels[0]), self.max_pixels) if pixels else str(error)) from error
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
                raise
            # Damaged files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and more.
            raise UnreadableImage(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error

    def _resize(self, image: PilImage) -> np.ndarray:
        """Resample to `(H, W, K)`, antialiased where it shrinks and smooth where it grows."""
        from PIL import Image

        (height, width), crop_height, crop_width = self.image_size, float(image.height), float(image.width)
        if self.resize == "crop":
            # The largest rectangle of the target's proportions; divided last, so that it cannot overshoot.
            crop_height, crop_width = (
                min(crop_height, crop_width * height / width),
                min(crop_width, crop_height * width / height),
            )
        left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
        box = (left, top, left + crop_width, top + crop_height)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box)).reshape(self.shape)


def natural_shape(image: np.ndarray | PilImage) -> tuple[int, int, int]:
    """Return the `(H, W, K)` in which an image keeps its size and colours, once it is upright."""
    from PIL import ExifTags

    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1
    height, width = image.height, image.width
    with contextlib.suppress(*_METADATA_ERRORS):
        if image.getexif().get(ExifTags.Base.Orientation) in {5, 6, 7, 8}:  # on its side
            height, width = width, height
    grey = image.mode in {"1", "L", "LA", "La"} or image.mode.startswith(("I", "F"))
    return height, width, 1 if grey else 4 if image.mode in {"RGBA", "RGBa"} else 3


def _open_image(encoded: bytes, path: str | None, max_pixels: int | None) -> ImageFile:
    """Read the header of an encoded image."""
    from PIL import Image

    with contextlib.nullcontext() if max_pixels is None else _set_pillow_limit(max_pixels):
        return Image.open(io.BytesIO(encoded), formats=formats_of(path))


@contextlib.contextmanager
def _set_pillow_limit(max_pixels: int) -> Iterator[None]:
    # `Image.open` refuses twice its limit, which belongs to the whole process: one thread at a time, and not for long.
    from PIL import Image

    with _PILLOW_LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _load_upright(image: PilImage, min_side: int, max_pixels: int | None) -> None:
    """Load the pixels, at a reduced size of at least `min_side` where possible, and apply the EXIF orientation."""
    from PIL import Image, ImageOps

    width, height = image.size
    image.draft(None, (min_side, min_side))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    # Only then does its size count, as it is in memory; but all coefficients of a progressive JPEG are kept there.
    decoded = width * height if "progressive" in image.info else image.width * image.height
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and decoded > limit:
        # Pillow only warns up to twice its limit; what is read must not depend on warning filters.
        raise ValueError(_too_large(width * height, max_pixels, f" ({width}x{height})"))
    image.load()
    with contextlib.suppress(*_METADATA_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def _too_large(pixels: int, max_pixels: int | None, sides: str = "") -> str:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    return (
        f"has {pixels} pixels{sides}, more than {limit}, the limit against files that fill the memory: to read it "
        f"nevertheless, set max_pixels to {pixels}"
    )


def _describe_unidentified(encoded: bytes) -> str:
    if not encoded:
        return "is empty"
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS and "HEIF" not in formats_of(None):
        return f"is HEIC, which needs a plugin of Pillow: {HEIF_REMEDY}"
    return f"is not in a supported format: it begins with {encoded[:16]!r}"


def _convert_mode(image: PilImage, channels: int) -> PilImage:
    """Convert an image of any mode to "L", "RGB" or "RGBA"."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        # 16 or 32 bits. The mode does not tell the range: the smallest usual one that holds the values is taken.
        values = np.nan_to_num(np.asarray(image, np.float64))
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
        full = next((scale for scale in scales if values.max() <= scale), scales[-1])
        image = Image.fromarray(np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8))
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # a conversion to the same mode would copy it
