"""The layers compute what the plain convolutions do, and a fused network what it did with its BatchNorms."""

import pytest
import torch
from networks import randomize_batchnorms
from torch import nn

from dcgan import Discriminator, Generator
from dcgan.architectures import ARCHITECTURES
from dcgan.layers import (
    FullMapConv2d,
    LatentProjection,
    SpaceToDepthConv2d,
    SubPixelConvTranspose2d,
    fuse_batchnorm,
)

CASES = [
    (LatentProjection, lambda bias: LatentProjection(7, 5, (3, 4), bias=bias), (6, 7, 1, 1)),
    (FullMapConv2d, lambda bias: FullMapConv2d(5, 1, (3, 4), bias=bias), (6, 5, 3, 4)),
    (SpaceToDepthConv2d, lambda bias: SpaceToDepthConv2d(3, 5, 4, 2, 1, bias=bias), (6, 3, 8, 12)),
    (SpaceToDepthConv2d, lambda bias: SpaceToDepthConv2d(1, 5, 4, 2, 1, bias=bias), (1, 1, 2, 4)),
    (SubPixelConvTranspose2d, lambda bias: SubPixelConvTranspose2d(5, 3, 4, 2, 1, bias=bias), (6, 5, 4, 6)),
    (SubPixelConvTranspose2d, lambda bias: SubPixelConvTranspose2d(5, 1, 4, 2, 1, bias=bias), (1, 5, 1, 2)),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer_class", "build", "shape"), CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(layer_class, build, shape, bias, memory_format):
    layer = build(bias).double().to(memory_format=memory_format)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    results = []
    for forward in (layer.forward, lambda x: super(layer_class, layer).forward(x)):
        y = forward(x)
        first = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [x, *layer.parameters()], allow_unused=True)
        results.append([y, *first, *(tensor for tensor in second if tensor is not None)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_class", [LatentProjection, FullMapConv2d, SpaceToDepthConv2d, SubPixelConvTranspose2d])
@pytest.mark.parametrize(
    "arguments", [(1,), (3, 1, 1), (4, 2, 1), (4, 2), (4, 4), ((4, 2), 2, 1), (4, 2, 1, 1), (5, 2, 2), (8,), (4, 2, 2)]
)
def test_other_shapes_are_computed_plainly(layer_class, arguments):
    plain_class = layer_class.__bases__[0]
    layer = layer_class(4, 6, *arguments).double()
    plain = plain_class(4, 6, *arguments).double()
    plain.load_state_dict(layer.state_dict())
    shapes = [(2, 4, 8, 8), (2, 4, 9, 12), (4, 8, 8)]
    for shape in [*shapes, *([(2, 4, 1, 1), (4, 1, 1)] if plain_class is nn.ConvTranspose2d else [])]:
        x = torch.randn(shape, dtype=torch.float64)
        try:
            expected = plain(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                layer(x)
        else:
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_class", [LatentProjection, SubPixelConvTranspose2d])
def test_the_size_of_the_output_can_be_given(layer_class):
    layer, x = layer_class(4, 6, 4, 2, 1), torch.randn(2, 4, 8, 8)
    assert (
        layer(x, output_size=[17, 17]).shape == layer_class.__bases__[0](4, 6, 4, 2, 1)(x, output_size=[17, 17]).shape
    )
    assert torch.equal(layer(x, output_size=None), layer(x))


def test_channels_last_stays_channels_last():
    for _, build, shape in CASES[:1] + CASES[2:3]:
        y = build(False).to(memory_format=torch.channels_last)(torch.randn(shape).to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_default_networks_use_them():
    def convolutions(network):
        return {type(module) for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)}

    assert convolutions(Generator(base_channels=4)) == {LatentProjection, nn.ConvTranspose2d, SubPixelConvTranspose2d}
    assert convolutions(Discriminator(base_channels=4)) == {SpaceToDepthConv2d, nn.Conv2d, FullMapConv2d}


# Fusing


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_generator_is_fused_exactly(name, memory_format):
    small = {"image_size": 32, "base_channels": 4, "latent_dim": 6}
    generator = randomize_batchnorms(Generator.from_architecture(name, **small)).to(memory_format=memory_format)
    fused = fuse_batchnorm(generator)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in fused.modules())
    z = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = generator(z)
        assert expected.std() > 1e-3
        torch.testing.assert_close(fused(z), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        {"upsample": "resize"},
        {"stem": "linear"},
        {"stem": "linear", "stem_norm": "unit"},
        {"norm": "layer"},
        {"norm": "instance"},
        {"norm": "none"},
        {"bias": True, "kernel_size": 3, "convs_per_stage": 2},
    ],
)
def test_other_networks_are_fused_as_far_as_possible(config):
    generator = randomize_batchnorms(Generator(image_size=(16, 32), base_channels=4, latent_dim=6, **config))
    z = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse_batchnorm(generator)(z), generator(z), rtol=1e-10, atol=1e-12)


def test_a_discriminator_is_fused_too():
    discriminator = randomize_batchnorms(Discriminator(image_size=32, base_channels=4))
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse_batchnorm(discriminator)(images), discriminator(images), rtol=1e-10, atol=1e-12)


def test_fusing_leaves_the_network_itself_unchanged():
    generator = Generator(image_size=16, base_channels=4).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    fuse_batchnorm(generator)
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])
