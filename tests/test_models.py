import copy
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import randomize_batchnorms
from references import REFERENCES, copy_in_order
from torch import nn
from torch.nn.utils import parametrizations, prune

import dcgan
from dcgan import Discriminator, Generator, Trainer, weights_init
from dcgan.architectures import ARCHITECTURES
from dcgan.latents import seeded_latents

COUNTS = {
    "tutorial": (3_576_704, 2_765_568),
    "biased": (12_660_355, 11_038_081),
    "linear5": (18_872_323, 17_234_689),
    "paper": (18_885_760, 17_232_768),
    "svhn": (1_446_976, 1_033_664),
    "imagenet32": (6_690_688, 4_586_112),
}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_a_network_has_at_least_the_parameters_that_are_expected_of_it(network_class, data):
    """So that no network is refused, and none is built that is larger than its file."""
    options = {
        "image_size": [8, 16, (16, 32), 28],
        "channels": [1, 3, 9],
        "base_channels": [1, 2, 5],
        "max_channels": [None, 1, 6],
        "latent_dim": [1, 7],
        "stages": [None, 1, 2],
        "kernel_size": [3, 4, 5],
        "convs_per_stage": [1, 2],
        "stem": ["conv", "linear"],
        "upsample": ["transpose", "resize"],
        "num_classes": [None, 1, 30],
    }
    accepted = {name: values for name, values in options.items() if name in signature(network_class).parameters}
    config = {name: data.draw(st.sampled_from(values), label=name) for name, values in accepted.items()}
    try:
        network = network_class(norm="none", **config)
    except ValueError:  # the sizes do not halve
        assume(False)
    assert network_class._minimum_parameters(config) <= parameters(network)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_the_parameters_that_are_expected_of_a_network_are_not_far_fewer(network_class):
    config = {"image_size": 32, "base_channels": 4, "channels": 3, "kernel_size": 3, "norm": "none"}
    assert network_class._minimum_parameters(config) == parameters(network_class(**config))
    for more in ({"num_classes": 1000}, {"channels": 1000}):
        assert network_class._minimum_parameters(config | more) > 0.2 * parameters(network_class(**config | more))


