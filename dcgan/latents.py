"""Latents: the points a generator maps to images, how to draw them, and what the paper does with them (Section 6).

Everything but the drawing takes the latents and the generator of any GAN.

Shapes: N batch, Z latent length, P points of a walk, T positions along a line, S starts of a search, K×H×W an image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from einops import rearrange
from numpy.random import SeedSequence  # NumPy would load it at its first use, and loading it can lose a Ctrl-C
from torch import Tensor, nn

from dcgan._choices import Distribution
from dcgan._errors import InputError
from dcgan._modules import eval_mode
from dcgan._numbers import brief

Interpolation = Callable[[Tensor, Tensor, float | Tensor], Tensor]
"""Goes from one latent to another: a function of both and of the share of the way, such as `lerp` and `slerp`."""

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
        raise InputError(f"seeds must be non-negative integers of at most 64 bits, got {words}")
    halves = [half for word in words for half in divmod(word, 2**32)]  # so that every word has the same length
    return int(SeedSequence(halves).generate_state(1, np.uint64)[0])


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
            raise InputError(f"the function that draws latents must return a tensor {shape}, got {got}")
        return latents.to(rng.device, dtype)
    if distribution == "normal":
        return torch.randn(shape, generator=rng, device=rng.device, dtype=dtype)
    if distribution == "uniform":
        return torch.rand(shape, generator=rng, device=rng.device, dtype=dtype) * 2 - 1
    raise InputError(f"distribution must be 'normal', 'uniform' or a function, got {distribution!r}")


def seeded_latents(
    n: int,
    latent_dim: int | tuple[int, ...],
    *,
    seed: int,
    start: int = 0,
    distribution: Distribution | LatentSampler = "normal",
) -> Tensor:
    """Return latents number `start` to `start + n - 1` of a seed, float32 `(n, latent_dim)`, on the CPU.

    Latent i depends on the seed and i alone, not on `start` and `n`. Where `latent_dim` is a shape, they are
    `(n, *latent_dim)`.

    Raises:
        ValueError: If `n`, `start` or `seed` is negative, or has more than 64 bits.
    """
    for name, value in {"n": n, "start": start, "seed": seed}.items():
        if value < 0:
            raise InputError(f"{name} must not be negative, got {value}")
        if value >= 2**64:
            raise InputError(f"{name} must be below 2**64, got {brief(value)}")
    shape = (latent_dim,) if isinstance(latent_dim, int) else latent_dim
    first, last = start // _BLOCK_SIZE, -(-(start + n) // _BLOCK_SIZE)
    blocks = [torch.empty(0, *shape, device="cpu", dtype=torch.float32)]  # for n = 0
    for block in range(first, last):
        rng = torch.Generator("cpu").manual_seed(derive_seed(seed, block))
        blocks.append(sample_latents((_BLOCK_SIZE, *shape), distribution, rng))
    offset = start - first * _BLOCK_SIZE
    return torch.cat(blocks)[offset : offset + n]


def pick_latents(picks: Sequence[tuple[int, int]], latent_dim: int, *, distribution: Distribution = "normal") -> Tensor:
    """Return latents by name, each a pair (seed, index), as float32 `(len(picks), latent_dim)` on the CPU.

    Raises:
        ValueError: If there is none, or if a seed or an index is negative or has more than 64 bits.
    """
    if not picks:
        raise InputError("picks must name at least one latent as (seed, index), got none")
    latents = [seeded_latents(1, latent_dim, seed=s, start=i, distribution=distribution) for s, i in picks]
    return torch.cat(latents)


def lerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Return the point at a share `t` of the straight line from `a` to `b`.

    It suits uniform latents, whose cube holds every such line. Between two normal latents of many dimensions, all of
    which have about the same norm, a line passes through norms that no latent has: in the middle it is 1/√2 as far out.

    Args:
        a: Latents `(..., Z)`.
        b: Latents `(..., Z)`.
        t: A number, 0 for `a` and 1 for `b`, or a tensor of them, which is broadcast with the shape before Z.
    """
    return torch.lerp(a, b, _share(t, a))


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Return the point at a share `t` of the arc from `a` to `b`, turning and lengthening at constant speed.

    The direction follows a great circle (Shoemake, 1985; for latents White, 2016, https://arxiv.org/abs/1609.04468),
    and the norm goes in a straight line from that of `a` to that of `b`. Where there is no arc, or not one alone,
    since the directions are equal or opposite, or a point is zero, it is `lerp`. Arguments as for `lerp`.
    """
    t = _share(t, a)
    unit_a, unit_b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    # Precise for small angles too, unlike the arc cosine (Kahan, 2006).
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True))
    has_arc = torch.sin(angle) > 1e-4
    sine = torch.where(has_arc, torch.sin(angle), 1.0)  # or gradients would be of a division by zero
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / sine
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    return torch.where(has_arc & (norm_a * norm_b > 0), torch.lerp(norm_a, norm_b, t) * direction, torch.lerp(a, b, t))


def _share(t: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=like.dtype, device=like.device)[..., None]


def walk(points: Tensor, steps: int, *, interpolate: Interpolation = slerp) -> Tensor:
    """Return a walk through latents in their order (Section 6.1, Figure 4).

    Args:
        points: Latents `(P, Z)`. A closed walk ends with its first point.
        steps: Number of steps from each point to the next.
        interpolate: Way from one point to the next; `lerp` for uniform latents.

    Returns:
        Latents `((P - 1) * steps + 1, Z)`, of which every `steps`-th is a point.

    Raises:
        ValueError: If there are fewer than two points, or `steps` is below 1.
    """
    if points.dim() != 2 or len(points) < 2:
        raise InputError(f"points must have shape (P, Z) with P at least 2, got {tuple(points.shape)}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    t = torch.arange(steps, device=points.device) / steps
    path = interpolate(points[:-1, None], points[1:, None], t)  # (P - 1, steps, Z)
    return torch.cat([path.flatten(0, 1), points[-1:]])


def combine_means(plus: Sequence[Tensor], minus: Sequence[Tensor] = ()) -> Tensor:
    """Return the sum of the means of some groups, less the means of others (Section 6.3.2, Figure 7).

    The paper takes three latents for each concept, since single ones gave unstable images: a smiling woman, less a
    neutral woman, plus a neutral man. The mean of three normal latents is 1/√3 as long as one of them, so that a sum
    of three such means is as long as a latent again.

    Args:
        plus: Groups of latents, each `(N, Z)` with its own N.
        minus: Groups of latents to subtract.

    Returns:
        A latent `(Z,)`.

    Raises:
        ValueError: If there is no group, or a group has no latent.
    """
    groups = [*plus, *minus]
    if not groups or any(group.dim() != 2 or not len(group) for group in groups):
        shapes = [tuple(group.shape) for group in groups]
        raise InputError(f"each group must be latents (N, Z), at least one, and there must be a group; got {shapes}")
    signs = [1] * len(plus) + [-1] * len(minus)
    return torch.stack([sign * group.mean(0) for sign, group in zip(signs, groups, strict=True)]).sum(0)


def jitter(z: Tensor, n: int, *, scale: float = 0.25, seed: int = 0) -> Tensor:
    """Return `n` latents around one, `(n, Z)`: `z` `(Z,)` plus noise from U(-scale, scale) (Figure 7)."""
    rng = torch.Generator("cpu").manual_seed(derive_seed(seed))
    noise = sample_latents((n, *z.shape), "uniform", rng)
    return z + scale * noise.to(z)


def direction(start: Tensor, end: Tensor) -> Tensor:
    """Return the direction `(Z,)` from the mean of one group of latents to that of another, as a "turn" (Figure 8).

    Args:
        start: Latents `(N, Z)`, such as those of faces that look to the left.
        end: Latents `(N, Z)`, such as those of faces that look to the right.

    Raises:
        ValueError: If one of them has no latent.
    """
    return combine_means([end], [start])


def shift(z: Tensor, direction: Tensor, amounts: Tensor) -> Tensor:
    """Move latents along a direction (Figure 8).

    Args:
        z: Latents `(N, Z)`.
        direction: Direction `(Z,)`.
        amounts: How far, in multiples of the direction, `(T,)`; negative ones go the other way.

    Returns:
        Latents `(N, T, Z)`.
    """
    return z[:, None] + amounts.to(z)[:, None] * direction


@dataclass(frozen=True)
class Projection:
    """The latents whose images come closest to given ones.

    Attributes:
        z: Latents `(N, Z)`.
        images: Their images `(N, K, H, W)`.
        errors: Error of each image at every step of the search, `(steps + 1, N)`; the last is that of `images`.
    """

    z: Tensor
    images: Tensor
    errors: Tensor


def squared_error(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference of images from others, both `(N, K, H, W)`, one each: `(N,)`."""
    return (images - targets).square().flatten(1).mean(1)


def project(
    generator: nn.Module,
    targets: Tensor,
    starts: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.1,
    error: Callable[[Tensor, Tensor], Tensor] = squared_error,
    progress: Callable[[int, int], None] | None = None,
) -> Projection:
    """Find latents whose images come closest to given ones, by gradient descent (Lipton and Tripathi, 2017).

    The search is by Adam, whose rate falls to zero along a cosine, from each start for each image, since it can end in
    a local minimum (https://arxiv.org/abs/1702.04782); the best end is kept. The generator is in evaluation mode
    meanwhile, and its weights and their gradients stay as they are.

    Args:
        generator: Module that maps latents `(N, Z)` to images, each on its own.
        targets: Images `(N, K, H, W)` in the range of the generator's, on its device.
        starts: Latents `(S, Z)` to start from, on its device, such as those of a seed. All of S·N searches run at
            once, and take memory accordingly.
        steps: Number of steps.
        lr: Rate of Adam at the first step.
        error: What to minimise: a differentiable function of images and targets to one error each, `(N,)`.
        progress: Called as `progress(done, steps)` after each step.

    Raises:
        ValueError: If there is no image or no start, `steps` is below 1, or the generator's images have another shape.
    """
    if not len(targets) or starts.dim() != 2 or not len(starts) or steps < 1:
        raise InputError(
            "targets (N, K, H, W), starts (S, Z) and steps must be at least one each, "
            f"got {tuple(targets.shape)}, {tuple(starts.shape)} and {steps}"
        )
    repeated = targets.repeat_interleave(len(starts), 0)  # (N·S, K, H, W)
    history = []
    with eval_mode(generator), torch.enable_grad():
        z = starts.detach().repeat(len(targets), 1).requires_grad_()  # (N·S, Z)
        optimizer = torch.optim.Adam([z], lr)
        for step in range(steps + 1):
            images = generator(z)
            if images.shape != repeated.shape:
                expected = ", ".join(map(str, images.shape[1:]))
                raise InputError(f"targets must have the shape (N, {expected}), got {tuple(targets.shape)}")
            errors = error(images, repeated)
            history.append(errors.detach())
            if step < steps:
                optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                (z.grad,) = torch.autograd.grad(errors.sum(), z)
                optimizer.step()
                if progress is not None:
                    progress(step + 1, steps)
    curves = rearrange(torch.stack(history), "steps (n s) -> steps n s", s=len(starts))
    rows = torch.arange(len(targets), device=curves.device)
    best = curves[-1].argmin(1)  # (N,)
    chosen = rows * len(starts) + best
    return Projection(z.detach()[chosen], images.detach()[chosen], curves[:, rows, best])
