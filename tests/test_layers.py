"""The layers at both ends compute what the convolutions they derive from compute."""

import pytest
import torch
from torch import nn

from dcgan import Discriminator, Generator
from dcgan.layers import FullMapConv2d, LatentProjection, SpaceToDepthConv2d, SubPixelConvTranspose2d

CASES = [
    (LatentProjection, lambda bias: LatentProjection(7, 5, (3, 4), bias=bias), (6, 7, 1, 1)),
    (FullMapConv2d, lambda bias: FullMapConv2d(5, 1, (3, 4), bias=bias), (6, 5, 3, 4)),
    (SpaceToDepthConv2d, lambda bias: SpaceToDepthConv2d(3, 5, bias=bias), (6, 3, 8, 12)),
    (SpaceToDepthConv2d, lambda bias: SpaceToDepthConv2d(1, 5, bias=bias), (1, 1, 2, 4)),
    (SubPixelConvTranspose2d, lambda bias: SubPixelConvTranspose2d(5, 3, bias=bias), (6, 5, 4, 6)),
    (SubPixelConvTranspose2d, lambda bias: SubPixelConvTranspose2d(5, 1, bias=bias), (1, 5, 1, 2)),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "build", "shape"), CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(kind, build, shape, bias, memory_format):
    layer = build(bias).double().to(memory_format=memory_format)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    results = []
    for forward in (layer.forward, lambda x: super(kind, layer).forward(x)):
        y = forward(x)
        first = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [x, *layer.parameters()], allow_unused=True)
        results.append([y, *first, *(tensor for tensor in second if tensor is not None)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_channels_last_stays_channels_last():
    for _, build, shape in CASES[:1] + CASES[2:3]:
        y = build(False).to(memory_format=torch.channels_last)(torch.randn(shape).to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_default_networks_use_them():
    def kinds(network):
        return {type(module) for module in network.modules() if isinstance(module, nn.modules.conv._ConvNd)}

    assert kinds(Generator(base_channels=4)) == {LatentProjection, nn.ConvTranspose2d, SubPixelConvTranspose2d}
    assert kinds(Discriminator(base_channels=4)) == {SpaceToDepthConv2d, nn.Conv2d, FullMapConv2d}
