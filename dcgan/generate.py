"""Images of a generator as files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torch import Tensor

from dcgan import images
from dcgan.models import Generator


def write_images(
    generator: Generator, folder: Path, n: int, *, seed: int = 0, start: int = 0, batch_size: int = 64
) -> Iterator[int]:
    """Write images number `start` to `start + n - 1` of a seed as `000000.png` and so on, yielding how many are done.

    Files of the same names are replaced; `clashes` tells which there are. Each file is whole or not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save = partial(images.save_png, durable=False)  # what can be made again need not outlive a power cut
    with ThreadPoolExecutor() as pool:
        for done in range(0, n, batch_size):
            count = min(batch_size, n - done)
            batch = sampled(generator, count, seed=seed, start=start + done, batch_size=batch_size)
            paths = [folder / _name(start + done + i) for i in range(count)]
            list(pool.map(save, paths, batch))  # zlib works outside the interpreter's lock
            yield done + len(batch)


def write_grid(
    generator: Generator, path: Path, n: int, *, seed: int = 0, start: int = 0, batch_size: int = 64
) -> None:
    """Write the same images as one picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images.save_png(path, images.grid(sampled(generator, n, seed=seed, start=start, batch_size=batch_size)))


def clashes(folder: Path, n: int, *, start: int = 0) -> list[Path]:
    """Return the files that `write_images` would replace."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [folder / name for name in map(_name, range(start, start + n)) if name in there]


def sampled(generator: Generator, n: int, *, seed: int, start: int = 0, batch_size: int = 64) -> Tensor:
    """Return generated images as uint8 `(n, K, H, W)`, on the CPU."""
    value_range = (0.0, 1.0) if generator.config["output"] == "sigmoid" else (-1.0, 1.0)
    samples = generator.sample(n, seed=seed, start=start, batch_size=batch_size)
    return images.to_uint8(samples, value_range).cpu()


def _name(index: int) -> str:
    return f"{index:06d}.png"
