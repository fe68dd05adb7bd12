"""Recipes: defaults, YAML both ways, and the command line over both."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcgan import cli
from dcgan._choices import ArchitectureName, AugmentationName, DatasetName, Precision
from dcgan.architectures import ARCHITECTURES
from dcgan.cli import _train
from dcgan.recipe import Recipe, load_recipe

count = st.integers(1, 10**6)
ratio = st.floats(0, 0.99)
name = st.text("abcdefghij-/. 0123:#'é", min_size=1, max_size=12).filter(lambda text: not text.startswith("-"))
norms = st.sampled_from(["batch", "instance", "layer", "none", None])
recipes = st.builds(
    Recipe,
    data=st.sampled_from(get_args(DatasetName)),
    root=st.none() | st.just(Path("a folder/of pictures")),
    classes=st.lists(st.sampled_from(["bedroom", "church_outdoor"]), max_size=2, unique=True).map(tuple),
    image_size=st.none() | count | st.tuples(count, count),
    channels=st.sampled_from([1, 3, 4, None]),
    flip=st.booleans(),
    workers=st.none() | st.integers(0, 9),
    architecture=st.sampled_from(get_args(ArchitectureName)),
    base_channels=st.none() | count,
    d_base_channels=st.none() | count,
    kernel_size=st.sampled_from([3, 4, 5, None]),
    bias=st.none() | st.booleans(),
    norm=norms,
    d_norm=norms,
    steps=st.none() | count,
    lr=st.floats(1e-9, 1e3) | st.just("auto"),
    lr_decay=st.floats(0, 1),
    r1=ratio,
    augment=st.none() | st.lists(st.sampled_from(get_args(AugmentationName)), unique=True).map(tuple),
    ema_decay=st.none() | ratio,
    precision=st.sampled_from(get_args(Precision)),
    seed=st.integers(0, 2**40),
)


def printed(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["train", "--print-recipe", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_fields_may_be_as_yaml_has_them():
    written = Recipe(data="folder", root="faces", image_size="48x80", steps="7", augment="shift", flip="true").resolve()
    assert (written.root, written.image_size, written.steps) == (Path("faces"), (48, 80), 7)
    assert (written.augment, written.flip) == (("shift",), True)
    assert Recipe.from_yaml(written.to_yaml()) == written
    numbers = Recipe(seed=np.int64(3), lr=np.float64(1e-3), steps=7.0, flip=np.True_).resolve()
    assert Recipe.from_yaml(numbers.to_yaml()) == numbers
    assert [type(value) for value in (numbers.seed, numbers.lr, numbers.steps, numbers.flip)] == [int, float, int, bool]
    for field, value in {"steps": 2.5, "flip": "no", "on_collapse": "exit", "keep": "all", "log": "board"}.items():
        with pytest.raises(ValueError, match=f"{field} must be .*, got .*{value}"):
            Recipe(**{field: value}).resolve()


@settings(deadline=None)
@given(recipes)
def test_yaml_holds_a_recipe_exactly(recipe):
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@settings(deadline=None)
@given(recipes)
def test_a_resolved_recipe_is_resolved(recipe):
    resolved = recipe.resolve()
    assert resolved.resolve() == resolved
    for field in ("image_size", "channels", "base_channels", "d_base_channels", "batch_size"):
        assert getattr(resolved, field) is not None
    assert (resolved.steps is None) != (resolved.epochs is None)
    assert all(getattr(recipe, field) is None for field in resolved.changes(recipe))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


@settings(deadline=None, max_examples=15)
@given(recipes)
def test_a_printed_recipe_read_again_is_the_same(file, recipe):
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_train, "say", said.append)
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(file) == recipe
        assert cli.main(["train", "--recipe", str(file), "--print-recipe"]) == 0
        file.write_text(said[0], encoding="utf-8")
        assert load_recipe(file) == recipe.resolve()
        assert cli.main(["train", "--config", str(file), "--print-recipe"]) == 0
    assert Recipe.from_yaml(said[0]) == Recipe.from_yaml(said[1]) == recipe.resolve()


@settings(deadline=None, max_examples=15, phases=[Phase.generate])
@given(recipes)
def test_options_are_what_sets_the_fields_on_the_command_line(recipe):
    recipe, said = dataclasses.replace(recipe, epochs=None), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_train, "say", said.append)
        assert cli.main(["train", *recipe.options(["data", *recipe.changes(Recipe())]), "--print-recipe"]) == 0
    assert Recipe.from_yaml(said[0]).resolve() == recipe.resolve()


SMALL = {"digits", "mnist", "fashion-mnist", "cifar10", "svhn"}


@pytest.mark.parametrize("data", get_args(DatasetName))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_dataset_and_architecture_resolves(data, architecture):
    recipe = Recipe(data=data, architecture=architecture).resolve()
    small = data in SMALL or "image_size" in ARCHITECTURES[architecture]
    assert recipe.image_size == (32 if small else 64)
    assert recipe.channels == (1 if data in {"digits", "mnist", "fashion-mnist"} else 3)
    width = ARCHITECTURES[architecture].get("base_channels")
    assert recipe.base_channels == recipe.d_base_channels == (width or (32 if data in SMALL else 64))


@pytest.mark.parametrize("architecture", ["tutorial", "paper"])
def test_the_discriminator_has_the_given_width_unless_it_has_its_own(architecture):
    recipe = Recipe(architecture=architecture, base_channels=48).resolve()
    assert (recipe.base_channels, recipe.d_base_channels) == (48, 48)
    recipe = Recipe(architecture=architecture, base_channels=48, d_base_channels=16).resolve()
    assert (recipe.base_channels, recipe.d_base_channels) == (48, 16)
    recipe = Recipe(architecture=architecture, d_base_channels=16).resolve()
    assert (recipe.base_channels, recipe.d_base_channels) == (32 if architecture == "tutorial" else 128, 16)


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("g_channels: 48\nd_channels: 16", (48, 16)),
        ("g_channels: 48", (48, 32)),
        ("g_channels: 48\ndata: mnist", (48, 64)),
        ("g_channels: 48\ndata: mnist\narchitecture: paper", (48, 128)),
        ("d_channels: 16", (64, 16)),
        ("g_channels: null\nd_channels: null", (64, 32)),
    ],
)
def test_recipes_of_0_1_mean_what_they_did(capsys, tmp_path, text, widths):
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("_", "-"), encoding="utf-8")
    for recipe in (Recipe.from_yaml(text).resolve(), Recipe.from_yaml(printed(capsys, "--config", file))):
        assert (recipe.base_channels, recipe.d_base_channels) == widths


def test_options_that_decide_the_default_of_0_1_may_stand_on_the_command_line(capsys, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("g_channels: 48", encoding="utf-8")
    recipe = Recipe.from_yaml(printed(capsys, "--config", file, "--data", "mnist"))
    assert (recipe.data, recipe.base_channels, recipe.d_base_channels) == ("mnist", 48, 64)
    assert Recipe.from_yaml(printed(capsys, "--config", file, "--base-channels", 8)).base_channels == 8


def test_a_recipe_imports_no_command_line_library():
    code = "import dcgan.recipe, sys; sys.exit('cyclopts' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_defaults_are_the_small_digits():
    recipe = Recipe().resolve()
    assert (recipe.data, recipe.image_size, recipe.channels, recipe.batch_size) == ("digits", 32, 1, 64)
    assert (recipe.steps, recipe.epochs, recipe.augment) == (1000, None, ("shift",))
    assert Recipe(epochs=2).resolve().steps is None
    assert Recipe(augment=()).resolve().augment == ()
    assert Recipe(image_size=(32, 16)).resolve().augment == ("shift",)
    assert Recipe(image_size=(16, 48)).resolve().augment == Recipe(data="celeba").resolve().augment == ()
    assert Recipe(data="celeba").resolve().epochs == 25


@pytest.mark.parametrize(
    "field", ["steps", "epochs", "batch_size", "log_every", "sample_every", "save_every", "keep", "samples"]
)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got {value}"):
        Recipe(**{field: value}).resolve()


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="architecture must be one of tutorial, .*, got 'resnet'"):
        Recipe(architecture="resnet").resolve()


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(ValueError, match="steps and epochs exclude each other, got 5 and 6"):
        Recipe(steps=5, epochs=6).resolve()


@pytest.mark.parametrize("text", ["", "3", "- 3", "{{{", "nonsense: 1"])
def test_what_is_not_a_recipe_is_refused(text):
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_yaml(text)


def test_changes_are_the_fields_in_which_recipes_differ():
    assert Recipe(lr=1.0, seed=2).changes(Recipe()) == ["lr", "seed"]
    assert {field.name for field in dataclasses.fields(Recipe)} == set(yaml.safe_load(Recipe().resolve().to_yaml()))


def test_the_command_line_overrides_the_file(capsys, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: 0.5\nimage_size: 48x80\naugment: [color]\nema_decay: null\nflip: true\n", encoding="utf-8")
    text = printed(capsys, "--config", file, "--lr", 0.25, "--no-flip")
    expected = Recipe(lr=0.25, image_size=(48, 80), augment=("color",), ema_decay=None).resolve()
    assert Recipe.from_yaml(text) == expected


@pytest.mark.parametrize(("given", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_a_length_on_the_command_line_replaces_that_of_the_file(capsys, tmp_path, given, other):
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe(**{other: 7}).resolve().to_yaml(), encoding="utf-8")
    recipe = Recipe.from_yaml(printed(capsys, "--config", file, f"--{given}", 5))
    assert (getattr(recipe, given), getattr(recipe, other)) == (5, None)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("root: faces", [], ("folder", Path("faces"), ())),
        ("seed: 1", ["--root", "faces"], ("folder", Path("faces"), ())),
        (None, ["--root", "faces"], ("folder", Path("faces"), ())),
        ("root: null", [], ("digits", None, ())),
        ("data: mnist\nroot: sets", [], ("mnist", Path("sets"), ())),
        ("data: mnist", ["--root", "sets"], ("mnist", Path("sets"), ())),
        ("root: sets", ["--data", "mnist"], ("mnist", Path("sets"), ())),
        ("data: folder\nroot: faces", ["--data", "folder"], ("folder", Path("faces"), ())),
        ("data: folder\nroot: faces", ["--data", "digits"], ("digits", None, ())),
        ("data: lsun\nclasses: [bedroom]", ["--data", "mnist", "--root", "sets"], ("mnist", Path("sets"), ())),
    ],
)
def test_a_root_belongs_to_its_dataset_and_is_a_folder_without_one(capsys, tmp_path, text, options, expected):
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
        options = ["--recipe", file, *options]
    recipe = Recipe.from_yaml(printed(capsys, *options))
    assert (recipe.data, recipe.root, recipe.classes) == expected
    if options == ["--recipe", file]:
        recipe = load_recipe(file)
        assert (recipe.data, recipe.root, recipe.classes) == expected


@pytest.mark.parametrize(
    ("text", "option", "expected"),
    [
        ("cache_dir: X", ["--no-cache"], (False, None)),
        ("cache_dir: X", ["--cache"], (True, Path("X"))),
        ("cache: false", ["--cache-dir", "X"], (True, Path("X"))),
    ],
)
def test_an_option_of_the_cache_replaces_the_other_in_the_file(capsys, tmp_path, text, option, expected):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = Recipe.from_yaml(printed(capsys, "--config", file, *option))
    assert (recipe.cache, recipe.cache_dir) == expected


@pytest.mark.parametrize("size", ["48x80", "48X80"])
def test_images_need_not_be_square(capsys, tmp_path, size):
    file = tmp_path / "recipe.yaml"
    for text in (f"image_size: {size}", "image_size: [48, 80]"):
        file.write_text(text, encoding="utf-8")
        assert Recipe.from_yaml(printed(capsys, "--config", file)).image_size == (48, 80)
    assert Recipe.from_yaml(printed(capsys, "--image-size", size)).image_size == (48, 80)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 2e-4\ng-lr: 1.0e-3", {"lr": 2e-4, "g_lr": 1e-3}),
        ("lr: auto\nema-decay: null\nr1: 1e-1", {"lr": "auto", "ema_decay": None, "r1": 0.1}),
        (
            "root: faces\ncache-dir: null\nimage-size: 48X80",
            {"data": "folder", "root": Path("faces"), "image_size": (48, 80)},
        ),
        ("description: mine\nclasses: [bedroom]\naugment: []", {"classes": ("bedroom",), "augment": ()}),
        (
            "augment: shift\nlog: tensorboard\nclasses: church",
            {"augment": ("shift",), "log": ("tensorboard",), "classes": ("church",)},
        ),
        ("augment: null", {"augment": ()}),  # as runs of 0.2 have it
        ("ema_decay: none\neval-every: none\nsteps: '100'", {"ema_decay": None, "eval_every": None, "steps": 100}),
    ],
)
def test_python_and_the_command_line_read_the_same_from_a_file(capsys, tmp_path, text, expected):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    assert load_recipe(file) == Recipe(**expected)
    assert Recipe.from_yaml(printed(capsys, "--recipe", file)) == Recipe(**expected).resolve()


def test_a_damaged_recipe_is_refused_with_its_line_or_holds_valid_values(file):
    """Bits flipped in a recipe of every field: by themselves they set nothing that resolving would refuse."""
    whole, rng = Recipe(classes=("bedroom",), root=Path("faces")).resolve().to_yaml().encode(), random.Random(0)
    refused = []
    for _ in range(300):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            recipe = load_recipe(file)
        except ValueError as error:
            refused.append(str(error))
        else:
            for field, value in dataclasses.asdict(recipe.resolve()).items():
                assert _fits(get_type_hints(Recipe)[field], value), (field, value)
    assert 150 < len(refused) < 300
    assert all(said.startswith(f"{file}: not a recipe: line ") for said in refused)


def _fits(hint, value):
    """Check the type of a value as a type checker would, apart from how recipes are read."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(parts[0], part) for part in value)
    if parts:
        return any(_fits(part, value) for part in parts)
    return type(value) is hint or (hint is Path and isinstance(value, Path))


