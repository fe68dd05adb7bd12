"""`dcgan pack`."""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

from dcgan.cli._options import COUNT, FLAG
from dcgan.cli._terminal import exit_on_error, progress_bar, say


def pack(
    folder: Path,
    *,
    out: Path,
    shard_size: Annotated[int, COUNT] = 10_000,
    workers: Annotated[int | None, COUNT] = None,
    skip_bad: Annotated[bool, FLAG] = False,
    max_pixels: Annotated[int | None, COUNT] = None,
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Write a folder of images into shards, tar archives in the layout of WebDataset.

    JPEG, PNG and WebP keep their bytes, others become PNG. Where all images are in class folders, each gets its class.

    Args:
        folder: Folder of images, at any depth.
        out: New folder for the shards.
        shard_size: Number of images in a shard.
        workers: Number of threads that decode images, to see whether they can be read; by default one per core.
        skip_bad: Skip files that cannot be decoded instead of stopping.
        max_pixels: Number of pixels above which an image is refused; by default 89 million.
        force: Replace the shards in the folder, if it holds nothing else.
    """
    with exit_on_error(), progress_bar("packing", "img") as progress:
        from dcgan.data._sharding import write_shards

        shards = write_shards(
            folder.expanduser(),
            out.expanduser(),
            shard_size=shard_size,
            workers=workers or os.cpu_count() or 1,
            skip_bad=skip_bad,
            max_pixels=max_pixels,
            force=force,
            progress=progress,
        )
    classes = f" of {len(shards.classes)} classes, {', '.join(shards.classes[:10])}" if shards.classes else ""
    more = ", …" if len(shards.classes) > 10 else ""
    say(f"{shards.images:,} images{classes}{more}, in {shards.pattern}")
    if shards.skipped:
        say(f"skipped {len(shards.skipped)} files, such as {shards.skipped[0][0]}: {shards.skipped[0][1]}")
    say("next:")
    say(f"  dcgan train --data {quote(f'wds:{shards.pattern}')}")
    return 0
