import copy
import functools
import io
import math
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from dcgan import Discriminator, Generator, Trainer, data
from dcgan._monitor import StepMonitor
from dcgan._optim import find_host_state, freeze, load_state, make_capturable
from dcgan.latents import derive_seed
from dcgan.losses import LOSSES, PENALTIES

TINY = {"image_size": 16, "channels": 1, "base_channels": 4}


def networks(dtype=torch.float32, **arguments):
    torch.manual_seed(1)
    generator = Generator(latent_dim=6, **TINY)
    discriminator = Discriminator(**TINY, **arguments)
    return generator.to(dtype), discriminator.to(dtype)


def batches(count, n=8, dtype=torch.float32, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 1, 16, 16, generator=rng, dtype=dtype) * 2 - 1 for _ in range(count)]


def weights(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def tutorial(generator, discriminator, batches, weight_decay=0.0, alternate=False, target=1.0):
    """The loop as every tutorial writes it: probabilities, BCELoss, two backward passes for the discriminator."""
    criterion = nn.BCELoss()
    g_adam = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999), weight_decay=weight_decay)
    d_adam = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999), weight_decay=weight_decay)
    for step, real in enumerate(batches):
        rng = torch.Generator().manual_seed(derive_seed(0, step, 1))
        fake = generator(torch.randn(len(real), 6, generator=rng, dtype=real.dtype))
        ones, zeros = torch.ones(len(real), dtype=real.dtype), torch.zeros(len(real), dtype=real.dtype)
        losses = {}
        if not alternate or step % 2 == 1:
            discriminator.zero_grad()
            output = discriminator(real).sigmoid()
            error_real = criterion(output, target * ones)
            error_real.backward()
            losses["d_real"] = output.mean()
            output = discriminator(fake.detach()).sigmoid()
            error_fake = criterion(output, zeros)
            error_fake.backward()
            losses["d_fake"] = output.mean()
            losses["d_loss"] = error_real + error_fake
            d_adam.step()
        if not alternate or step % 2 == 0:
            generator.zero_grad()
            error = criterion(discriminator(fake).sigmoid(), ones)
            error.backward()
            losses["g_loss"] = error
            g_adam.step()
        yield losses


@pytest.mark.parametrize("options", [{}, {"weight_decay": 1e-3}, {"schedule": "alternate"}, {"label_smoothing": 0.1}])
def test_steps_equal_the_tutorials(options):
    ours, theirs = networks(torch.float64), networks(torch.float64)
    reals = batches(20, dtype=torch.float64)
    trainer = Trainer(*ours, **options)
    reference = tutorial(
        *theirs,
        reals,
        weight_decay=options.get("weight_decay", 0),
        alternate="schedule" in options,
        target=1 - options.get("label_smoothing", 0),
    )
    for step, (real, expected) in enumerate(zip(reals, reference, strict=True)):
        metrics = trainer.step(real)
        tolerance = 1e-12 if step == 0 else 1e-6
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(metrics[name] - value) <= tolerance, (step, name)
        assert (weights(*ours) - weights(*theirs)).abs().max() <= tolerance, step
        for mine, other in zip(ours[0].buffers(), theirs[0].buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_steps_along_its_own_gradient(name):
    """With plain gradient descent, the weights move by the gradient of the published loss, and by nothing else."""
    (g, d), (g_ref, d_ref) = networks(torch.float64), networks(torch.float64)
    optimizers = {
        "g_optimizer": torch.optim.SGD(g.parameters(), 0.1),
        "d_optimizer": torch.optim.SGD(d.parameters(), 0.1),
    }
    (real,) = batches(1, dtype=torch.float64)
    Trainer(g, d, loss=name, **optimizers).step(real)

    fake = g_ref(torch.randn(8, 6, generator=torch.Generator().manual_seed(derive_seed(0, 0, 1)), dtype=torch.float64))
    loss = LOSSES[name].discriminator(d_ref(real), d_ref(fake.detach()))
    for p, gradient in zip(d_ref.parameters(), torch.autograd.grad(loss, d_ref.parameters()), strict=True):
        p.data -= 0.1 * gradient
    loss = LOSSES[name].generator(d_ref(fake))
    for p, gradient in zip(g_ref.parameters(), torch.autograd.grad(loss, g_ref.parameters()), strict=True):
        p.data -= 0.1 * gradient
    torch.testing.assert_close(weights(g, d), weights(g_ref, d_ref), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("option", "value"), [("gradient_penalty", 10.0), ("r1", 3.0)])
def test_penalties_add_to_the_discriminators_loss(option, value):
    from dcgan.losses import gradient_penalty, r1_penalty

    (g, d), (g_ref, d_ref) = networks(torch.float64, norm="none"), networks(torch.float64, norm="none")
    (real,) = batches(1, dtype=torch.float64)
    metrics = Trainer(g, d, loss="wasserstein", **{option: value}).step(real)
    rng = torch.Generator().manual_seed(derive_seed(0, 0, 1))
    fake = g_ref(torch.randn(8, 6, generator=rng, dtype=torch.float64)).detach()
    expected = LOSSES["wasserstein"].discriminator(d_ref(real), d_ref(fake))
    if option == "r1":
        expected = expected + 3.0 * r1_penalty(d_ref, real)
    else:
        epsilon = torch.rand(8, 1, 1, 1, generator=rng, dtype=torch.float64)
        expected = expected + 10.0 * gradient_penalty(d_ref, real, fake, epsilon)
    torch.testing.assert_close(metrics["d_loss"], expected.detach(), rtol=1e-12, atol=1e-12)


def test_the_turns_of_the_networks():
    def turns(**options):
        trainer = Trainer(*networks(), **options)
        return ["".join(k[0] for k in trainer.step(real) if k.endswith("loss")) for real in batches(7)]

    assert turns() == ["dg"] * 7
    assert turns(d_steps=3) == ["d", "d", "dg", "d", "d", "dg", "d"]
    assert turns(schedule="alternate") == ["g", "d", "g", "d", "g", "d", "g"]
    assert turns(schedule="alternate", d_steps=2) == ["g", "d", "d", "g", "d", "d", "g"]


def test_a_network_out_of_turn_does_not_change():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, schedule="alternate")
    before = weights(discriminator).clone()
    trainer.step(batches(1)[0])
    assert torch.equal(weights(discriminator), before)
    before = weights(generator).clone()
    trainer.step(batches(1)[0])
    assert torch.equal(weights(generator), before)


def test_the_generators_turn_leaves_the_discriminators_gradients_alone():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator)
    after_d = {}

    def keep_gradients(*_):
        after_d.update({name: p.grad.clone() for name, p in discriminator.named_parameters()})

    trainer.d_optimizer.register_step_post_hook(keep_gradients)
    trainer.step(batches(1)[0])
    assert after_d
    for name, parameter in discriminator.named_parameters():
        assert torch.equal(parameter.grad, after_d[name])
        assert parameter.requires_grad


def test_freezing_restores_each_parameter_also_after_an_error():
    _, discriminator = networks()
    first, *others = discriminator.parameters()
    first.requires_grad = False
    with pytest.raises(ZeroDivisionError), freeze(discriminator):
        assert not any(p.requires_grad for p in discriminator.parameters())
        _ = 1 / 0
    assert not first.requires_grad
    assert all(p.requires_grad for p in others)


