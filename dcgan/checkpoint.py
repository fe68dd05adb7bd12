"""Training state on disk: `step-000500.pt` files, written atomically and loadable with `weights_only=True`."""

import contextlib
import io
import pickle
import re
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dcgan._errors import InputError
from dcgan._files import atomic_write

_NAME = re.compile(r"step-\d+\.pt")


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int | None = 2) -> Path:
    """Write a state into a folder, which is created if it does not exist; return its path.

    Args:
        folder: Of all states of a run.
        state: Tensors, numbers and strings in dictionaries and lists.
        step: Number in the file's name.
        keep: Number of states to keep, at least 1: this one, and the last ones before it; None keeps all.

    Raises:
        ValueError: If `keep` is below 1.
    """
    if keep is not None and keep < 1:
        raise InputError(f"keep must be at least 1, got {keep}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.pt"
    buffer = io.BytesIO()  # when torch itself writes to a full disk, it hides the OSError behind a RuntimeError
    torch.save(state, buffer)
    with atomic_write(path) as file, buffer.getbuffer() as view:
        file.write(view)
    if keep is not None:
        others = [step_of(other) for other in list_states(folder) if other != path]
        prune(folder, {step, *others[max(0, len(others) + 1 - keep) :]})
    return path


def prune(folder: Path, keep: Container[int]) -> None:
    """Remove all states but those of the steps to `keep`, and what killed processes left half written."""
    outdated = [path for path in list_states(folder) if step_of(path) not in keep]
    for old in [*outdated, *folder.glob(".step-*.pt.*.tmp")]:
        with contextlib.suppress(PermissionError):  # on Windows, another program may read it: the next call removes it
            old.unlink()


def step_of(path: Path) -> int:
    """Return the step in the name of a state, or of another file of a step such as a picture of samples."""
    return int(path.stem.removeprefix("step-"))


def list_states(folder: Path) -> list[Path]:
    """Return the paths of the states in a folder, sorted by step; none if there is no such folder.

    Raises:
        PermissionError: If the folder cannot be read.
    """
    try:
        return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)
    except (FileNotFoundError, NotADirectoryError):
        return []


def run_of(path: Path) -> Path | None:
    """Return the folder of the run that a state, or the folder of its states, lies in; None if there is none."""
    return next((folder for folder in path.parents[:2] if (folder / "recipe.yaml").is_file()), None)


def load(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU, without executing anything in the file.

    Raises:
        ValueError: If the file is truncated, damaged in any byte that matters, or contains anything but plain state;
            the message names the states beside it.
    """
    buffer = io.BytesIO(path.read_bytes())
    try:
        _verify(buffer)
        buffer.seek(0)
        state = torch.load(buffer, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # RuntimeError, UnpicklingError, BadZipFile, KeyError, OSError, ... of a broken file
        reason = "it holds other things" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        others = ", ".join(other.name for other in list_states(path.parent) if other != path)
        raise InputError(
            f"{path} is not a complete training state: {reason or type(error).__name__}"
            f"{f'; kept beside it: {others}' if others else ''}"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} must contain a dictionary, got {type(state).__name__}")
    return state


def _verify(file: BinaryIO) -> None:
    """Compare the checksums that torch has written with each part of a file and does not compare when it reads them.

    Raises:
        ValueError: If one differs.
    """
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise InputError(f"its part {damaged} is damaged: its checksum is another")
        # torch takes a part with attributes for a folder, and reads nothing.
        if any(part.external_attr for part in archive.infolist()):
            raise InputError("its table of contents is damaged")
