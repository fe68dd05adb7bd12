"""What needs a CUDA device; run with `pytest -m gpu -n 0`."""

import pytest
import torch

import dcgan.trainer
from dcgan import Discriminator, Generator, Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")]

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
OPTIONS = [
    {},
    {"d_steps": 3},
    {"schedule": "alternate", "d_steps": 2},
    {"loss": "wasserstein", "gradient_penalty": 10.0},
    {"loss": "hinge", "r1": 1.0},
    {"augmentations": ("color", "translation", "cutout")},
    {"ema_decay": None, "weight_decay": 1e-4},
]


def pair(device, d_norm="batch"):
    torch.manual_seed(0)
    generator, discriminator = Generator(base_channels=16), Discriminator(base_channels=16, norm=d_norm)
    return generator.to(device), discriminator.to(device)


def trainer_of(**options):
    penalised = options.get("r1") or options.get("gradient_penalty")
    return Trainer(*pair("cuda", "layer" if penalised else "batch"), seed=3, **options)


def pixels(n=16):
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, device="cuda")


def deviation(ours, theirs):
    """Return the largest difference of two trainers' weights, over the largest weight."""
    differences = [
        (a - b).abs().max() / b.abs().max().clamp(min=1e-3)
        for part in ("generator", "discriminator")
        for a, b in zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True)
    ]
    return torch.stack(differences).max().item()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 5e-2)])
def test_a_step_on_a_gpu_agrees_with_one_on_the_cpu(precision, tolerance, monkeypatch):
    z = torch.randn(16, 100)
    real = torch.rand(16, 3, 64, 64) * 2 - 1
    results = []
    for device, mode in (("cpu", "fp32"), ("cuda", precision)):
        trainer = Trainer(*pair(device), precision=mode)
        monkeypatch.setattr(dcgan.trainer, "sample_latents", lambda *_, device=device, **__: z.to(device))
        results.append({name: value.item() for name, value in trainer.step(real).items()})
        trainer.check()
    for name, value in results[0].items():
        assert abs(results[1][name] - value) < tolerance * max(1, abs(value))


@pytest.mark.parametrize("compile_", ["graph", "full"])
@pytest.mark.parametrize("steps", [1, 50, 500])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_captured_step_equals_the_eager_one(precision, steps, compile_):
    captured = trainer_of(precision=precision, compile=compile_)
    for _ in range(steps):
        captured.step(pixels())
    for _ in range(5):  # equal calls, so that the last ones are replays
        plain = trainer_of(precision=precision, compile="off")
        plain.load_state_dict(captured.state_dict())
        real = pixels()
        expected, metrics = plain.step(real), captured.step(real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
        assert deviation(captured, plain) < 10 * TOLERANCE[precision]
    assert captured._cuda_graphs._graphs
    captured.check()


@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(map(str, options)) or "default" for options in OPTIONS])
def test_every_kind_of_step_is_captured(options, caplog):
    captured = trainer_of(compile="graph", **options)
    for _ in range(30):
        plain = trainer_of(compile="off", **options)
        plain.load_state_dict(captured.state_dict())
        real = pixels()
        expected, metrics = plain.step(real), captured.step(real)
        assert expected.keys() == metrics.keys()
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
    assert captured._cuda_graphs._graphs
    assert "cannot be captured" not in caplog.text
    captured.check()


def test_captured_steps_do_not_wait_for_the_device():
    trainer = trainer_of(precision="bf16")
    real = pixels()
    for _ in range(5):
        trainer.step(real)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer.step(real)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Waiting(torch.optim.SGD):
    """An optimiser that reads its first gradient."""

    def step(self, closure=None):
        self.param_groups[0]["params"][0].grad.sum().item()
        return super().step(closure)


def test_a_step_that_waits_for_the_device_is_not_captured(caplog):
    generator, discriminator = pair("cuda")
    trainer = Trainer(generator, discriminator, g_optimizer=Waiting(generator.parameters(), lr=1e-3))
    for _ in range(6):
        trainer.step(pixels())
    assert not trainer._cuda_graphs._graphs
    (record,) = caplog.records
    assert "test_gpu.py, line" in record.getMessage()
    assert "waits for the device" in record.getMessage()
    trainer.check()


def test_a_failed_capture_does_not_change_training(caplog, monkeypatch):
    trainer, plain = trainer_of(), trainer_of(compile="off")
    update = trainer._cuda_graphs._step

    def failing(*arguments):
        metrics = update(*arguments)
        if torch.cuda.is_current_stream_capturing():
            metrics["d_loss"].item()
        return metrics

    trainer._cuda_graphs._step = failing
    for _ in range(6):
        real = pixels()
        metrics, expected = trainer.step(real), plain.step(real)
    assert "cannot be captured" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=0.1, atol=0.1)
    trainer.check()


def test_training_continues_from_a_loaded_state():
    trainer, other = trainer_of(), trainer_of()
    for _ in range(6):
        trainer.step(pixels())
        other.step(pixels())
    other.load_state_dict(trainer.state_dict())
    for _ in range(6):
        real = pixels()
        metrics, expected = other.step(real), trainer.step(real)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_continues_from_a_state_loaded_to_the_cpu(precision, tmp_path):
    trainer = Trainer(*pair("cuda"), precision=precision)
    real = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    for _ in range(3):
        trainer.step(real)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(*pair("cuda"), precision=precision)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    expected, metrics = trainer.step(real), resumed.step(real)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)


def test_a_trainer_with_a_state_from_the_cpu_captures_its_steps(tmp_path):
    before = Trainer(*pair("cpu"))
    before.step(pixels().cpu())
    torch.save(before.state_dict(), tmp_path / "state.pt")
    trainer = Trainer(*pair("cuda"))
    trainer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(6):
        trainer.step(pixels())
    assert trainer._cuda_graphs._graphs
    trainer.check()


def test_samples_on_a_gpu_agree_with_those_on_the_cpu():
    generator, _ = pair("cpu")
    expected = generator.sample(300, seed=3)
    images = generator.cuda().sample(300, seed=3)
    assert images.is_cuda
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-2)
