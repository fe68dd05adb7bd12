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
    "rasbt": (["dcgan_celeba.pt"], "dcgan_celeba", IMAGES, LOGITS, LEAKY_001),
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
    "csinva, 28": (
        "netD_mnist.pth",
        {},
        r"images are 32x32 if main.8.* covers the last map, and 28x28 if it is padded",
    ),
    "csinva, 28 given": ("netD_mnist.pth", {"image_size": 28}, r"not 28x28: for that, main.8.* would be padded"),
    "csinva, 34x45": ("netD_cifar100_rect.pth", {"image_size": (34, 45)}, "imply image_size 32x32, not 34x45"),
    "csinva, cifar100": ("netG_cifar100.pth", {}, r"main.12.weight \(2, 1, 1, 1\) would need a kernel of 4x4"),
    "csinva, rect": ("netG_cifar100_rect.pth", {}, r"main.9.weight \(4, 2, 5, 5\) would need a kernel of 4x4"),
    "csinva, mnist": ("netG_mnist.pth", {}, r"main.12.weight \(2, 1, 1, 1\) would need a kernel of 4x4"),
    "pytorch_gan_zoo": ("DCGAN_as_saved.pth", {}, r"found 2 Generators, .*: .*, netG; .*, avgG"),
    "pytorch_gan_zoo, average and net": ("DCGAN_without_config.pth", {}, r"found 2 Generators, .*: .*, netG; .*, avgG"),
    "rasbt": ("dcgan_celeba.pt", {}, "two classes of rasbt's have these names: .*pass slope 0.2; .*and slope 0.01"),
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
    if case == "mmgen":  # which reads pictures as OpenCV does: its demo reverses the channels before it saves them
        data[IMAGES] = data[IMAGES].flip(1)
        assert any("channels reversed: mmgeneration reads pictures as BGR" in note for note in converted.notes)
    if case.startswith("wassersteingan"):  # whose critic's loss is that of real images less that of generated ones
        data[logits] = -data[logits]
        assert any("sign reversed" in note for note in converted.notes)
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
            infer_config(chain, None, authors=False)
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


def encoder(*widths, last=None):
    """Plain convolutions that halve, with ReLU."""
    layers = []
    for c_in, c_out in pairwise(widths):
        layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, *([last] if last else []))


def decoder(*widths):
    layers = []
    for c_in, c_out in pairwise(widths):
        layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def normalised(*norms):
    """A discriminator of equal widths, whose layers at these places are normalised."""
    d = nn.Module()
    for i in range(4):
        d.add_module(f"conv{i}", nn.Conv2d(3 if i == 0 else 8, 8, 4, 2, 1))
        if i in norms:
            d.add_module(f"bn{i}", nn.BatchNorm2d(8))
    d.head = nn.Conv2d(8, 1, 4)
    return d


def changed(change):
    """The tutorial's generator, whose state dict `change` changes."""
    state = randomize_batchnorm(TutorialGenerator()).state_dict()
    change(state)
    return state


class Scaled(nn.Module):
    """A layer whose weights are scaled when it is used, as with an equalised learning rate."""

    def __init__(self, module):
        super().__init__()
        self.module = module


