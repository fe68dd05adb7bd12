"""The recipes with names: ours are the defaults of their datasets, and the published ones are as published."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from dcgan import recipe as recipe_module
from dcgan._build import build_networks
from dcgan.architectures import ARCHITECTURES
from dcgan.cli import _recipes
from dcgan.recipe import Recipe, list_recipes, load_recipe, read_fields

FOLDER = Path(recipe_module.__file__).with_name("recipes")
NAMES = list(list_recipes())
PUBLISHED = ["tutorial", "biased", "linear5", "paper-faces", "paper-svhn", "paper-imagenet32"]
OURS = ["digits", "mnist", "fashion-mnist", "cifar10", "svhn", "faces"]

# What is published, written out again.
_ALL = {
    "channels": 3,
    "resize": "crop",
    "flip": False,
    "latent_dim": 100,
    "loss": "non-saturating",
    "lr": 0.0002,
    "lr_decay": 0,
    "beta1": 0.5,
    "beta2": 0.999,
    "d_steps": 1,
    "precision": "fp32",
    "label_smoothing": 0,
    "gradient_penalty": 0,
    "r1": 0,
    "augment": (),
    "ema_decay": None,
}
_PYTORCH = _ALL | {
    "data": "celeba",
    "image_size": 64,
    "latent": "normal",
    "epochs": 25,
    "batch_size": 128,
    "weight_decay": 0,
    "schedule": "together",
}
_AUTHORS = _ALL | {"weight_decay": 0.00001, "schedule": "alternate"}
FIGURES = {
    "tutorial": _PYTORCH | {"architecture": "tutorial", "base_channels": 64, "d_base_channels": 64, "epochs": 5},
    "biased": _PYTORCH | {"architecture": "biased", "base_channels": 128, "d_base_channels": 128},
    "linear5": _PYTORCH | {"architecture": "linear5", "base_channels": 128, "d_base_channels": 128},
    "paper-faces": _AUTHORS
    | {"data": "celeba", "architecture": "paper", "image_size": 64, "base_channels": 128, "d_base_channels": 128}
    | {"latent": "uniform", "batch_size": 128, "epochs": 25},
    "paper-svhn": _AUTHORS
    | {"data": "svhn", "architecture": "svhn", "image_size": 32, "base_channels": 64, "d_base_channels": 64}
    | {"latent": "normal", "batch_size": 64, "epochs": 200, "lr": 0.0005},
    "paper-imagenet32": _AUTHORS
    | {"data": "imagenet", "architecture": "imagenet32", "image_size": 32, "base_channels": 128}
    | {"d_base_channels": 128, "latent": "uniform", "latent_dim": 256, "batch_size": 128, "epochs": 30},
}
PARAMETERS = {  # of the generator and of the discriminator
    "tutorial": (3_576_704, 2_765_568),
    "biased": (12_660_355, 11_038_081),
    "linear5": (18_872_323, 17_234_689),
    "paper-faces": (18_885_760, 17_232_768),
    "paper-svhn": (1_446_976, 1_033_664),
    "paper-imagenet32": (6_690_688, 4_586_112),
}


def written_in(name):
    return read_fields((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_file_is_listed_with_a_line_that_describes_it():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.iterdir())
    assert NAMES == OURS + PUBLISHED
    for description in list_recipes().values():
        assert 15 < len(description) < 90
        assert "\n" not in description


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_to_a_whole_and_its_networks_are_built(name):
    recipe = load_recipe(name).resolve()
    assert recipe.architecture in ARCHITECTURES
    assert recipe.resolve() == recipe
    built, generator, discriminator = build_networks(recipe)
    assert built == recipe
    for network, width in ((generator, recipe.base_channels), (discriminator, recipe.d_base_channels)):
        config = network.config
        expected = (recipe.image_size, recipe.channels, width)
        assert (config["image_size"], config["channels"], config["base_channels"]) == expected
    if name in PUBLISHED:
        counts = tuple(sum(p.numel() for p in network.parameters()) for network in (generator, discriminator))
        assert counts == PARAMETERS[name]
        assert (generator.config["latent"], generator.config["latent_dim"]) == (recipe.latent, recipe.latent_dim)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_as_published(name):
    recipe = load_recipe(name).resolve()
    assert {field: getattr(recipe, field) for field in FIGURES[name]} == FIGURES[name]
    # What the table does not give, such as how often to save, has its default.
    assert set(recipe.changes(Recipe())) <= FIGURES[name].keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_leaves_nothing_to_defaults_of_ours(name):
    # The channels follow the dataset, and the discriminator's width the generator's, on the command line too.
    assert written_in(name).keys() == FIGURES[name].keys() - {"channels", "d_base_channels"}


@pytest.mark.parametrize("name", sorted(set(OURS) - {"faces"}))
def test_a_dataset_and_its_recipe_are_the_same(name):
    assert Recipe(data=name).resolve() == load_recipe(name).resolve()
    # Options have their defaults where they are None, so that only these can depend on the dataset.
    optional = {field.name for field in fields(Recipe) if field.default is None}
    assert written_in(name).keys() <= optional | {"data"}


def test_the_defaults_of_a_dataset_are_those_of_its_file(monkeypatch, tmp_path):
    (tmp_path / "mnist.yaml").write_text("{description: x, data: mnist, batch-size: 7, steps: 9, base_channels: 24}")
    monkeypatch.setattr(recipe_module, "_FOLDER", tmp_path)
    recipe_module._dataset_defaults.cache_clear()
    try:
        recipe = Recipe(data="mnist").resolve()
        assert (recipe.batch_size, recipe.steps, recipe.epochs) == (7, 9, None)
        assert (recipe.base_channels, recipe.d_base_channels, recipe.image_size) == (24, 24, 64)
        assert recipe == load_recipe("mnist").resolve()
        recipe = Recipe(data="mnist", epochs=2, architecture="imagenet32").resolve()
        assert (recipe.steps, recipe.epochs) == (None, 2)
        assert (recipe.base_channels, recipe.d_base_channels, recipe.image_size) == (128, 128, 32)
    finally:
        recipe_module._dataset_defaults.cache_clear()


def test_a_recipe_is_found_by_its_name_or_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mnist").write_text("data: cifar10")
    Path("mine").write_text("data: svhn")
    assert load_recipe("mnist").data == "mnist"
    assert load_recipe(Path("mnist")).data == load_recipe("./mnist").data == "cifar10"
    assert load_recipe("mine").data == "svhn"
    assert load_recipe(os.fspath(tmp_path / "mine")) == Recipe(data="svhn")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cifar", ValueError, "recipe must be a file or one of digits, mnist, .*, paper-imagenet32, got 'cifar'"),
        ("folder", ValueError, "recipe must be a file or one of digits, .*, got 'folder'"),
        ("cifar.yaml", FileNotFoundError, "there is no recipe file cifar.yaml"),
        ("runs/cifar", FileNotFoundError, "there is no recipe file runs.cifar"),
        (Path("digits"), FileNotFoundError, "there is no recipe file digits"),
        ("empty.yaml", ValueError, "empty.yaml: not a recipe: it sets no field"),
        ("odd.yaml", ValueError, "odd.yaml: not a recipe: line 1: there is no field 'learning_rate'"),
        ("word.yaml", ValueError, "word.yaml: not a recipe: line 1: lr must be a number or auto, got 'fast'"),
        (
            "size.yaml",
            ValueError,
            "size.yaml: not a recipe: line 1: image size must be SIDE or HEIGHTxWIDTH, got 3x4x5",
        ),
        ("bytes.yaml", ValueError, "bytes.yaml: not a recipe: line 1 is not text in UTF-8"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.yaml").write_text("# nothing\n")
    Path("odd.yaml").write_text("learning-rate: 1")
    Path("word.yaml").write_text("lr: fast")
    Path("size.yaml").write_text("image_size: 3x4x5")
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(error, match=message):
        load_recipe(name)


def test_a_description_is_no_field(tmp_path):
    text = yaml.safe_dump({"description": "mine", "steps": 3})
    assert Recipe.from_yaml(text) == Recipe(steps=3)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml") == Recipe(steps=3)


def test_the_documented_table_is_that_of_the_command():
    text = (Path(__file__).parents[1] / "docs/cli.md").read_text(encoding="utf-8")
    rows = [
        ("| name", *_recipes._HEADINGS[1:]),
        *((f"| `{name}`", *_recipes._summarize(load_recipe(name).resolve()), list_recipes()[name]) for name in NAMES),
    ]
    assert [row for row in map(" | ".join, rows) if f"{row} |\n" not in text] == []
