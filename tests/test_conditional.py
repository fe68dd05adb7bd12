"""Conditional networks: their arithmetic, their labels, their training, from tensors to the command line."""

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from torch import nn

from dcgan import Discriminator, Generator

CLASSES = 3
VARIANTS = {
    "conv stem, 4x4": {},
    "linear stem, 5x5, units": {"stem": "linear", "stem_norm": "unit", "kernel_size": 5, "bias": True},
    "two layers per stage": {"convs_per_stage": 2, "kernel_size": 3},
    "two layers per stage, 4x4": {"convs_per_stage": 2},
    "resized": {"upsample": "resize", "image_size": (16, 48)},
    "layer norm, three stages": {"norm": "layer", "stages": 3, "image_size": 32, "activation": "leaky-relu"},
    "wide images": {"image_size": (8, 24), "stages": 2, "channels": 1, "stem": "linear"},
}


def build(network_class, variant="conv stem, 4x4", **overrides):
    arguments = {"image_size": 16, "base_channels": 4, "num_classes": CLASSES, **VARIANTS[variant], **overrides}
    arguments = {"latent_dim": 5, **arguments} if network_class is Generator else arguments
    if network_class is Discriminator:
        arguments = {name: value for name, value in arguments.items() if name not in ("stem_norm", "upsample")}
    torch.manual_seed(0)
    network = network_class(**arguments)
    # Weights of a size that makes every layer count, and norms other than the identity.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(network, n=6):
    config = network.config
    if isinstance(network, Generator):
        return torch.randn(n, config["latent_dim"])
    size = config["image_size"]
    return torch.randn(n, config["channels"], *((size, size) if isinstance(size, int) else size))


def with_maps(h, labels):
    """Append one-hot labels by hand, number by number."""
    extra = torch.zeros(len(h), CLASSES, *h.shape[2:], dtype=h.dtype)
    for row, label in enumerate(labels.tolist()):
        extra[row, label] = 1
    return torch.cat([h, extra], 1)


