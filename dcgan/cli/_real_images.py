"""The real images that `dcgan evaluate` compares with: which they are, and what their figures need, kept on disk."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from dcgan._choices import DatasetName, Resize
from dcgan._labelled import LabelledName, Split
from dcgan.cli import _processes
from dcgan.cli._terminal import UsageError, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dcgan.data import Images
    from dcgan.metrics import FeatureExtractor, Moments

COMPARED = 10_000  # images of either kind, at most, of whose features each one is compared with each other one
_VERSION = 1  # part of the name of cached statistics: raise it when the same images and network give others
_PART = 500  # images at once
_TESTED = [name for name in get_args(LabelledName) if name not in ("digits", "folder", "wds", "hf")]  # by their makers

T = TypeVar("T")


class Source(NamedTuple):
    name: str
    root: Path | None
    split: Split
    resize: Resize
    classes: tuple[str, ...]


def find_source(
    model: str,
    name: DatasetName | None,
    root: Path | None,
    split: Split,
    resize: Resize | None,
    classes: tuple[str, ...],
) -> Source:
    """Complete what the command line says by the recipe of a run, or the name of the model."""
    from dcgan.data import DATASETS
    from dcgan.recipe import read_fields

    recipe: dict[str, Any] = {}
    if name is None and (path := Path(model).expanduser() / "recipe.yaml").is_file():
        recipe = read_fields(path.read_bytes())
    found = name or recipe.get("data") or (model if model in DATASETS else "folder" if root is not None else None)
    if found is None:
        raise UsageError(f"--data names the images that {model} is compared with, or --root a folder of them")
    root = Path(recipe["root"]) if root is None and recipe.get("root") else root
    resize = resize or recipe.get("resize", "crop")
    return Source(found, root, split, resize, classes or tuple(recipe.get("classes", ())))


@dataclass(frozen=True)
class RealImages:
    """Real images, their classes if these are asked for and known, and what tells the images from others."""

    name: str
    count: int
    shape: str
    batch: "Callable[[np.ndarray], Tensor]"
    labels: "np.ndarray | None"
    fingerprint: str


def open_images(source: Source, options: dict[str, Any], *, with_labels: bool) -> RealImages:
    from dcgan._config import sides
    from dcgan._labelled import load_labelled

    shape = "x".join(str(side) for side in (*sides(options), options["channels"]))
    label = f"{source.name}-{source.split}-{shape}-{source.resize}"
    if source.split == "train":
        images = _open_training_images(source, options, with_labels=with_labels)
        labels = images.labels if with_labels else None
        fingerprint = images.fingerprint if images.path is not None else ""
        return RealImages(label, len(images), shape, images.batch, labels, fingerprint)
    if source.name not in _TESTED:
        raise UsageError(
            f"--split test is of {', '.join(_TESTED)}, got {source.name}: give another set's test images as --root"
        )
    if source.resize != "crop":
        raise UsageError(f"--split test scales images by crop, got --resize {source.resize}")
    pixels, classes = load_labelled(source.name, "test", root=source.root, **options)  # type: ignore[arg-type]  # as checked
    digest = hashlib.sha256(pixels.numpy().data).hexdigest() if options["cache"] else ""
    labels = classes.numpy() if with_labels else None
    return RealImages(label, len(pixels), shape, lambda indices: pixels[indices], labels, digest)


def _open_training_images(source: Source, options: dict[str, Any], *, with_labels: bool) -> "Images":
    """Open the training images of a set, with their labels if it has any and they are asked for."""
    from dcgan import data
    from dcgan._errors import InputError
    from dcgan._labelled import open_training_set

    options = options | {"root": source.root, "resize": source.resize}
    if with_labels and not source.classes:
        try:
            return open_training_set(source.name, workers=os.cpu_count() or 1, **options)
        except InputError:  # it has none
            pass
    return data.load(source.name, classes=source.classes, **options)


def compute_parts(label: str, number: int, compute: Callable[[int, int], T]) -> list[T]:
    """Compute parts of so many images, together with the other processes; the first one has all of them."""
    from dcgan import _distributed

    with progress_bar(label, "img") as progress:

        def counted(start: int, end: int) -> T:
            found = compute(start, end)
            progress(min(end * _processes.process_count(), number), number)  # the others are about as far
            return found

        return _distributed.compute_parts(counted, number, _PART)


class Reference(NamedTuple):
    """What figures need to know of real images: `moments` of all, and features `(N, F)` in random order."""

    number: int
    moments: "Moments"
    features: "Tensor"


def measure_reference(
    real: RealImages, count: int, extractor: "FeatureExtractor", batch_size: int, folder: Path | None
) -> Reference | None:
    """Measure real images, or take what an earlier call has measured of them; None unless in the first process."""
    import numpy as np

    from dcgan._distributed import gather
    from dcgan._files import atomic_write

    path = None
    if folder is not None and real.fingerprint and extractor.identity:
        known = repr((_VERSION, real.fingerprint, extractor.identity, COMPARED))
        name = re.sub(r"[^\w.-]", "_", extractor.name)
        digest = hashlib.sha256(known.encode()).hexdigest()[:16]
        path = folder / f"reference-{real.name}-{count}-{name}-{digest}.npz"
    kept = _read_reference(path, count) if path is not None and _processes.process_rank() == 0 else None
    if gather(kept is not None)[0]:
        return kept
    reference = _compute_reference(real, count, extractor, batch_size)
    if path is not None and reference is not None:
        mean, covariance = reference.moments
        arrays = {"mean": mean.numpy(), "covariance": covariance.numpy(), "features": reference.features.numpy()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
    return reference


def _read_reference(path: Path, count: int) -> Reference | None:
    """Return what an earlier call has kept, unless it is missing or damaged: it is then measured anew."""
    from zipfile import BadZipFile

    import numpy as np
    import torch

    try:
        with np.load(path) as arrays:
            mean, covariance, features = (torch.from_numpy(arrays[key]) for key in ("mean", "covariance", "features"))
            return Reference(count, (mean, covariance), features)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):  # as NumPy finds damage
        return None


def _compute_reference(
    real: RealImages, count: int, extractor: "FeatureExtractor", batch_size: int
) -> Reference | None:
    import numpy as np
    import torch

    from dcgan.metrics import moments

    chosen = choose(real, count)

    def compute(start: int, end: int) -> "Tensor":
        return extractor(real.batch(chosen[start:end]), batch_size=batch_size)

    if not (parts := compute_parts("features of real images", count, compute)):
        return None
    features = torch.cat(parts)
    order = np.random.default_rng(1).permutation(count)
    return Reference(count, moments(features), features[order[:COMPARED]])


def choose(real: RealImages, count: int) -> "np.ndarray":
    import numpy as np

    return np.sort(np.random.default_rng(0).permutation(real.count)[:count])  # as `dcgan train` chooses them
