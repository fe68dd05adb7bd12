"""The small classifier that comes with the package, and what it sees in images.

N images, K channels, H×W image size.
"""

import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcgan._errors import InputError
from dcgan.images import from_uint8

_SIDE = 32  # of the images that the classifier has seen
_WIDTHS = (32, 32, 64, 64, 128, 128)
_OVERSHOOT = 0.1  # of interpolation
_LARGEST = 16.0  # what is beyond must be pixels in 0 ... 255
_FEW = 16  # images, of which all may well be bright

logger = logging.getLogger(__name__)


@torch.no_grad()
def image_features(images: Tensor, *, batch_size: int = 256, device: torch.device | str | None = None) -> Tensor:
    """Return what a small classifier sees in images: the 128 features before its last layer.

    The classifier comes with the package. It was trained on real images alone, to tell the ten digits of MNIST and the
    ten classes of CIFAR-10 apart (`examples/image_classifier.py`). It is no Inception network: a Fréchet distance
    between its features compares runs with each other, and not with a published FID.

    Args:
        images: `(N, K, H, W)`, uint8, or floating-point in [-1, 1]; one channel is grey, a fourth one is left out. They
            are scaled to 32×32, each pixel the mean of those it covers.
        batch_size: Number of images at once.
        device: Where to compute; by default where the images are.

    Returns:
        `(N, 128)` in float32, on `device`.

    Raises:
        ValueError: If the shape is another one, or floating-point images seem to be pixels in 0 ... 255; other ranges
            are warned of.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3, 4):
        raise InputError(f"images must have shape (N, K, H, W) with K 1, 3 or 4, got {tuple(images.shape)}")
    if images.is_floating_point() and images.numel():
        _expect_range(images)
    device = images.device if device is None else torch.device(device)
    body = load_classifier(device)[:-1]
    with torch.autocast(device.type, enabled=False):
        batches = torch.split(images, batch_size)
        return torch.cat([body(_as_seen(batch).to(device)) for batch in batches])


def _expect_range(images: Tensor) -> None:
    low, high = (value.item() for value in images.aminmax())
    message = (
        f"floating-point images are taken to be in [-1, 1], but these lie in [{low:.4g}, {high:.4g}]: pass uint8 "
        "images, or scale them"
    )
    if high > _LARGEST:
        raise InputError(message)
    if max(-low, high) > 1 + _OVERSHOOT or (low >= 0 and len(images) >= _FEW):
        logger.warning(message)


def build_classifier() -> nn.Sequential:
    """Build the classifier with fresh weights: images `(N, 3, 32, 32)` in [-1, 1] to 20 logits."""
    layers: list[nn.Module] = []
    for index, (before, width) in enumerate(zip((3, *_WIDTHS), _WIDTHS, strict=False)):
        conv = nn.Conv2d(before, width, 3, stride=1 + index % 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], 20))


@cache
def load_classifier(device: torch.device) -> nn.Sequential:
    from safetensors.torch import load_file

    with torch.device("meta"):  # so that no random number is drawn
        network = build_classifier()
    halves = load_file(Path(__file__).with_name("classifier.safetensors"))
    weights = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    network.load_state_dict(weights, assign=True)
    network.to(device)
    return network.to(memory_format=torch.channels_last).eval()


def _as_seen(images: Tensor) -> Tensor:
    images = from_uint8(images) if images.dtype == torch.uint8 else images.float()
    if images.device.type == "mps":  # whose adaptive pooling takes only sizes that divide evenly
        images = images.cpu()
    images = images[:, :3].expand(-1, 3, -1, -1)
    if images.shape[2:] != (_SIDE, _SIDE):
        images = functional.interpolate(images, (_SIDE, _SIDE), mode="area")
    return images.contiguous(memory_format=torch.channels_last)
