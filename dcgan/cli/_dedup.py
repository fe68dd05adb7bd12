"""`dcgan dedup`."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from dcgan.cli._arguments import expect_new
from dcgan.cli._messages import count
from dcgan.cli._options import FLAG, INTEGER
from dcgan.cli._terminal import UsageError, exit_on_error, progress_bar, say

if TYPE_CHECKING:
    import numpy as np

_SHOWN, _SIDE, _FRAME = 32, 96, 4  # pairs in the picture, the side of an image in it, white pixels around a pair


def dedup(
    folder: Path,
    *,
    distance: Annotated[int, INTEGER, Parameter(validator=Number(gte=0, lte=16))] = 4,
    out: Path = Path("duplicates.png"),
    move_to: Path | None = None,
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Find near-duplicate images in a folder by a perceptual hash, and draw the pairs.

    Of a group of near-duplicates, the first in the order of the paths stays.

    Args:
        folder: Folder of images, at any depth.
        distance: Number of bits, of the hash's 64, in which near-duplicates may differ.
        out: Picture to write: pairs side by side, the nearest first.
        move_to: Move the images that are redundant to this new folder, but for those that links lead to.
        force: Overwrite an existing picture.
    """
    with exit_on_error():
        if out.suffix.lower() != ".png":
            raise UsageError(f"--out must be a .png, got {out}")
        expect_new(out, force=force)
        if move_to is not None:
            _expect_elsewhere(move_to, folder)
        from dcgan._dedup import hash_folder, near_duplicates, redundant

        with progress_bar("hashing", "img") as progress:
            images = hash_folder(folder.expanduser(), workers=os.cpu_count() or 1, progress=progress)
        for file, reason in images.failures[:20]:
            say(f"skipped {file}: {reason}", error=True)
        if len(images.failures) > 20:
            say(f"and {len(images.failures) - 20} more", error=True)
        if images.left_out:
            say(f"{count(images.left_out, 'link')} to images that are found under another name as well, left out")
        pairs = near_duplicates(images.hashes, distance)
        out_of = redundant(pairs, len(images.files))
    with exit_on_error(running=True):
        say(f"{len(images.files):,} images, {len(pairs):,} pairs of near-duplicates, {out_of.sum():,} images redundant")
        if len(pairs):
            _draw_pairs(out, images.files, pairs)
            say(f"the nearest {min(_SHOWN, len(pairs))} pairs are in {out}")
        if move_to is not None:
            redundant_files = [file for file, is_redundant in zip(images.files, out_of, strict=True) if is_redundant]
            _move_all(redundant_files, images.linked, folder.expanduser(), move_to)
    return 0


def _expect_elsewhere(move_to: Path, folder: Path) -> None:
    if move_to.exists():
        raise UsageError(f"{move_to} exists: --move-to takes a new folder")
    if Path(os.path.realpath(move_to)).is_relative_to(os.path.realpath(folder.expanduser())):
        raise UsageError(f"--move-to must be outside of {folder}, where images would be found again; got {move_to}")


def _move_all(files: list[str], linked: set[str], folder: Path, move_to: Path) -> None:
    """Move files but those that links lead to, which may be outside of the folder, or would leave a link to nothing."""
    stay = [file for file in files if file in linked]
    if len(stay) < len(files):
        move_to.mkdir(parents=True)
    for file in files:
        if file not in linked:
            _move(file, move_to / Path(file).relative_to(folder))
    say(f"{count(len(files) - len(stay), 'image')} moved to {move_to}")
    if stay:
        say(f"{count(len(stay), 'redundant image')} not moved, since links lead there, such as {stay[0]}")


def _move(file: str, target: Path) -> None:
    """Move a file to a new name, which may be on another disk: where that fails, nothing of it is left there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    except OSError as error:
        if Path(file).exists():
            target.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}, so that {file} stays", str(target)) from error


def _draw_pairs(path: Path, files: list[str], pairs: "np.ndarray") -> None:
    import torch
    from einops import rearrange

    from dcgan._dedup import load_pictures
    from dcgan.images import grid, save_png

    shown = pairs[:_SHOWN, :2].flatten().tolist()
    pixels = torch.from_numpy(load_pictures([files[index] for index in shown], _SIDE))
    joined = rearrange(pixels, "(pairs two) h w k -> pairs k h (two w)", two=2)
    framed = torch.nn.functional.pad(joined, (_FRAME,) * 4, value=255)
    save_png(path, grid(framed, columns=4, gap=0))