class Foreign(nn.Module):
    """A generator that knows nothing of this package: latents as maps, a dictionary of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.ConvTranspose2d(5, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, z):
        assert z.shape[1:] == (5, 1, 1)
        return self.net(z).tanh()


def test_any_two_modules_can_be_trained():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(16, 1))
    trainer = Trainer(Foreign(), critic, latent_dim=(5, 1, 1), latent="uniform", precision="bf16")
    target = torch.full((16, 2, 4, 4), 0.5)
    for _ in range(200):
        metrics = trainer.step(target + 0.1 * torch.randn_like(target))
    assert {value.shape for value in metrics.values()} == {torch.Size([])}
    with torch.no_grad():
        learned = trainer.ema(torch.rand(64, 5, 1, 1) * 2 - 1)
    assert abs(learned.mean() - 0.5) < 0.3
    with pytest.raises(TypeError, match=r"latent_dim is needed for a generator without config\['latent_dim'\]"):
        Trainer(Foreign(), critic)


def test_uint8_images_are_scaled_to_the_generators_range():
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    for output, scaled in (("tanh", pixels / 127.5 - 1), ("sigmoid", pixels / 255)):
        results = []
        for real in (pixels, scaled):
            torch.manual_seed(0)
            trainer = Trainer(Generator(latent_dim=6, output=output, **TINY), Discriminator(**TINY))
            results.append(trainer.step(real)["d_loss"])
        assert torch.equal(*results)


class Held(nn.Module):
    """Holds nothing but a Sequential."""

    def __init__(self, *layers):
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, z):
        return self.main(z)


def test_a_range_that_only_the_images_show_is_compared_with_the_real_ones(caplog):
    """Of a class, code may scale what its layers compute."""
    pixels = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8)
    for last, real, warned in (
        (nn.Sigmoid(), pixels, True),  # which are scaled to [-1, 1]
        (nn.Sigmoid(), pixels / 255, False),
        (nn.Tanh(), pixels / 255, True),
        (nn.Tanh(), pixels, False),
    ):
        caplog.clear()
        generator = Held(nn.Linear(6, 256), nn.Unflatten(1, (1, 16, 16)), nn.BatchNorm2d(1), last)
        trainer = Trainer(generator, Discriminator(**TINY), latent_dim=6)
        trainer.fit([real], 101)
        trainer.check()
        assert ("real images lie in [" in caplog.text) == warned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": None}, "lr must be a finite number or 'auto', got None"),
        ({"g_lr": "2e-4"}, "g_lr must be a finite number or 'auto', got '2e-4'"),
        ({"lr": math.inf}, "lr must be a finite number or 'auto', got inf"),
        ({"d_lr": math.nan}, "d_lr must be a finite number or 'auto', got nan"),
        ({"betas": 0.5}, "betas must be two numbers, beta1 and beta2, got 0.5"),
        ({"betas": (None, 0.9)}, "betas must be two numbers, beta1 and beta2, got"),
        ({"loss": nn.BCELoss()}, "loss must be one of non-saturating, .*, or a Loss, got a BCELoss"),
        ({"g_optimizer": torch.optim.Adam}, "g_optimizer must be an optimiser of the network's parameters, got .*Adam"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(*networks(), **options)


def test_networks_that_cannot_be_trained_are_named(caplog):
    generator, discriminator = networks()
    with pytest.raises(ValueError, match="must be two networks, got one for both"):
        Trainer(generator, generator)
    Trainer(generator, discriminator, lr=None, g_lr=1e-3, d_lr=1e-3, betas=np.array([0.5, 0.9]))
    assert not caplog.messages
    Trainer(generator, discriminator.requires_grad_(requires_grad=False))  # until a framework lets it be trained
    assert caplog.messages == ["no parameter of the discriminator that its optimiser holds requires a gradient"]


@pytest.mark.parametrize("width", [1, 10])
def test_a_discriminator_gives_one_logit_for_each_image(width):
    critic = Held(nn.Flatten(), nn.Linear(256, width))
    trainer = Trainer(networks()[0], critic)
    if width == 1:
        trainer.step(torch.rand(8, 1, 16, 16))
        return
    with pytest.raises(ValueError, match=r"one logit for each of 8 images, \(8,\) or \(8, 1\), got \(8, 10\) of"):
        trainer.step(torch.rand(8, 1, 16, 16))


def test_images_of_another_shape_than_the_generators_are_refused():
    trainer = Trainer(*networks())
    before = copy.deepcopy(trainer.state_dict()["generator"])
    for shape in ((8, 1, 32, 32), (8, 3, 16, 16)):
        with pytest.raises(
            ValueError, match=rf"images like the batch's, \({shape[0]}, {shape[1]}, .*got \(8, 1, 16, 16\)"
        ):
            trainer.step(torch.rand(shape) * 2 - 1)
    half = Trainer(Held(nn.Linear(6, 256), nn.Unflatten(1, (1, 8, 32))), Discriminator(**TINY), latent_dim=6)
    with pytest.raises(ValueError, match=r"got \(8, 1, 8, 32\)"):
        half.step(torch.rand(8, 1, 16, 16))
    assert trainer.steps == 0
    assert all(
        torch.equal(value, before[name])
        for name, value in trainer.generator.state_dict().items()
        if "num_batches" not in name and "running" not in name
    )


def test_metrics_are_detached_scalars_and_no_step_waits_for_them(monkeypatch):
    """On an accelerator `.item()` and its kin would stop the host until the device is done."""
    trainer = Trainer(*networks())
    reals = batches(2)
    trainer.step(reals[0])
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name: pytest.fail(f"the step called {n}"))
    metrics = trainer.step(reals[1])
    monkeypatch.undo()
    assert metrics.keys() == {"d_loss", "d_real", "d_fake", "g_loss"}
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_synchronises_with_a_gpu(precision):
    generator, discriminator = networks()
    trainer = Trainer(generator.cuda(), discriminator.cuda(), precision=precision)
    reals = [real.cuda() for real in batches(10)]
    for real in reals[:5]:  # among them the capture
        trainer.step(real)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for real in reals[5:]:
            trainer.step(real)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.check()


def test_the_average_follows_its_closed_form_and_takes_batchnorm_along():
    generator, discriminator = networks(torch.float64)
    trainer = Trainer(generator, discriminator, ema_decay=0.5)
    expected = weights(generator).clone()
    for step, real in enumerate(batches(12, dtype=torch.float64)):
        trainer.step(real)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights(generator)
    torch.testing.assert_close(weights(trainer.ema), expected)
    for mine, theirs in zip(trainer.ema.buffers(), generator.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert not trainer.ema.training
    assert not any(p.requires_grad for p in trainer.ema.parameters())
    assert Trainer(*networks(), ema_decay=None).ema is None


# Precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.01)])
def test_half_precision_agrees_with_full_and_keeps_its_state_in_full(precision, tolerance):
    full, half = Trainer(*networks()), Trainer(*networks(), precision=precision)
    for real in batches(3):
        half.load_state_dict({**full.state_dict(), **{k: v for k, v in half.state_dict().items() if "scaler" in k}})
        expected, metrics = full.step(real), half.step(real)
        for name, value in expected.items():
            assert abs(metrics[name] - value) < tolerance * max(1, abs(value))
            assert metrics[name].dtype == torch.float32
    for module in (half.generator, half.discriminator, half.ema):
        assert {v.dtype for v in module.state_dict().values()} <= {torch.float32, torch.int64}


def test_an_overflow_of_one_network_leaves_the_other_alone():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, precision="fp16")
    reals = batches(2)
    trainer.step(reals[0])
    trainer.d_scaler._scale.fill_(1e38)
    before = weights(discriminator).clone()
    g_scale, g_before = trainer.g_scaler.get_scale(), weights(generator).clone()
    trainer.step(reals[1])
    assert torch.equal(weights(discriminator), before)
    assert trainer.d_scaler.get_scale() < 1e38
    assert trainer.g_scaler.get_scale() == g_scale
    assert not torch.equal(weights(generator), g_before)
    trainer.check()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_an_optimiser_that_raised_leaves_no_scale_behind(max_grad_norm, precision, error):
    """As a fused Adam does in a CUDA graph, after the scaler has left its scale on it."""
    ours, theirs = (Trainer(*networks(), precision=precision, max_grad_norm=max_grad_norm) for _ in range(2))
    first, second = batches(2)
    for trainer in (ours, theirs):
        trainer.step(first)
        if precision == "fp16":
            trainer.d_scaler.update(128.0)  # below what overflows

    def refuse(*_):
        raise error("param_groups' capturable is False")

    before, trained = copy.deepcopy(ours.state_dict()), weights(theirs.discriminator)
    handle = ours.d_optimizer.register_step_pre_hook(refuse)
    with pytest.raises(error, match="capturable is False"):
        ours.step(second)
    handle.remove()
    ours.load_state_dict(before)  # BatchNorm has seen the batch
    assert ours.step(second) == theirs.step(second)
    assert torch.equal(weights(ours.generator, ours.discriminator), weights(theirs.generator, theirs.discriminator))
    assert not torch.equal(weights(theirs.discriminator), trained)


def on_meta(optimizer_class, **options):
    """An optimiser of a parameter on another device than that of its state, as on a GPU."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = optimizer_class([parameter], lr=0.1, **options)
    optimizer.step()
    state = optimizer.state_dict()
    meta = nn.Parameter(parameter.detach().to("meta"))
    return optimizer_class([meta], lr=0.1, **options), meta, state