def test_the_table_of_architectures_is_the_published_one():
    assert ARCHITECTURES.keys() == COUNTS.keys() == REFERENCES.keys()
    assert dcgan.list_architectures() == list(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_published_networks_equal_their_plain_references(name, network):
    reference = REFERENCES[name]
    ours = network.from_architecture(name)
    theirs = reference.generator() if network is Generator else reference.discriminator()
    assert parameters(ours) == parameters(theirs) == COUNTS[name][network is Discriminator]

    copy_in_order(ours, theirs)
    ours, theirs = ours.double(), theirs.double()
    size, n = reference.size, 2
    shape = (n, reference.latent_dim) if network is Generator else (n, 3, size, size)
    x = torch.rand(shape, dtype=torch.float64) * 2 - 1
    for mode in (True, False):  # the training pass fills the running statistics that the other one uses
        with torch.set_grad_enabled(mode):
            a, b = ours.train(mode)(x), theirs.train(mode)(x)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        if mode:
            weight = torch.randn_like(a)
            gradients = [
                torch.autograd.grad((out * weight).sum(), net.parameters()) for out, net in ((a, ours), (b, theirs))
            ]
            for mine, expected in zip(*gradients, strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_linear5_has_four_stages_at_any_size():
    for size in (16, 48, 96, 144):
        generator = Generator.from_architecture("linear5", image_size=size, base_channels=4)
        assert next(iter(generator.blocks)) == f"{size // 16}x{size // 16}"
        assert generator.sample(1, seed=0).shape == (1, 3, size, size)


def test_architectures_take_overrides_and_refuse_unknown_names():
    assert Generator.from_architecture("paper", image_size=32, base_channels=8).config["base_channels"] == 8
    with pytest.raises(ValueError, match=r"architecture must be one of tutorial, biased, .*, got 'dcgan'"):
        Generator.from_architecture("dcgan")


def test_state_dict_keys_are_frozen():
    """A change here breaks every checkpoint there is."""
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    normed = {side: [f"blocks.{side}.norm.{key}" for key in norm] for side in ("4x4", "8x8")}
    generator = Generator(image_size=16)
    expected = ["blocks.4x4.conv.weight", *normed["4x4"], "blocks.8x8.conv.weight", *normed["8x8"], "head.conv.weight"]
    assert list(generator.state_dict()) == expected
    discriminator = Discriminator(image_size=16)
    expected = ["blocks.8x8.conv.weight", "blocks.4x4.conv.weight", *normed["4x4"], "head.conv.weight"]
    assert list(discriminator.state_dict()) == expected
    assert next(iter(Generator(image_size=16, stem="linear").state_dict())) == "blocks.4x4.linear.weight"
    assert list(Discriminator(image_size=16, stem="linear").state_dict())[-1] == "head.linear.weight"
    assert list(Generator(image_size=16, convs_per_stage=2).blocks) == ["4x4", "8x8", "8x8_conv", "16x16"]
    assert list(Discriminator(image_size=16, convs_per_stage=2).blocks) == ["16x16_conv", "8x8", "8x8_conv", "4x4"]


SIZES = [*range(16, 257, 16), 28, 8, 24, 40, (48, 80), (64, 128), (16, 48), (28, 56), (144, 16)]


@pytest.mark.parametrize("size", [*SIZES, pytest.param(512), pytest.param(1024)])
@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_every_size_gives_images_of_that_size_and_one_logit(size, kernel_size):
    narrow = {"image_size": size, "channels": 1, "base_channels": 2, "max_channels": 4, "kernel_size": kernel_size}
    generator, discriminator = Generator(latent_dim=3, **narrow), Discriminator(**narrow)
    images = generator(torch.randn(2, 3))
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (2, 1, height, width)
    assert discriminator(images).shape == (2,)
    first = next(iter(generator.blocks.values()))(torch.randn(2, 3)).shape[2:]
    assert first == list(discriminator.features(images).values())[-1].shape[2:]
    smaller = min(height, width)
    assert min(first) <= 7 or smaller % 16 == 0


@st.composite
def configurations(draw):
    stages = draw(st.sampled_from([None, 1, 2]))
    halves = 16 if stages is None else 2**stages
    sides = st.integers(1, 3).map(lambda k: k * halves)
    stem = draw(st.sampled_from(["conv", "linear"]))
    norm = draw(st.sampled_from(["batch", "instance", "layer", "none"]))
    size = draw(sides | st.tuples(sides, sides))
    assume(norm != "instance" or size not in (halves, (halves, halves)) or stages is None)
    shared = {
        "image_size": size,
        "channels": draw(st.sampled_from([1, 2, 3, 4])),
        "base_channels": draw(st.integers(1, 5)),
        "max_channels": draw(st.none() | st.integers(1, 9)),
        "kernel_size": draw(st.sampled_from([3, 4, 5])),
        "stages": stages,
        "convs_per_stage": draw(st.sampled_from([1, 2])),
        "stem": stem,
        "bias": draw(st.booleans()),
        "norm": norm,
        "norm_eps": draw(st.sampled_from([1e-5, 1e-3])),
    }
    own = {
        "latent_dim": draw(st.integers(1, 8)),
        "stem_norm": draw(st.sampled_from(["channel", "unit"])) if (stem, norm) == ("linear", "batch") else "channel",
        "stem_activation": draw(st.booleans()),
        "upsample": draw(st.sampled_from(["transpose", "resize"])),
        "output": draw(st.sampled_from(["tanh", "sigmoid"])),
        "latent": draw(st.sampled_from(["normal", "uniform"])),
    }
    return shared, own


@settings(max_examples=120, deadline=None)
@given(configurations())
def test_every_configuration_builds_runs_learns_and_rebuilds(configuration):
    shared, own = configuration
    generator, discriminator = Generator(**shared, **own), Discriminator(**shared)
    size = shared["image_size"]
    height, width = (size, size) if isinstance(size, int) else size

    images = generator(torch.randn(4, own["latent_dim"]))
    assert images.shape == (4, shared["channels"], height, width)
    low = 0 if own["output"] == "sigmoid" else -1
    assert low <= images.min()
    assert images.max() <= 1
    logits = discriminator(images)
    assert logits.shape == (4,)
    logits.square().sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    for network in (generator, discriminator):
        config = json.loads(json.dumps(network.config))
        again = type(network)(**config)
        assert again.config == network.config == config
        assert set(config) == set(signature(type(network)).parameters)
        shapes = {key: value.shape for key, value in again.state_dict().items()}
        assert shapes == {key: value.shape for key, value in network.state_dict().items()}


class Blobs(Generator):
    def __init__(self, n_blobs=3, **kwargs):
        super().__init__(**kwargs)
        self.config["n_blobs"] = n_blobs


class Critic(Discriminator):
    pass


def test_architectures_are_built_of_subclasses_too():
    generator = Blobs.from_architecture("svhn", base_channels=2, n_blobs=5)
    assert generator.config == {**Generator.from_architecture("svhn", base_channels=2).config, "n_blobs": 5}
    critic = Critic.from_architecture("svhn", base_channels=2)
    assert critic.config == Discriminator.from_architecture("svhn", base_channels=2).config


def test_resized_up_convolutions_have_plain_kernels():
    generator = Generator(image_size=32, base_channels=4, kernel_size=5, upsample="resize")
    assert not any(isinstance(m, nn.ConvTranspose2d) for name, m in generator.named_modules() if "4x4" not in name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": 50},
            r"image_size must be a multiple of 16, or halve down to 7 or less, got 50, which halves 1",
        ),
        ({"image_size": 0}, r"image_size must be at least 1, got 0"),
        ({"image_size": (64, 50)}, r"image_size must be a multiple of 16, .* got \[64, 50\]"),
        ({"image_size": (64, 64, 3)}, r"image_size must be one side or \(height, width\), got \(64, 64, 3\)"),
        ({"image_size": 48, "stages": 5}, r"image_size must halve 5 times, got 48"),
        ({"image_size": 7}, r"image_size must halve 1 times, got 7"),
        ({"base_channels": 0}, r"base_channels must be at least 1, got 0"),
        ({"channels": -3}, r"channels must be at least 1, got -3"),
        ({"max_channels": 0}, r"max_channels must be at least 1, got 0"),
        ({"channels": 2**31}, r"channels must be at most 2,147,483,647, got 2147483648"),
        ({"num_classes": 10**400}, r"num_classes must be at most 2,147,483,647, got 100000000000000000\.\.\.0000"),
        ({"kernel_size": 6}, r"kernel_size must be one of 3, 4, 5, got 6"),
        ({"kernel_size": True}, r"kernel_size must be one of 3, 4, 5, got True"),
        ({"stem": "dense"}, r"stem must be one of 'conv', 'linear', got 'dense'"),
        ({"norm": None}, r"norm must be one of 'batch', 'instance', 'layer', 'none', got None"),
        ({"norm_eps": 0}, r"norm_eps must be a number above 0, got 0"),
        ({"convs_per_stage": 3}, r"convs_per_stage must be one of 1, 2, got 3"),
    ],
)
@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_arguments_out_of_range_are_named(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": np.float64(64)}, r"image_size must be a whole number, got np.float64\(64.0\)"),
        ({"image_size": 64.0}, r"image_size must be a whole number, got 64.0"),
        ({"image_size": "64"}, r"image_size must be a whole number, got '64'"),
        ({"base_channels": True}, r"base_channels must be a whole number, got True"),
        ({"channels": None}, r"channels must be a whole number, got None"),
        ({"bias": 1}, r"bias must be True or False, got 1"),
    ],
)
@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_arguments_of_the_wrong_type_are_named(network, arguments, message):
    with pytest.raises(TypeError, match=message):
        network(**arguments)


