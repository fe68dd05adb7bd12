"""Convolutions in their fastest form, BatchNorms fused into them for sampling, and labels as constant maps.

The convolutions at both ends of a network have odd shapes. Each class here is the plain convolution it derives from:
the same arguments and weights, and the same results up to rounding. It is faster for one shape and computes any other
plainly, since adapters such as LoRA build new layers of the type of the one they adapt.

Shapes: N batch, Y classes, K channels of the image, C of the map next to it, h×w the smallest map, whose channels
are M.
"""

from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from dcgan._compat import has_hooks
from dcgan._devices import device_defaults
from dcgan._errors import InputError
from dcgan._modules import copy_module

Network = TypeVar("Network", bound=nn.Module)


class LatentProjection(nn.ConvTranspose2d):
    """Transposed convolution, of 1×1 maps `(N, Z, 1, 1)` to `(N, M, h, w)` as one matrix product."""

    def forward(self, pixel: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the map."""
        if pixel.shape[2:] != (1, 1) or not _is_valid(self) or self.output_padding != (0, 0) or output_size:
            return super().forward(pixel, output_size)
        _, width, height, _ = self.weight.shape
        # The weights are a view in their own order, which is also that of the map and of all layers after it.
        order = "h w m" if self.weight.is_contiguous(memory_format=torch.channels_last) else "m h w"
        weight = rearrange(self.weight, f"z m h w -> z ({order})")
        flat = rearrange(pixel, "n z 1 1 -> n z") @ weight
        result: Tensor = rearrange(flat, f"n ({order}) -> n m h w", m=width, h=height)
        return result if self.bias is None else result + self.bias[:, None, None]


class FullMapConv2d(nn.Conv2d):
    """Convolution, of maps with a kernel of their size, `(N, M, h, w)` to `(N, 1, 1, 1)`, as a matrix product."""

    def forward(self, map: Tensor) -> Tensor:  # noqa: A002
        """Return the pixel."""
        if map.shape[2:] != self.kernel_size or not _is_valid(self):
            return super().forward(map)
        weight = rearrange(self.weight, "o m h w -> o (h w m)")
        flat = F.linear(rearrange(map, "n m h w -> n (h w m)"), weight, self.bias)
        return flat[:, :, None, None]


class SpaceToDepthConv2d(nn.Conv2d):
    """Convolution, faster for a 4×4 one of stride 2 and padding 1 of an image `(N, K, 2h, 2w)` to `(N, C, h, w)`.

    Every 2×2 pixels become one of 4K channels, and the convolution is a 2×2 one of stride 1: the gradient of the image,
    which the generator learns from, is slow to compute over a handful of channels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return the map."""
        if not _halves(self) or image.dim() != 4 or image.shape[2] % 2 or image.shape[3] % 2:
            return super().forward(image)
        weight = rearrange(self.weight, "c k (h i) (w j) -> c (k i j) h w", i=2, j=2)
        return F.conv2d(F.pixel_unshuffle(F.pad(image, (1, 1, 1, 1)), 2), weight, self.bias)


class SubPixelConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution, faster for a 4×4 one of stride 2 and padding 1 to images `(N, K, 2h, 2w)`.

    That one, of maps `(N, C, h, w)`, is computed as a 2×2 convolution to 4K channels, one for each of the 2×2 pixels
    that see the same 2×2 inputs (Shi et al., 2016, https://arxiv.org/abs/1609.07009).
    """

    def forward(self, map: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Return the image."""
        if not _halves(self) or map.dim() != 4 or self.output_padding != (0, 0) or output_size:
            return super().forward(map, output_size)
        weight = rearrange(self.weight, "c k (h i) (w j) -> (k i j) c h w", i=2, j=2).flip(2, 3)
        images = F.pixel_shuffle(F.conv2d(map, weight, padding=1), 2)[:, :, 1:-1, 1:-1]
        return images if self.bias is None else images + self.bias[:, None, None]


def append_labels(x: Tensor, one_hot: Tensor | None) -> Tensor:
    """Append one-hot labels `(N, Y)` to vectors `(N, C)`, or as Y constant maps to maps `(N, C, h, w)`; None to none.

    Maps keep their memory format, which the next convolution computes in.
    """
    if one_hot is None:
        return x
    one_hot = one_hot.to(x.dtype)
    if x.dim() == 4:
        is_contiguous = x.is_contiguous()  # of grey images, too, which have both formats
        one_hot = one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])
        one_hot = one_hot.contiguous(memory_format=torch.contiguous_format if is_contiguous else torch.channels_last)
    return torch.cat([x, one_hot], 1)


def expect_labels(labels: Tensor, classes: int, count: int) -> None:
    """Check labels; those on another device than the CPU for their shape and type only, without waiting for it.

    Raises:
        TypeError: If they are not int64.
        ValueError: If they are not `(count,)`, or one is not below `classes`.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels.dtype}")
    if labels.shape != (count,):
        raise InputError(f"labels must have shape ({count},), got {tuple(labels.shape)}")
    if labels.device.type != "cpu" or not count or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        raise InputError(f"labels must be from 0 to {classes - 1}, got {low if low < 0 else high}")


def _is_valid(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a convolution is a plain one without padding."""
    return (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)


def _halves(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a convolution is a plain 4×4 one of stride 2 and padding 1, which halves or doubles each side."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((4, 4), (2, 2), (1, 1), (1, 1), 1, "zeros")


_FUSIBLE = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, LatentProjection, SpaceToDepthConv2d, SubPixelConvTranspose2d)


def fuse_batchnorm(network: Network) -> Network:
    """Return a copy in evaluation mode, laid out for its device, that computes the same with fewer layers.

    In evaluation mode a BatchNorm is an affine map of each channel, so its scale and shift can become those of the
    convolution or linear layer before it. This is done inside every `nn.Sequential` whose layers are plain: blocks
    with hooks or pruning, and layers that are parametrised, wrapped or replaced, are left as they are. So are other
    normalisations, which depend on the image.
    """
    network = copy_module(network).eval().requires_grad_(requires_grad=False)
    blocks = [module for module in network.modules() if type(module) is nn.Sequential]
    for block in blocks:
        if any(has_hooks(module) for module in block.modules()):
            continue
        layers = [(name, layer) for name, layer in block.named_children() if not isinstance(layer, nn.Unflatten)]
        for (_, layer), (name, norm) in pairwise(layers):
            if not _is_plain(layer, _FUSIBLE) or not _is_plain(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            if norm.affine and norm.running_mean is not None:
                _fuse(layer, norm)
                delattr(block, name)
    device = next(network.parameters()).device
    return network.to(memory_format=device_defaults(device).memory_format)


def _is_plain(module: Any, types: tuple[type, ...]) -> bool:
    # A patched layer has `forward` among its attributes; with torch's older weight or spectral norm, `weight`.
    return type(module) in types and vars(module).keys().isdisjoint({"forward", "weight"})


def _fuse(layer: Any, norm: Any) -> None:
    statistics = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    if isinstance(layer, nn.Linear):
        # After a linear layer, a norm per channel covers all positions of its channel.
        repeats = layer.out_features // norm.num_features
        mean, variance, gain, shift = (value.repeat_interleave(repeats) for value in statistics)
        fused = fuse_linear_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, gain, shift)
    else:
        mean, variance, gain, shift = statistics
        transposed = isinstance(layer, nn.ConvTranspose2d)
        fused = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, gain, shift, transposed)
    layer.weight, layer.bias = fused
