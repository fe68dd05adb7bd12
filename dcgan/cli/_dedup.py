"""`dcgan dedup`."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from dcgan.cli._arguments import expect_new
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
        move_to: Move the images that are redundant to this new folder.
        force: Overwrite an existing picture.
    """
    with exit_on_error():
        if out.suffix.lower() != ".png":
            raise UsageError(f"--out must be a .png, got {out}")
        expect_new(out, force=force)
        if move_to is not None and move_to.exists():
            raise UsageError(f"{move_to} exists: --move-to takes a new folder")
        from dcgan._dedup import hash_folder, near_duplicates, redundant

        with progress_bar("hashing", "img") as progress:
            images = hash_folder(folder.expanduser(), workers=os.cpu_count() or 1, progress=progress)
        for file, reason in images.failures[:20]:
            say(f"skipped {file}: {reason}", error=True)
        if len(images.failures) > 20:
            say(f"and {len(images.failures) - 20} more", error=True)
        pairs = near_duplicates(images.hashes, distance)
        out_of = redundant(pairs, len(images.files))
    with exit_on_error(running=True):
        say(f"{len(images.files):,} images, {len(pairs):,} pairs of near-duplicates, {out_of.sum():,} images redundant")
        if len(pairs):
            _draw_pairs(out, images.files, pairs)
            say(f"the nearest {min(_SHOWN, len(pairs))} pairs are in {out}")
        if move_to is not None:
            for file, redundant_one in zip(images.files, out_of, strict=True):
                if redundant_one:
                    target = move_to / Path(file).relative_to(folder.expanduser())
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(file, target)
            say(f"{out_of.sum():,} images moved to {move_to}")
    return 0


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