def test_instance_normalisation_needs_more_than_a_pixel():
    for network in (Generator, Discriminator):
        with pytest.raises(
            ValueError, match="norm 'instance' needs maps of more than one pixel, and 4 stages end in a 1x1"
        ):
            network(image_size=16, stages=4, norm="instance")


def test_unit_normalisation_needs_a_linear_stem():
    with pytest.raises(ValueError, match=r"stem_norm 'unit' needs stem 'linear' and norm 'batch', got stem 'conv'"):
        Generator(stem_norm="unit")


def test_inputs_of_the_wrong_shape_or_type_are_named():
    generator, discriminator = Generator(image_size=16, base_channels=2), Discriminator(image_size=16, base_channels=2)
    for shape in ((2, 64), (2,), (2, 100, 2, 2), (100,)):
        with pytest.raises(ValueError, match=rf"z must have shape \(N, 100\), got \({', '.join(map(str, shape))},?\)"):
            generator(torch.zeros(shape))
    for shape in ((2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16), (2, 16, 16, 3)):
        with pytest.raises(ValueError, match=r"image must have shape \(N, 3, 16, 16\), got"):
            discriminator(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"image must be torch.float32, as the network is, got torch.uint8"):
        discriminator(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"image must be torch.float32, as the network is, got torch.float64"):
        discriminator(torch.zeros(2, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"z must be torch.float32, as the network is, got torch.int64"):
        generator(torch.zeros(2, 100, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16):  # which converts what it needs to
        assert discriminator(torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16)).shape == (2,)


def test_latents_may_be_maps_of_one_pixel():
    generator = Generator(image_size=16, base_channels=2).eval()
    z = torch.randn(3, 100)
    assert torch.equal(generator(z), generator(z[:, :, None, None]))


def test_features_are_the_activations_that_lead_to_the_logit():
    discriminator = Discriminator(image_size=64, base_channels=4).eval()
    image = torch.rand(2, 3, 64, 64)
    features = discriminator.features(image)
    shapes = {name: tuple(value.shape) for name, value in features.items()}
    assert shapes == {"32x32": (2, 4, 32, 32), "16x16": (2, 8, 16, 16), "8x8": (2, 16, 8, 8), "4x4": (2, 32, 4, 4)}
    assert torch.equal(discriminator.head(features["4x4"]).flatten(), discriminator(image))
    assert torch.equal(discriminator.probability(image), discriminator(image).sigmoid())


def test_imagenet32_has_the_six_activations_of_table_1():
    discriminator = Discriminator.from_architecture("imagenet32")
    features = discriminator.features(torch.zeros(1, 3, 32, 32))
    assert [value.shape[1] for value in features.values()] == [128, 128, 256, 256, 512, 512]
    assert sum(value.shape[1] for value in features.values()) * 16 == 28672


# Sampling


def test_an_image_depends_on_its_seed_and_index_alone():
    generator = Generator(image_size=16, base_channels=4)
    all_images = generator.sample(300, seed=7)
    for n, start, batch_size in ((300, 0, 1), (300, 0, 7), (300, 0, 300), (1, 0, 64), (40, 250, 64), (5, 128, 3)):
        images = generator.sample(n, seed=7, start=start, batch_size=batch_size)
        torch.testing.assert_close(images, all_images[start : start + n], rtol=0, atol=1e-6)
    assert not torch.allclose(generator.sample(4, seed=8), all_images[:4], atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_leaves_the_network_as_it_was(training):
    generator = Generator(image_size=16, base_channels=2).train(training)
    generator.blocks["4x4"].eval()
    modes = [module.training for module in generator.modules()]
    before = copy.deepcopy(generator.state_dict())
    images = generator.sample(4, seed=0)
    assert [module.training for module in generator.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert not images.requires_grad
    images.requires_grad_()  # an inference tensor could not go on into training


@pytest.mark.parametrize(("latent", "low", "high"), [("normal", -9, -1.5), ("uniform", -1, -0.9)])
def test_samples_are_drawn_from_the_distribution_in_the_config(latent, low, high, monkeypatch):
    generator = Generator(image_size=16, base_channels=1, latent=latent)
    seen = []
    monkeypatch.setattr(generator, "forward", lambda z: seen.append(z) or torch.zeros(len(z), 3, 16, 16))
    generator.sample(500, seed=0)
    z = torch.cat(seen)
    assert low <= z.min() < high
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - (1 if latent == "normal" else 3**-0.5)) < 0.02


def test_sampling_without_a_seed_follows_torchs_own():
    generator = Generator(image_size=16, base_channels=2)
    torch.manual_seed(3)
    first, second = generator.sample(2), generator.sample(2)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(generator.sample(2), first)


def test_sampling_refuses_arguments_out_of_range():
    generator = Generator(image_size=16, base_channels=2)
    for arguments, message in (
        ({"n": -1}, "n must not be negative, got -1"),
        ({"n": 1, "seed": -1}, "seed must not be negative, got -1"),
        ({"n": 1, "start": -1}, "start must not be negative, got -1"),
        ({"n": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ):
        for sample in (generator.sample, generator.sample_batches):
            with pytest.raises(ValueError, match=message):
                sample(**arguments)
    assert generator.sample(0, seed=0).shape == (0, 3, 16, 16)


def test_sampling_computes_batch_by_batch_whatever_n(monkeypatch):
    generator = Generator(image_size=16, base_channels=1, channels=1, latent_dim=4)
    sizes = []
    original = generator.forward
    monkeypatch.setattr(generator, "forward", lambda z: sizes.append(len(z)) or original(z))
    assert generator.sample(1000, seed=0).shape == (1000, 1, 16, 16)
    assert max(sizes) == 64
    assert sum(sizes) == 1000


@pytest.mark.parametrize("n", [1, 31, 32, 100])
def test_samples_are_what_the_network_itself_computes(n):
    generator = randomize_batchnorms(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    with torch.no_grad():
        expected = generator(seeded_latents(n, 6, seed=3))
    torch.testing.assert_close(generator.sample(n, seed=3, batch_size=30), expected, rtol=0, atol=1e-6)


def test_samples_in_bfloat16_are_close_and_of_the_networks_own_type():
    generator = randomize_batchnorms(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    images = generator.sample(64, seed=3, dtype=torch.bfloat16)
    assert images.dtype == torch.float32
    difference = (images - generator.sample(64, seed=3)).abs()
    assert 0 < difference.mean() < 5e-3


@pytest.mark.parametrize(("n", "sizes"), [(70, [32, 32, 6]), (3, [3])])
def test_batches_have_the_weights_at_the_time_of_the_call(n, sizes):
    generator = randomize_batchnorms(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    expected = generator.sample(n, seed=1, start=5)
    batches = generator.sample_batches(n, seed=1, start=5, batch_size=32)
    with torch.no_grad():
        nn.init.zeros_(generator.head.conv.weight)
    batches = list(batches)
    assert [len(batch) for batch in batches] == sizes
    torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=1e-6)
    assert torch.is_grad_enabled()


def test_latents_may_be_given():
    generator = Generator(image_size=16, base_channels=4, latent_dim=6)
    z = seeded_latents(40, 6, seed=3)
    expected = generator.sample(40, seed=3)
    for latents in (z, z[:, :, None, None], z.double()):
        assert torch.equal(generator.sample(z=latents), expected)
    assert torch.equal(torch.cat(list(generator.sample_batches(z=z, batch_size=64))), expected)
    assert generator.sample(z=z[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass either n, the number of images, or z, their latents, got neither"),
        ({"n": 2, "z": torch.zeros(2, 6)}, "pass either n, .* got both"),
        ({"z": torch.zeros(2, 5)}, r"z must have shape \(N, 6\), got \(2, 5\)"),
        ({"z": torch.zeros(6)}, r"z must have shape \(N, 6\), got \(6,\)"),
        ({"z": torch.zeros(2, 6), "seed": 1}, "seed and start select latents, so they cannot be combined with z"),
    ],
)
def test_latents_that_do_not_fit_are_refused(arguments, message):
    generator = Generator(image_size=16, base_channels=2, latent_dim=6)
    for sample in (generator.sample, generator.sample_batches):
        with pytest.raises(ValueError, match=message):
            sample(**arguments)


def test_threads_sample_alike_and_leave_the_modes_alone():
    generator = Generator(image_size=16, base_channels=8)
    generator(torch.randn(8, 100))
    expected = [generator.sample(n, seed=0) for n in (4, 40)]
    barrier = threading.Barrier(6)

    def sample(_):
        barrier.wait()
        return [generator.sample(n, seed=0) for _ in range(5) for n in (4, 40)]

    with ThreadPoolExecutor(6) as pool:
        for images in pool.map(sample, range(6)):
            assert all(torch.equal(image, expected[i % 2]) for i, image in enumerate(images))
    assert all(module.training for module in generator.modules())


def test_a_thread_that_samples_leaves_training_as_it_is():
    def train(preview):
        torch.manual_seed(0)
        size = {"image_size": 16, "base_channels": 4}
        trainer = Trainer(Generator(**size), Discriminator(**size), seed=1)
        done = threading.Event()

        def sample():
            while not done.is_set():
                trainer.generator.sample(2, seed=0)
                trainer.generator.sample(33, seed=0)

        thread = threading.Thread(target=sample)
        if preview:
            thread.start()
        try:
            real = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
            for _ in range(12):
                trainer.step(real)
        finally:
            done.set()
            if preview:
                thread.join()
        return trainer.generator.state_dict()

    quiet, watched = train(preview=False), train(preview=True)
    assert all(torch.equal(value, watched[name]) for name, value in quiet.items())


class LowRank(nn.Module):
    """A wrapper as adapters have it: the layer, and a trained correction beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.correction = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 4, 2, 1, bias=False)

    def forward(self, x):
        return self.layer(x) + self.correction(x)


def replace_convolution(generator):
    generator.blocks["8x8"].conv = LowRank(generator.blocks["8x8"].conv)


def patch_convolution(generator):
    conv = generator.blocks["8x8"].conv
    plain = conv.forward
    conv.forward = lambda x: plain(x) * 2


def deprecated(normalise):
    def change(generator):
        with warnings.catch_warnings(action="ignore"):
            normalise(generator.blocks["8x8"].conv)
        generator(torch.randn(4, 6))  # after which the weight is a result of autograd

    return change


CHANGES = {
    "spectral norm": lambda g: parametrizations.spectral_norm(g.blocks["8x8"].conv),
    "weight norm": lambda g: parametrizations.weight_norm(g.blocks["8x8"].conv),
    "deprecated spectral norm": deprecated(nn.utils.spectral_norm),
    "deprecated weight norm": deprecated(nn.utils.weight_norm),
    "pruning": lambda g: prune.random_unstructured(g.blocks["8x8"].conv, "weight", 0.5),
    "a wrapper": replace_convolution,
    "a patched layer": patch_convolution,
    "a hook that changes the output": lambda g: g.blocks["8x8"].conv.register_forward_hook(lambda m, i, out: out + 1),
    "a normalisation without gain": lambda g: setattr(g.blocks["8x8"], "norm", nn.BatchNorm2d(4, affine=False)),
    "a normalisation without statistics": lambda g: setattr(
        g.blocks["8x8"], "norm", nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_sampled_as_they_are(change, n):
    generator = randomize_batchnorms(Generator(image_size=16, base_channels=4, latent_dim=6)).float()
    CHANGES[change](generator)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)  # a normalised weight that is kept from the last pass is out of date
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    images = generator.sample(n, seed=3)
    assert all(module.training for module in generator.modules())
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    with torch.no_grad():
        expected = generator.eval()(seeded_latents(n, 6, seed=3))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


class Recorder:
    def __init__(self):
        self.sizes = []

    def record(self, module, inputs, output):
        self.sizes.append(len(output))


def test_whole_numbers_of_numpy_become_pythons():
    size = np.array([16, 32])
    config = Generator(image_size=tuple(size), base_channels=size.min()).config
    assert json.loads(json.dumps(config)) == Generator(image_size=(16, 32), base_channels=16).config


@pytest.mark.parametrize("n", [3, 40])
def test_hooks_are_called_on_the_object_that_they_belong_to(n):
    generator = Generator(image_size=16, base_channels=2)
    recorder = Recorder()
    generator.blocks["4x4"].norm.register_forward_hook(recorder.record)
    generator.sample(n, seed=0)
    assert recorder.sizes == [n]


def test_adapters_that_merge_in_evaluation_mode_keep_their_weights():
    class Merging(nn.Conv2d):
        merged = False

        def train(self, mode=True):
            if not mode and not self.merged:
                self.weight.data += 1
                self.merged = True
            return super().train(mode)

    generator = Generator(image_size=16, base_channels=2, upsample="resize")
    generator.blocks["8x8"].conv = Merging(4, 2, 3, padding=1)
    before = generator.blocks["8x8"].conv.weight.clone()
    generator.sample(3, seed=0)
    generator.sample(40, seed=0)
    assert torch.equal(generator.blocks["8x8"].conv.weight, before)


@pytest.mark.parametrize("n", [3, 40])
def test_default_devices_and_types_do_not_matter(n):
    generator = Generator(image_size=16, base_channels=2, latent="uniform")
    expected = generator.sample(n, seed=0)
    with torch.device("meta"):
        assert torch.equal(generator.sample(n, seed=0), expected)
        assert torch.equal(torch.cat(list(generator.sample_batches(n, seed=0))), expected)
        assert generator.sample(n).device.type == "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        images = generator.sample(n, seed=0)
    finally:
        torch.set_default_dtype(default)
    assert images.dtype == torch.float32
    assert torch.equal(images, expected)


# Initialisation


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 64, 5), nn.ConvTranspose2d(64, 8, 5), nn.Linear(200, 100)])
def test_weights_are_drawn_as_in_the_paper(layer):
    layer.apply(weights_init)
    assert abs(layer.weight.mean()) < 0.001
    assert abs(layer.weight.std() - 0.02) < 0.001
    assert not layer.bias.any()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(9999), nn.BatchNorm1d(9999), nn.GroupNorm(1, 9999)])
def test_gains_are_drawn_around_one_and_shifts_are_zero(layer):
    layer.apply(weights_init)
    assert abs(layer.weight.mean() - 1) < 0.001
    assert abs(layer.weight.std() - 0.02) < 0.001
    assert not layer.bias.any()


def test_initialisation_leaves_other_modules_alone_and_follows_the_seed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.PReLU(), nn.ReLU())
    network.apply(weights_init)
    assert network[2].weight.item() == 0.25

    built = []
    for _ in range(2):
        torch.manual_seed(5)
        built.append(Generator(image_size=16, base_channels=4).state_dict())
    assert all(torch.equal(value, built[1][name]) for name, value in built[0].items())

    from functools import partial

    layers = [nn.Linear(3, 3) for _ in range(2)]
    for layer in layers:
        layer.apply(partial(weights_init, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_networks_start_out_initialised():
    generator = Generator(base_channels=16)
    for module in generator.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert abs(module.weight.std() - 0.02) < 0.002