def test_a_state_is_placed_where_the_optimiser_that_loads_it_needs_it():
    _, parameter, state = on_meta(torch.optim.Adam)
    capturable = torch.optim.Adam([parameter], lr=0.3, capturable=True)
    load_state(capturable, state)
    (group,), (moments,) = capturable.param_groups, capturable.state.values()
    assert moments["step"].device == parameter.device
    assert (group["capturable"], group["fused"], group["lr"]) == (True, None, 0.1)  # how, and not what, is its own
    with pytest.raises(ValueError, match="different number of parameter groups"):
        load_state(capturable, {**state, "param_groups": state["param_groups"] * 2})
    assert not state["param_groups"][0]["capturable"]


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop"])
def test_counts_move_to_the_device_of_their_parameter(name):
    optimizer, parameter, state = on_meta(getattr(torch.optim, name))
    optimizer.load_state_dict(state)
    assert find_host_state(optimizer) == f"{name} keeps 'step' on the host"
    make_capturable(optimizer)
    assert optimizer.param_groups[0]["capturable"]
    assert {value.device for value in optimizer.state[parameter].values()} == {parameter.device}
    assert find_host_state(optimizer) is None


def test_optimisers_without_counts_are_left_alone():
    sgd, _, _ = on_meta(torch.optim.SGD, momentum=0.9)
    settings = dict(sgd.param_groups[0])
    make_capturable(sgd)
    assert sgd.param_groups[0] == settings
    adagrad, _, state = on_meta(torch.optim.Adagrad)
    adagrad.load_state_dict(state)
    make_capturable(adagrad)
    assert find_host_state(sgd, adagrad) == "Adagrad keeps 'step' on the host"


# State

OPTIONS = {
    "default": {},
    "minimax": {"loss": "minimax"},
    "hinge": {"loss": "hinge"},
    "least-squares smoothed": {"loss": "least-squares", "label_smoothing": 0.1},
    "wasserstein with penalty": {"loss": "wasserstein", "gradient_penalty": 10.0, "d_steps": 3},
    "r1": {"r1": 1.0},
    "alternate": {"schedule": "alternate", "weight_decay": 1e-5},
    "augmented": {"augmentations": ["color", "translation", "cutout"]},
    "no average": {"ema_decay": None},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "other latents": {"latent": "uniform", "seed": 9},
    "rmsprop": {"g_optimizer": "rmsprop", "d_optimizer": "rmsprop"},
}

RESUME = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_trainer import OPTIONS, batches, built
torch.set_num_threads(1)
for name, options in OPTIONS.items():
    trainer = built(options)
    trainer.load_state_dict(torch.load(f"{sys.argv[2]}/{name}.pt", weights_only=True))
    metrics = [trainer.step(real) for real in batches(5)[3:]]
    torch.save({"state": trainer.state_dict(), "metrics": metrics}, f"{sys.argv[2]}/{name}.resumed.pt")
