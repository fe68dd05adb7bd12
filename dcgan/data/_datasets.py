"""The images and labels of any map-style dataset: torchvision's, Hugging Face's, or your own.

Shapes: N items, h and w the sides of an image, K its channels.
"""

from __future__ import annotations

import hashlib
import re
import struct
import traceback
import warnings
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dcgan._errors import InputError
from dcgan.data._decoding import MACHINE_ERRNOS
from dcgan.data._images import BadImages
from dcgan.data._sources import UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image as PilImage
    from torch import Tensor

    from dcgan.data._decoding import Decoder

    RawImage = PilImage | np.ndarray | Tensor

Key = str | int  # a column of a mapping, or a position in a tuple

LABEL_COLUMNS = ("label", "labels", "target", "class")
_SAMPLE_SIZE = 32


class MapDataset(Protocol):
    """A dataset with a length, whose items are read by their index."""

    def __getitem__(self, index: Any, /) -> Any: ...


class DatasetItems:
    """The undecoded images of a dataset, read one at a time, in any thread.

    What the first readable item looks like decides where the image and its label are in all of them.

    Args:
        dataset: Any map-style dataset.
        image_key: The column or position of the image; None finds the only one.
        label_key: The column or position of the label; None finds it by its name or position, if there is one.
        value_range: What floating-point images hold; None decides between (0, 1) and (-1, 1) from a sample.

    Attributes:
        name: The class of the dataset.
        labels: int64 `(N,)`, each set when its item is read; None if the first item has no integer label.
        first: The first readable image.

    Raises:
        TypeError: If it is not a map-style dataset, or if its items hold no image, or several.
        ValueError: If it is empty, if there is no such key, or if `value_range` does not apply.
        BadImages: If no item can be read.
    """

    def __init__(
        self,
        dataset: MapDataset,
        image_key: Key | None,
        label_key: Key | None,
        value_range: tuple[float, float] | None,
    ) -> None:
        self._dataset, self._length, self.name = dataset, _expect_map_style(dataset), type(dataset).__name__
        self.labels: np.ndarray | None = None
        index, item = self._first_readable()
        self._image_key = _find_image(self._name(index), item, image_key)
        self._label_key = _find_label(self._name(index), item, self._image_key, label_key)
        if self._label_key is not None:
            self.labels = np.zeros(self._length, np.int64)
        # Ends included, where sets sorted by class or by length differ most.
        self._sample = sorted({round(i) for i in np.linspace(0, self._length - 1, _SAMPLE_SIZE)})
        raw = self._part(index, item, self._image_key)
        self._value_range = self._find_value_range(self._name(index), raw, value_range)
        self.first = self._pixels(index, raw)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> PilImage | np.ndarray:
        """Return an image of Pillow, or uint8 pixels `(h, w)` or `(h, w, K)`."""
        item = self._read(index)
        if self.labels is not None:
            label = self._part(index, item, self._label_key)
            if not _is_integer(label):
                where = f"{self._name(index)}[{self._label_key!r}]"
                raise TypeError(f"{where} must be an integer label, as in the first item, got {_describe(label)}")
            self.labels[index] = int(label)
        return self._pixels(index, self._part(index, item, self._image_key))

    def describe(self) -> str:
        """Return what the dataset tells of itself, without addresses in memory, which change from run to run."""
        if isinstance(self._dataset, list | tuple):
            return ""  # as long as the data
        return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(self._dataset))

    def fingerprint(self, decoder: Decoder) -> str:
        """Hash what is known of the dataset, and the pixels and labels of its items: of all that are in memory.

        Of other datasets only a sample is read, since reading all would take as long as packing them.

        Raises:
            ValueError: If a second reading of the sample differs from the first.
        """
        content = self._hash_items(decoder, self._sample)
        if self._hash_items(decoder, self._sample) != content:
            raise InputError(
                f"{self.name} gives other images each time it is read: packing would keep one draw of its random "
                "transforms for ever. Remove them, and mirror with Batches(flip=True) or augment with "
                "Trainer(augmentations=...); or pass cache=False"
            )
        if _is_in_memory(self._dataset):
            content = self._hash_items(decoder, range(self._length))
        kind = f"{type(self._dataset).__module__}.{type(self._dataset).__qualname__}"
        # Hugging Face's own hash of all rows and transforms, under the name that its guide to the cache documents.
        own = getattr(self._dataset, "_fingerprint", None)
        own = own if isinstance(own, str) else None
        keys = (self._image_key, self._label_key, self._value_range)
        return hashlib.sha256(repr((kind, self._length, self.describe(), own, keys, content)).encode()).hexdigest()

    def _hash_items(self, decoder: Decoder, indices: Iterable[int]) -> str:
        digest = hashlib.sha256()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # as when all are decoded
            for index in indices:
                images, readable, _ = decoder([index])
                digest.update(images.tobytes())
                labels = None if self.labels is None else self.labels[readable].tolist()
                digest.update(repr((readable, labels)).encode())
        return digest.hexdigest()

    def _name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def _read(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            if _is_of_damaged_file(error):
                raise UnreadableImage(str(error) or type(error).__name__) from error
            error.add_note(f"raised by the dataset, while {self._name(index)} was read")
            raise

    def _part(self, index: int, item: Any, key: Key | None) -> Any:
        if key is None:
            return item
        fields = _fields(item)
        if fields is None or key not in fields:
            raise TypeError(f"{self._name(index)} must hold {key!r}, as the first item does, got {_describe(item)}")
        return fields[key]

    def _first_readable(self) -> tuple[int, Any]:
        failures = []
        for index in range(self._length):
            try:
                return index, self._read(index)
            except UnreadableImage as error:
                failures.append((self._name(index), str(error)))
        raise BadImages(failures, nothing_left=True)

    def _find_value_range(
        self, name: str, first: RawImage, value_range: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        if not _is_floating(first):
            if value_range is not None:
                raise InputError(f"value_range is for floating-point images, but {name} is {_describe(first)}")
            return None
        if value_range is not None:
            low, high = value_range
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise InputError(f"value_range must be two finite numbers, the lower one first, got {value_range}")
            return float(low), float(high)
        lowest = 0.0
        for index in self._sample:
            try:
                image = self._part(index, self._read(index), self._image_key)
            except UnreadableImage:
                continue
            if _is_floating(image) and 0 not in image.shape:
                lowest = min(lowest, float(image.min()))
        return (-1.0, 1.0) if lowest < -0.5 / 255 else (0.0, 1.0)  # less than half a step below 0 is rounding

    def _pixels(self, index: int, image: RawImage) -> PilImage | np.ndarray:
        from PIL import Image

        if isinstance(image, Image.Image):
            return image
        if not _is_image(image):
            raise TypeError(f"{self._name(index)} must hold an image as the first item does, got {_describe(image)}")
        pixels = np.asarray(image) if isinstance(image, np.ndarray) else _channels_last(image)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if not pixels.size or (pixels.ndim == 3 and pixels.shape[2] not in {3, 4}):
            layouts = "(h, w, K), (K, h, w) as a tensor," if isinstance(image, np.ndarray) else "(K, h, w)"
            raise InputError(
                f"{self._name(index)} must be (h, w) or {layouts} of 1, 3 or 4 channels K, got {_describe(image)}"
            )
        return pixels if pixels.dtype == np.uint8 else self._quantize(index, pixels)

    def _quantize(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Round floating-point pixels to uint8."""
        if self._value_range is None:
            raise InputError(f"{self._name(index)} is floating-point, but the first image is not")
        low, high = self._value_range
        levels = np.rint((pixels.astype(np.float64) - low) * (255 / (high - low)))
        if np.isnan(levels).any():
            raise InputError(f"{self._name(index)} holds NaN")
        if levels.min() < 0 or levels.max() > 255:
            found = f"{pixels.min():.4g} to {pixels.max():.4g}"
            raise InputError(
                f"{self._name(index)} has values from {found}, outside of {low:g} to {high:g}: pass value_range=, the "
                "lowest and highest value that images can have, and remove transforms that normalize or overshoot"
            )
        return levels.astype(np.uint8)


def _expect_map_style(dataset: object) -> int:
    """Return the length of a dataset."""
    from torch.utils.data import DataLoader, IterableDataset

    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise TypeError(f"dataset must be a single one, got a {kind} of {_listing(dataset)}: pass one of these")
    if isinstance(dataset, DataLoader):
        raise TypeError("dataset must be a map-style dataset, got a DataLoader: pass its dataset")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset must be map-style, with a length and items by index, got {kind}: load it without streaming, or "
            "pass a list of its items"
        )
    length = len(dataset)
    if not length:
        raise InputError(f"dataset must not be empty, got a {kind} of length 0")
    return length


def _is_in_memory(dataset: object) -> bool:
    from torch import Tensor
    from torch.utils.data import TensorDataset

    return isinstance(dataset, list | tuple | np.ndarray | Tensor | TensorDataset)


def _is_of_damaged_file(error: Exception) -> bool:
    """Tell the errors of a file that is missing or damaged from faults of the machine and of the dataset's code."""
    from PIL import Image

    if isinstance(error, OSError):
        return not (error.errno in MACHINE_ERRNOS or isinstance(error, ConnectionError | TimeoutError))
    if isinstance(error, RuntimeError):  # the decoders of torchvision and torchcodec raise nothing more specific
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        return any(module.startswith(("torchvision.io.", "torchcodec.")) for module in modules)
    # What else Pillow raises; SyntaxError for a broken PNG.
    return isinstance(error, EOFError | SyntaxError | struct.error | zlib.error | Image.DecompressionBombError)


def _find_image(name: str, item: Any, key: Key | None) -> Key | None:
    """Return where the image is in an item; None where the item is the image."""
    fields = _fields(item)
    if fields is None:
        if not _is_image(item):
            raise TypeError(f"{name} must be or hold an image, {_IMAGES}; got {_describe(item)}")
        if key is not None:
            raise InputError(f"image_key is for items that are mappings or tuples, but {name} is {_describe(item)}")
        return None
    if key is not None:
        _expect_key("image_key", name, key, fields)
        if not _is_image(fields[key]):
            raise TypeError(f"{name}[{key!r}] must be an image, {_IMAGES}; got {_describe(fields[key])}")
        return key
    found: list[Key] = [field for field, value in fields.items() if _is_image(value)]
    if len(found) > 1:
        raise TypeError(f"{name} holds {len(found)} images: choose one with image_key, from {_listing(found)}")
    if not found:
        contents = ", ".join(f"{field!r}: {_describe(value)}" for field, value in fields.items())
        raise TypeError(f"{name} must hold an image, {_IMAGES}; got {type(item).__name__} of {contents or 'nothing'}")
    return found[0]


def _find_label(name: str, item: Any, image_key: Key | None, key: Key | None) -> Key | None:
    """Return where the label is in an item; None where there is none."""
    fields = _fields(item)
    if key is None:
        following = (image_key + 1,) if isinstance(image_key, int) else ()
        candidates: tuple[Key, ...] = LABEL_COLUMNS if isinstance(item, Mapping) else following
        return next((field for field in candidates if fields and _is_integer(fields.get(field))), None)
    if fields is None:
        raise InputError(f"label_key is for items that are mappings or tuples, but {name} is {_describe(item)}")
    _expect_key("label_key", name, key, fields)
    if not _is_integer(fields[key]):
        raise TypeError(f"{name}[{key!r}] must be an integer label, got {_describe(fields[key])}")
    return key


def _fields(item: Any) -> Mapping[Any, Any] | None:
    """Return the parts of an item that may be its image or label, or None if it has no parts."""
    if isinstance(item, Mapping):
        return item
    return dict(enumerate(item)) if isinstance(item, list | tuple) else None


def _expect_key(argument: str, name: str, key: Key, fields: Mapping[Any, Any]) -> None:
    if key not in fields:
        raise InputError(f"{argument} must be one of {_listing(fields)}, of which {name} consists; got {key!r}")


def _listing(keys: Any) -> str:
    return ", ".join(map(repr, keys))


_IMAGES = "one of Pillow, or a uint8 or floating-point array or tensor"


def _is_image(value: Any) -> bool:
    from PIL import Image
    from torch import Tensor

    if isinstance(value, np.ndarray | Tensor):
        return value.ndim in {2, 3} and (str(value.dtype).endswith("uint8") or _is_floating(value))
    return isinstance(value, Image.Image)


def _is_floating(value: Any) -> bool:
    return "float" in str(getattr(value, "dtype", ""))  # of NumPy and of torch


def _is_integer(value: Any) -> bool:
    if hasattr(value, "dtype"):  # a tensor, or an array or scalar of NumPy
        return value.ndim == 0 and "int" in str(value.dtype)
    return isinstance(value, int) and not isinstance(value, bool)


def _channels_last(image: Tensor) -> np.ndarray:
    """Return a tensor `(h, w)` or `(K, h, w)` as an array `(h, w)` or `(h, w, K)`."""
    import torch

    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:  # which NumPy does not know
        image = image.float()
    return (image if image.ndim == 2 else image.permute(1, 2, 0)).numpy()


def _describe(value: Any) -> str:
    """Name the type of a value, and the shape and type of its elements."""
    kind = type(value).__name__
    return f"{kind} {tuple(value.shape)} of {value.dtype}" if hasattr(value, "dtype") else kind
