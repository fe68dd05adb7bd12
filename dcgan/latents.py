"""Latents: the points a generator maps to images.

Shapes: N batch, Z latent length.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dcgan._choices import Distribution

LatentSampler = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws latents: a function of their shape, N first, and of a random generator on the device where they should be."""

_BLOCK_SIZE = 256  # latents are drawn in whole blocks, so that latent i of a seed does not depend on their number


def derive_seed(*words: int) -> int:
    """Hash non-negative integers, such as `(seed, step)`, to one 64-bit seed for a `torch.Generator`.

    Nearby words give unrelated seeds, and the low 32 bits, all that the CPU's generator keeps, are mixed as well as
    the high ones.

    Raises:
        ValueError: If a word is negative or has more than 64 bits.
    """
    if any(not 0 <= word < 2**64 for word in words):
        raise ValueError(f"seeds must be non-negative integers of at most 64 bits, got {words}")
    halves = [half for word in words for half in divmod(word, 2**32)]  # so that every word has the same length
    return int(np.random.SeedSequence(halves).generate_state(1, np.uint64)[0])


def sample_latents(
    shape: tuple[int, ...],
    distribution: Distribution | LatentSampler,
    rng: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw latents from `rng`, on its device: N(0, 1) if "normal", U(-1, 1) if "uniform" (the paper, Section 4).

    Raises:
        ValueError: If `distribution` is neither nor a function, or if the function returns another shape.
    """
    if callable(distribution):
        latents = distribution(shape, rng)
        if not isinstance(latents, Tensor) or latents.shape != shape:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"the function that draws latents must return a tensor {shape}, got {got}")
        return latents.to(rng.device, dtype)
    if distribution == "normal":
        return torch.randn(shape, generator=rng, device=rng.device, dtype=dtype)
    if distribution == "uniform":
        return torch.rand(shape, generator=rng, device=rng.device, dtype=dtype) * 2 - 1
    raise ValueError(f"distribution must be 'normal', 'uniform' or a function, got {distribution!r}")


def seeded_latents(
    n: int, latent_dim: int, *, seed: int, start: int = 0, distribution: Distribution = "normal"
) -> Tensor:
    """Return latents number `start` to `start + n - 1` of a seed, float32 `(n, latent_dim)`, on the CPU.

    Latent i depends on the seed and i alone, not on `start` and `n`.

    Raises:
        ValueError: If `n`, `start` or `seed` is negative.
    """
    for name, value in {"n": n, "start": start, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    first, last = start // _BLOCK_SIZE, -(-(start + n) // _BLOCK_SIZE)
    blocks = [torch.empty(0, latent_dim, device="cpu", dtype=torch.float32)]  # for n = 0
    for block in range(first, last):
        rng = torch.Generator("cpu").manual_seed(derive_seed(seed, block))
        blocks.append(sample_latents((_BLOCK_SIZE, latent_dim), distribution, rng))
    offset = start - first * _BLOCK_SIZE
    return torch.cat(blocks)[offset : offset + n]