"""


def built(options):
    options = dict(options)
    generator, discriminator = networks()
    for key, network in (("g_optimizer", generator), ("d_optimizer", discriminator)):
        if key in options:
            options[key] = torch.optim.RMSprop(network.parameters(), 1e-4)
    return Trainer(generator, discriminator, **options)


def assert_identical(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit_with_every_option(tmp_path):
    unbroken = {}
    for name, options in OPTIONS.items():
        trainer = built(options)
        reals = batches(5)
        for real in reals[:3]:
            trainer.step(real)
        torch.save(trainer.state_dict(), tmp_path / f"{name}.pt")
        metrics = [trainer.step(real) for real in reals[3:]]
        unbroken[name] = {"state": trainer.state_dict(), "metrics": metrics}
    folder = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", RESUME, folder, str(tmp_path)], check=True)
    for name, expected in unbroken.items():
        resumed = torch.load(tmp_path / f"{name}.resumed.pt", weights_only=True)
        buffer = io.BytesIO()
        torch.save(expected, buffer)
        buffer.seek(0)
        assert_identical(resumed, torch.load(buffer, weights_only=True), name)


def test_a_state_that_does_not_fit_is_refused_with_reasons():
    trainer = Trainer(*networks())
    with pytest.raises(ValueError, match="the state does not match this trainer: only one of them has ema"):
        Trainer(*networks(), ema_decay=None).load_state_dict(trainer.state_dict())
    other = Trainer(Generator(latent_dim=6, image_size=16, channels=1, base_channels=8), Discriminator(**TINY))
    with pytest.raises(ValueError, match=r"the state does not fit the generator: (?s:.*)size mismatch"):
        other.load_state_dict(trainer.state_dict())


def test_a_step_does_not_touch_the_global_random_state():
    trainer = Trainer(*networks(), augmentations=["color"], gradient_penalty=1.0)
    before = torch.get_rng_state()
    trainer.step(batches(1)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_iterate_stops_at_the_total_and_yields_every_step():
    trainer = Trainer(*networks())
    endless = iter(lambda: batches(1)[0], None)
    assert len(list(trainer.iterate(endless, 3))) == 3
    assert len(list(trainer.iterate(endless, 5))) == 2
    assert trainer.steps == 5
    assert list(trainer.iterate(endless, 5)) == []


# Divergence


def test_divergence_is_blamed_on_the_step_and_the_network():
    def diverged(spoil, at=2):
        generator, discriminator = networks()
        trainer = Trainer(generator, discriminator)
        for step, real in enumerate(batches(5)):
            trainer.step(spoil(generator, discriminator, real) if step == at else real)
        with pytest.raises(FloatingPointError) as error:
            trainer.check()
        return str(error.value)

    def spoil_generator(generator, discriminator, real):
        generator.head.conv.weight.data[0] = float("nan")
        return real

    def spoil_discriminator(generator, discriminator, real):
        discriminator.head.conv.weight.data[0] = float("inf")
        return real

    def spoil_images(generator, discriminator, real):
        real[0, 0, 0, 0] = float("nan")
        return real

    assert diverged(spoil_generator) == "step 2: the generator turned non-finite (NaN or infinity)"
    assert diverged(spoil_discriminator) == "step 2: the discriminator turned non-finite (NaN or infinity)"
    assert diverged(spoil_images) == "step 2: the real images turned non-finite (NaN or infinity)"


def test_weights_that_broke_in_the_last_update_are_found_too():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator)
    trainer.step(batches(1)[0])
    trainer.check()
    discriminator.head.conv.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 0: the discriminator's weights turned non-finite"):
        trainer.check()


def test_fit_looks_for_divergence_by_itself():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"step \d: the (generator|discriminator)"):
        trainer.fit(iter(lambda: batches(1, n=2)[0], None), 200)
    assert trainer.steps == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss": "bce"},
            "loss must be one of non-saturating, minimax, hinge, least-squares, wasserstein, or a Loss, got 'bce'",
        ),
        ({"precision": "tf32"}, "precision must be one of fp32, bf16, fp16, got 'tf32'"),
        ({"schedule": "random"}, "schedule must be one of together, alternate, got 'random'"),
        (
            {"augmentations": ["flip"]},
            "augmentations must be among color, translation, shift, cutout, or functions, got 'flip'",
        ),
        ({"g_lr": -1e-4}, "g_lr must not be negative, got -0.0001"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0, got -1.0"),
        ({"d_steps": 0}, "d_steps must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty must not be negative, got -1.0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"r1": math.nan}, "r1 must not be negative, got nan"),
        ({"betas": (0.5,)}, r"betas must be two numbers, beta1 and beta2, got \(0.5,\)"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, r"label_smoothing needs a loss with targets \(.*\), got 'hinge'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(*networks(), **arguments)


@pytest.mark.parametrize("name", ["d_steps", "seed", "latent_dim"])
def test_whole_numbers_are_of_any_library_and_nothing_else(name):
    Trainer(*networks(), **{name: np.int64(6)}).step(batches(1)[0])
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got 6.5"):
        Trainer(*networks(), **{name: 6.5})


def test_bad_batches_and_scattered_networks_are_named():
    trainer = Trainer(*networks())
    with pytest.raises(
        ValueError, match=r"batch must be images \(N, K, H, W\), floating-point or uint8, got \(1, 16, 16\)"
    ):
        trainer.step(torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="torch.int64"):
        trainer.step(torch.zeros(2, 1, 16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"batch must hold at least one image, got \(0, 1, 16, 16\)"):
        trainer.step(torch.zeros(0, 1, 16, 16))
    assert trainer.steps == 0
    generator, discriminator = networks()
    with pytest.raises(ValueError, match=r"the networks must be on one device, got \['cpu', 'meta'\]"):
        Trainer(generator, discriminator.to("meta"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: [images, torch.zeros(8, dtype=torch.int64)],  # a data set of images and labels
        lambda images: (torch.arange(8), {"box": 1}, images),
        lambda images: {"label": torch.zeros(8), "image": images},  # one of Hugging Face's
        lambda images: OrderedDict(pixel_values=images, name=["a"] * 8),
    ],
)
def test_a_batch_that_holds_one_tensor_of_images_is_trained_on(wrap):
    reals, ours, theirs = batches(3), Trainer(*networks()), Trainer(*networks())
    for real in reals:
        wrapped, plain = ours.step(wrap(real)), theirs.step(real)
        assert wrapped == plain
    assert torch.equal(weights(ours.generator, ours.discriminator), weights(theirs.generator, theirs.discriminator))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], r"got a list with 0 of them; it has no items"),
        (
            {"image": [1, 2], "label": torch.zeros(2)},
            r"a dict with 0 of them; it has 'image' \(list\), 'label' \(\(2,\)",
        ),
        ([torch.zeros(2, 16, 16), 3], r"0 of them; it has item 0 \(\(2, 16, 16\) of torch.float32\), item 1 \(int\)"),
        ([torch.zeros(2, 1, 16, 16)] * 2, r"a list with 2 of them, in item 0 and item 1; it has"),
        ({"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(2, 1, 4, 4)}, r"2 of them, in 'a' and 'b'"),
        ({"image": torch.zeros(2, 1, 4, 4, dtype=torch.int64), "mask": torch.zeros(2, 1, 4, 4)}, "'image' and 'mask'"),
        ((torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)), r"pass the images alone, as one tensor$"),
        ([[torch.zeros(2, 1, 16, 16), torch.zeros(2)]], r"a list with 0 of them; it has item 0 \(list\): pass"),
        ("batch", r"the batch must be a tensor of images \(N, K, H, W\), got a str"),
        (None, r"got a NoneType"),
        (torch.zeros(2, 1, 16, 16).numpy(), r"got a ndarray: pass one batch as a tensor, such as torch.from_numpy"),
        (iter([torch.zeros(2, 1, 16, 16)]), r"got a list_iterator: .* and a whole loader to fit"),
    ],
)
def test_a_batch_without_one_tensor_of_images_is_described(batch, message):
    trainer = Trainer(*networks())
    with pytest.raises(TypeError, match=message):
        trainer.step(batch)
    assert trainer.steps == 0


def test_images_of_whole_numbers_in_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"floating-point or uint8, got \(2, 1, 16, 16\) of torch.int64"):
        Trainer(*networks()).step({"image": torch.zeros(2, 1, 16, 16, dtype=torch.int64), "label": torch.zeros(2)})


def test_latents_come_from_a_function():
    def two_clusters(shape, rng):
        z = torch.randn(shape, generator=rng, device=rng.device)
        return z + torch.randint(2, (len(z), 1), generator=rng, device=rng.device) * 4 - 2

    ours, theirs = Trainer(*networks(), latent=two_clusters), Trainer(*networks())
    drawn = []
    ours.generator.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[0]))
    for real in batches(2, n=64):
        metrics = ours.step(real)
        assert metrics != theirs.step(real)
    assert drawn[0].dtype == torch.float32
    assert 4 < drawn[0].var().item() < 6  # 1 of each cluster and 4 between them
    resumed = Trainer(*networks(), latent=two_clusters)
    resumed.fit(batches(2, n=64), 2)
    assert torch.equal(weights(ours.generator), weights(resumed.generator))
    for latents, got in ((torch.zeros(6), r"\(6,\)"), ([0.0] * 6, "list")):
        with pytest.raises(ValueError, match=rf"draws latents must return a tensor \(8, 6\), got {got}"):
            Trainer(*networks(), latent=lambda shape, rng, latents=latents: latents).step(batches(1)[0])


def test_a_state_without_some_parts_loads_if_asked():
    reals = batches(4)
    trainer = Trainer(*networks())
    trainer.fit(reals[:2], 2)
    state = copy.deepcopy(trainer.state_dict())
    hosted = {name: state.pop(name) for name in ("generator", "discriminator", "g_optimizer", "d_optimizer")}
    resumed = Trainer(*networks())
    with pytest.raises(ValueError, match="only one of them has d_optimizer, discriminator, g_optimizer, generator"):
        resumed.load_state_dict(state)
    for name, part in hosted.items():  # as a framework restores them
        getattr(resumed, name).load_state_dict(part)
    resumed.load_state_dict(state, strict=False)
    assert resumed.steps == 2
    for each in (trainer, resumed):
        each.fit(iter(reals[2:]), 4)
    assert torch.equal(weights(trainer.ema), weights(resumed.ema))
    with pytest.raises(ValueError, match="only one of them has epoch"):
        resumed.load_state_dict({"epoch": 3}, strict=False)


@pytest.mark.parametrize("options", [{}, {"schedule": "alternate"}, {"d_steps": 3}])
def test_a_state_that_lost_its_moments_is_noticed(options, caplog):
    trainer = Trainer(*networks(), **options)
    for steps, real in enumerate(batches(5), start=1):
        fresh = Trainer(*networks(), **options)
        trainer.step(real)
        state = copy.deepcopy(trainer.state_dict())
        fresh.load_state_dict(copy.deepcopy(state))
        assert not caplog.records  # it is whole, whichever networks have trained
        for name in ("g_optimizer", "d_optimizer"):
            if state[name]["state"]:
                fresh.load_state_dict({**state, name: {**state[name], "state": {}}})
                (record,) = caplog.records
                assert f"is of step {steps}, but has no moments of the {name}" in record.getMessage()
                caplog.clear()


def test_plain_gradient_descent_has_no_moments_to_lose(caplog):
    pair = networks()
    optimizers = [torch.optim.SGD(network.parameters(), 1e-3) for network in pair]
    trainer = Trainer(*pair, g_optimizer=optimizers[0], d_optimizer=optimizers[1])
    trainer.step(batches(1)[0])
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert not caplog.records


@pytest.mark.parametrize("broken", [None, [], {"x": 1}])
@pytest.mark.parametrize("part", ["discriminator", "ema", "g_optimizer", "steps", "seed", "monitor"])
def test_a_state_of_any_other_kind_changes_nothing(part, broken):
    trainer, other = Trainer(*networks()), Trainer(*networks())
    trainer.step(batches(1)[0])
    before = weights(other.generator, other.discriminator, other.ema)
    with pytest.raises(
        ValueError, match=f"the state does not fit the {part}|the state's {part} must be a whole number"
    ):
        other.load_state_dict({**trainer.state_dict(), part: broken})
    assert torch.equal(weights(other.generator, other.discriminator, other.ema), before)
    assert other.steps == 0


class Wrapper:
    """As frameworks wrap optimisers."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self, *args, **kwargs):
        self.calls += 1
        return self.optimizer.step(*args, **kwargs)


