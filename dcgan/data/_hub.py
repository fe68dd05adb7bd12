"""Images of the library `datasets` of Hugging Face: a set on its Hub, or a folder that it reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcgan._errors import InputError, MissingPackageError
from dcgan.data._datasets import LABEL_COLUMNS
from dcgan.data._shards import NO_LABEL, IndexedItems, IndexedSource, complete_labels
from dcgan.data._sources import EncodedImage, UnreadableImage

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT = "train"


def open_hub(name: Path) -> IndexedSource:
    """Return the training split of a set, whose rows `datasets` maps from its cache.

    Args:
        name: A name on the Hub, such as `uoft-cs/cifar10`; or a folder, of `save_to_disk`, or of images or Parquet
            files as `load_dataset` reads it.

    Raises:
        FileNotFoundError: If there is no such set.
        ValueError: If it has no training split, or not one column of images.
        ImportError: If the package datasets is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError('a dataset of Hugging Face needs datasets: pip install "dcgan[datasets]"') from error
    dataset = _load(name).with_format(None)  # a saved format may leave columns out
    images = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        found = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in dataset.features.items())
        raise InputError(
            f"{name} must have one column of images, got {len(images)} in {found}: choose with "
            "dcgan.data.from_dataset(dataset, image_key=...)"
        )
    items = HubImages(dataset, images[0])
    labels, num_classes = complete_labels(items, *_labels(dataset))
    paths = [Path(file["filename"]).absolute() for file in dataset.cache_files]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    return IndexedSource(
        "hf",
        root,
        [str(path.relative_to(root)) for path in paths],
        lambda _: items,
        description=repr(dataset),
        labels=labels,
        num_classes=num_classes,
        indexed=items,
    )


class HubImages(IndexedItems):
    """The encoded images of a column, which this package decodes as it does files."""

    def __init__(self, dataset: Dataset, column: str) -> None:
        import datasets

        self.left_out = {}
        self._column = column
        self._dataset = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> str | EncodedImage:
        image = self._dataset[int(index)][self._column]
        if image is None or not (image["bytes"] or image["path"]):
            raise UnreadableImage("is missing")
        return image["path"] if image["bytes"] is None else EncodedImage(image["path"] or "", image["bytes"])

    def name(self, index: int) -> str:
        """Return the path of a file, or the number of a row."""
        image = self._dataset[int(index)][self._column] or {}
        return image["path"] if image.get("path") and image["bytes"] is None else f"row {index}"


def _load(name: Path) -> Dataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    text = name.as_posix()
    saved = any((name / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        if not saved and not name.exists() and (name.is_absolute() or text.count("/") > 1):
            raise FileNotFoundError("there is no such folder")
        loaded: Any = load_from_disk(text) if saved else load_dataset(text, split=_SPLIT)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            "root must be a name on the Hugging Face Hub, or a folder that its datasets library reads, with the split "
            f"{_SPLIT!r}; got {name}: {reason}"
        ) from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if _SPLIT not in loaded:
        raise InputError(f"{name} must have the split {_SPLIT!r}, got {', '.join(loaded)}: name the folder of one")
    return loaded[_SPLIT]


def _labels(dataset: Dataset) -> tuple[np.ndarray, int | None]:
    """Return the labels, -1 where there is none, and the number of classes if the dataset tells it."""
    for column in LABEL_COLUMNS:
        kind = dataset.features.get(column)
        if "int" in str(getattr(kind, "dtype", "")):
            values = dataset.with_format("numpy")[column][:]
            return np.nan_to_num(values, nan=NO_LABEL).astype(np.int64), getattr(kind, "num_classes", None)
    return np.full(len(dataset), NO_LABEL), None