OTHER_NETWORKS = {
    "an encoder": (encoder(3, 4, 8), "it may be an encoder or a classifier"),
    "a classifier": (
        encoder(3, 4, 8, last=nn.Conv2d(8, 11, 4, bias=False)),
        r"4.weight \(11, 8, 4, 4\) is last, and would need to make one logit",
    ),
    "an autoencoder": (
        nn.ModuleDict({"encoder": encoder(3, 8, 16), "decoder": decoder(16, 8, 3)}),
        r"a Generator, but encoder.0.weight .* beside it may be a part of it; if it is none, pass the key 'decoder'",
    ),
    "an autoencoder inside a generator": (
        nn.ModuleDict({"generator": nn.ModuleDict({"encoder": encoder(3, 8, 16), "decoder": decoder(16, 8, 3)})}),
        r"a Generator, but generator.encoder.0.weight .* beside it may be a part of it",
    ),
    "what comes after": (
        nn.ModuleDict({"generator": TutorialGenerator(), "to_rgb": nn.Conv2d(3, 3, 1)}),
        r"a Generator, but to_rgb.weight .* beside it may be a part of it",
    ),
    "instance norms": (
        nn.Sequential(
            *(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1), nn.InstanceNorm2d(8)),
            *(nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(16, 32, 4, 2, 1), nn.InstanceNorm2d(32), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 4)),
        ),
        "leave room for normalisations without weights, such as InstanceNorm",
    ),
    "spectral norms": (
        nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 1, 4))),
        r"1.bias \(1,\) is no convolution of images",
    ),
    "an equalised rate": (
        nn.Sequential(Scaled(nn.ConvTranspose2d(5, 8, 4)), Scaled(nn.ConvTranspose2d(8, 3, 4, 2, 1))),
        "0.module.weight .* is wrapped by itself, by something that may scale it",
    ),
    "norms elsewhere": (normalised(0, 1, 2), "bn0 is not defined right after conv1, its layer"),
    "a norm left out": (
        normalised(1, 2),
        "it has 2 normalisations, and would need one after every layer but the first",
    ),
    "many layers": (encoder(*[3 * 2**i for i in range(12)], last=nn.Conv2d(6144, 1, 4, bias=False)), "images of"),
    "a lost gain": (changed(lambda s: s.pop("main.4.weight")), "main.4 has only bias, running_mean, running_var of a"),
    "a lost variance": (
        changed(lambda s: s.pop("main.4.running_var")),
        "main.4 has only bias, running_mean, weight of",
    ),
    "lost buffers": (
        {k: v for k, v in TutorialGenerator().state_dict().items() if "running" not in k},
        "main.1 has no running statistics: .* or a BatchNorm saved without its buffers",
    ),
    "a lost bias": (
        {k: v for k, v in TutorialGenerator(bias=True).state_dict().items() if k != "main.3.bias"},
        "main.3 has no bias, but others of its normalised layers have",
    ),
    "not a number": (
        changed(lambda s: s["main.6.weight"].view(-1)[3].fill_(np.nan)),
        "main.6.weight holds NaN or infinity",
    ),
    "a negative variance": (changed(lambda s: s["main.4.running_var"].neg_()), "main.4.running_var is negative"),
    "integers": (
        changed(lambda s: s.update({"main.3.weight": s["main.3.weight"].char()})),
        "main.3.weight is torch.int8",
    ),
    "sparse": (
        changed(lambda s: s.update({"main.3.weight": s["main.3.weight"].to_sparse()})),
        "3.weight is sparse|[Ss]parse (tensor )?invariant",
    ),
    "empty": (
        {"0.weight": torch.zeros(64, 0), "1.weight": torch.zeros(8, 3, 4, 4)},
        r"0.weight \(64, 0\) is no convol",
    ),
    "noise beside": (
        changed(lambda s: s.update(fixed_noise=torch.zeros(4, 6))),
        r"tell what fixed_noise \(4, 6\) beside",
    ),
}


@pytest.mark.parametrize("case", OTHER_NETWORKS)
def test_other_networks_are_not_taken_for_ours(case, tmp_path):
    network, message = OTHER_NETWORKS[case]
    state = network if isinstance(network, dict) else network.state_dict()
    torch.save(state, tmp_path / "n.pth")
    with pytest.raises(ValueError, match=message):
        convert([tmp_path / "n.pth"])


def test_a_discriminator_that_is_not_understood_stands_beside(tmp_path):
    d = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 1, 4)))
    torch.save({"netG": TutorialGenerator().state_dict(), "netD": d.state_dict()}, tmp_path / "n.pth")
    converted = convert([tmp_path / "n.pth"])
    assert converted.generator is not None
    assert any("ignored 0.weight (4, 3, 4, 4)" in note for note in converted.notes)


def test_a_slope_needs_leaky_relu(tmp_path):
    path = save_state(TutorialGenerator(), tmp_path / "g.pth")
    with pytest.raises(ValueError, match=r"a slope, 0.01, needs the activation leaky-relu"):
        convert([path], slope=0.01)


def test_a_part_beside_can_be_declared_none(tmp_path):
    both = nn.ModuleDict({"encoder": encoder(3, 8, 16), "decoder": decoder(16, 8, 3)})
    torch.save(both.state_dict(), tmp_path / "n.pth")
    assert convert([tmp_path / "n.pth"], keys=["decoder"]).generator.config["latent_dim"] == 16