def test_a_frameworks_wrapper_around_an_optimiser_is_called(caplog):
    plain, wrapped = networks(), networks()
    adams = [Wrapper(torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=True)) for network in wrapped]
    ours, theirs = Trainer(*wrapped, g_optimizer=adams[0], d_optimizer=adams[1]), Trainer(*plain)
    for each in (ours, theirs):
        each.fit(batches(3), 3)
    assert [adam.calls for adam in adams] == [3, 3]
    assert torch.equal(weights(*wrapped), weights(*plain))
    resumed = Trainer(*networks())
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert not caplog.records
    assert resumed.step(batches(1)[0]) == theirs.step(batches(1)[0])
    with pytest.raises(
        ValueError, match='d_optimizer must be the optimiser itself with precision="fp16", got the wrap'
    ):
        Trainer(*wrapped, d_optimizer=adams[1], precision="fp16")


def test_networks_loaded_for_use_are_put_back_into_training():
    generator, discriminator = networks()
    Trainer(generator.eval(), discriminator.eval())
    assert generator.training
    assert discriminator.training


def test_a_copy_of_the_networks_does_not_share_the_average():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator)
    start = copy.deepcopy(trainer.ema)
    trainer.step(batches(1)[0])
    assert not torch.equal(weights(start), weights(trainer.ema))
    assert not torch.equal(weights(generator), weights(trainer.ema))


def test_a_diverged_trainer_recovers_from_a_good_state():
    trainer = Trainer(*networks())
    real, after = batches(2)
    trainer.step(real)
    good = copy.deepcopy(trainer.state_dict())
    trainer.step(real * float("nan"))
    with pytest.raises(FloatingPointError):
        trainer.check()
    trainer.load_state_dict(good)
    trainer.step(after)
    trainer.check()


def test_a_refused_state_leaves_the_trainer_as_it_was():
    trainer, other = Trainer(*networks()), Trainer(*networks())
    other.step(batches(1)[0])
    broken = copy.deepcopy(other.state_dict())
    del broken["discriminator"]["head.conv.weight"]
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match="the state does not fit the discriminator"):
        trainer.load_state_dict(broken)
    assert_identical(trainer.state_dict(), before)


def test_optimisers_that_stepped_before_continue_as_they_would_have():
    """Fused Adam walks weights and moments side by side in memory, and the trainer changes the layout of weights."""
    results = []
    for fused in (True, False):
        generator, discriminator = networks(torch.float64)
        optimizers = [torch.optim.Adam(n.parameters(), 2e-4, fused=fused) for n in (generator, discriminator)]
        for network, optimizer in zip((generator, discriminator), optimizers, strict=True):
            torch.manual_seed(3)
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        trainer = Trainer(generator, discriminator, g_optimizer=optimizers[0], d_optimizer=optimizers[1])
        for real in batches(2, dtype=torch.float64):
            trainer.step(real)
        results.append(weights(generator, discriminator))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", ["r1", "gradient_penalty"])
def test_penalties_are_in_full_precision_also_inside_autocast(option):
    seen = []
    trainer = Trainer(*networks(norm="none"), loss="wasserstein", precision="bf16", **{option: 1.0})
    trainer.discriminator.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        trainer.step(batches(1)[0])
    assert [logits.dtype for logits in seen] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"r1": 1.0}])
def test_an_enclosing_autocast_changes_nothing(precision, options):
    trainers = [Trainer(*networks(norm="layer"), precision=precision, **options) for _ in range(2)]
    for real in batches(4):
        alone = trainers[0].step(real)
        with torch.autocast("cpu", torch.bfloat16):
            enclosed = trainers[1].step(real)
        assert alone == enclosed
    assert torch.equal(*(weights(trainer.generator, trainer.discriminator) for trainer in trainers))


def test_half_precision_weights_are_refused():
    generator, discriminator = networks()
    with pytest.raises(ValueError, match=r"the networks' weights must be float32, got torch.bfloat16"):
        Trainer(generator, discriminator.bfloat16())


def test_training_does_not_use_the_latents_that_samples_show():
    from dcgan.latents import seeded_latents

    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, seed=5)
    seen = []
    generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for real in batches(3):
        trainer.step(real)
    shown = {tuple(row) for row in seeded_latents(1024, 6, seed=5).tolist()}
    assert not shown & {tuple(row) for z in seen for row in z.tolist()}


def test_real_and_generated_images_are_augmented_wherever_the_discriminator_looks():
    blind = []
    trainer = Trainer(*networks(), augmentations=[lambda images, rng: blind.append(images) or images * 0])
    first = trainer.step(batches(1)[0])
    assert len(blind) == 3
    assert first["d_real"] == first["d_fake"]  # what augmentation makes of an image is all that is judged


# What users bring


def test_losses_penalties_and_augmentations_may_be_functions():
    """Each equals the built-in of the same mathematics, so nobody has to subclass or to change a dictionary."""
    from dcgan.augment import translation
    from dcgan.losses import Loss, hinge_discriminator, linear_generator, r1_penalty

    named, given = (
        Trainer(*networks(norm="none"), loss="hinge", r1=3.0, augmentations=["translation"]),
        Trainer(
            *networks(norm="none"),
            loss=Loss(hinge_discriminator, linear_generator),
            penalties=[lambda discriminator, real, fake, rng: 3.0 * r1_penalty(discriminator, real)],
            augmentations=[translation],
        ),
    )
    for real in batches(3):
        assert_identical(named.step(real), given.step(real))
    assert_identical(named.state_dict(), given.state_dict())


def test_each_network_may_have_a_rate_of_its_own():
    trainer = Trainer(*networks(), lr=1e-3, d_lr=4e-4)
    assert trainer.g_optimizer.param_groups[0]["lr"] == 1e-3
    assert trainer.d_optimizer.param_groups[0]["lr"] == 4e-4
    assert Trainer(*networks(), g_lr=5e-5).g_optimizer.param_groups[0]["lr"] == 5e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_norm(precision):
    generator, discriminator = networks()
    optimizers = {
        "g_optimizer": torch.optim.SGD(generator.parameters(), 1.0),
        "d_optimizer": torch.optim.SGD(discriminator.parameters(), 1.0),
    }
    trainer = Trainer(generator, discriminator, max_grad_norm=1e-2, precision=precision, **optimizers)
    for real in batches(12):  # the first ones of fp16 overflow, and are skipped
        before = weights(generator).clone(), weights(discriminator).clone()
        trainer.step(real)
    for was, network in zip(before, (generator, discriminator), strict=True):
        torch.testing.assert_close((weights(network) - was).norm(), torch.tensor(1e-2), rtol=1e-3, atol=0)


