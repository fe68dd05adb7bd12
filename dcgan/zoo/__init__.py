"""Trained models by name, with a record of each: ours, of the package or the Hub, and others', which are fetched.

`Generator.from_pretrained(NAME)` loads any of them. A record says on what data a model was trained and how, what its
figures are and how they were measured, and under which terms it may be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dcgan._config import sides
from dcgan._errors import InputError

_FOLDER = Path(__file__).parent
RECORDS, WEIGHTS = _FOLDER / "records", _FOLDER / "weights"


@dataclass(frozen=True)
class RemoteFile:
    """A file of somebody else's model.

    Args:
        url: Where its authors publish it, at a fixed commit or release.
        sha256: Its SHA-256, or the first digits of it where its authors publish no more.
        size: Its length in bytes, if known.
    """

    url: str
    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class Model:
    """The record of a model.

    Args:
        name: What `from_pretrained` takes.
        description: What it draws.
        image_size: Side of the images in pixels, or (height, width).
        channels: 1 for grey, 3 for colour.
        licence: Identifier of the licence of the weights.
        data: What it was trained on: set, split, and where that is from.
        terms: Terms of that data.
        figures: Measured quality by name, each with its protocol.
        source: Who trained it, or the page that it is from.
        repository: Repository on the Hub that has the weights, where ours are too large for the package.
        revision: Its commit.
        notice: What its licence asks to be said.
        training: How it was trained, if by us: recipe, command, steps, images, seed, minutes, machine, versions.
        sha256: Of our files by path within the model's folder.
        files: Somebody else's files.
        format: What these are, for `dcgan.convert`.
        verified: Whether the files were fetched from there, and compared with a known picture or output.
    """

    name: str
    description: str
    image_size: int | list[int]
    channels: int
    licence: str
    data: str
    terms: str
    figures: Mapping[str, Any]
    source: str
    repository: str = ""
    revision: str = ""
    notice: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    files: tuple[RemoteFile, ...] = ()
    format: str = ""
    verified: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images."""
        height, width = sides({"image_size": self.image_size})
        return self.channels, height, width

    @property
    def on_board(self) -> bool:
        """Whether the weights come with the package."""
        return not (self.files or self.repository)

    @property
    def folder(self) -> Path:
        """The folder of a model that is on board: its networks and its card."""
        return WEIGHTS / self.name


@cache
def _records() -> dict[str, Model]:
    models = []
    for path in RECORDS.glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["files"] = tuple(RemoteFile(**file) for file in values.get("files", ()))
        models.append(Model(name=path.stem, **values))
    return {model.name: model for model in sorted(models, key=lambda model: (not model.on_board, model.name))}


def list_models() -> list[str]:
    """Return the names that `from_pretrained` takes without a slash: first the models that come with the package."""
    return list(_records())


def load_record(name: str) -> Model:
    """Return the record of a model.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _records():
        raise InputError(f"model must be one of {', '.join(_records())}, got {name!r}")
    return _records()[name]
