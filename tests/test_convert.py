"""Conversion, tested by comparing outputs with the original networks."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from original_networks import (
    AuthorsDiscriminator,
    AuthorsGenerator,
    Linear5Generator,
    TutorialDiscriminator,
    TutorialGenerator,
    assert_same_outputs,
    estimate_statistics,
    original_pair,
    randomize_batchnorm,
    save_authors_arrays,
    save_state,
)
from torch import nn

import dcgan.convert as convert_module
from dcgan import Discriminator, Generator
from dcgan._config import pyramid
from dcgan.convert import convert, to_tutorial
from dcgan.convert._chains import find_chains, group_layers
from dcgan.convert._configs import infer_config
from dcgan.latents import seeded_latents

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
def test_converted_networks_compute_the_same_as_the_originals(layout, arguments, tmp_path):
    g, d = original_pair(layout, **arguments)
    files = [save_state(g, tmp_path / "netG_epoch_24.pth"), save_state(d, tmp_path / "netD_epoch_24.pth")]
    converted = convert(files)
    assert converted.layouts == {"Generator": "linear5" if layout == "linear5" else "plain", "Discriminator": "plain"}
    assert_same_outputs(converted, tmp_path / "out", g, d)
    assert not converted.generator.training
    assert converted.generator.config["latent"] == "normal"


@pytest.mark.parametrize(("layout", "arguments"), [CASES[0], CASES[5], CASES[7]], ids=str)
def test_full_width_networks_get_the_published_config(layout, arguments, tmp_path):
    c = 64 if layout == "tutorial" else 128
    with torch.device("meta"):
        g, d = original_pair(layout, c=c, z=100)
    for theirs, ours in ((g, Generator), (d, Discriminator)):
        state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.state_dict().items()}
        layers, ordered = group_layers(state, ordered=True)
        [chain], _ = find_chains(layers, ordered=ordered)
        config = infer_config(chain, None, authors=False)
        published = ours.from_architecture(layout).config
        assert pyramid(config) == pyramid(published)  # linear5 names the number of stages that it has by default, too
        assert {name: published[name] for name in config if name != "stages"}.items() <= config.items()
        assert ours.from_architecture(layout, **config | {"stages": published["stages"]}).config == published


def test_building_leaves_the_global_random_state_alone(tmp_path):
    files = [save_state(network, tmp_path / f"{i}.pth") for i, network in enumerate(original_pair("tutorial"))]
    state = torch.get_rng_state()
    convert(files)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layout", ["tutorial", "authors"])
def test_conversion_ignores_the_default_device_and_dtype(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_BATCHES", 1)
    if layout == "authors":
        files = [
            save_authors_arrays(tmp_path / "g.jl", AuthorsGenerator()),
            save_authors_arrays(tmp_path / "d.jl", AuthorsDiscriminator()),
        ]
    else:
        files = [save_state(network, tmp_path / f"{i}.pth") for i, network in enumerate(original_pair(layout))]
    expected = convert(files)
    with torch.device("meta"):
        on_meta = convert(files)
    torch.set_default_dtype(torch.float64)
    try:
        in_double = convert(files)
    finally:
        torch.set_default_dtype(torch.float32)
    for converted in (on_meta, in_double):
        for name in ("generator", "discriminator"):
            state = getattr(converted, name).state_dict()
            for key, tensor in getattr(expected, name).state_dict().items():
                assert (state[key].dtype, state[key].device) == (tensor.dtype, tensor.device)
                assert torch.equal(state[key], tensor)


def test_converted_tensors_are_copies_of_the_file(tmp_path):
    from safetensors.torch import save_file

    g, _ = original_pair("tutorial")
    save_file(g.state_dict(), tmp_path / "g.safetensors")
    converted = convert([tmp_path / "g.safetensors"]).generator
    save_file({k: torch.zeros_like(v) for k, v in g.state_dict().items()}, tmp_path / "zeros.safetensors")
    # Overwritten in place, where a mapped tensor would change.
    with (tmp_path / "g.safetensors").open("r+b") as file:
        file.write((tmp_path / "zeros.safetensors").read_bytes())
    z = torch.randn(3, 6)
    torch.testing.assert_close(converted(z), g(z), rtol=0, atol=1e-6)


def test_half_and_double_become_float32(tmp_path):
    g, _ = original_pair("tutorial")
    converted = convert([save_state(g.double(), tmp_path / "g.pth")])
    assert f"{tmp_path / 'g.pth'}: converted torch.float64 to float32" in converted.notes
    assert_same_outputs(converted, tmp_path / "out", g.float(), None)

    half = g.half()
    converted = convert([save_state(half, tmp_path / "g.pth")])
    assert f"{tmp_path / 'g.pth'}: converted torch.float16 to float32" in converted.notes
    assert_same_outputs(converted, tmp_path / "out", half.float(), None)


def test_options_override_the_assumptions(tmp_path):
    g, d = original_pair("linear5")
    files = [save_state(g, tmp_path / "g.pth"), save_state(d, tmp_path / "d.pth")]
    plain = convert(files)
    assert any(
        "norm_eps 1e-05, activation relu, latent normal, stem_activation False (as in linear5), output tanh" in note
        for note in plain.notes
    )
    assert any(
        "image_size 64, channels 3, base_channels 4, kernel_size 5, convs_per_stage 1" in note for note in plain.notes
    )
    converted = convert(files, latent="uniform", norm_eps=1e-3, stem_activation=True, output="sigmoid")
    expected = {"latent": "uniform", "norm_eps": 1e-3, "stem_activation": True, "output": "sigmoid"}
    assert expected.items() <= converted.generator.config.items()
    assert converted.discriminator.config["norm_eps"] == 1e-3
    assert any("latent uniform (given)" in note for note in converted.notes)


def test_image_size_of_a_linear_stem_can_be_given(tmp_path):
    g = randomize_batchnorm(Linear5Generator(size=64))  # 4×4 pixels are also 2×8
    path = save_state(g, tmp_path / "g.pth")
    converted = convert([path], image_size=(32, 128))
    assert converted.generator.sample(1, seed=0).shape == (1, 3, 32, 128)
    assert convert([path], image_size=64).generator.config["image_size"] == 64
    with pytest.raises(ValueError, match="its weights imply image_size 64x64, not 32x32"):
        convert([path], image_size=32)

    g.fc = nn.Linear(6, 32 * 3 * 5)
    path = save_state(g, tmp_path / "g.pth")
    with pytest.raises(
        ValueError, match=r"480 units of width 32 do not make a square feature map: pass image_size as \(height, width"
    ):
        convert([path])
    assert convert([path], image_size=(48, 80)).generator.config["image_size"] == [48, 80]

    g, _ = original_pair("tutorial")
    with pytest.raises(ValueError, match="g.pth: a Generator, but its weights imply image_size 64x64, not 128x128"):
        convert([save_state(g, tmp_path / "g.pth")], image_size=128)


def test_capped_widths_and_odd_kernels_are_inferred(tmp_path):
    layers = [nn.ConvTranspose2d(5, 8, (4, 6), bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for wide, narrow in ((8, 8), (8, 4)):
        layers += [nn.ConvTranspose2d(wide, narrow, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    g = randomize_batchnorm(
        nn.Sequential(nn.Unflatten(1, (5, 1, 1)), *layers, nn.ConvTranspose2d(4, 3, 5, 2, 2, 1, bias=False), nn.Tanh())
    )
    state = {f"main.{int(k.split('.')[0]) - 1}.{k.split('.')[1]}": v for k, v in g.state_dict().items()}
    torch.save(state, tmp_path / "g.pth")
    converted = convert([tmp_path / "g.pth"])
    assert_same_outputs(converted, tmp_path / "out", g, None)
    assert converted.generator.config["max_channels"] == 8
    assert converted.generator.config["image_size"] == [32, 48]


def save_and_die(converted, folder, operation):
    """Save a conversion in a process that kills itself at its nth file operation; exit 0 if there are fewer."""
    count = 0

    def hook(event, args):
        nonlocal count
        if event in {"open", "os.rename", "os.mkdir", "os.rmdir"} and str(folder.parent) in str(args[0]):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    converted.save(folder)


@pytest.mark.parametrize("exists", [False, True])
def test_a_kill_at_any_moment_leaves_a_pair_or_none(tmp_path, exists):
    g, d = original_pair("tutorial", stages=2)
    converted = convert([save_state(g, tmp_path / "g.pth"), save_state(d, tmp_path / "d.pth")])
    context, seen = multiprocessing.get_context("forkserver"), set()
    context.set_forkserver_preload(["dcgan.convert"])
    for operation in range(1, 60, 3):
        folder = tmp_path / str(operation) / "out"
        (folder if exists else folder.parent).mkdir(parents=True)
        process = context.Process(target=save_and_die, args=(converted, folder, operation))
        process.start()
        process.join(60)
        written = sorted(path.name for path in folder.rglob("*.*")) if folder.exists() else []
        assert written in ([], ["config.json"] * 2 + ["model.safetensors"] * 2)
        seen.add((bool(written), process.exitcode))
        if process.exitcode == 0:
            break
    assert {(False, -signal.SIGKILL), (True, 0)} <= seen


def test_a_conversion_replaces_networks_and_keeps_other_files(tmp_path):
    converted = convert([save_state(original_pair("tutorial", stages=2)[0], tmp_path / "g.pth")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    converted.save(tmp_path / "out")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    Generator.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.pth", "out"]


def test_no_files_are_refused():
    with pytest.raises(ValueError, match="files must name at least one file"):
        convert([])


def test_mismatched_networks_are_refused(tmp_path):
    g, d = original_pair("tutorial")[0], original_pair("tutorial", stages=3)[1]
    files = [save_state(g, tmp_path / "g.pth"), save_state(d, tmp_path / "d.pth")]
    with pytest.raises(
        ValueError, match=r"d.pth: a Discriminator, but its weights imply image_size 32x32, not 64x64: .* padded"
    ):
        convert(files)
    files[1] = save_state(original_pair("tutorial", k=1)[1], tmp_path / "d.pth")
    with pytest.raises(ValueError, match="the generator makes images of 3 channels, but the discriminator takes 1"):
        convert(files)
    with pytest.raises(ValueError, match="found 2 Generators"):
        convert([files[0], files[0]])


def test_layers_that_do_not_fit_together_are_refused(tmp_path):
    g, _ = original_pair("tutorial")
    g.main[3] = nn.ConvTranspose2d(32, 16, 3, 1, 1, bias=False)
    message = (
        r"g.pth: a Generator, but main.3.weight \(32, 16, 3, 3\) would need a kernel of 4x4, as most of its layers"
    )
    with pytest.raises(ValueError, match=message):
        convert([save_state(g, tmp_path / "g.pth")])
    g, _ = original_pair("tutorial")
    g.main[3], g.main[4] = nn.ConvTranspose2d(32, 20, 4, bias=False), nn.BatchNorm2d(20)
    g.main[6] = nn.ConvTranspose2d(20, 8, 4, bias=False)
    message = r"widths must double .*, got \[4, 8, 20, 32\]: main.6.weight \(20, 8, 4, 4\) would need 16 channels"
    with pytest.raises(ValueError, match=message):
        convert([save_state(g, tmp_path / "g.pth")])
    g, _ = original_pair("tutorial")
    g.main[1] = nn.InstanceNorm2d(32, affine=True)
    with pytest.raises(ValueError, match=r"main.1 has no running statistics: it is an instance, group or layer norm"):
        convert([save_state(g, tmp_path / "g.pth")])


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_the_tutorial_classes_load_the_exported_state(stages, tmp_path):
    g = randomize_batchnorm(Generator(image_size=4 * 2**stages, base_channels=3, latent_dim=6))
    d = randomize_batchnorm(Discriminator(image_size=4 * 2**stages, base_channels=3))
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


def test_round_trip_preserves_the_state_dict(tmp_path):
    g, d = original_pair("tutorial")
    converted = convert([save_state(g, tmp_path / "g.pth"), save_state(d, tmp_path / "d.pth")])
    for ours, theirs in ((converted.generator, g), (converted.discriminator, d)):
        state = to_tutorial(ours)
        assert list(state) == list(theirs.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("network_class", "arguments", "message"),
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
        (Generator, {"image_size": 28}, "a smallest feature map of 4x4, not 7x7"),
        (Generator, {"max_channels": 8}, r"widths that double, not \[4, 8, 8\]"),
    ],
)
def test_networks_the_tutorial_cannot_express_are_refused(network_class, arguments, message):
    network = network_class(**{"image_size": 32, "base_channels": 4, **arguments})
    with pytest.raises(ValueError, match=message):
        to_tutorial(network)


def test_unreached_channel_cap_is_allowed():
    assert "main.0.weight" in to_tutorial(Generator(image_size=32, base_channels=4, max_channels=16))
    assert "main.0.weight" in to_tutorial(Generator(image_size=32, base_channels=4, slope=0.3))  # of no LeakyReLU


@pytest.mark.parametrize(
    "arguments",
    [{}, {"stages": 4, "k": 1}, {"kernel": 3, "per_stage": 2, "c": 3}],
    ids=["svhn", "faces", "imagenet"],
)
def test_converted_authors_arrays_compute_the_same_as_theano(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_BATCHES", 2)
    theirs_g, theirs_d = AuthorsGenerator(**arguments), AuthorsDiscriminator(**arguments)
    files = [
        save_authors_arrays(tmp_path / "200_gen_params.jl", theirs_g),
        save_authors_arrays(tmp_path / "200_discrim_params.jl", theirs_d),
    ]
    size = 4 * 2 ** arguments.get("stages", 3)
    images = torch.rand(256, arguments.get("k", 3), size, size) * 2 - 1
    convert(files, images=images).save(tmp_path / "out")
    ours_g, ours_d = Generator.from_pretrained(tmp_path / "out"), Discriminator.from_pretrained(tmp_path / "out")
    assert ours_g.config["latent"] == ("normal" if not arguments else "uniform")

    latents = seeded_latents(256, 5, seed=0, distribution=ours_g.config["latent"]).split(128)
    with torch.no_grad():
        for ours, theirs, batches, own in (
            (ours_g, theirs_g, latents, latents[0][:40]),
            (ours_d, theirs_d, images.split(128), images[:40]),
        ):
            torch.testing.assert_close(
                ours(own), theirs(own, estimate_statistics(theirs, batches)), rtol=2e-4, atol=2e-5
            )
            ours.train()
            torch.testing.assert_close(ours(own), theirs(own), rtol=2e-4, atol=2e-5)


def test_authors_discriminator_alone_needs_images(tmp_path):
    path = save_authors_arrays(tmp_path / "d.jl", AuthorsDiscriminator())
    with pytest.raises(ValueError, match="d.jl has no BatchNorm statistics: pass its generator too, or images"):
        convert([path])
    converted = convert([path], images=torch.rand(50, 3, 32, 32))
    assert converted.generator is None
    assert any("estimated from 50 given images" in note for note in converted.notes)


@pytest.fixture(scope="module")
def checkpoints():
    folder = Path(os.environ.get("DCGAN_TEST_CHECKPOINTS", Path(__file__).parents[2] / "shared/checkpoints"))
    if not (folder / "svhn").is_dir():
        pytest.skip(f"no checkpoints in {folder}; DCGAN_TEST_CHECKPOINTS names another folder")
    return folder


def test_published_svhn_checkpoint(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_BATCHES", 4)
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