class Flat(nn.Module):
    """A discriminator as people write them: `view` needs images that are contiguous."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.linear = nn.Linear(3 * 16 * 16, 1)

    def forward(self, image):
        image = image.view(len(image), 1, 16, 16)
        return self.linear(self.conv(image).view(len(image), -1)).view(-1)


def test_modules_that_view_their_input_keep_their_memory_format():
    trainer = Trainer(networks()[0], Flat(), gradient_penalty=1.0)
    for real in batches(2):
        trainer.step(real.to(memory_format=torch.channels_last))  # as `Batches` serves them
    assert trainer.discriminator.conv.weight.is_contiguous()
    generator, discriminator = networks()
    Trainer(generator, discriminator)
    assert discriminator.blocks["4x4"].conv.weight.is_contiguous(memory_format=torch.channels_last)
    generator, discriminator = networks()
    Trainer(generator, discriminator, memory_format=torch.contiguous_format)
    assert discriminator.blocks["4x4"].conv.weight.is_contiguous()


def test_submodules_in_evaluation_mode_stay_in_it():
    generator, discriminator = networks()
    generator.blocks["4x4"].norm.eval()
    trainer = Trainer(generator, discriminator.eval())
    before = generator.blocks["4x4"].norm.running_mean.clone()
    for real in batches(2):
        trainer.step(real)
    assert torch.equal(generator.blocks["4x4"].norm.running_mean, before)
    assert generator.blocks["8x8"].norm.training
    assert all(module.training for module in discriminator.modules())


class Noisy(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x + 0.1 * torch.randn_like(x))


def test_dropout_and_noise_inside_the_networks_are_a_function_of_seed_and_step():
    def built():
        torch.manual_seed(0)
        generator = Noisy(nn.Linear(6, 256), nn.Unflatten(1, (1, 16, 16)), nn.Tanh())
        return Trainer(generator, Noisy(nn.Dropout(), nn.Flatten(), nn.Linear(256, 1)), latent_dim=6)

    reals = batches(6)
    unbroken = built()
    for real in reals[:3]:
        unbroken.step(real)
    state = copy.deepcopy(unbroken.state_dict())
    expected = [unbroken.step(real) for real in reals[3:]]
    resumed = built()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    resumed.load_state_dict(state)
    assert_identical([resumed.step(real) for real in reals[3:]], expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_trained_parts_cannot_be_replaced_unnoticed():
    trainer = Trainer(*networks())
    for name in ("generator", "discriminator", "ema", "g_optimizer", "d_optimizer", "loss"):
        with pytest.raises(AttributeError, match=f"property {name!r} of 'Trainer' object has no setter"):
            setattr(trainer, name, None)
    state = {name: tensor.clone() for name, tensor in trainer.generator.state_dict().items()}
    trainer.generator.load_state_dict(state, assign=True)
    with pytest.raises(
        RuntimeError, match=r"parameters of the generator were replaced .* load_state_dict\(assign=True\)"
    ):
        trainer.step(batches(1)[0])
    assert trainer.steps == 0


def test_optimisers_of_other_parameters_are_refused_and_of_some_are_named(caplog):
    generator, discriminator = networks()
    with pytest.raises(ValueError, match="g_optimizer holds no parameter of the generator"):
        Trainer(generator, discriminator, g_optimizer=torch.optim.SGD(discriminator.parameters(), 0.1))
    head = torch.optim.SGD(discriminator.head.parameters(), 0.1)
    Trainer(generator, discriminator, d_optimizer=head)
    assert "trainable parameters of the discriminator are not in its optimiser" in caplog.text
    caplog.clear()
    discriminator.blocks.requires_grad_(requires_grad=False)
    Trainer(generator, discriminator, d_optimizer=head)
    assert not caplog.records


def test_fit_trains_and_says_when_it_cannot(caplog):
    trainer = Trainer(*networks())
    assert trainer.fit(batches(2), 5) is None  # a loader is gone through again
    assert trainer.steps == 5
    with pytest.raises(RuntimeError, match="batches ended at step 7 of 9: pass a loader"):
        trainer.fit(iter(batches(2)), 9)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        trainer.fit([], 9)
    assert not caplog.records
    trainer.fit(batches(1), 7)
    assert "nothing to train: 7 of 7 steps are done" in caplog.text


def test_likely_mistakes_in_batches_are_named(caplog):
    images = batches(1)[0]
    with pytest.raises(
        ValueError, match=r"real images lie in \[.*, 2.*\], but the generator's in \[-1, 1\]: pass uint8"
    ):
        Trainer(*networks()).step((images + 1) * 127.5)
    assert not caplog.records
    trainer = Trainer(*networks())
    for real in batches(12):
        trainer.step((real + 1) / 2)
    trainer.check()
    (record,) = caplog.records
    assert record.getMessage().startswith("real images lie in [")
    assert record.getMessage().endswith("[-1, 1]: pass uint8 images, or Normalize(0.5, 0.5) after ToTensor")
    caplog.clear()
    torch.manual_seed(0)
    Trainer(Generator(latent_dim=6, output="sigmoid", **TINY), Discriminator(**TINY)).step(images)
    assert "but the generator's in [0, 1]" in caplog.text


def test_pixels_are_never_out_of_range(caplog):
    trainer = Trainer(*networks())
    for real in batches(3, n=32):
        trainer.step((real * 20 + 220).to(torch.uint8))  # bright all over: as floats, [0.57, 0.88]
    trainer.check()
    assert not caplog.records
    trainer.step(torch.full((32, 1, 16, 16), torch.nan))
    with pytest.raises(FloatingPointError, match="step 3: the real images turned non-finite"):
        trainer.check()


def test_images_far_from_an_unknown_range_are_noticed(caplog):
    class Residual(nn.Module):
        """A generator whose code alone shows its range."""

        def __init__(self):
            super().__init__()
            self.net = Generator(latent_dim=6, **TINY)

        def forward(self, z):
            return self.net(z)

    for scale, warnings in ((1.0, 0), (127.5, 1)):
        caplog.clear()
        torch.manual_seed(1)
        trainer = Trainer(Residual(), Discriminator(**TINY), latent_dim=6)
        for real in batches(110, n=2):
            trainer.step((real + 1) * scale)
            if trainer.steps == 5:
                trainer.check()  # too early to tell
                assert not caplog.records
        trainer.check()
        assert sum(record.name == "dcgan._monitor" for record in caplog.records) == warnings
    assert re.search(r"real images lie in \[.*, 255\], but the generated ones in \[-.*\]: scale", caplog.text)


def test_images_on_a_device_are_checked_by_the_recorded_ranges(caplog):
    trainer = Trainer(*networks())
    trainer._monitor.expect_range = lambda _: None  # as for a batch that is on the device already
    for real in batches(3):
        trainer.step((real + 1) * 127.5)
    assert not caplog.records
    trainer.check()
    assert "pass uint8 images, or scale them" in caplog.text


class Probability(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))

    def forward(self, image):
        return self.layers(image).sigmoid()


def test_a_discriminator_that_ends_in_a_sigmoid_is_named_once(caplog):
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 1), nn.Sigmoid())
    Trainer(networks()[0], module)
    assert caplog.messages == ["the discriminator ends in a sigmoid, but the loss takes its logits: remove the sigmoid"]
    caplog.clear()
    Trainer(networks()[0], Held(*module))  # as in PyTorch's tutorial
    assert caplog.messages == ["the discriminator ends in a sigmoid, but the loss takes its logits: remove the sigmoid"]
    caplog.clear()
    trainer = Trainer(networks()[0], Probability())  # which only its outputs give away
    trainer.fit(batches(2), 250)
    (message,) = caplog.messages
    assert message.startswith("the discriminator's outputs lie in [0.")
    caplog.clear()
    Trainer(networks()[0], Probability(), loss="least-squares").fit(batches(2), 20)
    Trainer(*networks()).fit(batches(2), 20)
    assert not caplog.messages


def test_a_gradient_penalty_with_batchnorm_is_named(caplog):
    Trainer(*networks(), loss="wasserstein", gradient_penalty=10.0)
    assert 'use norm="layer" or norm="none"' in caplog.text
    caplog.clear()
    Trainer(*networks(norm="layer"), loss="wasserstein", gradient_penalty=10.0)
    Trainer(*networks(), r1=0.05)  # which helps beside BatchNorm
    assert not caplog.messages


def test_a_critic_without_bounds_is_named(caplog):
    Trainer(*networks(norm="layer"), loss="wasserstein")
    (message,) = caplog.messages
    assert message.startswith('nothing bounds the slope of the critic, as loss="wasserstein" needs: use gradient')
    caplog.clear()
    Trainer(*networks(norm="layer"), loss="wasserstein", penalties=[PENALTIES["gradient_penalty"]])
    generator, critic = networks(norm="none")
    for module in critic.modules():
        if isinstance(module, nn.Conv2d):
            torch.nn.utils.parametrizations.spectral_norm(module)
    Trainer(generator, critic, loss="wasserstein")
    assert not caplog.messages


def test_a_state_with_another_rate_says_so(caplog):
    state = Trainer(*networks(), lr=1e-3).state_dict()
    trainer = Trainer(*networks(), lr=1e-4)
    trainer.load_state_dict(state)
    assert caplog.messages == [
        "the loaded state sets lr of g_optimizer to 0.001, which was 0.0001",
        "the loaded state sets lr of d_optimizer to 0.001, which was 0.0001",
    ]
    caplog.clear()
    trainer.load_state_dict(trainer.state_dict())
    assert not caplog.messages


@pytest.mark.parametrize("scheduled", ["saved", "loading", "both"])
def test_a_state_is_loaded_with_and_without_schedulers(scheduled, caplog):
    saving, loading = Trainer(*networks()), Trainer(*networks())
    for name, trainer in (("saved", saving), ("loading", loading)):
        if scheduled in (name, "both"):
            torch.optim.lr_scheduler.StepLR(trainer.g_optimizer, 1)
    saving.step(batches(1)[0])
    loading.load_state_dict(saving.state_dict())
    assert not caplog.messages
    assert_identical(loading.step(batches(1)[0]), saving.step(batches(1)[0]))


def test_parameter_groups_are_told_apart_when_a_state_is_loaded(caplog):
    def built(rate):
        generator, discriminator = networks()
        groups = [{"params": generator.head.parameters(), "lr": rate}, {"params": generator.blocks.parameters()}]
        return Trainer(generator, discriminator, g_optimizer=torch.optim.SGD(groups, 0.1))

    built(0.2).load_state_dict(built(0.3).state_dict())
    assert caplog.messages == ["the loaded state sets lr of group 0 of g_optimizer to 0.3, which was 0.2"]


class Gated(nn.Module):
    """Ends in a Tanh or a Linear, though the module that is registered last is a sigmoid."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.gate = nn.Sequential(*layers), nn.Sigmoid()

    def forward(self, x):
        return self.layers(x * self.gate(x))


