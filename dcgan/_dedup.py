"""Near-duplicate images by perceptual hash, where the paper hashes with a denoising autoencoder (Section 4.1.1).

Shapes: N images, P pairs.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from dcgan._errors import InputError, MissingPackageError
from dcgan.data._decoding import Decoded, Decoder
from dcgan.data._packing import prefetch
from dcgan.data._sources import open_source, source_of_files

if TYPE_CHECKING:
    from collections.abc import Callable

BITS = 64
_SIDE = 64  # of what is hashed: twice that of the hash's own cosine transform
_CHUNK = 64
_MAX_PAIRS_AT_ONCE = 2**22


class HashedImages(NamedTuple):
    """The readable images of a folder.

    Attributes:
        files: Their paths, N of them.
        hashes: uint64 `(N,)`.
        failures: `(file, reason)` of the unreadable ones.
        linked: Those of all files that links lead to: within the folder, or from it to a place outside.
        left_out: Number of further paths that lead to the same images.
    """

    files: list[str]
    hashes: np.ndarray
    failures: list[tuple[str, str]]
    linked: set[str]
    left_out: int


def hash_folder(root: Path, *, workers: int, progress: "Callable[[int, int], None] | None" = None) -> HashedImages:
    """Hash every image in and below a folder: the signs of the 8×8 lowest frequencies around their median (pHash).

    An image that several paths lead to, since there are links, is hashed once.

    Args:
        root: The folder.
        workers: Decoding threads.
        progress: Called as `progress(done, total)`.

    Raises:
        ImportError: If imagehash is not installed.
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    try:
        import imagehash
    except ImportError as error:
        raise MissingPackageError('finding near-duplicates needs imagehash: pip install "dcgan[dedup]"') from error
    from PIL import Image

    listed = cast("list[str]", open_source("folder", root).items)
    distinct, linked = _without_links(listed, root)
    decoder = Decoder(source_of_files(distinct), (_SIDE, _SIDE), 1, "squash")
    files, hashes, failures = [], [], []
    for done, decoded in _decode(decoder, workers):
        files += [decoder.source.label(index) for index in decoded.indices]
        failures += decoded.failures
        for pixels in decoded.images:
            bits = imagehash.phash(Image.fromarray(pixels[:, :, 0])).hash
            hashes.append(np.packbits(bits.flatten()).view(np.uint64))
        if progress is not None:
            progress(done, len(decoder.source.items))
    joined = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    return HashedImages(files, joined, failures, linked, len(listed) - len(distinct))


def _without_links(files: Iterable[str], root: Path) -> tuple[list[str], set[str]]:
    """Return one path of each file, the one without links where there is one; and those of files with links to them."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(os.path.realpath(file), []).append(file)
    real_root = os.path.realpath(root)
    distinct, linked = [], set()
    for place, paths in names.items():
        direct = [path for path in paths if os.path.join(real_root, os.path.relpath(path, root)) == place]  # noqa: PTH118
        distinct.append((direct or paths)[0])
        if paths != direct:
            linked.add(distinct[-1])
    return sorted(distinct), linked


def _decode(decoder: Decoder, workers: int) -> Iterator[tuple[int, Decoded]]:
    total = len(decoder.source.items)
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    with ThreadPoolExecutor(workers) as executor:
        for chunk, decoded in zip(chunks, prefetch(executor, decoder, chunks, depth=2 * workers), strict=True):
            yield chunk.stop, decoded


def near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return all pairs of hashes that differ in at most `distance` bits, the nearest first.

    Two such hashes agree in at least one of `distance + 1` groups of bits, so only those that share one are compared.

    Args:
        hashes: uint64 `(N,)`.
        distance: Number of bits, from 0 to 16.

    Returns:
        int64 `(P, 3)`: indices i < j, and the number of bits in which they differ.

    Raises:
        ValueError: If `distance` is out of range.
    """
    if not 0 <= distance <= BITS // 4:
        raise InputError(f"distance must be from 0 to {BITS // 4} bits, got {distance}")
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    found = [np.empty((0, 3), np.int64)]
    for first, last in pairwise(edges.tolist()):
        mask = np.uint64(((1 << (last - first)) - 1) << first)
        found += _compare_within_groups(hashes, hashes & mask, distance)
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[np.argsort(pairs[:, 2], kind="stable")]


def _compare_within_groups(hashes: np.ndarray, keys: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, starts):  # each in ascending order, since the sort is stable
        if len(group) < 2:
            continue
        step = max(1, _MAX_PAIRS_AT_ONCE // len(group))
        for start in range(0, len(group), step):
            rows = group[start : start + step]
            differing = np.bitwise_count(hashes[rows][:, None] ^ hashes[group][None])
            i, j = np.nonzero(differing <= distance)
            later = rows[i] < group[j]
            i, j = i[later], j[later]
            yield np.stack([rows[i], group[j], differing[i, j].astype(np.int64)], 1)


def redundant(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return which of `count` images to leave out, bool `(count,)`: of each pair, the later, unless the earlier is out.

    What stays has no near-duplicate left, and what goes has one among what stays.
    """
    out = np.zeros(count, bool)
    for i, j in sorted(map(tuple, pairs[:, :2].tolist())):
        if not out[i]:
            out[j] = True
    return out


def load_pictures(files: Sequence[str], side: int) -> np.ndarray:
    """Return images as uint8 `(N, side, side, 3)`."""
    return Decoder(source_of_files(files), (side, side), 3, "crop")(range(len(files))).images
