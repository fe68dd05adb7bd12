"""Every field of a recipe reaches what it is for."""

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dcgan import Discriminator, Generator, Trainer, _build, checkpoint, data
from dcgan.architectures import ARCHITECTURES
from dcgan.recipe import Recipe

RECIPE = Recipe(
    data="cifar10",
    root=Path("root"),
    classes=("a",),
    image_size=(32, 48),
    channels=1,
    resize="squash",
    flip=True,
    cache=False,
    cache_dir=Path("cache"),
    workers=3,
    skip_bad=True,
    max_pixels=10,
    latent_dim=7,
    base_channels=5,
    d_base_channels=6,
    max_channels=9,
    kernel_size=3,
    stages=2,
    convs_per_stage=2,
    stem="linear",
    stem_norm="unit",
    stem_activation=False,
    bias=True,
    norm="batch",
    d_norm="instance",
    norm_eps=1e-3,
    activation="leaky-relu",
    d_activation="relu",
    slope=0.3,
    d_slope=0.4,
    output="sigmoid",
    upsample="resize",
    latent="uniform",
    batch_size=4,
    loss="least-squares",
    lr=3e-4,
    g_lr=1e-4,
    d_lr=4e-4,
    beta1=0.1,
    beta2=0.2,
    weight_decay=0.3,
    d_steps=2,
    schedule="alternate",
    label_smoothing=0.4,
    gradient_penalty=0.5,
    r1=0.6,
    augment=("cutout",),
    ema_decay=0.7,
    precision="bf16",
    compile="graph",
    seed=8,
    steps=10,
)


def test_networks_are_what_the_recipe_says():
    recipe, generator, discriminator = _build.build_networks(RECIPE)
    assert recipe == RECIPE.resolve()
    shared = {
        "image_size": [32, 48],
        "channels": 1,
        "max_channels": 9,
        "kernel_size": 3,
        "stages": 2,
        "convs_per_stage": 2,
        "stem": "linear",
        "bias": True,
        "norm_eps": 1e-3,
        "num_classes": None,
    }
    own = {"base_channels": 5, "norm": "batch", "activation": "leaky-relu", "slope": 0.3}
    further = {"latent_dim": 7, "stem_norm": "unit", "stem_activation": False, "upsample": "resize"}
    assert generator.config == shared | own | further | {"output": "sigmoid", "latent": "uniform"}
    own = {"base_channels": 6, "norm": "instance", "activation": "relu", "slope": 0.4}
    assert discriminator.config == shared | own


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whatever_a_network_can_be_has_a_field(name):
    """Every argument of every published pair, written out over an architecture that has another one."""
    published = [network.from_architecture(name).config for network in (Generator, Discriminator)]
    values = published[0] | {f"d_{argument}": value for argument, value in published[1].items()}
    names = {field.name for field in fields(Recipe)}
    assert (published[0].keys() | published[1].keys()) - {"num_classes"} <= names  # of the data, for a conditional run
    recipe = Recipe(architecture="paper", **{field: value for field, value in values.items() if field in names})
    built = _build.build_networks(recipe.replace(stages=recipe.stages or 4 - (recipe.image_size == 32)))[1:]
    for network, config in zip(built, published, strict=True):
        assert network.config | {"stages": config["stages"]} == config


def test_what_only_one_network_is_told_does_not_reach_the_other():
    _, *networks = _build.build_networks(Recipe(slope=0.1, norm="layer"))
    assert [(n.config["slope"], n.config["norm"], n.config["activation"]) for n in networks] == [
        (0.1, "layer", "relu"),
        (0.1, "layer", "leaky-relu"),
    ]
    _, *networks = _build.build_networks(Recipe(d_slope=0.1, activation="leaky-relu"))
    assert [(n.config["slope"], n.config["activation"]) for n in networks] == [(0.2, "leaky-relu"), (0.1, "leaky-relu")]


@pytest.mark.parametrize(("output", "low"), [("sigmoid", 0), ("tanh", -1)])
def test_a_discriminator_sees_both_kinds_of_images_in_the_range_of_the_output(output, low):
    recipe, generator, discriminator = _build.build_networks(Recipe(base_channels=2, output=output))
    seen = []
    discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0].aminmax()))
    trainer = _build.build_trainer(recipe.replace(augment=()), generator, discriminator)
    trainer.step(torch.tensor([0, 255], dtype=torch.uint8).repeat(4, 1, 32, 16))
    (real, *fakes) = seen
    assert [value.item() for value in real] == [low, 1]
    assert all(low <= lowest.item() < highest.item() <= 1 for lowest, highest in fakes)


@pytest.mark.parametrize(("chosen", "default", "size"), [(None, 128, 60), (None, 32, 32), (None, 60, 60), (50, 50, 50)])
def test_a_default_batch_is_no_larger_than_the_dataset(chosen, default, size, caplog):
    caplog.set_level("INFO")
    images = data.from_dataset(
        torch.utils.data.TensorDataset(torch.zeros(60, 1, 8, 8, dtype=torch.uint8)), image_size=8
    )
    assert _build.fit_batch_size(Recipe(batch_size=default), chosen, images).batch_size == size
    said = ["batches of 60 images, as many as there are, instead of 128"]
    assert [record.getMessage() for record in caplog.records if record.name == "dcgan._build"] == said[
        : size != default
    ]
    with pytest.raises(ValueError, match="batch_size must be at most the number of images, 60, got 61"):
        _build.fit_batch_size(Recipe(batch_size=61), 61, images)


