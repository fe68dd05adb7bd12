"""Checkpoints of other programs: converted exactly, or refused with the true reason.

The files in `foreign` were made by the original programs, with inputs and outputs beside them.
"""

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from original_networks import TutorialDiscriminator, TutorialGenerator, randomize_batchnorm, save_state
from safetensors.torch import load_file, save_file
from torch import nn

from dcgan import Generator
from dcgan.convert import convert
from dcgan.convert._chains import find_chains, group_layers
from dcgan.convert._configs import infer_config

LEAKY_001 = {"activation": "leaky-relu", "slope": 0.01}
IMAGES, LOGITS = "images", "logits_of_images"

# Files, the outputs beside them, the names of these for each network, and options.
EXACT = {
    "aladdinpersson": (["gen.pth", "disc.pth"], "gen_disc", IMAGES, LOGITS, {}),
    "aladdinpersson, sorted by name": (["gen.safetensors"], "gen_disc", IMAGES, None, {}),
    "anime128x64": (["discriminator.pth"], "generator_discriminator", None, LOGITS, {}),
    "conditional, an embedding": (["label_embed.pth"], "label_embed", IMAGES, None, {}),
    "conditional, one-hot": (["omniart_dropout.pth"], "omniart_dropout", IMAGES, None, {}),
    "csinva": (["netD_cifar100.pth"], "cifar100", None, LOGITS, {}),
    "csinva, too large": (["netD_cifar100_rect.pth"], None, None, None, {}),
    "generateme": (["dcGanGeneratorModel.pt"], "dcGanGeneratorModel", IMAGES, None, {}),
    "generateme, sorted by name": (["dcGanGeneratorModel.safetensors"], "dcGanGeneratorModel", IMAGES, None, {}),
    "huggan": (["pytorch_model.bin"], "pytorch_model", IMAGES, None, {}),
    "huggan, a folder": (["hub_folder"], "pytorch_model", IMAGES, None, {}),
    "mmgen": (["dcgan_celeba-cropped_64_published.pth"], "dcgan_celeba-cropped_64_published", IMAGES, "logits", {}),
    "mmgen, grey": (["dcgan_mnist_64_published.pth"], "dcgan_mnist_64_published", IMAGES, "logits", {}),
    "pytorch_gan_zoo": (["DCGAN_as_saved.pth"], "DCGAN", "images_netG", "logits_of_images_netG", {"keys": ["netG"]}),
    "pytorch_gan_zoo, average": (["DCGAN_without_config.pth"], "DCGAN", "images_avgG", None, {"keys": ["avgG"]}),
    "rasbt": (["dcgan_celeba.pt"], "dcgan_celeba", IMAGES, LOGITS, {}),
    "rasbt, alone": (["generator_only.pt"], "dcgan_celeba", IMAGES, None, LEAKY_001),
    "torchgan, ReLU": (["relu.model"], "relu", IMAGES, "before_last_leaky_relu", {}),
    "torchgan, LeakyReLU": (["default_leaky.model"], "default_leaky", IMAGES, "before_last_leaky_relu", {}),
    "udacity": (["generator11.pt", "discriminator.pt"], "generator11", IMAGES, LOGITS, {}),
    "udacity, normalised": (["generator40.pt", "discriminator.pt"], "generator40", IMAGES, LOGITS, {}),
    "wassersteingan": (["netG_colon.pth", "netD_colon.pth"], "netG_netD", IMAGES, "critic_of_images", {}),
    "wassersteingan, dots": (["netG_dot.pth", "netD_dot.pth"], "netG_netD", IMAGES, "critic_of_images", {}),
}
REFUSED = {
    "anime128x64": ("generator.pth", {}, r"main.15.weight \(4, 3, 4, 1\) would need a kernel of 4x4"),
    "csinva, 28": ("netD_mnist.pth", {}, r"images are 32x32 if main.8.* covers a 4x4 map, and 28x28 if it is padded"),
    "csinva, 28 given": ("netD_mnist.pth", {"image_size": 28}, r"not 28x28: for that, main.8.* would be padded"),
    "csinva, 34x45": ("netD_cifar100_rect.pth", {"image_size": (34, 45)}, "imply image_size 32x32, not 34x45"),
    "csinva, cifar100": ("netG_cifar100.pth", {}, r"main.12.weight \(2, 1, 1, 1\) would need a kernel of 4x4"),
    "csinva, rect": ("netG_cifar100_rect.pth", {}, r"main.9.weight \(4, 2, 5, 5\) would need a kernel of 4x4"),
    "csinva, mnist": ("netG_mnist.pth", {}, r"main.12.weight \(2, 1, 1, 1\) would need a kernel of 4x4"),
    "pytorch_gan_zoo": ("DCGAN_as_saved.pth", {}, r"found 2 Generators, .*: .*, netG; .*, avgG"),
    "studiogan": (
        "model=G-best-weights-step=26000.pth",
        {},
        r"conv4.weight \(3, 2, 3, 3\) takes 3 channels, but .* 2; as",
    ),
    "various, a": ("coursera_blocks.pth", {}, r"gen.2.0.weight \(8, 4, 3, 3\) would need a kernel of 4x4"),
    "various, b": ("reshape_first_leaky_kernel3.pth", {}, r"layer_stack.4.weight \(16, 8, 3, 3\) would need a kernel"),
    "various, c": ("upsample_sigmoid.pth", {}, r"model.5.weight \(8, 4, 3, 3\) takes 8 channels, .*; as a plain conv"),
}


