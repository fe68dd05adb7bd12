"""The folder of a run: made and taken, found again by the command that started it, and what in it is whole."""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dcgan import _build, checkpoint
from dcgan._errors import InputError
from dcgan.recipe import Recipe, load_recipe


def expect_empty(folder: Path | None) -> None:
    """Check that a new run can have a folder.

    Raises:
        FileExistsError: If it holds something, or is a file.
    """
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remedy = ""
        if (folder / "recipe.yaml").is_file():
            ended_early = not checkpoint.list_states(folder / "state")
            remedy = (
                "remove it, for it has no state yet, or " if ended_early else f"continue with --resume {folder}, or "
            )
        raise FileExistsError(f"{folder} exists: {remedy}choose another folder")


def describe_missing(folder: Path) -> str:
    """Say why a path is not the folder of a run, and which run it lies in."""
    why = "it has no recipe.yaml" if folder.exists() else "it does not exist"
    run = checkpoint.run_of(folder)
    return f"{folder} is not the folder of a run: {why}" + (f"; its run is {run}" if run else "")


def create_folder(folder: Path | None, name: str) -> Path:
    """Create a folder, or `runs/NAME`, with a number if that is taken."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def acquire_lock(folder: Path) -> FileLock:
    """Take a folder, which goes with the process that has it, however it ends.

    Raises:
        FileExistsError: If another process has it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(f"another process is training in {folder}") from error
    return lock


def load_newest(folder: Path) -> dict[str, Any]:
    """Read the newest state of a run.

    Raises:
        ValueError: If it is damaged, naming the one before.
    """
    *earlier, newest = checkpoint.list_states(folder / "state")
    try:
        return _build.load_state(newest)
    except ValueError as error:
        remedy = f"remove it to resume from {earlier[-1].name}" if earlier else "no other is kept: start again"
        raise InputError(f"{error}; {remedy}") from error


def find_continuation(folder: Path, recipe: Recipe) -> Recipe | None:
    """Return the recipe with which a run goes on by the command that started it, or None if there is no state yet.

    What the recipe leaves open is as it was then.
    """
    if not checkpoint.list_states(folder / "state"):
        return None
    stored = load_recipe(folder / "recipe.yaml")
    left_open = [
        field.name for field in fields(Recipe) if field.default is None and getattr(recipe, field.name) is None
    ]
    return recipe.replace(**{name: getattr(stored, name) for name in left_open})


def remove_stillborn(folder: Path) -> None:
    """Remove the folder of a run that was killed before its first state, if it holds nothing else."""
    begun = {".lock", "recipe.yaml", "samples", "state"}
    if (folder / ".lock").exists() and not checkpoint.list_states(folder / "state"):
        names = {path.name for path in folder.iterdir() if not re.fullmatch(r"\..+\.\d+\.tmp", path.name)}
        if names <= begun:
            shutil.rmtree(folder)


def is_whole(picture: Path) -> bool:
    """Return whether a picture is not damaged, as its checksums tell."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # as Pillow finds damage
        return False
    return True
