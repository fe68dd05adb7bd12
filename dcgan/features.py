"""What a discriminator has learnt: its pooled features, and how well they classify (the paper, Section 5).

Nothing here depends on the networks of this package: features come from any module, and the probe and the neighbours
take features from anywhere.

Shapes: N images, K channels, H×W image size, F features; Q queries and R references.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dcgan._choices import Precision
from dcgan._errors import InputError
from dcgan._modules import copy_module, eval_mode
from dcgan._precision import autocast
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.images import from_uint8

REGULARIZATIONS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
"""The values of C that the paper's authors choose from (`svhn_semisup_analysis.py` in their code)."""

Activations = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""Maps `(N, C, h, w)`: of one stage, or of several in order."""

_AUTHORS_BATCH = 128  # of the statistics that they freeze
_SPARE_NEIGHBORS = 8  # candidates beyond those asked for
_MAX_REDUCED = 4096  # images, beyond which the eigenvectors take longer than they save


@torch.no_grad()
def pooled_features(
    network: nn.Module | Callable[[Tensor], Activations],
    images: Tensor,
    *,
    grid: int = 4,
    batchnorm_images: Tensor | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the activations of every stage, max-pooled to a grid, flattened and concatenated (Sections 5.1 and 5.2).

    A `Discriminator` gives `(sum of its widths) * grid²` features: 28672 for "imagenet32", 7168 for "svhn". A map
    smaller than the grid is taken as it is.

    Args:
        network: A module with `features(images)`, which returns the activations of its stages; it computes on its own
            device, in evaluation mode, and is not changed. Or a function that returns such activations.
        images: `(N, K, H, W)`: uint8, or floating-point in the range that the network was trained on.
        grid: Side of the grid.
        batchnorm_images: Normalise with the mean statistics of these images, in whole batches of 128, as the authors do
            with training images, instead of the running statistics, which generated images have a part in.
        value_range: What uint8 images are scaled to.
        batch_size: Images per forward pass.
        precision: Floating-point format to compute in.
        progress: Called as `progress(done, total)` after each batch.

    Returns:
        `(N, F)`, float32, on the device of `images`.

    Raises:
        TypeError: If `network` has no features, or is not a module and `batchnorm_images` are given.
        ValueError: If images or activations have another shape or type, or `grid` or `batch_size` is below 1.
    """
    if grid < 1 or batch_size < 1:
        raise InputError(f"grid and batch_size must be at least 1, got {grid} and {batch_size}")
    _expect_images("images", images)
    device, dtype = images.device, torch.float32
    stages: Any = network
    if isinstance(network, nn.Module):
        stages = getattr(network, "features", None)
        if not callable(stages):
            raise TypeError(
                "network must have features(images), which returns the activations of its stages, but a "
                f"{type(network).__name__} has none: pass a function of images that returns them"
            )
        like = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), None)
        device, dtype = (device, dtype) if like is None else (like.device, like.dtype)

    def scaled(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        return from_uint8(batch, value_range, dtype) if batch.dtype == torch.uint8 else batch.to(dtype)

    if batchnorm_images is not None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"batchnorm_images need a module, got a {type(network).__name__}")
        _expect_images("batchnorm_images", batchnorm_images)
        network = copy_module(network)
        stages = network.features
        batches = map(scaled, _whole_batches(batchnorm_images, _AUTHORS_BATCH))
        with autocast(device, precision):
            estimate_batchnorm_statistics(network, batches, unbiased=False)
    pooled = []
    with eval_mode(network) if isinstance(network, nn.Module) else nullcontext(), autocast(device, precision):
        for batch in torch.split(images, batch_size):
            pooled.append(_pool(stages(scaled(batch)), grid).to(images.device))
            if progress is not None:
                progress(min(len(pooled) * batch_size, len(images)), len(images))
    return torch.cat(pooled)


