"""Differentiable augmentation for small datasets (Zhao et al., 2020, https://arxiv.org/abs/2006.10738).

Real and generated images are augmented alike wherever the discriminator sees them, and the generator learns
through the augmentation, so that its images do not show it. Shapes: N batch, K channels, H height, W width; images
in [-1, 1]; every image of a batch draws its own change from `rng`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from dcgan._choices import AugmentationName
from dcgan._errors import InputError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Differentiable function of images `(N, K, H, W)` and a random generator, returning images of the same shape."""


def color(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift brightness by up to ±0.5, scale saturation by 0 to 2 and contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = _uniform(images, rng, 3).unbind()
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translation(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move by up to an eighth of each side, filling with zeros."""
    # One pixel of zeros all round: every index that falls outside is clamped into it.
    return _move(pad(images, (1, 1, 1, 1)), images.shape[2:], rng)


def shift(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move by up to an eighth of each side, repeating the pixels at the edge."""
    return _move(images, images.shape[2:], rng)


def cutout(images: Tensor, rng: torch.Generator) -> Tensor:
    """Zero a rectangle of half the height and half the width, its centre anywhere in the image."""
    height, width = images.shape[2:]
    size_y, size_x = round(height / 2), round(width / 2)
    top = _integers(images, rng, 0, height - size_y % 2) - size_y // 2
    left = _integers(images, rng, 0, width - size_x % 2) - size_x // 2
    rows, columns = _positions(images, height) - top, _positions(images, width) - left
    inside_y, inside_x = (rows >= 0) & (rows < size_y), (columns >= 0) & (columns < size_x)
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # (N, 1, H, W)
    return images * ~inside


AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    "color": color,
    "translation": translation,
    "shift": shift,
    "cutout": cutout,
}
"""Every augmentation by name, in the order in which they are applied."""


def get_augmentations(augmentations: Iterable[AugmentationName | Augmentation]) -> list[Augmentation]:
    """Return the functions behind names, in the order of `AUGMENTATIONS`, and after them those given as functions.

    Raises:
        ValueError: If a name is not in `AUGMENTATIONS`.
    """
    given = list(augmentations)
    names = [item for item in given if isinstance(item, str)]
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise InputError(f"augmentations must be among {', '.join(AUGMENTATIONS)}, or functions, got {unknown[0]!r}")
    ordered = [function for name, function in AUGMENTATIONS.items() if name in names]
    return ordered + [item for item in given if not isinstance(item, str)]


def augment(images: Tensor, augmentations: Iterable[AugmentationName | Augmentation], rng: torch.Generator) -> Tensor:
    """Apply augmentations to images `(N, K, H, W)`, in the order of `get_augmentations`.

    Raises:
        ValueError: As `get_augmentations`.
    """
    for augmentation in get_augmentations(augmentations):
        images = augmentation(images, rng)
    return images


def _uniform(images: Tensor, rng: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, len(images), 1, 1, 1, generator=rng, device=images.device, dtype=images.dtype)


def _move(images: Tensor, size: torch.Size, rng: torch.Generator) -> Tensor:
    """Cut a window of `size` out of each image, up to an eighth of it from the centre; edges are repeated outside."""
    height, width = size
    (tall, wide), reach_y, reach_x = images.shape[2:], round(height / 8), round(width / 8)
    shift_y = _integers(images, rng, -reach_y, reach_y)
    shift_x = _integers(images, rng, -reach_x, reach_x)
    rows = (_positions(images, height) + shift_y + (tall - height) // 2).clamp(0, tall - 1)  # (N, H)
    columns = (_positions(images, width) + shift_x + (wide - width) // 2).clamp(0, wide - 1)  # (N, W)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (N, H, W, K)
    return moved.permute(0, 3, 1, 2)


def _integers(images: Tensor, rng: torch.Generator, low: int, high: int) -> Tensor:
    return torch.randint(low, high + 1, (len(images), 1), generator=rng, device=images.device)


def _positions(images: Tensor, side: int) -> Tensor:
    return torch.arange(side, device=images.device)[None]