def test_the_order_of_registration_says_nothing_about_the_output(caplog):
    class Wider(Generator):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.extra = nn.Tanh()

    pixels = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8)
    gated = Gated(nn.Linear(6, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    trainer = Trainer(gated, Gated(nn.Flatten(), nn.Linear(256, 1)), latent_dim=6)
    assert trainer._as_float(pixels).min() < -0.9
    wider = Wider(latent_dim=6, output="sigmoid", **TINY)
    assert Trainer(wider, Discriminator(**TINY))._as_float(pixels).min() >= 0
    trainer.step(pixels / 127.5 - 1)
    trainer.check()
    assert not caplog.messages


def test_plain_critics_raise_no_false_alarm(caplog):
    for seed in range(2):
        torch.manual_seed(seed)
        critic = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 4, 2, 1), nn.Flatten(), nn.Linear(128, 1)
        )
        Trainer(networks()[0], critic).fit(batches(3, n=2), 100)
    assert not caplog.messages


def test_a_network_left_in_evaluation_mode_is_named_once(caplog):
    trainer = Trainer(*networks())
    trainer.generator.eval()
    for real in batches(3):
        trainer.step(real)
    assert caplog.messages == ["training the generator in evaluation mode: call its train() after eval()"]


def test_ranges_are_checked_again_after_loading(caplog):
    trainer = Trainer(*networks())
    trainer.fit(batches(2), 12)
    resumed = Trainer(*networks())
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(ValueError, match="real images lie in"):
        resumed.step((batches(1)[0] + 1) * 127.5)


def test_each_epoch_of_fit_starts_the_loader_once():
    class Loader:
        epochs = 0

        def __iter__(self):
            self.epochs += 1
            return iter(batches(2))

    loader = Loader()
    Trainer(*networks()).fit(loader, 6)
    assert loader.epochs == 3


def test_the_average_of_a_patched_generator_is_its_own():
    generator, discriminator = networks()
    generator.forward = functools.partial(Generator.forward, generator)
    trainer = Trainer(generator, discriminator)
    for real in batches(3):
        trainer.step(real)
    z = torch.randn(4, 6)
    with torch.no_grad():
        assert not torch.allclose(trainer.ema(z), generator.eval()(z))


@pytest.mark.parametrize(
    "patch",
    [
        lambda forward: torch.compile(forward, backend="eager"),
        torch.autocast("cpu", enabled=False),
        lambda forward: lambda *images: torch.utils.checkpoint.checkpoint(forward, *images, use_reentrant=False),
    ],
)
def test_a_generator_that_no_copy_can_follow_is_refused(patch):
    generator, discriminator = networks()
    part = generator.blocks["4x4"]
    part.forward = patch(part.forward)
    with pytest.raises(ValueError, match=r"the forward of .* was replaced by a function, .*: compile with its compile"):
        Trainer(generator, discriminator)
    Trainer(generator, discriminator, ema_decay=None).step(batches(1)[0])


def test_networks_without_memory_are_refused():
    with torch.device("meta"):
        generator, discriminator = networks()
    with pytest.raises(ValueError, match="the networks are on the meta device, which has no memory"):
        Trainer(generator, discriminator)


def test_a_trainer_works_in_contexts_of_another_device_and_type():
    expected, metrics = Trainer(*networks()), None
    trainer = Trainer(*networks())
    reals = batches(2)
    with torch.device("meta"):
        metrics = trainer.step(reals[0])
        inside = Trainer(trainer.generator, trainer.discriminator)
        inside.load_state_dict(trainer.state_dict())
    assert_identical(metrics, expected.step(reals[0]))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        metrics = inside.step(reals[1])
    finally:
        torch.set_default_dtype(default)
    assert_identical(metrics, expected.step(reals[1]))


@pytest.mark.parametrize(("width", "d_width"), [(128, 128), (64, 32), (16, 8)])
def test_the_automatic_rate_goes_with_the_width_of_each_network(width, d_width):
    shape = {"image_size": 16, "channels": 1}
    pair = Generator(base_channels=width, **shape), Discriminator(base_channels=d_width, **shape)
    trainer = Trainer(*pair, lr="auto")
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (trainer.g_optimizer, trainer.d_optimizer)]
    assert rates == [2e-4 * 128 / width, 2e-4 * 128 / d_width]
    trainer = Trainer(*pair, lr="auto", d_lr=1e-3)
    assert trainer.d_optimizer.param_groups[0]["lr"] == 1e-3
    assert Trainer(*pair).g_optimizer.param_groups[0]["lr"] == 2e-4


def test_the_automatic_rate_needs_a_width():
    generator, discriminator = networks()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    with pytest.raises(ValueError, match=r'lr="auto" needs .*config\["base_channels"\], which Sequential .* pass g_lr'):
        Trainer(generator, plain, lr="auto")
    assert Trainer(generator, plain, lr="auto", d_lr=1e-3).d_optimizer.param_groups[0]["lr"] == 1e-3
    with pytest.raises(ValueError, match="lr must be a finite number or 'auto', got 'fast'"):
        Trainer(generator, discriminator, lr="fast")


@pytest.mark.parametrize(("smoothing", "logit", "won"), [(0.1, 2.2, True), (0.1, 1.5, False), (0.0, 2.2, False)])
def test_a_discriminator_that_has_won_is_as_sure_as_smoothed_labels_let_it(smoothing, logit, won):
    monitor = StepMonitor(torch.device("cpu"), None, expects_logits=True, target=1 - smoothing)
    images = torch.rand(16, 1, 4, 4)
    metrics = {"d_loss": torch.zeros(()), "d_real": torch.tensor(logit).sigmoid(), "d_fake": torch.tensor(0.001)}
    for step in range(120):
        monitor.record(torch.tensor(step), images, torch.rand(16, 1, 4, 4), metrics)
    assert (monitor.find_collapse() is not None) == won