@pytest.mark.parametrize("text", ["seed: 1.5", "steps: ten", "lr: fast"])
def test_a_file_with_another_type_is_refused_by_both(tmp_path, capsys, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="not a recipe"):
        load_recipe(file)
    assert cli.main(["train", "--recipe", str(file), "--print-recipe"]) == 2


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], {}),
        (["--data", "mnist", "--root", "X"], {"data": "mnist", "root": Path("X"), "channels": 1}),
        (["--base-channels", 8], {"base_channels": 8, "d_base_channels": 8}),
        (["--steps", 5, "--lr", 0.5], {"steps": 5, "epochs": None, "lr": 0.5}),
        (["--ema-decay", 0.5, "--augment", "color"], {"ema_decay": 0.5, "augment": ("color",)}),
    ],
)
def test_the_command_line_overrides_a_named_recipe(capsys, options, changes):
    printed_recipe = Recipe.from_yaml(printed(capsys, "--recipe", "tutorial", *options))
    assert printed_recipe == load_recipe("tutorial").resolve().replace(**changes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--no-augment"], {"augment": ()}),
        (["--augment", "color", "cutout", "--flip"], {"augment": ("color", "cutout"), "flip": True}),
        (["--ema-decay", "none"], {"ema_decay": None}),
        (["--data", "lsun", "--classes", "bedroom", "bridge"], {"data": "lsun", "classes": ("bedroom", "bridge")}),
        (["--no-bias", "--no-cache"], {"bias": False, "cache": False}),
    ],
)
def test_options_become_fields(capsys, options, expected):
    assert Recipe.from_yaml(printed(capsys, *options)) == Recipe(**expected).resolve()


