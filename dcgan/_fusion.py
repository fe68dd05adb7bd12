"""Networks made ready for inference: every BatchNorm merged into the layer before it."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

Network = TypeVar("Network", bound=nn.Module)


def fuse_batchnorm(network: Network) -> Network:
    """Return a copy in evaluation mode, channels-last, that computes the same without its BatchNorms.

    In evaluation a BatchNorm is an affine map of each channel, so its scale and shift become those of the convolution
    or linear layer before it. Other normalisations depend on the image, and stay.
    """
    network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        layers = dict(block.named_children())
        norm = layers.get("norm")
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
            _fold(layers.get("conv") or layers["linear"], norm)
            del block.norm
    return network.to(memory_format=torch.channels_last)


def _fold(layer: Any, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    statistics: list[Any] = [norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias]
    if isinstance(layer, nn.Linear):
        # A norm by channel behind a linear layer serves all the positions of its channel.
        repeats = layer.out_features // norm.num_features
        statistics = [value.repeat_interleave(repeats) if isinstance(value, Tensor) else value for value in statistics]
    mean, variance, epsilon, gain, shift = statistics
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_weights(layer.weight, layer.bias, mean, variance, epsilon, gain, shift)
    else:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        fused = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, epsilon, gain, shift, transposed)
    layer.weight, layer.bias = fused
