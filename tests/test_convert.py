"""Conversion, proved by outputs: the originals are written out with the attribute names that their keys come from."""

import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu, pad

import dcgan.convert as converting
from dcgan import Discriminator, Generator
from dcgan.convert import _layouts, convert, estimate_statistics, to_tutorial


class TutorialGenerator(nn.Module):
    """PyTorch's example, with as many stages as there are widths; the blog's version calls it `features`."""

    def __init__(self, c=4, k=3, z=6, stages=4, bias=False, name="main", size=4):
        super().__init__()
        widths = [c * 2**i for i in range(stages)][::-1]
        layers = [nn.ConvTranspose2d(z, widths[0], size, 1, 0, bias=bias), nn.BatchNorm2d(widths[0]), nn.ReLU(True)]
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=bias), nn.BatchNorm2d(narrow), nn.ReLU(True)]
        self.name = name
        self.add_module(name, nn.Sequential(*layers, nn.ConvTranspose2d(c, k, 4, 2, 1, bias=bias), nn.Tanh()))

    def forward(self, z):
        return getattr(self, self.name)(z[:, :, None, None])


class TutorialDiscriminator(nn.Module):
    def __init__(self, c=4, k=3, stages=4, bias=False, name="main", size=4):
        super().__init__()
        widths = [c * 2**i for i in range(stages)]
        layers = [nn.Conv2d(k, c, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2, inplace=True)]
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=bias), nn.BatchNorm2d(wide)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.name = name
        self.add_module(name, nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, size, 1, 0, bias=bias), nn.Sigmoid()))

    def forward(self, image):
        return getattr(self, self.name)(image).view(-1)


class Linear5Generator(nn.Module):
    def __init__(self, c=4, k=3, z=6, size=64):
        super().__init__()
        self.side = size // 16
        self.fc = nn.Linear(z, 8 * c * self.side**2)
        layers = [nn.BatchNorm2d(8 * c)]
        for wide, narrow in ((8, 4), (4, 2), (2, 1)):
            layers += [nn.ConvTranspose2d(wide * c, narrow * c, 5, 2, 2, output_padding=1), nn.BatchNorm2d(narrow * c)]
            layers += [nn.ReLU()]
        self.convs = nn.Sequential(*layers, nn.ConvTranspose2d(c, k, 5, 2, 2, output_padding=1), nn.Tanh())

    def forward(self, z):
        h = self.fc(z)
        return self.convs(h.view(len(h), -1, self.side, self.side))


