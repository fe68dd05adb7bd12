"""What the running statistics of a generator's BatchNorms tell about it that its weights do not.

In training, they average what each layer makes of a batch of latents, which depends on the distribution of the latents
and on the activations before that layer. The statistics of a network that was taken for what it is agree with those of
latents drawn anew. On a generator of ours for MNIST, after 6,000 steps, they did so 85 times better with ReLU than with
LeakyReLU(0.2), and 18 times better with normal latents than with uniform ones. For the average of its weights, whose
statistics are estimated anew, it was 49 and 4.5 times; for the average with the statistics of the weights, 18 and 3.
"""

import copy
import math
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from dcgan._config import sides
from dcgan.ema import BATCH_NORMS
from dcgan.latents import seeded_latents
from dcgan.models import Generator

_LATENTS = 128  # for images of 64×64 or smaller ones
_DECISIVE = 2.0  # how much nearer the statistics must be to another assumption than to the usual one
_UNEXPLAINED = 0.03
_EXPLAINED = 0.01  # mismatch above which no assumption explains them; above, the right ones were below 0.007


def follow_statistics(
    generator: Generator, fixed: AbstractSet[str], *, skip_stem: bool
) -> tuple[Generator, dict[str, Any], list[str]]:
    """Return the generator with those of its arguments changed that its running statistics show to be others.

    Args:
        generator: A generator with its weights.
        fixed: Arguments to leave as they are.
        skip_stem: Whether the stem's statistics are not those of training.

    Returns:
        The generator, what was changed, and a note on each change.
    """
    notes: list[str] = []
    changes: dict[str, Any] = {}
    others = {"latent": ("normal", "uniform"), "activation": ("relu", "leaky-relu"), "stem_activation": (True, False)}
    mismatch = _mismatch(generator, skip_stem=skip_stem)
    while untried := others.keys() - fixed - changes.keys():
        trials: list[tuple[float, str, Generator]] = []
        for option in sorted(untried):
            [value] = set(others[option]) - {generator.config[option]}
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                trial = Generator(**generator.config | {option: value}).to(torch.float32)
            trial.load_state_dict(generator.state_dict())
            trials.append((_mismatch(trial, skip_stem=skip_stem), option, trial))
        least, option, trial = min(trials, key=lambda trial: trial[0])
        if not (least <= _EXPLAINED and least * _DECISIVE <= mismatch):
            break
        notes.append(
            f"{option} {trial.config[option]}, not {generator.config[option]}: the running statistics of its "
            f"BatchNorms are {mismatch / least:.1f} times nearer to that"
        )
        changes[option] = trial.config[option]
        generator, mismatch = trial, least
    if math.isfinite(mismatch) and mismatch > _UNEXPLAINED:
        notes.append(
            f"no assumption explains the running statistics of its BatchNorms ({mismatch:.2g}): its activation, "
            "epsilon or order of layers may be another, a part of its latent a label, or the statistics those of other "
            "weights, which dcgan.ema.estimate_batchnorm_statistics estimates anew"
        )
    return generator, changes, notes


def lacks_statistics(generator: Generator, layout: str) -> bool:
    """Whether running statistics are not stored, or those of a trained network never were computed.

    Such is an average of the weights alone. A network that was not trained, whose shifts are zero, is left as it is.
    """
    norms: list[Any] = [module for module in generator.modules() if isinstance(module, BATCH_NORMS)]
    initial = all(not norm.running_mean.any() and bool((norm.running_var == 1).all()) for norm in norms)
    return layout == "authors" or (initial and any(bool(norm.bias.any()) for norm in norms))


@torch.no_grad()
def _mismatch(generator: Generator, *, skip_stem: bool) -> float:
    """Return how far the running statistics are from those over freshly drawn latents; infinity if there are none.

    The geometric mean over the normalisations of the mean squared difference, in deviations and in logarithms of
    variances.
    """
    network = copy.deepcopy(generator).train()
    norms: list[Any] = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    if skip_stem and norms:
        norms.pop(0).eval()
    stored = [
        (norm.running_mean.clone(), norm.running_var.clone(), max(0, int(norm.num_batches_tracked))) for norm in norms
    ]
    for norm in norms:
        norm.momentum = 1.0
    length, distribution = network.config["latent_dim"], network.config["latent"]
    height, width = sides(network.config)
    latents = max(16, min(_LATENTS, _LATENTS * 64 * 64 // (height * width)))
    network(seeded_latents(latents, length, seed=0, distribution=distribution))
    mismatches = []
    # After few batches they still are initial values, zeros and ones, in part; unless they were estimated anew.
    for initial in (0.9, 0.0):
        logarithms = []
        for norm, (mean, variance, batches) in zip(norms, stored, strict=True):
            share = 1 - initial**batches if batches else 1.0
            expected = (1 - share + share * norm.running_var).clamp(min=1e-12)
            ratio = (variance / expected).clamp(min=1e-12)
            difference = (mean - share * norm.running_mean) ** 2 / expected + ratio.log() ** 2
            logarithms.append(difference.mean().clamp(min=1e-12).log())
        mismatches.append(float(torch.stack(logarithms).mean().exp()) if logarithms else float("inf"))
    return min(mismatches)
