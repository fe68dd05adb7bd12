"""Numbers on the command line: every option takes those that make sense, and says so of others at once."""

import re
from inspect import Parameter, signature
from types import NoneType
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from dcgan import cli
from dcgan._numbers import MAX_COUNT, MAX_PICTURED, brief
from dcgan.cli import _train, _visualize
from dcgan.cli._options import RecipeOptions

COMMANDS = {function.__name__: function for function in [*cli._COMMANDS, _train.train] if function is not cli.visualize}
COMMANDS |= {f"visualize {name}": getattr(_visualize, name) for name in ("filters", "features", "dropout")}
REQUIRED = {  # what must be there beside the option
    "project": ["model", "image.png"],
    "dedup": ["folder"],
    "pack": ["folder", "--out", "shards"],
    "convert": ["source", "out"],
    "export": ["model", "out"],
    "push": ["model", "name/repository"],
    "visualize dropout": ["--marks", "boxes.csv"],
}


def whole_numbers(function):
    """The options of a command that take one whole number, each with whether it can be none."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in signature(function).parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY:
            hint = get_args(hints[name])[0] if get_origin(hints[name]) is Annotated else hints[name]
            if int in (hint, *get_args(hint)) and tuple not in map(get_origin, (hint, *get_args(hint))):
                yield name, NoneType in get_args(hint)


OPTIONS = [(command, name, False) for command, function in COMMANDS.items() for name, _ in whole_numbers(function)]
OPTIONS += [("train", name, none) for name, none in whole_numbers(RecipeOptions)]


def refusal(capsys, command, *options):
    """What a command prints that exits with 2, without its box and spaces, since it breaks lines within words."""
    assert cli.main([*command.split(), *REQUIRED.get(command, []), *options]) == 2
    return packed(capsys.readouterr().err)


def packed(text):
    return re.sub(r"[│─╭╮╰╯\s]+", "", text)


def test_the_options_are_found():
    assert {("generate", "number", False), ("explore", "port", False), ("train", "seed", False)} < {*OPTIONS}
    assert {("train", "eval_every", True), ("train", "workers", True), ("visualize features", "patches", False)} < {
        *OPTIONS
    }
    assert len(OPTIONS) > 50


@pytest.mark.parametrize(("command", "name", "none"), OPTIONS, ids=[f"{o[0]}-{o[1]}" for o in OPTIONS])
def test_a_whole_number_is_one_of_64_bits(capsys, tmp_path, monkeypatch, command, name, none):
    monkeypatch.chdir(tmp_path)
    option = f"--{name.replace('_', '-')}"
    for word in ["2.5", "9" * 5000, *([] if none else ["none"])]:
        assert packed(f"expected a whole number, got {brief(word)}") in refusal(capsys, command, f"{option}={word}")
    message = f"expected a whole number below 2**63, got {brief(2**63)}"
    assert packed(message) in refusal(capsys, command, f"{option}={2**63}")


PICTURED = [
    ("walk", "--points"),
    ("walk", "--steps"),
    ("arithmetic", "--number"),
    ("project", "--starts"),
    ("visualize features", "-n"),
    ("visualize features", "--patches"),
    ("visualize dropout", "-n"),
    ("features", "--nearest"),
]


@pytest.mark.parametrize(("command", "option"), PICTURED)
def test_what_is_drawn_at_once_has_a_limit(capsys, command, option):
    assert packed(f"Must be <= {MAX_PICTURED}") in refusal(capsys, command, option, str(MAX_PICTURED + 1))


def test_counts_have_a_limit(capsys):
    assert packed(f"Must be <= {MAX_COUNT}") in refusal(capsys, "generate", "-n", str(MAX_COUNT + 1))
    assert packed("--samples must be at most 100,000, got 1000000000000") in refusal(
        capsys, "train", "--samples", str(10**12)
    )
    assert packed("--steps must be at most 2,147,483,647, got") in refusal(
        capsys, "train", "--steps", str(MAX_COUNT + 1)
    )
    assert packed("--image-size must be at most") in refusal(capsys, "train", "--image-size", "9" * 400)


@pytest.mark.parametrize("option", ["--resume", "--from"])
def test_an_empty_folder_is_none(capsys, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("steps: 1")  # which would be that of the working directory
    assert packed(f"{option} takes the folder of a run, got ''") in refusal(capsys, "train", option, "")


def test_an_empty_name_is_no_recipe(capsys):
    message = refusal(capsys, "train", "--recipe", "")
    assert packed("recipe must be a file or one of digits, ") in message
    assert packed("got ''") in message