def test_a_discriminator_that_has_won_is_noticed(caplog):
    class Certain(nn.Module):
        """Knows the real images by their sign."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, images):
            return self.scale * images.mean((1, 2, 3)).sign()

    generator, _ = networks()
    generator.head.conv.register_forward_hook(lambda module, _, output: -output.abs() - 0.01)
    trainer = Trainer(generator, Certain())
    reals = [real.abs() for real in batches(1)] * 103
    for steps, real in enumerate(reals, start=1):
        trainer.step(real)
        if steps in (50, 99):
            trainer.check()
            assert trainer.collapse is None
    caplog.clear()
    trainer.check()
    trainer.check()
    assert re.fullmatch(r"for 10[0-9] steps, D\(x\) has been above 0.98 and D\(G\(z\)\) below 0.02", trainer.collapse)
    (record,) = caplog.records
    assert record.getMessage().startswith("step 102: training has collapsed: for 10")


def test_generated_images_that_are_all_the_same_are_noticed(caplog):
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, loss="hinge", g_lr=0.0)
    nn.init.zeros_(generator.head.conv.weight)
    for real in batches(1) * 100:
        trainer.step(real)
    trainer.check()
    assert trainer.collapse == "for 100 steps, the images that were generated for a batch have been almost the same"
    with torch.no_grad():
        generator.head.conv.weight.copy_(torch.randn_like(generator.head.conv.weight) * 5)
    trainer.step(batches(1)[0])
    trainer.check()
    assert trainer.collapse is None
    assert len([record for record in caplog.records if "collapsed" in record.getMessage()]) == 1


@pytest.mark.parametrize("means", ["constant", "waves"])
def test_a_resumed_training_finds_a_collapse_when_the_unbroken_one_does(means):
    def collapses(trainer, reals):
        for real in reals:
            if means == "waves":  # all images of a batch move together
                nn.init.constant_(trainer.generator.head.conv.weight, 0.3 * math.sin(trainer.steps / 9))
            trainer.step(real)
            trainer.check()
            yield trainer.collapse

    def build():
        generator, discriminator = networks()
        nn.init.zeros_(generator.head.conv.weight)
        return Trainer(generator, discriminator, loss="hinge", g_lr=0.0)

    unbroken, broken = build(), build()
    reals = batches(230)
    expected = list(collapses(unbroken, reals))
    found = list(collapses(broken, reals[:70]))
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    found += list(collapses(resumed, reals[70:]))
    assert found == expected
    assert any(found)


def test_a_state_without_records_of_collapse_loads():
    trainer, other = Trainer(*networks()), Trainer(*networks())
    for real in batches(3):
        trainer.step(real)
    state = copy.deepcopy(trainer.state_dict())
    del state["monitor"]  # as before 0.3
    other.load_state_dict(state)
    other.step(batches(1)[0])
    other.check()
    assert other._monitor.state_dict()["recorded"] == 1


SWUNG = "over 100 steps, the generated images have swung from one kind to another: their mean"


def monitored(means, n=8, spread=1.0, monitor=None):
    """Record steps whose generated images lie `spread` around these means, and real ones 1 around 0."""
    monitor = monitor or StepMonitor(torch.device("cpu"), None, expects_logits=True)
    rng = torch.Generator().manual_seed(0)
    for step, mean in enumerate(means):
        real, fake = torch.randn(2, n, 1, 6, 6, generator=rng)
        monitor.record(torch.tensor(step), real, mean + spread * fake, {"d_loss": torch.tensor(1.0)})
    return monitor


def waves(count, period, height=1.2):
    return [height * math.sin(2 * math.pi * step / period) for step in range(count)]


def test_generated_images_that_swing_are_noticed():
    means, centre, distance = waves(300, period=80), 0.0, 0.0
    for step, mean in enumerate(means, start=1):
        distance += ((mean - centre) ** 2 - distance) / min(step, 100)
        centre += (mean - centre) / min(step, 100)
    found = re.fullmatch(f"{SWUNG} by ([0-9.]+) times the spread of the real ones", monitored(means).find_collapse())
    assert float(found[1]) == pytest.approx(math.sqrt(distance), rel=0.05)
    assert monitored(means, n=2, spread=0.2).find_collapse().startswith(SWUNG)
    assert monitored(means[:199]).find_collapse() is None  # of which the first steps are a large part
    monitor = monitored(means)
    assert monitored([0.0] * 200, monitor=monitor).find_collapse() is None
    monitor = monitored(means)
    monitor.reset()
    assert monitored([0.0] * 200, monitor=monitor).find_collapse() is None
    assert len(monitored(means)._measure_variety(*torch.randn(2, 8, 1, 12, 12))) == 2  # other sizes are left out


@pytest.mark.parametrize(
    ("means", "n"),
    [
        ([0.0] * 300, 2),  # whose means differ from step to step by more than half of the spread, by chance
        (waves(300, period=80, height=0.6), 8),
        ([min(0.0, step / 100 - 2) for step in range(300)], 8),  # towards the real ones
    ],
    ids=["few images", "small waves", "progress"],
)
def test_generated_images_that_do_not_swing_are_no_news(means, n):
    assert monitored(means, n).find_collapse() is None


def test_real_images_that_are_all_the_same_are_no_news():
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator)
    real = batches(1)[0][:1].expand(4, -1, -1, -1).clone()
    for _ in range(205):
        trainer.step(real)
    trainer.check()  # whose spread of zero is no measure of a swing


def test_a_swinging_generator_is_warned_about(caplog):
    generator, discriminator = networks()
    trainer = Trainer(generator, discriminator, loss="hinge", g_lr=0.0)
    generator.head.conv.register_forward_hook(lambda _, __, x: 10 * x + (1 if trainer.steps // 20 % 2 else -1))
    for real in batches(20) * 10:
        trainer.step(real)
    trainer.check()
    trainer.check()
    assert trainer.collapse.startswith(SWUNG)
    (warning,) = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert warning.startswith(f"step 199: training has collapsed: {trainer.collapse}. It rarely recovers: start anew ")
    assert "betas=(0.5, 0.999)" in warning


@pytest.mark.slow
@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_a_generator_that_chases_the_discriminator_is_noticed(beta1):
    images = data.load("digits", image_size=32, channels=1)
    torch.manual_seed(0)
    shape = {"image_size": 32, "channels": 1, "base_channels": 32}
    trainer = Trainer(
        Generator(**shape), Discriminator(**shape), lr="auto", betas=(beta1, 0.999), augmentations=["shift"]
    )
    trainer.fit(data.Batches(images, 64, seed=0), 200)
    assert (trainer.collapse is not None) == (beta1 == 0.9)


def test_a_loop_never_sees_a_step_that_was_not_finite_when_it_is_checked():
    trainer = Trainer(*networks())
    seen = []
    with pytest.raises(FloatingPointError, match="step 99: the generator turned non-finite"):
        for metrics in trainer.iterate(batches(1), 200):
            seen.append(metrics)
            if trainer.steps == 99:
                trainer.generator.head.conv.weight.data.fill_(math.nan)
    assert len(seen) == 99  # a body that saves every hundred steps has not run


def test_the_average_of_a_generator_that_merges_in_evaluation_mode_is_that_of_its_weights():
    class Merging(nn.Conv2d):
        def train(self, mode=True):
            if self.training and not mode:
                self.weight.data += 1
            return super().train(mode)

    generator = Generator(latent_dim=6, **TINY, upsample="resize")
    generator.blocks["8x8"].conv = Merging(8, 4, 3, padding=1, bias=False)
    discriminator = networks()[1]
    trainer = Trainer(generator, discriminator, ema_decay=0.0)
    trainer.step(batches(1)[0])
    assert torch.equal(trainer.ema.blocks["8x8"].conv.weight, generator.blocks["8x8"].conv.weight)
    assert not any(module.training for module in trainer.ema.modules())


def test_a_callers_no_grad_does_not_keep_a_step_from_training():
    trainers = Trainer(*networks()), Trainer(*networks())
    (real,) = batches(1)
    trainers[0].step(real)
    with torch.no_grad():
        trainers[1].step(real)
    assert torch.equal(weights(trainers[0].generator), weights(trainers[1].generator))


def test_real_and_generated_images_are_augmented_in_the_precision_of_the_weights():
    seen = []

    def augmentation(images, _rng):
        seen.append(images.dtype)
        return images

    Trainer(*networks(), precision="bf16", augmentations=[augmentation]).step(batches(1)[0])
    assert seen == [torch.float32] * 3
