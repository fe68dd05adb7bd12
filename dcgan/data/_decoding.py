"""Decode one image of any format and mode to uint8 of a given shape.

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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcgan._errors import InputError
from dcgan.data._formats import HEIF_REMEDY, formats_of
from dcgan.data._sources import EncodedImage, UnreadableImage, expect_image_size

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from dcgan._choices import Resize
    from dcgan.data._sources import Item, Source

Indices = Sequence[int] | np.ndarray

MACHINE_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""Faults of the machine, which say nothing about the image."""

# Unreadable metadata do not matter to readable pixels.
_METADATA_ERRORS = (SyntaxError, ValueError, KeyError, TypeError, struct.error)
_PORTABLE = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


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
        from PIL import Image

        path = item if isinstance(item, str) else item.name if isinstance(item, EncodedImage) else None
        try:
            if isinstance(item, np.ndarray):
                return self._resize(_convert_mode(Image.fromarray(np.ascontiguousarray(item)), self.channels))
            if isinstance(item, Image.Image):
                image = item.copy()  # the dataset may hold the original, which another thread may be reading
                _load_upright(image, 2 * max(self.image_size), self.max_pixels)
                return self._resize(_convert_mode(image, self.channels))
            if isinstance(item, str):
                _expect_image_file(Path(item))
            # Read at once: each of Pillow's many small reads would release the interpreter's lock.
            if isinstance(item, EncodedImage):
                item = item.content
            encoded = item if isinstance(item, bytes) else Path(item).read_bytes()
            with _open_image(encoded, path) as image:
                _load_upright(image, 2 * max(self.image_size), self.max_pixels)
                return self._resize(_convert_mode(image, self.channels))
        except (UnreadableImage, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
                error.filename = error.filename or path  # the error of a bad sector has none
                raise
            # Damaged files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and more.
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UnreadableImage(" ".join(reason.split())) from error

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


def to_portable(encoded: bytes, path: str, max_pixels: int | None) -> tuple[str, bytes]:
    """Return a readable image in a format that other programs read too, with the ending of its name.

    JPEG, PNG and WebP stay as they are; others become PNG of the same pixels, upright, in 8 bits.

    Args:
        encoded: The image file.
        path: Where it comes from.
        max_pixels: As for `Decoder`.
    """
    with _open_image(encoded, path) as image:
        if (ending := _PORTABLE.get(image.format or "")) is not None:
            return ending, encoded
        _load_upright(image, 1, max_pixels)
        channels = 4 if image.has_transparency_data else min(natural_shape(image)[2], 3)
        png = io.BytesIO()
        # Without the metadata, of which an orientation would turn the image once more.
        _convert_mode(image, channels).save(png, "PNG", exif=b"", icc_profile=None)
        return ".png", png.getvalue()


def _expect_image_file(path: Path) -> None:
    """Refuse a named pipe, which would block for ever once it is opened, and what would fill the memory."""
    if not path.is_file():
        raise InputError("is not a file")
    expect_image_size(path.stat().st_size)


def _open_image(encoded: bytes, path: str | None) -> PilImage:
    """Read the header of an encoded image, of any size, which `_load_upright` limits.

    `Image.open` has a limit for the whole process, warns of larger images and refuses those twice as large: what is
    read would depend on warning filters, and a JPEG be refused for pixels that need not be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    claimed = None
    for name in formats_of(path):
        open_header, accept = Image.OPEN[name]
        accepted = accept is None or accept(encoded[:16])
        if accepted and not isinstance(accepted, str):  # the text of a warning
            try:
                return open_header(io.BytesIO(encoded), "")
            except (SyntaxError, IndexError, TypeError, struct.error, UnidentifiedImageError):
                claimed = claimed or name  # it may still be of another format
    raise UnreadableImage(_describe_unidentified(encoded) if claimed is None else f"is not a whole {claimed} file")


def _load_upright(image: PilImage, min_side: int, max_pixels: int | None) -> None:
    """Load the pixels, at a reduced size of at least `min_side` where possible, and apply the EXIF orientation."""
    from PIL import Image, ImageOps

    width, height = image.size
    image.draft(None, (min_side, min_side))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    # The size in memory counts, where all of a progressive JPEG is kept.
    in_memory = width * height if "progressive" in image.info else image.width * image.height
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and in_memory > limit:
        raise InputError(
            f"has {width * height} pixels ({width}x{height}), more than {limit}, the limit against files that fill the "
            f"memory: to read it nevertheless, set max_pixels to {width * height}"
        )
    image.load()
    with contextlib.suppress(*_METADATA_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


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
    if image.mode == "LAB":
        image = image.convert("RGB")  # the only way to grey
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # a conversion to the same mode would copy it
