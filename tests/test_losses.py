import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, mse_loss

from dcgan.losses import LOSSES, cross_entropy_discriminator, gradient_penalty, least_squares_discriminator, r1_penalty

real, fake = torch.randn(2, 64, dtype=torch.float64)
ones, zeros = torch.ones_like(real), torch.zeros_like(real)


def bce(logits, target):
    return binary_cross_entropy(logits.sigmoid(), target)


def d_bce(real, fake):
    return bce(real, ones) + bce(fake, zeros)


REFERENCES = {
    "non-saturating": (d_bce, lambda fake: bce(fake, ones)),
    "minimax": (d_bce, lambda fake: -bce(fake, zeros)),
    "hinge": (
        lambda real, fake: torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean(),
        lambda fake: -fake.mean(),
    ),
    "least-squares": (
        lambda real, fake: 0.5 * mse_loss(real, ones) + 0.5 * mse_loss(fake, zeros),
        lambda fake: 0.5 * mse_loss(fake, ones),
    ),
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_definitions(name):
    discriminator, generator = REFERENCES[name]
    torch.testing.assert_close(LOSSES[name].discriminator(real, fake), discriminator(real, fake))
    torch.testing.assert_close(LOSSES[name].generator(fake), generator(fake))


def test_label_smoothing_moves_the_target_of_real_images_only():
    torch.testing.assert_close(
        cross_entropy_discriminator(real, fake, real_target=0.9), bce(real, 0.9 * ones) + bce(fake, zeros)
    )
    torch.testing.assert_close(
        least_squares_discriminator(real, fake, real_target=0.9),
        0.5 * mse_loss(real, 0.9 * ones) + 0.5 * mse_loss(fake, zeros),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_losses_and_their_gradients_stay_finite_at_huge_logits(name, dtype, sign):
    a = torch.full((8,), sign * 1e4, dtype=dtype, requires_grad=True)
    b = torch.full((8,), -sign * 1e4, dtype=dtype, requires_grad=True)
    d_loss, g_loss = LOSSES[name].discriminator(a, b), LOSSES[name].generator(a)
    assert d_loss.dtype == g_loss.dtype == torch.float32
    (d_loss + g_loss).backward()
    for value in (d_loss, g_loss, a.grad, b.grad, LOSSES[name].score(a)):
        assert value.isfinite().all()


def test_gradient_penalty_of_a_known_function():
    images, others = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    epsilon = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    weight = torch.randn(75, dtype=torch.float64)
    # ∇(w·x) is w everywhere, and ∇(‖x‖²/2) is x.
    linear = gradient_penalty(lambda x: x.flatten(1) @ weight, images, others, epsilon)
    torch.testing.assert_close(linear, (weight.norm() - 1) ** 2)
    square = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, images, others, epsilon)
    between = (epsilon * images + (1 - epsilon) * others).flatten(1)
    torch.testing.assert_close(square, (between.norm(dim=1) - 1).square().mean())


def test_r1_of_a_known_function():
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    penalty = r1_penalty(lambda x: x.square().flatten(1).sum(1) / 2, images)
    torch.testing.assert_close(penalty, images.square().flatten(1).sum(1).mean() / 2)
    assert not images.requires_grad


def test_penalties_train_the_discriminator():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(18, 1))
    images, others = torch.randn(2, 4, 1, 5, 5)
    for penalty in (gradient_penalty(network, images, others, torch.rand(4, 1, 1, 1)), r1_penalty(network, images)):
        gradients = torch.autograd.grad(penalty, [network[0].weight, network[3].weight])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