class Linear5Discriminator(nn.Module):
    def __init__(self, c=4, k=3, size=64):
        super().__init__()
        layers = [nn.Conv2d(k, c, 5, 2, 2), nn.LeakyReLU(0.2)]
        for narrow, wide in ((1, 2), (2, 4), (4, 8)):
            layers += [nn.Conv2d(narrow * c, wide * c, 5, 2, 2), nn.BatchNorm2d(wide * c), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * c * (size // 16) ** 2, 1), nn.Sigmoid())

    def forward(self, image):
        return self.model(image).view(-1)


def trained(network):
    """Weights and statistics as a trained network might have them, in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            module.num_batches_tracked += 7
    return network.eval()


def saved(network, path, wrap=lambda state: state):
    torch.save(wrap(network.state_dict()), path)
    return path


@torch.no_grad()
def assert_same(converted, folder, theirs_g, theirs_d):
    """Both networks, saved and loaded, give the images and the logits of the originals."""
    converted.save(folder)
    if theirs_g is not None:
        ours = Generator.from_pretrained(folder)
        z = torch.randn(3, ours.config["latent_dim"])
        torch.testing.assert_close(ours(z), theirs_g(z), rtol=0, atol=1e-6)
    if theirs_d is not None:
        ours = Discriminator.from_pretrained(folder)
        image = torch.rand(3, *theirs_d.shape) * 2 - 1
        torch.testing.assert_close(ours.probability(image), theirs_d(image), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours(image), theirs_d(image).logit(), rtol=1e-4, atol=1e-5)


def pair(layout, **arguments):
    shared = {name: value for name, value in arguments.items() if name != "z"}
    if layout == "linear5":
        g, d = Linear5Generator(**arguments), Linear5Discriminator(**shared)
        size = arguments.get("size", 64)
    else:
        if layout == "biased":
            arguments, shared = (
                arguments | {"bias": True, "name": "features"},
                shared | {"bias": True, "name": "features"},
            )
        g, d = TutorialGenerator(**arguments), TutorialDiscriminator(**shared)
        size = arguments.get("size", 4) * 2 ** arguments.get("stages", 4)
    d.shape = (arguments.get("k", 3), size, size)
    return trained(g), trained(d)


CASES = [
    ("tutorial", {}),
    ("tutorial", {"stages": 3, "k": 1, "z": 11}),
    ("tutorial", {"stages": 5, "c": 3}),
    ("tutorial", {"stages": 2, "size": 7, "k": 1}),
    ("tutorial", {"stages": 1, "size": 8}),
    ("biased", {}),
    ("biased", {"stages": 3, "c": 5}),
    ("linear5", {}),
    ("linear5", {"size": 96, "c": 2, "z": 3, "k": 1}),
    ("linear5", {"size": 16}),
]


@pytest.mark.parametrize(("layout", "arguments"), CASES, ids=str)
def test_a_converted_pair_gives_the_images_and_logits_of_the_original(layout, arguments, tmp_path):
    g, d = pair(layout, **arguments)
    files = [saved(g, tmp_path / "netG_epoch_24.pth"), saved(d, tmp_path / "netD_epoch_24.pth")]
    converted = convert(files)
    assert converted.layouts == {"Generator": layout, "Discriminator": layout}
    assert_same(converted, tmp_path / "out", g, d)
    assert not converted.generator.training
    assert converted.generator.config["latent"] == "normal"


@pytest.mark.parametrize(("layout", "arguments"), [CASES[0], CASES[5], CASES[7]], ids=str)
def test_full_width_networks_have_the_arguments_of_the_published_ones(layout, arguments, tmp_path):
    c = 64 if layout == "tutorial" else 128
    with torch.device("meta"):
        g, d = pair(layout, c=c, z=100)
    for theirs, ours in ((g, Generator), (d, Discriminator)):
        state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.state_dict().items()}
        found = _layouts._match("", "", next(iter(_layouts._groups(Path(), state).values())))
        config = converting._inferred(found, None)
        config |= converting._assumed(found, config)
        published = ours.from_architecture(layout).config
        assert {name: published[name] for name in config} == config
        assert ours(**config).config == published


# Where state dicts are found


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", ["tutorial", "linear5"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "generator.module."]
)
def test_wrappers_are_looked_through(layout, prefix, tmp_path):
    g, _ = pair(layout)
    converted = convert([saved(g, tmp_path / "g.pth", prefixed(prefix))])
    assert_same(converted, tmp_path / "out", g, None)
    assert converted.discriminator is None


def test_wrappers_in_the_middle_are_looked_through(tmp_path):
    g, _ = pair("tutorial")
    path = saved(g, tmp_path / "g.pth", lambda s: {k.replace("main.", "main.module."): v for k, v in s.items()})
    assert_same(convert([path]), tmp_path / "out", g, None)


def test_wrapped_modules_as_torch_saves_them(tmp_path):
    g, _ = pair("tutorial")
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(g), use_buffers=True)
    assert {"n_averaged", "module.module.main.0.weight"} <= average.state_dict().keys()
    assert_same(convert([saved(average, tmp_path / "g.pth")]), tmp_path / "out", g, None)


CHECKPOINTS = {
    "names of the tutorial": lambda g, d: {"epoch": 3, "netG": g, "netD": d, "loss": [0.5, 0.1]},
    "long names": lambda g, d: {"generator_state_dict": g, "discriminator_state_dict": d},
    "nested": lambda g, d: {"state": {"models": [d, g]}, "args": {"lr": 2e-4}},
    "tuple": lambda g, d: (g, d),
    "lightning": lambda g, d: {
        "state_dict": {
            **prefixed("generator.")(g),
            **prefixed("discriminator.module.")(d),
            "metric.inception.conv.weight": torch.zeros(3, 3),
        },
        "global_step": 7,
    },
}


@pytest.mark.parametrize("shape", CHECKPOINTS)
@pytest.mark.parametrize("layout", ["tutorial", "biased", "linear5"])
def test_checkpoints_with_both_networks_give_both(shape, layout, tmp_path):
    g, d = pair(layout)
    torch.save(CHECKPOINTS[shape](g.state_dict(), d.state_dict()), tmp_path / "last.ckpt")
    converted = convert([tmp_path / "last.ckpt"])
    assert_same(converted, tmp_path / "out", g, d)
    if shape == "lightning":
        assert any("left out state_dict.metric.inception.conv.weight (3, 3)" in note for note in converted.notes)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_with_one_network_and_its_optimiser(key, tmp_path):
    g, _ = pair("tutorial")
    optimizer = torch.optim.Adam(g.parameters())
    g(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    torch.save({key: g.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "c.pt")
    assert_same(convert([tmp_path / "c.pt"]), tmp_path / "out", g, None)


def test_of_several_networks_a_key_names_one(tmp_path):
    (g, d), (averaged, _) = pair("tutorial"), pair("tutorial")
    state = {"netG": g.state_dict(), "netG_ema": averaged.state_dict(), "netD": d.state_dict()}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"found 2 Generators, give one file or the key of one: .*c.pt, netG; .*netG_ema"
    ):
        convert([tmp_path / "c.pt"])
    with pytest.raises(ValueError, match=r"keys must be among 'netD', 'netG', 'netG_ema', got 'ema'"):
        convert([tmp_path / "c.pt"], keys=["ema"])
    assert_same(convert([tmp_path / "c.pt"], keys=["netG_ema"]), tmp_path / "out", averaged, d)

    torch.save({**state, "netD_ema": d.state_dict()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="found 2 Discriminators"):
        convert([tmp_path / "c.pt"], keys=["netG_ema"])
    assert_same(convert([tmp_path / "c.pt"], keys=["netG", "netD"]), tmp_path / "out", g, d)


def test_safetensors_of_a_foreign_layout(tmp_path):
    from safetensors.torch import save_file

    g, _ = pair("biased")
    save_file(g.state_dict(), tmp_path / "g.safetensors")
    assert_same(convert([tmp_path / "g.safetensors"]), tmp_path / "out", g, None)


def test_files_from_before_pytorch_1_6_and_0_4(tmp_path):
    g, d = pair("tutorial")
    state = {name: tensor for name, tensor in g.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "g.pth", _use_new_zipfile_serialization=False)
    converted = convert([tmp_path / "g.pth", saved(d, tmp_path / "d.pth")])
    assert_same(converted, tmp_path / "out", g, d)
    counts = [
        {v.item() for k, v in net.state_dict().items() if "num_batches" in k}
        for net in (converted.generator, converted.discriminator)
    ]
    assert counts == [{0}, {7}]


def test_other_floating_point_types_become_float32(tmp_path):
    g, _ = pair("tutorial")
    converted = convert([saved(g.double(), tmp_path / "g.pth")])
    assert f"{tmp_path / 'g.pth'}: turned torch.float64 into float32" in converted.notes
    assert_same(converted, tmp_path / "out", g.float(), None)

    half = g.half()
    converted = convert([saved(half, tmp_path / "g.pth")])
    assert f"{tmp_path / 'g.pth'}: turned torch.float16 into float32" in converted.notes
    assert_same(converted, tmp_path / "out", half.float(), None)


# What is inferred and what is assumed


def test_a_latents_distribution_and_the_like_can_be_given(tmp_path):
    g, d = pair("linear5")
    files = [saved(g, tmp_path / "g.pth"), saved(d, tmp_path / "d.pth")]
    plain = convert(files)
    assert any(
        "latent normal, stem_activation False, output tanh, norm_eps 1e-05, ReLU" in note for note in plain.notes
    )
    assert any("image_size 64, channels 3, base_channels 4, kernel_size 5, stages 4" in note for note in plain.notes)
    converted = convert(files, latent="uniform", norm_eps=1e-3, stem_activation=True, output="sigmoid")
    expected = {"latent": "uniform", "norm_eps": 1e-3, "stem_activation": True, "output": "sigmoid"}
    assert expected.items() <= converted.generator.config.items()
    assert converted.discriminator.config["norm_eps"] == 1e-3
    assert any("latent uniform (given)" in note for note in converted.notes)


def test_the_image_size_of_a_linear_stem_can_be_given(tmp_path):
    g = trained(Linear5Generator(size=64))  # 4×4 pixels are also 2×8
    path = saved(g, tmp_path / "g.pth")
    converted = convert([path], image_size=(32, 128))
    assert converted.generator.sample(1, seed=0).shape == (1, 3, 32, 128)
    assert convert([path], image_size=64).generator.config["image_size"] == 64
    with pytest.raises(ValueError, match="its weights lead to image_size 64x64, got 32"):
        convert([path], image_size=32)

    g.fc = nn.Linear(6, 32 * 3 * 5)
    path = saved(g, tmp_path / "g.pth")
    with pytest.raises(
        ValueError, match=r"480 units of width 32 make no square map: image_size must be \(height, width"
    ):
        convert([path])
    assert convert([path], image_size=(48, 80)).generator.config["image_size"] == [48, 80]

    g, _ = pair("tutorial")
    with pytest.raises(
        ValueError, match="g.pth: a Generator of layout tutorial, but its weights lead to image_size 64x64"
    ):
        convert([saved(g, tmp_path / "g.pth")], image_size=128)


def test_capped_widths_and_odd_kernels_are_read_off_the_shapes(tmp_path):
    layers = [nn.ConvTranspose2d(5, 8, (4, 6), bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for wide, narrow in ((8, 8), (8, 4)):
        layers += [nn.ConvTranspose2d(wide, narrow, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    g = trained(
        nn.Sequential(nn.Unflatten(1, (5, 1, 1)), *layers, nn.ConvTranspose2d(4, 3, 5, 2, 2, 1, bias=False), nn.Tanh())
    )
    state = {f"main.{int(k.split('.')[0]) - 1}.{k.split('.')[1]}": v for k, v in g.state_dict().items()}
    torch.save(state, tmp_path / "g.pth")
    converted = convert([tmp_path / "g.pth"])
    assert_same(converted, tmp_path / "out", g, None)
    assert converted.generator.config["max_channels"] == 8
    assert converted.generator.config["image_size"] == [32, 48]


# What is refused


def test_no_file_is_too_few():
    with pytest.raises(ValueError, match="files must name at least one file"):
        convert([])


def test_networks_that_are_no_pair_are_refused(tmp_path):
    g, d = pair("tutorial")[0], pair("tutorial", stages=3)[1]
    files = [saved(g, tmp_path / "g.pth"), saved(d, tmp_path / "d.pth")]
    with pytest.raises(ValueError, match=r"the generator makes images of \(3, 64, 64\), but .* takes \(3, 32, 32\)"):
        convert(files)
    with pytest.raises(ValueError, match="found 2 Generators"):
        convert([files[0], files[0]])


class Foreign(nn.Module):
    """A discriminator whose first layer is normalised too, so that its places are those of a generator."""

    def __init__(self):
        super().__init__()
        layers = []
        for c_in, c_out in pairwise((3, 4, 8, 16, 32)):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(32, 1, 4))


def test_an_unknown_layout_is_answered_with_its_shapes(tmp_path):
    message = (
        r"f.pth: recognised no network in main.0.bias \(4,\), main.0.weight \(4, 3, 4, 4\), .* and 18 more; "
        r"known are the tutorial's layout \(main.0.weight"
    )
    with pytest.raises(ValueError, match=message):
        convert([saved(Foreign(), tmp_path / "f.pth")])
    torch.save({"epoch": 3, "lr": torch.tensor(1.0)}, tmp_path / "e.pth")
    with pytest.raises(ValueError, match=r"e.pth: recognised no network in a file without weights; known are"):
        convert([tmp_path / "e.pth"])


def test_a_network_with_more_to_it_is_refused(tmp_path):
    g, _ = pair("tutorial")
    g.label = nn.Embedding(10, 6)
    with pytest.raises(ValueError, match=r"g.pth: recognised a Generator, but not label.weight \(10, 6\) beside it"):
        convert([saved(g, tmp_path / "g.pth")])


def test_layers_that_do_not_fit_each_other_are_refused(tmp_path):
    g, _ = pair("tutorial")
    g.main[3] = nn.ConvTranspose2d(32, 16, 3, 1, 1, bias=False)
    with pytest.raises(
        ValueError, match=r"layout tutorial does not fit .*: misshapen blocks.8x8.conv.weight \(32, 16, 3, 3"
    ):
        convert([saved(g, tmp_path / "g.pth")])
    g, _ = pair("tutorial")
    g.main[3], g.main[4], g.main[6] = nn.ConvTranspose2d(32, 20, 4), nn.BatchNorm2d(20), nn.ConvTranspose2d(20, 8, 4)
    with pytest.raises(ValueError, match=r"but its widths must double .*, got \[4, 8, 20, 32\]"):
        convert([saved(g, tmp_path / "g.pth")])
    g, _ = pair("tutorial")
    g.main[1] = nn.InstanceNorm2d(32, affine=True)
    with pytest.raises(ValueError, match=r"missing blocks.4x4.norm.running_mean, blocks.4x4.norm.running_var"):
        convert([saved(g, tmp_path / "g.pth")])


def test_our_own_files_need_no_conversion(tmp_path):
    Generator(image_size=16, base_channels=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors is a network of this library already"):
        convert([tmp_path / "model.safetensors"])
    with pytest.raises(ValueError, match=r"is a network of this library already"):
        convert([tmp_path])


def test_the_same_layer_twice_is_refused(tmp_path):
    g, _ = pair("tutorial")
    with pytest.raises(ValueError, match=r"g.pth holds module.main.0.weight twice, with and without"):
        convert([saved(g, tmp_path / "g.pth", lambda state: {**state, **prefixed("module.")(state)})])


def test_whole_modules_are_refused_with_what_to_do(tmp_path):
    network = Foreign()
    for new in (True, False):
        torch.save(network, tmp_path / "netG.pth", _use_new_zipfile_serialization=new)
        message = (
            r"netG.pth holds a whole pickled module or other objects \(.*Foreign.*\), .* torch.save\(network.state_dict"
        )
        with pytest.raises(ValueError, match=message):
            convert([tmp_path / "netG.pth"])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_zip(path, evil):
    torch.save({"netG": evil}, path)


def write_old(path, evil):
    torch.save({"netG": evil}, path, _use_new_zipfile_serialization=False)


def write_pickle(path, evil):
    path.write_bytes(pickle.dumps(evil))


def write_array(path, evil):
    with path.open("wb") as file:
        np.save(file, np.array([evil], dtype=object))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.pth", write_zip),
        ("a.pth", write_old),
        ("a.pth", write_pickle),
        ("a.safetensors", write_pickle),
        ("a.jl_01.npy", write_array),
        ("a.jl_01.npy", write_pickle),
    ],
)
def test_pickles_are_never_executed(name, write, tmp_path):
    write(tmp_path / name, Malicious(tmp_path / "pwned"))
    with pytest.raises(ValueError, match=name):
        convert([tmp_path / name])
    assert not (tmp_path / "pwned").exists()


def test_the_malice_of_these_pickles_is_real(tmp_path):
    write_zip(tmp_path / "a.pth", Malicious(tmp_path / "pwned"))
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_the_authors_pickle_stays_closed(tmp_path):
    write_pickle(tmp_path / "a.jl", Malicious(tmp_path / "pwned"))
    with pytest.raises(FileNotFoundError, match=r"has no numbered arrays, a.jl_01.npy and so on"):
        convert([tmp_path / "a.jl"])
    write_authors(tmp_path / "a.jl", AuthorsGenerator())
    assert convert([tmp_path / "a.jl"]).generator is not None
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_truncated_files_are_named(part, new, tmp_path):
    path = tmp_path / "netG.pth"
    torch.save(pair("tutorial")[0].state_dict(), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"netG.pth is not a whole file of torch.save"):
        convert([path])


def test_rubbish_is_named(tmp_path):
    for name, content, message in (
        ("a.pth", b"<html>not found</html>", "a.pth is not a whole file of torch.save"),
        ("b.safetensors", b"rubbish", "b.safetensors is not a whole safetensors file"),
        ("c_01.npy", b"", "c_01.npy is not a whole array of numbers"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            convert([tmp_path / name])
    for name in ("missing.pth", "missing.safetensors", "missing.jl", "missing_01.npy"):
        with pytest.raises(FileNotFoundError, match="missing"):
            convert([tmp_path / name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no numbered arrays, NAME_01.npy and so on"):
        convert([tmp_path / "empty"])


# And back


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_the_tutorials_classes_load_what_is_converted_back(stages, tmp_path):
    g = trained(Generator(image_size=4 * 2**stages, base_channels=3, latent_dim=6))
    d = trained(Discriminator(image_size=4 * 2**stages, base_channels=3))
    theirs_g, theirs_d = TutorialGenerator(c=3, stages=stages), TutorialDiscriminator(c=3, stages=stages)
    for ours, theirs, name in ((g, theirs_g, "netG.pth"), (d, theirs_d, "netD.pth")):
        torch.save(to_tutorial(ours), tmp_path / name)
        state = torch.load(tmp_path / name, weights_only=True)
        assert list(state) == list(theirs.state_dict())
        theirs.load_state_dict(state, strict=True)
        theirs.eval()
    z, image = torch.randn(3, 6), torch.rand(3, 3, 4 * 2**stages, 4 * 2**stages)
    with torch.no_grad():
        torch.testing.assert_close(theirs_g(z), g(z), rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs_d(image), d.probability(image), rtol=0, atol=1e-6)


def test_there_and_back_is_the_same_file(tmp_path):
    g, d = pair("tutorial")
    converted = convert([saved(g, tmp_path / "g.pth"), saved(d, tmp_path / "d.pth")])
    for ours, theirs in ((converted.generator, g), (converted.discriminator, d)):
        state = to_tutorial(ours)
        assert list(state) == list(theirs.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Generator, {"kernel_size": 5}, "the tutorial's Generator has kernel_size 4, not 5"),
        (
            Discriminator,
            {"bias": True, "norm": "layer"},
            "Discriminator has bias False, not True; norm 'batch', not 'layer'",
        ),
        (Generator, {"stem": "linear"}, "stem 'conv', not 'linear'"),
        (Generator, {"norm_eps": 1e-8}, "norm_eps 1e-05, not 1e-08"),
        (
            Generator,
            {"output": "sigmoid", "upsample": "resize"},
            "upsample 'transpose', not 'resize'; output 'tanh', not",
        ),
        (Discriminator, {"convs_per_stage": 2}, "convs_per_stage 1, not 2"),
        (Generator, {"image_size": 28}, "a smallest map of 4x4, not 7x7"),
        (Generator, {"max_channels": 8}, r"widths that double, not \[4, 8, 8\]"),
    ],
)
def test_what_the_tutorial_cannot_express_is_refused(kind, arguments, message):
    network = kind(**{"image_size": 32, "base_channels": 4, **arguments})
    with pytest.raises(ValueError, match=message):
        to_tutorial(network)


def test_a_cap_that_caps_nothing_is_no_obstacle():
    assert "main.0.weight" in to_tutorial(Generator(image_size=32, base_channels=4, max_channels=16))


# The authors' arrays: Theano's operations are written from their definition, without PyTorch's convolutions.


def theano_conv(x, w, stride, padding):
    """Convolution proper: out[o, y, x] sums w[o, c, u, v] of what lies u up and v left of the window's far corner."""
    k = w.shape[-1]
    x = pad(x, [padding] * 4)
    rows, columns = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    out = 0
    for u in range(k):
        for v in range(k):
            window = x[:, :, k - 1 - u :, k - 1 - v :][:, :, ::stride, ::stride][:, :, :rows, :columns]
            out = out + torch.einsum("nchw,oc->nohw", window, w[:, :, u, v])
    return out


def theano_deconv(x, w, stride, padding):
    """The gradient of a convolution towards its input, as the authors' `deconv` is defined."""
    image = torch.zeros(len(x), w.shape[1], x.shape[2] * stride, x.shape[3] * stride, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(theano_conv(image, w, stride, padding), image, x)[0]


def batchnorm(x, g, b, statistics):
    """With the batch's own mean and biased variance, or with those of `statistics`, which it takes off the front."""
    dims = [0, 2, 3][: x.dim() - 1]
    shape = [1, -1, 1, 1][: x.dim()]
    if isinstance(statistics, list) and statistics:
        mean, var = (value.view(shape) for value in statistics.pop(0))
    else:
        mean = x.mean(dims, keepdim=True)
        var = ((x - mean) ** 2).mean(dims, keepdim=True)
    SEEN.append((mean.flatten(), var.flatten()))
    return (x - mean) / torch.sqrt(var + 1e-8) * g.view(shape) + b.view(shape)


SEEN = []


class AuthorsGenerator:
    def __init__(self, c=2, k=3, z=5, stages=3, kernel=5, per_stage=1):
        widths = [c * 2**i for i in range(stages)][::-1]
        layers = [(widths[0], widths[0], 2)] if per_stage == 2 else []
        for wide, narrow in pairwise([*widths, k]):
            layers += [(wide, narrow, 2)] if per_stage == 1 else [(wide, narrow, 1), (narrow, narrow, 2)]
        layers = layers[:-1] if per_stage == 2 else layers
        self.c, self.pad, self.strides = widths[0], kernel // 2, [stride for *_, stride in layers]
        units = widths[0] * 16
        self.params = [torch.randn(z, units), *gains(units)]
        for c_in, c_out, _ in layers:
            self.params += [torch.randn(c_in, c_out, kernel, kernel) * 0.3, *gains(c_out)]
        self.params = self.params[:-2]

    def __call__(self, z, statistics=None):
        params = iter(self.params)
        h = batchnorm(z @ next(params), next(params), next(params), statistics).relu().view(len(z), self.c, 4, 4)
        for stride in self.strides[:-1]:
            h = theano_deconv(h, next(params), stride, self.pad)
            h = batchnorm(h, next(params), next(params), statistics).relu()
        return theano_deconv(h, next(params), self.strides[-1], self.pad).tanh()


class AuthorsDiscriminator:
    def __init__(self, c=2, k=3, stages=3, kernel=5, per_stage=1):
        widths = [c * 2**i for i in range(stages)]
        layers = []
        for narrow, wide in pairwise([k, *widths]):
            layers += [(narrow, wide, 2)] if per_stage == 1 else [(narrow, wide, 1), (wide, wide, 2)]
        self.pad, self.strides = kernel // 2, [stride for *_, stride in layers]
        self.params = []
        for c_in, c_out, _ in layers:
            self.params += [torch.randn(c_out, c_in, kernel, kernel) * 0.3, *gains(c_out)]
        del self.params[1:3]
        self.params.append(torch.randn(widths[-1] * 16, 1))

    def __call__(self, image, statistics=None):
        params = iter(self.params)
        h = leaky_relu(theano_conv(image, next(params), self.strides[0], self.pad), 0.2)
        for stride in self.strides[1:]:
            h = theano_conv(h, next(params), stride, self.pad)
            h = leaky_relu(batchnorm(h, next(params), next(params), statistics), 0.2)
        return (h.flatten(1) @ next(params))[:, 0]


def gains(n):
    return [torch.randn(n) * 0.2 + 1, torch.randn(n) * 0.2]


def write_authors(path, network):
    for i, array in enumerate(network.params, 1):
        np.save(f"{path}_{i:02d}.npy", array.numpy())
    return path


def frozen(network, batches):
    """The authors' `infer_bnorm_stats`: means over batches of each batch's mean and biased variance."""
    runs = []
    for batch in batches:
        SEEN.clear()
        network(batch)
        runs.append(list(SEEN))
    return [tuple(sum(values) / len(runs) for values in zip(*layer, strict=True)) for layer in zip(*runs, strict=True)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"stages": 4, "k": 1}, {"kernel": 3, "per_stage": 2, "c": 3}],
    ids=["svhn", "faces", "imagenet"],
)
def test_the_authors_arrays_give_the_authors_images_and_logits(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_BATCHES", 2)
    theirs_g, theirs_d = AuthorsGenerator(**arguments), AuthorsDiscriminator(**arguments)
    files = [
        write_authors(tmp_path / "200_gen_params.jl", theirs_g),
        write_authors(tmp_path / "200_discrim_params.jl", theirs_d),
    ]
    size = 4 * 2 ** arguments.get("stages", 3)
    images = torch.rand(256, arguments.get("k", 3), size, size) * 2 - 1
    convert(files, images=images).save(tmp_path / "out")
    ours_g, ours_d = Generator.from_pretrained(tmp_path / "out"), Discriminator.from_pretrained(tmp_path / "out")
    assert ours_g.config["latent"] == ("normal" if not arguments else "uniform")

    latents = converting.seeded_latents(256, 5, seed=0, distribution=ours_g.config["latent"]).split(128)
    with torch.no_grad():
        for ours, theirs, batches, own in (
            (ours_g, theirs_g, latents, latents[0][:40]),
            (ours_d, theirs_d, images.split(128), images[:40]),
        ):
            torch.testing.assert_close(ours(own), theirs(own, frozen(theirs, batches)), rtol=2e-4, atol=2e-5)
            ours.train()
            torch.testing.assert_close(ours(own), theirs(own), rtol=2e-4, atol=2e-5)


def test_authors_arrays_are_found_by_folder_by_pickle_and_by_array(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_BATCHES", 1)
    write_authors(tmp_path / "200_gen_params.jl", AuthorsGenerator())
    write_authors(tmp_path / "200_discrim_params.jl", AuthorsDiscriminator())
    folder = convert([tmp_path])
    assert folder.layouts == {"Generator": "authors", "Discriminator": "authors"}
    named = convert([tmp_path / "200_gen_params.jl", tmp_path / "200_discrim_params.jl_03.npy"])
    for ours, again in ((folder.generator, named.generator), (folder.discriminator, named.discriminator)):
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())
    assert any("statistics estimated over 1 batches of 128 normal latents" in note for note in folder.notes)
    assert any("statistics estimated over 128 generated images, 128 at a time" in note for note in folder.notes)
    assert convert([tmp_path], latent="uniform").generator.config["latent"] == "uniform"


def test_an_authors_discriminator_alone_needs_images(tmp_path):
    path = write_authors(tmp_path / "d.jl", AuthorsDiscriminator())
    with pytest.raises(ValueError, match="d.jl has no running statistics: give its generator too, or images"):
        convert([path])
    converted = convert([path], images=torch.rand(50, 3, 32, 32))
    assert converted.generator is None
    assert any("estimated over 50 given images" in note for note in converted.notes)


def test_authors_arrays_that_do_not_add_up_are_refused(tmp_path):
    write_authors(tmp_path / "g.jl", AuthorsGenerator())
    (tmp_path / "g.jl_10.npy").unlink()
    with pytest.raises(
        ValueError, match=r"g.jl: recognised no network of the paper's authors in 01 \(5, 128\), 02 \(128,"
    ):
        convert([tmp_path / "g.jl"])
    (tmp_path / "g.jl_04.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"of .*g.jl_NN.npy the numbers 4 are missing"):
        convert([tmp_path / "g.jl"])
    write_authors(tmp_path / "g.jl", AuthorsGenerator())
    np.save(tmp_path / "g.jl_02.npy", np.array(["text"]))
    with pytest.raises(ValueError, match=r"g.jl_02.npy is not a whole array of numbers"):
        convert([tmp_path / "g.jl"])


def test_arrays_of_either_byte_order_and_memory_order_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_BATCHES", 1)
    network = AuthorsGenerator()
    expected = convert([write_authors(tmp_path / "g.jl", network)]).generator.state_dict()
    for i, array in enumerate(network.params, 1):
        np.save(tmp_path / f"g.jl_{i:02d}.npy", np.asfortranarray(array.numpy().astype(">f4")))
    again = convert([tmp_path / "g.jl"]).generator.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_statistics_are_averages_over_batches_and_leave_the_modes_alone():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    network[0].eval()
    batches = [torch.randn(8, 3) * (i + 1) + i for i in range(4)]
    estimate_statistics(network, batches)
    assert [module.training for module in network] == [False, True, True]
    torch.testing.assert_close(network[0].running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    variance = torch.stack([x.var(0, correction=0) for x in batches]).mean(0)
    torch.testing.assert_close(network[0].running_var, variance)
    assert not network[0]._forward_pre_hooks
    with pytest.raises(ValueError, match="statistics need at least one batch"):
        estimate_statistics(network, [])


@pytest.fixture(scope="module")
def checkpoints():
    folder = Path(os.environ.get("DCGAN_TEST_CHECKPOINTS", Path(__file__).parents[2] / "shared/checkpoints"))
    if not (folder / "svhn").is_dir():
        pytest.skip(f"no checkpoints in {folder}; DCGAN_TEST_CHECKPOINTS names another folder")
    return folder


def test_the_authors_house_numbers(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_BATCHES", 4)
    converted = convert([checkpoints / "svhn"])
    assert converted.generator.config == Generator.from_architecture("svhn").config
    assert converted.discriminator.config == Discriminator.from_architecture("svhn").config
    converted.save(tmp_path)

    theirs = AuthorsGenerator(c=64, z=100)
    files = sorted((checkpoints / "svhn").glob("200_gen_params*.npy"))
    theirs.params = [torch.from_numpy(np.load(file)) for file in files]
    ours = Generator.from_pretrained(tmp_path)
    z = torch.randn(128, 100)
    with torch.no_grad():
        estimated = ours(z)
        assert (ours.train()(z) - estimated).abs().mean() < 0.05  # running statistics stand in for the batch's own
        torch.testing.assert_close(ours(z[:16]), theirs(z[:16]), rtol=0, atol=1e-4)