# Each list holds ten times the one before it: 100,000 words in all, in a file of 300 bytes.
BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 10)) for level in range(1, 5)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"batchsize: 3", "dcgan: recipe.yaml: line 1: there is no field 'batchsize': did you mean batch_size?"),
        (b"lr: abc", "recipe.yaml: line 1: lr must be a number or auto, got 'abc'"),
        (b"flip: maybe", "recipe.yaml: line 1: flip must be true or false, got 'maybe'"),
        (b"seed: 1\n\ndata: cifar", "recipe.yaml: line 3: data must be one of digits, mnist, "),
        (b"seed: 1\nsteps: 0", "recipe.yaml: line 2: steps must be at least 1, got 0"),
        (b"# mine\nseed: true", "recipe.yaml: line 2: seed must be a whole number, got True"),
        (b"g_channels: 0", "recipe.yaml: line 1: g_channels must be at least 1, got 0"),
        (b"lr: .nan", "recipe.yaml: line 1: lr must be finite, got nan"),
        (b"weight_decay: .inf", "recipe.yaml: line 1: weight_decay must be finite, got inf"),
        (b"workers: 2001-99-99", "recipe.yaml: line 1: workers must be a whole number or null, got '2001-99-99'"),
        (b"image_size: [48, 80, 3]", "recipe.yaml: line 1: image_size must be a whole number or HEIGHTxWIDTH or null"),
        (b"image_size: [48, 0]", "recipe.yaml: line 1: image_size must be at least 1, got (48, 0)"),
        (
            b"augment: [color, blur]",
            "augment must be a list of color, translation, shift, cutout or null, got ['color'",
        ),
        (b"norm: ntll", "recipe.yaml: line 1: norm must be one of batch, instance, layer, none or null, got 'ntll'"),
        (b"device: ''", "recipe.yaml: line 1: device must be text, got ''"),
        (b"seed: 1\nlr: 2\nseed: 3", "recipe.yaml: line 3: seed is set already, in line 1"),
        (b"seed: !!python/name:os.system", "recipe.yaml: line 1 is not YAML: could not determine a constructor"),
        (b"steps: 1\nepochs: 1", "--steps and --epochs exclude each other"),
        (b"- 3", "recipe.yaml: it holds a list; expected lines such as 'steps: 1000'"),
        (b"resume: runs/digits", "recipe.yaml: line 1: a recipe cannot set resume: use the command line for that"),
        (b"recipe: tutorial", "recipe.yaml: line 1: a recipe cannot set recipe"),
        (b"{{{", "recipe.yaml: line 1 is not YAML: expected"),
        (b"seed: 1\nsteps: [1\nlr: 2", "recipe.yaml: line 3 is not YAML: expected"),
        (b"seed: 1\nste\x07ps: 3", "recipe.yaml: line 2 is not YAML: it has the character '\\x07'"),
        (b"\xff\xfe\x00", "recipe.yaml: line 1 is not text in UTF-8"),
        (b"seed: 1\ndata: d\xc5gits", "recipe.yaml: line 2 is not text in UTF-8"),
        (b"[" * 3000, "recipe.yaml: it is not YAML: maximum recursion depth"),
        (BOMB, "recipe.yaml: line 2: a recipe has no aliases, such as *a0: write the value out"),
        (BOMB + b"steps: 3", "recipe.yaml: line 2: a recipe has no aliases"),
        (b"? [seed, steps]\n: 1", "recipe.yaml: line 1: the name of a field must be text, got a list or a mapping"),
        (b"!!bool x: 1", "recipe.yaml: line 1: there is no field 'x'"),
        (b"flip: !!bool x", "recipe.yaml: line 1: flip must be true or false, got 'x'"),
        (b"seed: 1\nsteps: [!!timestamp x]", "recipe.yaml: line 2: steps holds what YAML cannot read"),
        (b"lr: 1" + b":00" * 300, "recipe.yaml: line 1: lr must be a number or auto, got '1:00:00:00"),
        (b"steps: 1" + b":00" * 300, "recipe.yaml: line 1: steps must be a whole number or null, got '1:00:00"),
        (b"lr: 1" + b"0" * 400, "recipe.yaml: line 1: lr must be finite, got inf"),
        (
            b"steps: 1" + b"0" * 400,
            "recipe.yaml: line 1: steps must be at most 2,147,483,647, got 100000000000000000...",
        ),
        (b"steps: 1" + b"0" * 5000, "recipe.yaml: line 1: steps must be a whole number or null, got '10000000"),
        (b"steps: 0x1" + b"0" * 5000, "recipe.yaml: line 1: steps must be a whole number or null, got '0x10000"),
        (b"seed: 9223372036854775808", "recipe.yaml: line 1: seed must be in [0, 2**63), got 9223372036854775808"),
        (b"samples: 1000000000000", "recipe.yaml: line 1: samples must be at most 100,000, got 1000000000000"),
        (b"workers: 2147483648", "recipe.yaml: line 1: workers must be at most 2,147,483,647, got 2147483648"),
    ],
)
def test_a_mistake_in_the_file_is_reported_and_exits_2(capsys, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content)
    assert cli.main(["train", "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 400
    assert message in said
    assert said.startswith("dcgan: ")
    assert said.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
