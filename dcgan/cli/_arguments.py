"""What several commands do with their arguments: load the model, refuse to overwrite files, write a record."""

import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcgan.cli._terminal import UsageError

if TYPE_CHECKING:
    import torch

    from dcgan.models import Discriminator, Generator


def load_generator(model: str, device: "torch.device | str", step: int | Literal["best"] | None = None) -> "Generator":
    """Load the generator of a model onto a device; of a run, as it was at a step whose state is kept."""
    if step is None:
        from dcgan.models import Generator

        return Generator.from_pretrained(model, device=device)
    from dcgan import run

    return run.load_generator(Path(model), step).to(device)


def expect_unconditional(network: "Generator | Discriminator", model: str) -> None:
    """Check that a network needs no labels."""
    if (classes := network.config["num_classes"]) is not None:
        raise UsageError(f"{model} is conditional on {classes} classes: this command is for models without classes")


def expect_new(*paths: Path, force: bool) -> None:
    """Check that no file is there yet, unless it is to be overwritten, and that it can be written."""
    if not force and (existing := next((path for path in paths if path.exists()), None)):
        raise UsageError(f"{existing} exists: --force overwrites it")
    for path in paths:  # which are written at the end of the work
        parents = Path(os.path.realpath(path)).parents
        folder = next(parent for parent in parents if os.path.exists(parent))  # noqa: PTH110 - which may not be read
        if not folder.is_dir():
            raise UsageError(f"{path} cannot be written: {folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{path} cannot be written: there is no permission to write to {folder}")


def locate_data(arguments: list[str]) -> list[str]:
    """Write `--data wds:PATTERN` and `--data hf:NAME` as `--data` and `--root`.

    Raises:
        UsageError: If the place is missing or given twice, or the shell has written out the braces of a pattern.
    """
    words: list[str] = []
    for word in arguments:
        words += word.split("=", 1) if word.startswith("--data=") else [word]
    for option, (before, word) in enumerate(pairwise(words)):
        if before != "--data" or (found := re.fullmatch(r"(wds|hf):(.*)", word, re.DOTALL)) is None:
            continue
        name, place = found.groups()
        rest = words[option + 2 :]
        if not place:
            what = (
                "shards, as in 'wds:train-{000000..000099}.tar'" if name == "wds" else "a dataset, as in hf:owner/name"
            )
            raise UsageError(f"--data {name}: names {what}")
        if rest and rest[0].startswith("wds:"):
            raise UsageError(
                "--data takes one pattern, but the shell has written out its braces: quote it, as in "
                "--data 'wds:train-{000000..000099}.tar'"
            )
        if any(other.partition("=")[0] == "--root" for other in words):
            raise UsageError(f"--data {word} says where the data are: omit --root")
        return [*words[: option + 1], name, "--root", place, *rest]
    return arguments


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically, and the folder that it belongs in."""
    from dcgan._files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{json.dumps(record, indent=1)}\n".encode())