@pytest.mark.parametrize(
    ("kernel", "padding", "units", "other"),
    [(5, 2, 4, "28x28 if its layers round"), (4, 1, 3, "28x28 if its layers round")],
)
def test_a_size_that_rounding_leaves_open_is_asked_for(kernel, padding, units, other, tmp_path):
    convs = [nn.Conv2d(c_in, c_out, kernel, 2, padding) for c_in, c_out in pairwise((1, 4, 8, 16))]
    layers = [layer for conv in convs for layer in (conv, nn.LeakyReLU(0.2))]
    d = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * units**2, 1))
    path = save_state(d, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=other):
        convert([path])
    size = 8 * units
    converted = convert([path], image_size=size).discriminator
    x = torch.randn(2, 1, size, size)
    torch.testing.assert_close(converted(x), d(x)[:, 0], rtol=0, atol=1e-6)


def test_a_file_that_holds_itself_and_one_that_chains_in_many_ways_are_soon_refused(tmp_path):
    holder = {"netG": TutorialGenerator().state_dict()}
    holder["self"] = holder
    torch.save(holder, tmp_path / "g.pth")
    assert convert([tmp_path / "g.pth"]).generator is not None
    shapes = {f"l{i}.weight": torch.zeros(2, 2, 1, i + 1) for i in range(24)}  # all follow each other
    save_file(shapes | {"dead.weight": torch.zeros(5, 7, 1, 1)}, tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match="recognised no network"):
        convert([tmp_path / "n.safetensors"])


def test_half_and_single_precision_in_one_file_are_read(tmp_path):
    network = randomize_batchnorm(Named())
    state = {k: v.half() if v.dim() == 4 else v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "g.pth")
    converted = convert([tmp_path / "g.pth"])
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    expect_same(converted, network)


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
    assert any("no assumption explains the running statistics" in note for note in converted.notes)
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


def test_the_other_class_of_rasbt_is_the_tutorials(foreign):
    converted = convert([foreign / "rasbt/dcgan_celeba.pt"], slope=0.2)
    activations = [(network["activation"], network["slope"]) for network in configs(converted)]
    assert activations == [("relu", 0.2), ("leaky-relu", 0.2)]


def configs(converted):
    return converted.generator.config, converted.discriminator.config


def test_statistics_that_were_never_computed_are_estimated(tmp_path):
    torch.manual_seed(0)
    network = Named()
    expect_same(convert([save_state(network, tmp_path / "untrained.pth")]), network)
    for name in ("norm_a", "norm_b", "norm_c"):  # as the average of the weights alone has them
        nn.init.normal_(getattr(network, name).bias, 0, 0.02)
    converted = convert([save_state(network, tmp_path / "g.pth")])
    assert any("BatchNorm statistics estimated from 32 batches of 128 normal latents" in n for n in converted.notes)
    assert not any("no assumption explains" in note for note in converted.notes)
    z = torch.randn(512, 7)
    with torch.no_grad():
        torch.testing.assert_close(converted.generator(z), network.train()(z), rtol=0, atol=0.05)


class Criterion:
    """The settings of pytorch_GAN_zoo, which are kept as an object."""

    def __init__(self, loss):
        self.lossCriterion = loss


@pytest.mark.parametrize("new", [True, False])
def test_settings_that_change_the_network_are_read_without_running_anything(new, tmp_path):
    network = randomize_batchnorm(Named())
    for loss in ("DCGAN", "WGANGP"):
        checkpoint = {"config": Criterion(loss), "netG": network.state_dict()}
        torch.save(checkpoint, tmp_path / f"{loss}.pth", _use_new_zipfile_serialization=new)
    expect_same(convert([tmp_path / "DCGAN.pth"]), network)
    with pytest.raises(ValueError, match=r"WGANGP.pth: its settings say lossCriterion WGANGP, .* no last activation"):
        convert([tmp_path / "WGANGP.pth"])


class Settings:
    """A program's own object in a checkpoint, which is not unpickled."""

    def __getstate__(self):
        return (1, 2)

    def __setstate__(self, state):
        raise AssertionError("a program's code ran")


@pytest.mark.parametrize("new", [True, False])
def test_objects_beside_the_weights_are_not_run(new, tmp_path):
    network = randomize_batchnorm(Named())
    checkpoint = {"options": Settings(), "loss": np.float64(0.3), "netG": network.state_dict()}
    torch.save(checkpoint, tmp_path / "g.pth", _use_new_zipfile_serialization=new)
    expect_same(convert([tmp_path / "g.pth"]), network)