@pytest.fixture(scope="module")
def foreign():
    checkpoints = os.environ.get("DCGAN_TEST_CHECKPOINTS", Path(__file__).parents[2] / "shared/checkpoints")
    folder = Path(checkpoints, "foreign")
    if not folder.is_dir():
        pytest.skip(f"no checkpoints in {folder}; DCGAN_TEST_CHECKPOINTS names the folder above")
    return folder


@pytest.mark.parametrize("case", EXACT)
def test_what_other_programs_wrote_computes_the_same(case, foreign, tmp_path):
    files, outputs, images, logits, options = EXACT[case]
    folder = foreign / case.partition(",")[0]
    converted = convert([folder / file for file in files], **options)
    assert len(converted.layers) > 2
    if outputs is None:  # of images of another size than can be expressed
        return
    data = {name: torch.from_numpy(array) for name, array in np.load(folder / f"{outputs}.npz").items()}
    with torch.no_grad():
        if images is not None:
            z = next(array for name, array in data.items() if name.startswith("z"))
            torch.testing.assert_close(converted.generator(z), data[images], rtol=0, atol=2e-6)
            converted.save(tmp_path)
            assert torch.equal(Generator.from_pretrained(tmp_path)(z), converted.generator(z))
        if logits is not None:
            x = data[images or IMAGES]
            torch.testing.assert_close(converted.discriminator(x), data[logits], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_layer(case, foreign):
    file, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert([foreign / case.partition(",")[0] / file], **options)


# Damage.


def state_of(path):
    if path.suffix == ".safetensors":
        return load_file(path), False
    value = torch.load(path, weights_only=True)
    while not any(isinstance(item, torch.Tensor) for item in value.values()):
        value = next(item for key, item in value.items() if isinstance(item, dict) and key != "meta")
    return dict(value), True


def layers_of(state):
    return list(dict.fromkeys(name.rpartition(".")[0] for name in state))


def read(state, ordered):
    """Return the networks in a state dict; none if it is refused."""
    try:
        layers, ordered = group_layers(state, ordered=ordered)
        chains, _ = find_chains(layers, ordered=ordered)
        for chain in chains:
            infer_config(chain, None, paired=False)
    except ValueError:
        return []
    return chains


def names_of(chains):
    return [[layer.name for layer in chain.layers] for chain in chains]


def shapes_of(chains):
    return [[layer.shape for layer in chain.layers] for chain in chains]


DAMAGED = [
    "aladdinpersson/gen.pth",
    "aladdinpersson/disc.pth",
    "aladdinpersson/gen.safetensors",
    "anime128x64/discriminator.pth",
    "csinva/netD_cifar100.pth",
    "generateme/dcGanGeneratorModel.pt",
    "generateme/dcGanGeneratorModel.safetensors",
    "huggan/pytorch_model.bin",
    "rasbt/generator_only.pt",
    "udacity/generator11.pt",
    "udacity/generator40.pt",
    "udacity/discriminator.pt",
    "wassersteingan/netG_colon.pth",
    "wassersteingan/netD_dot.pth",
]


@pytest.mark.parametrize("file", DAMAGED)
def test_damage_that_shapes_can_show_is_never_accepted(file, foreign):
    state, ordered = state_of(foreign / file)
    whole = read(state, ordered)
    [chain] = whole
    weights = [layer.name for layer in chain.layers]
    stem = [layer.name for layer in (chain.layers[0], chain.norms[0]) if layer] * (chain.network_class is Generator)
    for layer in layers_of(state):
        rest = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] != layer}
        # generator40 without this is generator11; and without its stem, a generator is one of fewer stages.
        if layer != "batch_norm_fc" and [layer] != stem:
            assert not read(rest, ordered), f"accepted without {layer}"
        wide = {k: torch.cat([v, v]) if k.rpartition(".")[0] == layer and v.dim() else v for k, v in state.items()}
        if layer not in stem[:1] or layer == "fc":  # longer latents
            assert not read(wide, ordered), f"accepted with {layer} twice as wide"
    if stem:  # a smaller generator then, which is refused where numbers show that layers are missing
        rest = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in stem}
        numbered = re.match(r"\w+\.\d+$", weights[0]) is not None
        assert bool(read(rest, ordered)) != numbered
    rng = np.random.default_rng(0)
    for _ in range(10):  # any order of the file gives the same network or none
        shuffled = {name: state[name] for name in rng.permutation(list(state))}
        assert names_of(read(shuffled, ordered)) in ([], names_of(whole))
    for a, b in pairwise(weights):  # two neighbours under each other's names
        names = {a: b, b: a}
        swapped = {}
        for name, tensor in state.items():
            owner, _, parameter = name.rpartition(".")
            swapped[f"{names.get(owner, owner)}.{parameter}"] = tensor
        assert shapes_of(read(swapped, ordered)) in ([], shapes_of(whole)), f"accepted {a} as {b}"


