"""Figures of quality: how far generated images are from real ones.

The figures are functions of features, which any network can give: `image_features`, a `FeatureExtractor` such as
Inception, or a module of your own.

N and M images, F features, K channels, H×W image size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcgan._errors import InputError
from dcgan.metrics._classifier import build_classifier, image_features
from dcgan.metrics._extractors import FeatureExtractor

__all__ = [
    "FeatureExtractor",
    "Moments",
    "PixelShares",
    "build_classifier",
    "diversity",
    "frechet_distance",
    "image_features",
    "kernel_distance",
    "moments",
    "pixel_shares",
    "precision_recall",
]

_LEAST = 2  # of 255: a difference that nobody sees, and a generator whose last layer is tanh hardly avoids
_ROWS = 1024  # of a matrix of distances at once

Moments = tuple[Tensor, Tensor]
"""Mean `(F,)` and covariance `(F, F)` of features, in double precision on the CPU."""


def moments(features: Tensor) -> Moments:
    """Return the mean and the covariance of features `(N, F)`, all that a Fréchet distance needs of them.

    Raises:
        ValueError: If there are fewer than two, or some are not finite.
    """
    features = _expect_features(features)
    return features.mean(0), features.T.cov().reshape(features.shape[1], features.shape[1])


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Return the Fréchet distance between two sets of features, taken as normal distributions (Heusel et al., 2017).

    For means m, n and covariances A, B it is |m - n|² + tr(A + B - 2(AB)^½), and 0 only if these are the same. Few
    images overestimate it, so compare figures of one count only.

    Args:
        a: Features `(N, F)`, or their `moments`.
        b: Features `(M, F)`, or their `moments`.

    Raises:
        ValueError: If the features differ in number, or as for `moments`.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = (moments(x) if isinstance(x, Tensor) else x for x in (a, b))
    if mean_a.shape != mean_b.shape:
        raise InputError(f"a and b must have the same number of features, got {len(mean_a)} and {len(mean_b)}")
    # The trace of (AB)^½ is that of (A^½ B A^½)^½, the root of a symmetric matrix, which is real.
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    means = (mean_a - mean_b).square().sum()
    return max(0.0, float(means + covariance_a.trace() + covariance_b.trace() - 2 * cross))


@torch.no_grad()
def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance between two sets of features, and how much it varies (Bińkowski et al., 2018).

    It is the squared maximum mean discrepancy with the kernel (x·y / F + 1)³, KID if the features are Inception's. Its
    expectation does not depend on the number of images, unlike that of `frechet_distance`; it is 0 for two sets of one
    kind, so that a figure may be negative.

    Args:
        a: Features `(N, F)`.
        b: Features `(M, F)`.
        subsets: Number of times that it is estimated.
        subset_size: Number of images that are drawn from either set, each time; at most those of the smaller set.
        seed: Seed of the draws.

    Returns:
        Mean and standard deviation of the estimates; the deviation is 0 if all images make a single one.

    Raises:
        ValueError: If the features differ in number, are not finite, or a set or a subset has fewer than two images.
    """
    a, b = _expect_pair(a, b)
    if subsets < 1 or subset_size < 2:
        raise InputError(f"subsets must be at least 1 and subset_size at least 2, got {subsets} and {subset_size}")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        return _squared_discrepancy(a, b), 0.0  # of which there is one subset
    rng = np.random.default_rng(seed)
    estimates = [_squared_discrepancy(*(x[rng.permutation(len(x))[:size]] for x in (a, b))) for _ in range(subsets)]
    return float(np.mean(estimates)), float(np.std(estimates))


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, *, neighbors: int = 3) -> tuple[float, float]:
    """Return the shares of generated images that look real, and of real ones that are covered.

    These are the improved precision and recall of Kynkäänniemi et al. (2019), who take the features of VGG16.
    An image counts as one of a set if it is no farther from some image of that set than the third nearest other one of
    the set is. Both figures depend on the number of images, and should be of as many real as generated ones.

    Args:
        real: Features `(N, F)` of real images.
        fake: Features `(M, F)` of generated images.
        neighbors: Which of the nearest images sets the distance.

    Returns:
        Precision: the share of generated images among the real ones; and recall: the share of real images among the
        generated ones.

    Raises:
        ValueError: If the features differ in number or are not finite, or a set has no more images than `neighbors`.
    """
    real, fake = _expect_pair(real, fake)
    if not 1 <= neighbors < min(len(real), len(fake)):
        raise InputError(
            f"neighbors must be at least 1 and below the number of images, got {neighbors} and {len(real)} real and "
            f"{len(fake)} generated images"
        )
    return _share_within(fake, real, neighbors), _share_within(real, fake, neighbors)


