"""GAN losses as pure functions of logits, and the penalties that go with them.

Logits of any shape, one per image; probabilities are never formed, so no loss saturates to infinity. Every loss is
computed in float32 or better, whatever the precision of the logits.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dcgan._choices import LossName
from dcgan._errors import InputError


def probability(logits: Tensor) -> Tensor:
    """Return D(x) in [0, 1], the sigmoid of the logits."""
    return _full(logits).sigmoid()


def _full(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Loss(NamedTuple):
    """A pair of losses, both to be minimised; `Trainer(loss=Loss(...))` takes your own.

    Attributes:
        discriminator: Scalar of the logits `(N,)` of real and of generated images. Labels can be
            smoothed if it takes a keyword `real_target`.
        generator: Scalar of the logits `(N,)` of generated images.
        score: Function from logits to the logged D(x): `probability` if the loss has one, else the logits themselves.
    """

    discriminator: Callable[..., Tensor]
    generator: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor] = _full


def cross_entropy_discriminator(real: Tensor, fake: Tensor, *, real_target: float = 1.0) -> Tensor:
    """-log D(x) - log(1 - D(G(z))) (Goodfellow et al., 2014, Algorithm 1).

    `real_target` below 1 is one-sided label smoothing (Salimans et al., 2016, Section 3.4).
    """
    real, fake = _full(real), _full(fake)
    on_real = real_target * softplus(-real) + (1 - real_target) * softplus(real)
    return on_real.mean() + softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-log D(G(z)) (Goodfellow et al., 2014, Section 3)."""
    return softplus(-_full(fake)).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """log(1 - D(G(z))) (Goodfellow et al., 2014, Equation 1): no gradient where D is certain."""
    return -softplus(_full(fake)).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye, 2017)."""
    return (1 - _full(real)).relu().mean() + (1 + _full(fake)).relu().mean()


def least_squares_discriminator(real: Tensor, fake: Tensor, *, real_target: float = 1.0) -> Tensor:
    """((D(x) - b)² + D(G(z))²) / 2 with b = `real_target` (Mao et al., 2017, Equation 9)."""
    return ((_full(real) - real_target).square().mean() + _full(fake).square().mean()) / 2


def least_squares_generator(fake: Tensor) -> Tensor:
    """(D(G(z)) - 1)² / 2 (Mao et al., 2017, Equation 9)."""
    return (_full(fake) - 1).square().mean() / 2


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """D(G(z)) - D(x) (Arjovsky et al., 2017, Equation 3); needs a penalty."""
    return _full(fake).mean() - _full(real).mean()


def linear_generator(fake: Tensor) -> Tensor:
    """-D(G(z)), the generator's side of the Wasserstein and of the hinge loss."""
    return -_full(fake).mean()


LOSSES: dict[LossName, Loss] = {
    "non-saturating": Loss(cross_entropy_discriminator, non_saturating_generator, probability),
    "minimax": Loss(cross_entropy_discriminator, minimax_generator, probability),
    "hinge": Loss(hinge_discriminator, linear_generator),
    "least-squares": Loss(least_squares_discriminator, least_squares_generator),
    "wasserstein": Loss(wasserstein_discriminator, linear_generator),
}
"""Every loss by name, as `Trainer(loss=...)` and `dcgan train --loss` take it."""


def get_loss(loss: LossName | Loss, *, label_smoothing: float = 0.0) -> Loss:
    """Return a loss by its name, or the one given, with targets for real images of 1 - `label_smoothing`.

    Raises:
        ValueError: If there is no loss of this name, or it has no targets to smooth.
    """
    name, got = (loss, repr(loss)) if isinstance(loss, str) else ("this Loss", f"a {type(loss).__name__}")
    loss = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
    if not isinstance(loss, Loss):
        raise InputError(f"loss must be one of {', '.join(LOSSES)}, or a Loss, got {got}")
    if not label_smoothing:
        return loss
    if "real_target" not in signature(loss.discriminator).parameters:
        with_targets = [
            key for key, value in LOSSES.items() if "real_target" in signature(value.discriminator).parameters
        ]
        raise InputError(f"label_smoothing needs a loss with targets ({', '.join(with_targets)}), got {name!r}")
    return loss._replace(discriminator=partial(loss.discriminator, real_target=1 - label_smoothing))


Penalty = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, torch.Generator], Tensor]
"""Scalar that is added to the discriminator's loss: a function of the discriminator (images to logits `(N,)`), of real
and generated images `(N, K, H, W)`, and of a random generator."""


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """(‖∇D(x̂)‖ - 1)² at x̂ = εx + (1 - ε)G(z) (Gulrajani et al., 2017, Equation 3), averaged over the batch.

    Args:
        discriminator: Images to logits.
        real: Images `(N, K, H, W)`.
        fake: Images of the same shape.
        epsilon: ε in [0, 1], one for each pair: `(N, 1, 1, 1)`.
    """
    between = (epsilon * real + (1 - epsilon) * fake).detach()
    norms: Tensor = torch.linalg.vector_norm(_input_gradient(discriminator, between), dim=1)  # (N,)
    return (norms - 1.0).square().mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """‖∇D(x)‖² / 2 (Mescheder et al., 2018, Equation 9 at γ = 1), averaged over the batch `(N, K, H, W)`."""
    return _input_gradient(discriminator, real.detach()).square().sum(dim=1).mean() / 2


def _gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
) -> Tensor:
    epsilon = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device, dtype=real.dtype)
    return gradient_penalty(discriminator, real, fake, epsilon)


def _r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
    return r1_penalty(discriminator, real)


PENALTIES: dict[str, Penalty] = {"gradient_penalty": _gradient_penalty, "r1": _r1_penalty}
"""Every penalty, by the argument of `Trainer` that sets its weight."""


def _input_gradient(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    images = images.requires_grad_()
    # The sum's gradient is each image's own, as long as no BatchNorm mixes the images.
    gradient: Tensor
    (gradient,) = torch.autograd.grad(_full(discriminator(images)).sum(), images, create_graph=True)
    return gradient.flatten(1)