# Networks written for these tests, which need no files.


class Named(nn.Module):
    """A generator whose layers are defined apart from their normalisations, under names that tell no order."""

    def __init__(self, widths=(16, 8, 4), slope=None, norm=True):
        super().__init__()
        self.project = nn.ConvTranspose2d(7, widths[0], 4, bias=not norm)
        names = "wide", "narrow"
        for name, (c_in, c_out) in zip(names, pairwise(widths), strict=True):
            setattr(self, name, nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=not norm))
        self.image = nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1)
        for name, width in zip(("a", "b", "c"), widths, strict=True):
            setattr(self, f"norm_{name}", nn.BatchNorm2d(width) if norm else nn.Identity())
        self.act = nn.ReLU() if slope is None else nn.LeakyReLU(slope)

    def forward(self, z):
        h = self.act(self.norm_a(self.project(z[:, :, None, None])))
        h = self.act(self.norm_b(self.wide(h)))
        return torch.tanh(self.image(self.act(self.norm_c(self.narrow(h)))))


def expect_same(converted, network, z=7):
    latents = torch.randn(5, z)
    with torch.no_grad():
        torch.testing.assert_close(converted.generator(latents), network.eval()(latents), rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", [True, False])
def test_names_do_not_matter(norm, tmp_path):
    network = randomize_batchnorm(Named(norm=norm))
    converted = convert([save_state(network, tmp_path / "g.pth")])
    expect_same(converted, network)
    assert converted.generator.config["norm"] == ("batch" if norm else "none")
    save_file(network.state_dict(), tmp_path / "g.safetensors")
    expect_same(convert([tmp_path / "g.safetensors"]), network)
    assert (
        "wide.weight (16, 8, 4, 4) is blocks.8x8.conv" + (", normalised by norm_b" if norm else "") in converted.layers
    )


def test_equal_shapes_without_an_order_are_refused(tmp_path):
    network = randomize_batchnorm(Named(widths=(8, 8, 8)))
    expect_same(convert([save_state(network, tmp_path / "g.pth")]), network)  # in the order of their definition
    save_file(network.state_dict(), tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="neither the names nor the shapes tell the order of its layers"):
        convert([tmp_path / "g.safetensors"])


def test_a_chain_of_more_than_one_order_is_refused(tmp_path):
    g = nn.ModuleDict({"b": nn.ConvTranspose2d(4, 4, 4), "a": nn.ConvTranspose2d(7, 4, 4)})
    g.update({"d": nn.ConvTranspose2d(8, 4, 4), "c": nn.ConvTranspose2d(4, 8, 4), "e": nn.ConvTranspose2d(4, 3, 4)})
    save_file(g.state_dict(), tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="it may be a Generator of a, b, c, d, e or a Generator of a, c, d, b, e"):
        convert([tmp_path / "g.safetensors"])


def test_something_between_a_layer_and_its_normalisation_is_refused(tmp_path):
    layers = [nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2)]
    for c_in, c_out in ((4, 8), (8, 16)):  # normalised after the activation
        layers += [nn.Conv2d(c_in, c_out, 4, 2, 1), nn.LeakyReLU(0.2), nn.BatchNorm2d(c_out)]
    d = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 1))
    with pytest.raises(ValueError, match="4 does not directly follow 2, which it would normalise"):
        convert([save_state(d, tmp_path / "d.pth")])