@dataclass(frozen=True)
class ProbeResult:
    """What `linear_probe` found.

    Attributes:
        c: The chosen C: the one with the lowest validation error.
        validation_errors: Mean validation error by C.
        test_errors: Test error of every draw; of a probe on all labels, a single one.
    """

    c: float
    validation_errors: dict[float, float]
    test_errors: tuple[float, ...]

    @property
    def test_error(self) -> float:
        """The mean test error, in [0, 1]."""
        return float(np.mean(self.test_errors))

    @property
    def spread(self) -> float | None:
        """1.96 standard deviations of the test errors, as the authors print; None for a single one."""
        return float(1.96 * np.std(self.test_errors)) if len(self.test_errors) > 1 else None


def linear_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    per_class: int | None = None,
    validation: int | None = None,
    regularizations: Sequence[float] = REGULARIZATIONS,
    validation_draws: int = 10,
    draws: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Classify features with a linear L2-SVM, `sklearn.svm.LinearSVC`.

    A part of the training images, drawn once, is set aside for validation, and C is chosen by its error.

    With all labels (CIFAR-10, Section 5.1), each C is tried once; the SVM that is tested is fitted to all training
    images, those for validation included. With few (SVHN, Section 5.2), each C is tried on `validation_draws` draws of
    `per_class` images of each class, and the chosen one is tested on `draws` others. Draw i depends on the seed and i
    alone, so that several kinds of features are compared on the same images.

    Args:
        features: `(N, F)` of the training images.
        labels: `(N,)` their classes, integers.
        test_features: `(M, F)`.
        test_labels: `(M,)`.
        per_class: Labelled images of each class in a draw, 100 in the paper; None uses all labels.
        validation: Number of training images for validation; by default 10,000 as in the paper, but at most a fifth.
        regularizations: The values of C to choose from.
        validation_draws: Draws for each C.
        draws: Draws that are tested.
        seed: Seed of the split and of the draws.
        progress: Called as `progress(done, total)` after each fit.

    Raises:
        TypeError: If labels are not integers.
        ValueError: If shapes do not agree, features are not finite, or there are not enough images.
    """
    train_x, train_y = _expect_labelled("features", features, "labels", labels)
    test_x, test_y = _expect_labelled("test_features", test_features, "test_labels", test_labels)
    if train_x.shape[1] != test_x.shape[1]:
        raise InputError(f"features and test_features must be as many, got {train_x.shape[1]} and {test_x.shape[1]}")
    _expect_protocol(regularizations, per_class, validation_draws, draws)
    held, rest = split(train_y, per_class=per_class, validation=validation, seed=seed)

    def draw(stage: int, index: int) -> np.ndarray:
        return rest if per_class is None else _draw_per_class(train_y, rest, per_class, seed=(seed, stage, index))

    tried = 1 if per_class is None else validation_draws
    tested = 1 if per_class is None else draws
    done, total = 0, len(regularizations) * tried + tested

    def error(problem: _LinearSVM, c: float, x: np.ndarray, y: np.ndarray) -> float:
        nonlocal done
        mistakes = float(np.mean(problem.fit(c, x) != y))
        done += 1
        if progress is not None:
            progress(done, total)
        return mistakes

    errors: dict[float, list[float]] = {c: [] for c in regularizations}
    for index in range(tried):
        chosen = draw(1, index)
        problem = _LinearSVM(train_x[chosen], train_y[chosen])
        for c in regularizations:
            errors[c].append(error(problem, c, train_x[held], train_y[held]))
    means = {c: float(np.mean(values)) for c, values in errors.items()}
    best = min(means, key=lambda c: means[c])
    test_errors = []
    for index in range(tested):
        chosen = np.concatenate([held, rest]) if per_class is None else draw(2, index)
        test_errors.append(error(_LinearSVM(train_x[chosen], train_y[chosen]), best, test_x, test_y))
    return ProbeResult(best, means, tuple(test_errors))


def split(
    labels: np.ndarray, *, per_class: int | None = None, validation: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training images that `linear_probe` sets aside for validation, and of the others.

    Args:
        labels: `(N,)` classes of the training images.
        per_class: Labelled images of each class that a draw takes from the others; None for all.
        validation: Number of images for validation; by default 10,000, but at most a fifth.
        seed: Seed of the split.

    Raises:
        ValueError: If there are not enough images.
    """
    validation = min(10_000, len(labels) // 5) if validation is None else validation
    if not 1 <= validation < len(labels):
        raise InputError(f"validation must leave some of the {len(labels)} training images, got {validation}")
    order = np.random.default_rng((seed, 0)).permutation(len(labels))
    held, rest = order[:validation], order[validation:]
    if per_class is None:
        return held, rest
    for label in np.unique(labels):
        left = int(np.sum(labels[rest] == label))
        if left < per_class:
            raise InputError(
                f"per_class must be at most {left}, the training images of class {label} that are not for "
                f"validation, got {per_class}"
            )
    return held, rest


@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, references: Tensor, *, k: int = 1, batch_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Find the nearest references of each query, by Euclidean distance.

    Images serve as well as features: to see that nothing was memorised, find the training images nearest to samples.

    Args:
        queries: `(Q, ...)`, of any shape; uint8 images are not scaled.
        references: `(R, ...)`, on the same device.
        k: Number of neighbours.
        batch_size: Queries compared at once: `batch_size * R` distances are in memory.

    Returns:
        Distances `(Q, k)`, the smallest first, and indices `(Q, k)` of the references.

    Raises:
        ValueError: If queries and references differ in shape, or there are fewer than `k` references.
    """
    if queries.shape[1:] != references.shape[1:]:
        raise InputError(
            f"queries and references must have one shape, got {tuple(queries.shape)} and {tuple(references.shape)}"
        )
    if not 1 <= k <= len(references):
        raise InputError(f"k must be from 1 to {len(references)}, the number of references, got {k}")
    queries, references = (_as_points(x) for x in (queries, references))
    distances, indices = [], []
    for batch in torch.split(queries, batch_size):
        # Anew, and of some more, since those of cdist are differences of squares: two equal images would not be at 0,
        # and of several near ones the nearest may be missed.
        candidates = min(k + _SPARE_NEIGHBORS, len(references))
        near = torch.cdist(batch, references).topk(candidates, largest=False).indices
        exact = torch.stack([(batch - references[column]).norm(dim=1) for column in near.T], 1)
        ordered, positions = exact.sort(dim=1)
        distances.append(ordered[:, :k])
        indices.append(near.gather(1, positions)[:, :k])
    return torch.cat(distances), torch.cat(indices)


def classify_by_neighbor(queries: Tensor, references: Tensor, labels: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Return the label of the nearest reference of each query (1-NN).

    With samples of a conditional generator as references and real images as queries, its error is the paper's figure
    for conditional MNIST (supplementary material).

    Args:
        queries: `(Q, ...)`.
        references: `(R, ...)`.
        labels: `(R,)` the classes of the references.
        batch_size: As for `nearest_neighbors`.

    Returns:
        `(Q,)`.

    Raises:
        ValueError: If there is not a label for each reference, or as for `nearest_neighbors`.
    """
    if labels.shape != (len(references),):
        raise InputError(f"labels must have shape ({len(references)},), got {tuple(labels.shape)}")
    _, indices = nearest_neighbors(queries, references, batch_size=batch_size)
    return labels.to(indices.device)[indices[:, 0]]


def _pool(activations: Activations, grid: int) -> Tensor:
    maps = [activations] if isinstance(activations, Tensor) else activations
    maps = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
    if not maps or any(not isinstance(m, Tensor) or m.dim() != 4 for m in maps):
        got = ", ".join(str(tuple(m.shape)) if isinstance(m, Tensor) else type(m).__name__ for m in maps)
        raise InputError(f"features must be maps (N, C, h, w), got {got or 'none'}")
    pooled = []
    for m in maps:
        on = torch.device("cpu") if m.device.type == "mps" else m.device  # whose pooling needs sizes that divide evenly
        size = (min(grid, m.shape[2]), min(grid, m.shape[3]))
        pooled.append(functional.adaptive_max_pool2d(m.to(on, torch.float32), size).flatten(1))
    return torch.cat(pooled, 1)


def _whole_batches(images: Tensor, size: int) -> Iterator[Tensor]:
    # A rest would count as much as a whole batch; fewer than one batch are all there is.
    return iter(torch.split(images[: max(len(images) // size, 1) * size], size))


def _expect_images(name: str, images: Tensor) -> None:
    if images.dim() != 4 or not len(images) or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(
            f"{name} must be (N, K, H, W), floating-point or uint8, at least one, got {tuple(images.shape)} of "
            f"{images.dtype}"
        )


def _expect_labelled(name: str, features: Tensor, label_name: str, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if features.dim() != 2 or not len(features):
        raise InputError(f"{name} must have shape (N, F), got {tuple(features.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{label_name} must be integers, got {labels.dtype}")
    if labels.shape != (len(features),):
        raise InputError(
            f"{label_name} must have shape ({len(features)},), as there are {name}, got {tuple(labels.shape)}"
        )
    if not features.isfinite().all():
        raise InputError(f"some of {name} are not finite")
    return features.detach().float().cpu().numpy(), labels.cpu().numpy()


def _expect_protocol(
    regularizations: Sequence[float], per_class: int | None, validation_draws: int, draws: int
) -> None:
    if not regularizations or min(regularizations) <= 0:
        raise InputError(f"regularizations must be positive numbers, at least one, got {tuple(regularizations)}")
    if per_class is not None and min(per_class, validation_draws, draws) < 1:
        raise InputError(
            f"per_class, validation_draws and draws must be at least 1, got {per_class}, {validation_draws} and {draws}"
        )


def _draw_per_class(labels: np.ndarray, indices: np.ndarray, count: int, *, seed: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    own = [indices[labels[indices] == label] for label in np.unique(labels)]
    return np.concatenate([rng.choice(each, count, replace=False) for each in own])


class _LinearSVM:
    """A linear L2-SVM on features `(N, F)`, for several C."""

    def __init__(self, features: np.ndarray, labels: np.ndarray):
        self._features, self._labels = features, labels
        self._coordinates, self._basis = features, None
        if len(features) < min(features.shape[1], _MAX_REDUCED) and features.any():
            # The solution lies in the span of the images, and depends on their inner products alone. In an orthonormal
            # basis of that span, they have at most N coordinates instead of F, and the fit takes a tenth of the time.
            rows = features.astype(np.float64)
            values, vectors = np.linalg.eigh(rows @ rows.T)
            kept = values > 1e-12 * values[-1]
            scales = np.sqrt(values[kept])
            self._coordinates, self._basis = vectors[:, kept] * scales, vectors[:, kept] / scales

    def fit(self, c: float, queries: np.ndarray) -> np.ndarray:
        """Fit the SVM, and return the classes of other features `(M, F)`."""
        from sklearn.svm import LinearSVC

        # The solver of the primal form takes seconds for any C, where the other one may not converge in minutes.
        svm = LinearSVC(C=c, dual=False).fit(self._coordinates, self._labels)
        weights = svm.coef_ if self._basis is None else (svm.coef_ @ self._basis.T) @ self._features
        scores = queries @ weights.T.astype(queries.dtype) + svm.intercept_  # one column if there are two classes
        best = scores.argmax(1) if len(svm.classes_) > 2 else (scores[:, 0] > 0).astype(int)
        predicted: np.ndarray = svm.classes_[best]
        return predicted


def _as_points(x: Tensor) -> Tensor:
    return (x if x.is_floating_point() else x.float()).flatten(1)
