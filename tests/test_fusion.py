"""A folded network computes the same without its BatchNorms."""

import pytest
import torch
from torch import nn

from dcgan import Discriminator, Generator
from dcgan._fusion import fuse_batchnorm
from dcgan.architectures import ARCHITECTURES

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained(network):
    """Give a network's normalisations statistics, gains and shifts that are not those of a new one."""
    for module in network.modules():
        if isinstance(module, NORMS):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
    return network.double().eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_generator_folds_exactly(name, memory_format):
    small = {"image_size": 32, "base_channels": 4, "latent_dim": 6}
    generator = trained(Generator.from_architecture(name, **small)).to(memory_format=memory_format)
    lighter = fuse_batchnorm(generator)
    assert not any(isinstance(module, NORMS) for module in lighter.modules())
    z = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = generator(z)
        assert expected.std() > 1e-3
        torch.testing.assert_close(lighter(z), expected, rtol=1e-10, atol=1e-12)


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
def test_other_networks_fold_as_far_as_they_can(config):
    generator = trained(Generator(image_size=(16, 32), base_channels=4, latent_dim=6, **config))
    z = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse_batchnorm(generator)(z), generator(z), rtol=1e-10, atol=1e-12)


def test_a_discriminator_folds_too():
    discriminator = trained(Discriminator(image_size=32, base_channels=4))
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse_batchnorm(discriminator)(images), discriminator(images), rtol=1e-10, atol=1e-12)


def test_the_network_itself_is_left_alone():
    generator = Generator(image_size=16, base_channels=4).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    fuse_batchnorm(generator)
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("n", [1, 31, 32, 100])
def test_samples_are_what_the_network_itself_computes(n):
    from dcgan.latents import seeded_latents

    generator = trained(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    with torch.no_grad():
        expected = generator(seeded_latents(n, 6, seed=3))
    torch.testing.assert_close(generator.sample(n, seed=3, batch_size=30), expected, rtol=0, atol=1e-6)


def test_samples_in_bfloat16_are_close_and_of_the_networks_own_type():
    generator = trained(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    images = generator.sample(64, seed=3, dtype=torch.bfloat16)
    assert images.dtype == torch.float32
    difference = (images - generator.sample(64, seed=3)).abs()
    assert 0 < difference.mean() < 5e-3


def test_batches_are_the_samples_in_parts():
    generator = trained(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    batches = generator.sample_batches(70, seed=1, start=5, batch_size=32)
    with torch.no_grad():
        nn.init.zeros_(generator.head.conv.weight)  # what is sampled is the network of the moment of the call
    parts = list(batches)
    assert [len(part) for part in parts] == [32, 32, 6]
    assert torch.cat(parts).std() > 1e-3
    assert torch.is_grad_enabled()


def test_mistakes_are_answered_at_the_call():
    generator = Generator(image_size=16, base_channels=4)
    for arguments, message in [
        ({"n": -1}, "n must not be negative, got -1"),
        ({"n": 1, "seed": -1}, "seed must not be negative, got -1"),
        ({"n": 1, "start": -1}, "start must not be negative, got -1"),
        ({"n": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            generator.sample_batches(**arguments)
