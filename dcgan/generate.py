"""Images of a generator as files: a folder of PNGs, one grid, or an archive.

Shapes: B images of a batch, K channels, H×W pixels.
"""

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dcgan import images
from dcgan._config import sides
from dcgan._files import atomic_write
from dcgan.latents import seeded_latents
from dcgan.layers import fuse_batchnorm
from dcgan.models import MIN_IMAGES_TO_FUSE, Generator, Labels

ARCHIVES = (".zip", ".npz")
"""Suffixes of the archives that `write_images` can write."""


def write_images(
    generator: Generator,
    out: Path,
    n: int,
    *,
    labels: Labels | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[int]:
    """Write images number `start` to `start + n - 1` of a seed, yielding the number written so far.

    Args:
        generator: Generator to sample.
        out: A folder, for `000000.png` and so on; or the name of an archive: a `.zip` of the same files, or a `.npz`
            that holds them as `arr_0`, uint8 `(n, H, W, K)`, the format that evaluation suites read.
            Existing files are replaced; `existing_files` lists them. An archive is written atomically; a kill may
            leave unfinished files in a folder.
        n: Number of images.
        labels: Of a conditional generator, the class of all images or of each, as in `Generator.sample`.
        seed: Seed of the latents, as in `Generator.sample`.
        start: Index of the first image within the seed.
        batch_size: Images per forward pass.
        dtype: Type to compute in.
    """
    options = {"labels": labels, "seed": seed, "start": start, "batch_size": batch_size, "dtype": dtype}
    (out.parent if is_archive(out) else out).mkdir(parents=True, exist_ok=True)
    write = {".npz": _write_npz, ".zip": _write_zip}.get(out.suffix.lower(), _write_folder)
    return write(out, generator, n, options)


def write_part(
    generator: Generator,
    out: Path,
    n: int,
    *,
    rank: int,
    processes: int,
    start: int,
    batch_size: int,
    **options: Any,
) -> Iterator[int]:
    """Write what is one process's part of the images of `write_images`, in a folder, as it does.

    The parts are whole batches, so that each image is computed with the same others, to the same bytes.
    """
    batches = -(-n // batch_size)
    first, end = (min(n, batches * each // processes * batch_size) for each in (rank, rank + 1))
    if processes > 1 and n >= MIN_IMAGES_TO_FUSE:  # as one process would, whatever the size of a part
        generator = fuse_batchnorm(generator)
    if first == end:
        return iter(())
    return write_images(generator, out, end - first, start=start + first, batch_size=batch_size, **options)


def write_grid(
    generator: Generator,
    path: Path,
    n: int,
    *,
    labels: Labels | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the images that `write_images` writes as one grid; where classes come in turn, with a column for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = sample_uint8(generator, n, labels=labels, seed=seed, start=start, batch_size=batch_size, dtype=dtype)
    classes = generator.config["num_classes"]
    in_turn = classes is not None and labels is None and classes <= n
    images.save_png(path, images.grid(pixels, columns=classes if in_turn else None))


def sample_grid(generator: Generator, n: int, *, seed: int) -> Tensor:
    """Return images of a seed as one picture, uint8 `(K, H', W')`.

    Of a conditional generator, each row has a class and each column a latent, with as many columns as make at most `n`
    images, but at least one; where there are more classes than `n`, it has the first `n`.
    """
    config = generator.config
    if (classes := config["num_classes"]) is None:
        return images.grid(sample_uint8(generator, n, seed=seed))
    rows, columns = min(n, classes), max(1, n // classes)
    z = seeded_latents(columns, config["latent_dim"], seed=seed, distribution=config["latent"]).repeat(rows, 1)
    labels = torch.arange(rows, device="cpu").repeat_interleave(columns)
    batches = generator.sample_batches(z=z, labels=labels)
    return images.grid(torch.cat([pixels_of(generator, batch) for batch in batches]), columns=columns)


def default_batch_size(generator: Generator) -> int:
    """Return the number of images with a million pixels in all, from 16 to 256, which sample fastest in one batch."""
    height, width = sides(generator.config)
    return min(256, max(16, 2**20 // (height * width)))


def is_archive(out: Path) -> bool:
    """Tell whether `write_images` takes a path for the name of an archive."""
    return out.suffix.lower() in ARCHIVES


def existing_files(out: Path, n: int, *, start: int = 0) -> list[Path]:
    """Return the files that `write_images` would replace."""
    if is_archive(out):
        return [out] if out.exists() else []
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    indices = sorted({int(name[:-4]) for name in names if re.fullmatch(r"[0-9]{6,}\.png", name)})
    return [out / _name(index) for index in indices if start <= index < start + n and _name(index) in names]


def sample_uint8(generator: Generator, n: int, **options: Any) -> Tensor:
    """Return generated images as uint8 `(n, K, H, W)`, on the CPU; `options` are those of `Generator.sample`."""
    return torch.cat([pixels_of(generator, batch) for batch in generator.sample_batches(n, **options)])


def pixels_of(generator: Generator, batch: Tensor) -> Tensor:
    """Return what a generator has returned as uint8 `(N, K, H, W)`, on the CPU."""
    return images.to_uint8(batch, images.VALUE_RANGES[generator.config["output"]]).cpu()


def _batches(generator: Generator, n: int, options: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield uint8 `(B, H, W, K)`."""
    for batch in generator.sample_batches(n, **options):
        yield rearrange(pixels_of(generator, batch), "b k h w -> b h w k").contiguous().numpy()


def _write_folder(folder: Path, generator: Generator, n: int, options: dict[str, Any]) -> Iterator[int]:
    def write(numbered: list[tuple[int, np.ndarray]]) -> None:
        for index, pixels in numbered:
            _write_bytes(folder / _name(index), images.encode_png(pixels, level=1))

    done, threads = 0, torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(generator, n, options):
            numbered = list(enumerate(batch, options["start"] + done))
            # One chunk per thread, since each hand-over needs the interpreter's lock, which zlib and the disk do not.
            list(pool.map(write, [numbered[i::threads] for i in range(threads)]))
            done += len(batch)
            yield done


def _write_bytes(path: Path, content: bytes) -> None:
    # Not atomic: renaming would make it half as slow again, and these files can be generated again.
    file = path.open("wb")  # before: what cannot be opened stays
    try:
        with file:
            file.write(content)
    except OSError as error:
        if path.is_file():  # rather than a device of that name
            path.unlink()
        error.filename = error.filename or str(path)  # the error of a full disk has none
        raise


def _write_zip(path: Path, generator: Generator, n: int, options: dict[str, Any]) -> Iterator[int]:
    def encode(chunk: np.ndarray) -> list[bytes]:
        return [images.encode_png(pixels, level=1) for pixels in chunk]

    done, threads = 0, torch.get_num_threads()
    with (
        atomic_write(path, durable=False) as file,
        ZipFile(file, "w") as archive,
        ThreadPoolExecutor(threads) as pool,
    ):
        for batch in _batches(generator, n, options):
            for content in itertools.chain(*pool.map(encode, np.array_split(batch, threads))):
                # Stored, since PNG is compressed already.
                archive.writestr(ZipInfo(_name(options["start"] + done)), content)
                done += 1
            yield done


def _write_npz(path: Path, generator: Generator, n: int, options: dict[str, Any]) -> Iterator[int]:
    done = 0
    with (
        atomic_write(path, durable=False) as file,
        ZipFile(file, "w") as archive,
        archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as array,
    ):
        for batch in _batches(generator, n, options):
            if not done:
                head = {"descr": "|u1", "fortran_order": False, "shape": (n, *batch.shape[1:])}
                np.lib.format.write_array_header_1_0(array, head)
            array.write(batch.data)
            done += len(batch)
            yield done


def _name(index: int) -> str:
    return f"{index:06d}.png"
