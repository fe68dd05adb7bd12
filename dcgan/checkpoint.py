"""Training state on disk: `step-000500.pt` files, written atomically and loadable with `weights_only=True`."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from dcgan._files import atomic_write

_NAME = re.compile(r"step-(\d+)\.pt")


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int = 2, protect: int | None = None) -> Path:
    """Write a state and remove all but the `keep` newest and the one to `protect`; return its path.

    Args:
        folder: Created if it does not exist.
        state: Tensors, numbers and strings in dictionaries and lists.
        step: Number in the file's name.
        keep: Number of states to keep, at least 1.
        protect: Step of another state to keep.

    Raises:
        ValueError: If `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.pt"
    buffer = io.BytesIO()  # when torch itself writes to a full disk, it hides the OSError behind a RuntimeError
    torch.save(state, buffer)
    with atomic_write(path) as file, buffer.getbuffer() as view:
        file.write(view)
    others = [other for other in list_states(folder) if other != path]
    protected = None if protect is None else folder / f"step-{protect:06d}.pt"
    outdated = [other for other in others[: max(0, len(others) + 1 - keep)] if other != protected]
    for old in [*outdated, *folder.glob(".step-*.pt.*.tmp")]:  # and of killed processes
        with contextlib.suppress(PermissionError):  # on Windows, another program may read it: the next save removes it
            old.unlink()
    return path


def list_states(folder: Path) -> list[Path]:
    """Return the paths of the states in a folder, sorted by step."""
    steps = {path: int(match[1]) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__)


def load(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU, without executing anything in the file.

    Raises:
        ValueError: If the file is truncated or contains anything but plain state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... on broken files
        raise ValueError(f"{path} is not a complete training state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must contain a dictionary, got {type(state).__name__}")  # noqa: TRY004 - the file's fault
    return state