def plain(layer, h):
    """Compute a layer as torch's functions do, whatever form its class has."""
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(h, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(h, layer.weight, layer.bias, layer.stride, layer.padding)
    return layer(h)


def reference(network, x, labels):
    """Run the layers one by one, after labels are appended to what each block gets."""
    h = x
    for block in [*network.blocks.values(), network.head]:
        h = with_maps(h, labels)
        for layer in block:
            h = plain(layer, h)
    return h.flatten() if isinstance(network, Discriminator) else h


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_labels_join_the_input_of_every_layer_as_constant_maps(network_class, variant, channels_last):
    network = build(network_class, variant).double()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    x, labels = inputs(network).double(), torch.tensor([0, 2, 1, 1, 0, 2])
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    expected = reference(network, x, labels)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((expected * weights).sum(), list(network.parameters()))
    result = network(x, labels)
    torch.testing.assert_close(result, expected)
    own = torch.autograd.grad((result * weights).sum(), list(network.parameters()))
    for a, b in zip(own, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert not torch.equal(network(x, (labels + 1) % CLASSES), result)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_keep_the_memory_format_that_convolutions_compute_in(variant):
    network = build(Discriminator, variant).to(memory_format=torch.channels_last)
    images = inputs(network).to(memory_format=torch.channels_last)
    seen = []
    for block in network.blocks.values():
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(images, torch.zeros(6, dtype=torch.int64))
    assert len(seen) == len(network.blocks)
    maps = seen[1:] if network.config["channels"] == 1 else seen  # a grey image has both formats, and keeps neither
    assert maps
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def test_the_authors_network_by_hand():
    """The shapes of every layer of a conditional 5×5 network: 10 channels more in each, as in the authors' code."""
    options = {"image_size": 28, "channels": 1, "kernel_size": 5, "stem": "linear", "num_classes": 10}
    generator, discriminator = Generator(**options), Discriminator(**options)
    shapes = {name: tuple(p.shape) for name, p in generator.named_parameters() if p.dim() > 1}
    assert shapes == {
        "blocks.7x7.linear.weight": (128 * 7 * 7, 100 + 10),
        "blocks.14x14.conv.weight": (128 + 10, 64, 5, 5),
        "head.conv.weight": (64 + 10, 1, 5, 5),
    }
    shapes = {name: tuple(p.shape) for name, p in discriminator.named_parameters() if p.dim() > 1}
    assert shapes == {
        "blocks.14x14.conv.weight": (64, 1 + 10, 5, 5),
        "blocks.7x7.conv.weight": (128, 64 + 10, 5, 5),
        "head.linear.weight": (1, (128 + 10) * 7 * 7),
    }


def test_features_and_probability_take_labels():
    network = build(Discriminator).eval()
    images, labels = inputs(network), torch.tensor([0, 1, 2, 0, 1, 2])
    features = network.features(images, labels)
    assert {name: tuple(value.shape) for name, value in features.items()} == {"8x8": (6, 4, 8, 8), "4x4": (6, 8, 4, 4)}
    assert not torch.equal(features["8x8"], network.features(images, labels.flip(0))["8x8"])
    assert torch.equal(network.probability(images, labels), network(images, labels).sigmoid())


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_labels_are_checked(network_class):
    network = build(network_class)
    x, labels = inputs(network, 2), torch.tensor([0, 2])
    name = network_class.__name__
    with pytest.raises(TypeError, match=rf"labels \(2,\) are needed: this {name} is conditional on 3 classes"):
        network(x)
    with pytest.raises(TypeError, match=r"labels must be torch.int64, got torch.float32"):
        network(x, labels.float())
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        network(x, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3"):
        network(x, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got -1"):
        network(x, torch.tensor([-1, 2]))
    unconditional = build(network_class, num_classes=None)
    with pytest.raises(TypeError, match=f"labels are for conditional networks, but this {name} has no num_classes"):
        unconditional(x, labels)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        network_class(num_classes=0)
    with pytest.raises(TypeError, match="num_classes must be a whole number, got 2.5"):
        network_class(num_classes=2.5)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_no_classes_are_the_network_without_the_argument(network_class):
    torch.manual_seed(3)
    without = network_class(image_size=16, base_channels=4)
    torch.manual_seed(3)
    none = network_class(image_size=16, base_channels=4, num_classes=None)
    assert none.config == without.config
    for a, b in zip(none.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_saved_networks_keep_their_classes_and_older_files_have_none(network_class, tmp_path):
    network = build(network_class).eval()
    network.save_pretrained(tmp_path)
    loaded = network_class.from_pretrained(tmp_path)
    x, labels = inputs(network, 2), torch.tensor([1, 2])
    assert loaded.config["num_classes"] == CLASSES
    assert torch.equal(loaded(x, labels), network(x, labels))

    build(network_class, num_classes=None).save_pretrained(tmp_path)
    path = tmp_path / network_class.subfolder / "config.json"
    config = json.loads(path.read_text())
    del config["num_classes"]  # as in files of 0.3 and before
    path.write_text(json.dumps(config))
    assert network_class.from_pretrained(tmp_path).config["num_classes"] is None


def test_samples_have_the_classes_that_were_asked_for():
    generator = build(Generator).eval()
    z = torch.randn(40, 5)
    with torch.no_grad():
        in_turn = generator(z, torch.arange(40) % CLASSES)
        of_one = generator(z, torch.full((40,), 2))
        listed = generator(z, torch.tensor([0, 0, 1, 2] * 10))
    torch.testing.assert_close(generator.sample(z=z), in_turn)
    torch.testing.assert_close(generator.sample(z=z, labels=2, batch_size=7), of_one)
    torch.testing.assert_close(generator.sample(z=z, labels=[0, 0, 1, 2] * 10, batch_size=7), listed)
    torch.testing.assert_close(generator.sample(z=z, labels=torch.tensor([0, 0, 1, 2] * 10)), listed)
    torch.testing.assert_close(torch.cat(list(generator.sample_batches(z=z, labels=2, batch_size=9))), of_one)


def test_an_image_of_a_seed_has_one_class_whatever_the_start_and_batch():
    generator = build(Generator).eval()
    whole = generator.sample(50, seed=4)
    torch.testing.assert_close(generator.sample(13, seed=4, start=20, batch_size=5), whole[20:33])
    assert not torch.allclose(generator.sample(13, seed=4, start=20, labels=0), whole[20:33])


def test_labels_of_samples_are_checked():
    generator = build(Generator).eval()
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 7"):
        generator.sample(4, seed=0, labels=7)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(2,\)"):
        generator.sample(4, seed=0, labels=[1, 2])
    with pytest.raises(TypeError, match="labels must be torch.int64, got torch.float32"):
        generator.sample(2, seed=0, labels=[0.5, 1.0])
    with pytest.raises(TypeError, match="labels are for conditional networks, but this Generator has no num_classes"):
        build(Generator, num_classes=None).sample(4, labels=1)