def test_parts_beside_a_network_are_refused_unless_they_are_networks(tmp_path):
    g = TutorialGenerator()
    g.attention = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match="cannot tell which of main, attention is the network, or if they are one"):
        convert([save_state(g, tmp_path / "g.pth")])
    g.attention = nn.Conv2d(8, 8, 1)
    message = r"a Generator in main, but cannot tell what attention.weight .* beside it does"
    with pytest.raises(ValueError, match=message):
        convert([save_state(g, tmp_path / "g.pth")])
    both = nn.ModuleDict(
        {"encoder": nn.Linear(5, 5), "generator": TutorialGenerator(), "netD": TutorialDiscriminator()}
    )
    converted = convert([save_state(both, tmp_path / "both.pth")])
    assert converted.generator is not None
    assert converted.discriminator is not None
    assert any("ignored encoder.weight (5, 5)" in note for note in converted.notes)
    g = nn.utils.parametrizations.spectral_norm(TutorialDiscriminator().main[2])
    with pytest.raises(ValueError, match=r"parametrizations.weight.\w+ belongs to no convolution"):
        convert([save_state(g, tmp_path / "g.pth")])


# What the weights do not show.


@pytest.mark.parametrize("latent", ["normal", "uniform"])
@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("passes", [3, 200])
def test_running_statistics_tell_activation_and_latents(latent, slope, passes, tmp_path):
    torch.manual_seed(0)
    network = Named(slope=slope)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, 0, 0.2)
    for _ in range(passes):
        network.train()(torch.randn(64, 7) if latent == "normal" else torch.rand(64, 7) * 2 - 1)
    converted = convert([save_state(network, tmp_path / "g.pth")])
    expect_same(converted, network)
    assert converted.generator.config["latent"] == latent
    told = any("the running statistics of its BatchNorms are" in note for note in converted.notes)
    assert told == (latent == "uniform" or slope is not None)
    given = convert([tmp_path / "g.pth"], latent="normal", activation="relu").generator.config
    assert (given["latent"], given["activation"]) == ("normal", "relu")


def test_statistics_that_nothing_explains_change_nothing(tmp_path):
    network = randomize_batchnorm(Named())  # arbitrary ones
    converted = convert([save_state(network, tmp_path / "g.pth")])
    assert not any("running statistics" in note for note in converted.notes)
    assert any("norm_eps 1e-05, activation relu, latent normal, stem_activation True" in n for n in converted.notes)


def test_a_configuration_is_compared_with_the_weights(tmp_path):
    network = randomize_batchnorm(Named())
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"latent_dim": 7, "num_channels": 3, "hidden_size": 4}')
    with pytest.raises(ValueError, match=r"unknown arguments 'hidden_size', 'num_channels'; .* `dcgan convert` may"):
        Generator.from_pretrained(tmp_path)
    expect_same(convert([tmp_path]), network)
    (tmp_path / "config.json").write_text('{"latent_dim": 9}')
    with pytest.raises(ValueError, match=r"already a network of this library"):
        convert([tmp_path])
    (tmp_path / "config.json").write_text('{"latent_dim": 9, "ngf": 4}')
    with pytest.raises(ValueError, match=r"its weights have latent_dim 7, and its config.json latent_dim 9"):
        convert([tmp_path])
    with pytest.raises(ValueError, match="the generator takes latents of length 7, not 8"):
        convert([tmp_path / "model.safetensors"], latent_dim=8)


class Settings:
    """A program's own object in a checkpoint, which is not unpickled."""

    def __init__(self):
        self.width = 4

    def __setstate__(self, state):
        raise AssertionError("a program's code ran")


@pytest.mark.parametrize("new", [True, False])
def test_objects_beside_the_weights_are_not_run(new, tmp_path):
    network = randomize_batchnorm(Named())
    checkpoint = {"options": Settings(), "netG": network.state_dict()}
    torch.save(checkpoint, tmp_path / "g.pth", _use_new_zipfile_serialization=new)
    expect_same(convert([tmp_path / "g.pth"]), network)