def test_the_trainer_gets_every_setting(monkeypatch):
    got = {}
    monkeypatch.setattr(_build, "Trainer", lambda *networks, **settings: got.update(settings))
    _build.build_trainer(RECIPE, None, None)
    assert got == {
        "loss": "least-squares",
        "lr": 3e-4,
        "g_lr": 1e-4,
        "d_lr": 4e-4,
        "betas": (0.1, 0.2),
        "weight_decay": 0.3,
        "d_steps": 2,
        "schedule": "alternate",
        "label_smoothing": 0.4,
        "gradient_penalty": 0.5,
        "r1": 0.6,
        "augmentations": ("cutout",),
        "ema_decay": 0.7,
        "precision": "bf16",
        "compile": "graph",
        "seed": 8,
    }


def test_the_dataset_is_opened_as_the_recipe_says(monkeypatch):
    got = {}
    original = data.load

    def load(name, **settings):
        got.update(settings, name=name)
        return original("digits", image_size=8)

    monkeypatch.setattr(data, "load", load)
    _build.open_images(RECIPE, progress=print)
    assert got == {
        "name": "cifar10",
        "root": Path("root"),
        "image_size": (32, 48),
        "channels": 1,
        "resize": "squash",
        "classes": ("a",),
        "cache": False,
        "cache_dir": Path("cache"),
        "workers": 3,
        "skip_bad": True,
        "max_pixels": 10,
        "progress": print,
    }


def test_no_field_is_left_out_above():
    default = Recipe()
    loose = {"architecture", "generator", "discriminator", "epochs", "device"}  # tested with runs and the command line
    loose |= {
        "conditional",
        "lr_decay",
        "log_every",
        "sample_every",
        "save_every",
        "eval_every",
        "keep",
        "samples",
        "log",
        "on_collapse",
        "sync_batchnorm",
    }
    same = {field.name for field in fields(Recipe) if getattr(RECIPE, field.name) == getattr(default, field.name)}
    assert same == loose


@pytest.mark.parametrize("where", ["meta", "float64", "cuda"])
def test_fresh_weights_are_a_function_of_the_seed_alone(where):
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    recipe = Recipe(base_channels=2, image_size=16, channels=1, seed=3)
    _, *expected = _build.build_networks(recipe)
    state = torch.get_rng_state()
    if where == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        with nullcontext() if where == "float64" else torch.device(where):
            _, *networks = _build.build_networks(recipe)
        assert torch.get_default_dtype() == (torch.float64 if where == "float64" else torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    for network, other in zip(networks, expected, strict=True):
        for name, tensor in network.state_dict().items():
            assert (tensor.dtype, tensor.device) == (other.state_dict()[name].dtype, torch.device("cpu"))
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_discriminator_does_not_follow_the_width_of_a_loaded_generator(tmp_path):
    Generator(image_size=16, channels=1, base_channels=6).save_pretrained(tmp_path)
    recipe = Recipe(generator=str(tmp_path), image_size=16)
    resolved, _, discriminator = _build.build_networks(recipe)
    assert (resolved.base_channels, resolved.d_base_channels, discriminator.config["base_channels"]) == (6, 32, 32)
    resolved, _, discriminator = _build.build_networks(recipe.replace(base_channels=6))
    assert (resolved.d_base_channels, discriminator.config["base_channels"]) == (6, 6)


@pytest.mark.parametrize("average", [0.9, None])
def test_a_run_begins_from_a_state_with_its_moments_and_an_average_of_its_own(tmp_path, average):
    torch.manual_seed(0)
    networks = [network(image_size=16, base_channels=2) for network in (Generator, Discriminator)]
    old = Trainer(*networks, ema_decay=average)
    old.step(torch.zeros(4, 3, 16, 16))
    state = {"trainer": old.state_dict(), "images": 4, "sums": {}, "counts": {}}
    for network in networks:
        network.save_pretrained(tmp_path)
    path = str(checkpoint.save(tmp_path / "state", state, step=1))
    recipe = Recipe(generator=path, discriminator=path, ema_decay=None if average else 0.9, image_size=16)
    recipe, generator, discriminator = _build.build_networks(recipe)
    new = _build.build_trainer(recipe, generator, discriminator)
    _build.adopt_state(recipe, new)
    assert (new.steps, new.ema is None) == (0, average is not None)
    for part in ("generator", "discriminator"):
        assert all(torch.equal(t, state["trainer"][part][n]) for n, t in getattr(new, part).state_dict().items())
    assert len(new.g_optimizer.state) == len(old.g_optimizer.state) > 0


def test_networks_of_different_states_come_without_moments(tmp_path):
    recipe = Recipe(generator="a/state/step-000001.pt", discriminator="b/state/step-000001.pt")
    _build.adopt_state(recipe, None)
    _build.adopt_state(Recipe(generator="organisation/name", discriminator="organisation/name"), None)


def test_devices_that_are_not_there_are_refused():
    assert _build.select_device("cpu").type == "cpu"
    for name in ("meta", "nonsense", "cpu:x"):
        with pytest.raises(ValueError, match=f"device '{name}' is not available"):
            _build.select_device(name)