@torch.no_grad()
def diversity(real: Tensor, fake: Tensor) -> float:
    """Return the mean distance between two generated images, as a multiple of that between two real ones.

    It is near 1 for images as diverse as the real ones, and 0 for a generator that always draws the same.

    Args:
        real: Features `(N, F)` of real images.
        fake: Features `(M, F)` of generated images.

    Raises:
        ValueError: If the features differ in number or are not finite, there are fewer than two images, or the real
            ones are all alike.
    """
    spread, reference = (
        sum(rows.sum().item() for rows in _distances(x, x)) / (len(x) * (len(x) - 1))
        for x in reversed(_expect_pair(real, fake))
    )
    if not reference:
        raise InputError("the real images are all alike")
    return spread / reference


class PixelShares(NamedTuple):
    """Shares of pixels, of 0 to 1, where each channel counts.

    Attributes:
        dead: Of pixels that differ by at most 2 of 255 between any two images.
        saturated: Of values that are black or white: at most 2, or at least 253.
    """

    dead: float
    saturated: float


def pixel_shares(images: Tensor) -> PixelShares:
    """Return how many pixels never change, and how many are black or white; compare with the real images'.

    Args:
        images: uint8 `(N, K, H, W)`; the more there are, the fewer pixels are alike in all of them.

    Raises:
        ValueError: If there are fewer than two, or of another shape or type.
    """
    if images.dim() != 4 or images.dtype != torch.uint8 or len(images) < 2:
        raise InputError(
            f"images must be uint8 (N, K, H, W) with N at least 2, got {images.dtype} {tuple(images.shape)}"
        )
    dead = images.amax(0) - images.amin(0) <= _LEAST
    saturated = (images <= _LEAST) | (images >= 255 - _LEAST)
    return PixelShares(dead.double().mean().item(), saturated.double().mean().item())


def _expect_features(features: Tensor) -> Tensor:
    if features.dim() != 2 or len(features) < 2:
        raise InputError(f"features must be (N, F) with N at least 2, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise InputError("some of the features are not finite")
    return features.detach().cpu().double()  # on the CPU first, since some devices have no such type


def _expect_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _expect_features(a), _expect_features(b)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"both sets must have the same number of features, got {a.shape[1]} and {b.shape[1]}")
    return a, b


def _squared_discrepancy(a: Tensor, b: Tensor) -> float:
    """Estimate it without bias: no image is compared with itself."""
    within = 0.0
    for x in (a, b):
        kernel = _cubic_kernel(x, x)
        within += float(kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))
    return within - 2 * float(_cubic_kernel(a, b).mean())


def _cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _share_within(points: Tensor, of: Tensor, neighbors: int) -> float:
    # The nearest image of the set itself is the same one, at distance 0.
    radii = torch.cat([rows.kthvalue(neighbors + 1, dim=1).values for rows in _distances(of, of)])
    within = torch.cat([(rows <= radii).any(1) for rows in _distances(points, of)])
    return within.double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield Euclidean distances `(N, M)`, some rows at a time."""
    for part in torch.split(a, _ROWS):
        yield torch.cdist(part, b)
