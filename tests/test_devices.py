"""What is chosen for a kind of device, and on this machine's accelerator, if it is not CUDA's, that it is right."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

import dcgan.trainer
from dcgan import Discriminator, Generator, Trainer, _build
from dcgan._devices import DeviceDefaults, best_device, device_defaults
from dcgan._random import global_seed

TINY = {"image_size": 16, "channels": 1, "base_channels": 4}


def networks(device="cpu"):
    torch.manual_seed(1)
    return Generator(latent_dim=6, **TINY).to(device), Discriminator(**TINY).to(device)


@pytest.mark.parametrize(
    ("device", "memory_format", "fused", "graphs", "non_blocking"),
    [
        ("cpu", torch.channels_last, True, False, False),
        ("cuda:1", torch.channels_last, True, True, True),
        ("mps", torch.contiguous_format, False, False, False),
        ("xpu", torch.contiguous_format, None, False, False),
        ("meta", torch.contiguous_format, None, False, False),
    ],
)
def test_each_device_has_its_choices(device, memory_format, fused, graphs, non_blocking):
    assert device_defaults(torch.device(device)) == DeviceDefaults(memory_format, fused, graphs, non_blocking)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_the_trainer_follows_the_choices(device, foreign, monkeypatch):
    copies = []
    to = Tensor.to

    def spy(self, *args, **kwargs):
        copies.append(kwargs.get("non_blocking", False))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(dcgan.trainer, "device_defaults", lambda _: device_defaults(torch.device(device)))
    generator, discriminator = networks()
    if foreign:  # whose first convolution chooses its layout by the strides of the images
        discriminator = nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, 1)
        )
    trainer = Trainer(generator, discriminator)
    inputs = {}
    for network in (trainer.generator, trainer.discriminator):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(lambda layer, x: inputs.update({layer: x[0]}))
    monkeypatch.setattr(Tensor, "to", spy)
    trainer.step(torch.zeros(4, 16, 16, 1, dtype=torch.uint8).permute(0, 3, 1, 2))  # channels last, as `Batches` has it
    monkeypatch.undo()
    assert copies
    assert not any(copies)
    assert inputs
    assert all(x.is_contiguous() for x in inputs.values())
    for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
        (group,) = optimizer.param_groups
        assert (group["fused"], group["capturable"]) == (device_defaults(torch.device(device)).fused_adam, False)
        assert all(state["exp_avg"].is_contiguous() for state in optimizer.state.values())


def test_the_best_device_is_torchs_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("xpu"))
    assert best_device() == _build.select_device("auto") == torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert best_device() == _build.select_device("auto") == torch.device("cpu")


class FakeDevice:
    """A device's module with a global generator, of which some have several devices and some one."""

    def __init__(self, *, several):
        self.states, self.current = {0: torch.tensor(7), 1: torch.tensor(8)}, 0
        if several:
            self.device = self._select

    @contextlib.contextmanager
    def _select(self, device):
        before, self.current = self.current, device.index or 0
        yield
        self.current = before

    def get_rng_state(self, device):
        return self.states[torch.device(device).index or 0].clone()

    def set_rng_state(self, state, device):
        self.states[torch.device(device).index or 0] = state

    def manual_seed(self, seed):
        self.states[self.current] = torch.tensor(seed)


@pytest.mark.parametrize("device", ["mps", "xpu:0", "xpu:1"])
def test_the_global_generators_of_a_device_are_seeded_and_restored(device, monkeypatch):
    device = torch.device(device)
    module = FakeDevice(several=device.type == "xpu")
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    monkeypatch.setattr(torch, device.type, module)  # where torch 2.11 looks for it
    before = torch.get_rng_state()
    with global_seed(42, device):
        assert module.states[device.index or 0].item() == 42
        assert module.states[1 - (device.index or 0)].item() in (7, 8)
        drawn = torch.rand(3)
    assert [module.states[0].item(), module.states[1].item()] == [7, 8]
    assert torch.equal(torch.get_rng_state(), before)
    with global_seed(42, torch.device("cpu")):
        assert torch.equal(torch.rand(3), drawn)


def accelerator():
    """This machine's accelerator unless it is CUDA's, which has tests of its own; skip if none can hold a tensor."""
    device = best_device()
    if device.type in ("cpu", "cuda"):
        pytest.skip("there is no accelerator other than CUDA")
    try:
        torch.ones(2**20, device=device).sum().item()
    except RuntimeError as error:
        pytest.skip(f"{device} cannot be used: {error}")
    return device


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_on_an_accelerator_agree_with_the_cpus(precision, monkeypatch):
    device = accelerator()
    rng = torch.Generator().manual_seed(0)
    reals = [torch.rand(16, 1, 16, 16, generator=rng) * 2 - 1 for _ in range(5)]
    latents = [torch.randn(16, 6, generator=rng) for _ in range(5)]
    trainers = [Trainer(*networks()), Trainer(*networks(device), precision=precision)]
    for real, z in zip(reals, latents, strict=True):
        results = []
        for trainer in trainers:
            monkeypatch.setattr(dcgan.trainer, "sample_latents", lambda *_, z=z, to=trainer.device, **__: z.to(to))
            results.append({name: value.item() for name, value in trainer.step(real).items()})
            trainer.check()
        for name, value in results[0].items():
            assert abs(results[1][name] - value) < (1e-3 if precision == "fp32" else 5e-2) * max(1, abs(value))
    samples = [trainer.ema.sample(16, seed=0).cpu() for trainer in trainers]
    assert (samples[0] - samples[1]).abs().max() < (1e-3 if precision == "fp32" else 0.1)


def test_an_overflow_on_an_accelerator_skips_the_update():
    device = accelerator()
    trainer = Trainer(*networks(device), precision="fp16")
    trainer.d_scaler = torch.amp.GradScaler(device.type, init_scale=2.0**100)
    before = [parameter.detach().clone() for parameter in trainer.discriminator.parameters()]
    trainer.step(torch.rand(16, 1, 16, 16) * 2 - 1)
    assert all(map(torch.equal, before, trainer.discriminator.parameters()))
