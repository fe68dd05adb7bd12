"""What only a CUDA device can show; `pytest -m gpu`."""

import pytest
import torch

from dcgan import Discriminator, Generator, Trainer

pytestmark = pytest.mark.gpu


def pair(device):
    torch.manual_seed(0)
    generator, discriminator = Generator(base_channels=16), Discriminator(base_channels=16)
    return generator.to(device), discriminator.to(device)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 5e-2)])
def test_a_step_on_a_gpu_agrees_with_one_on_the_cpu(precision, tolerance, monkeypatch):
    z = torch.randn(16, 100)
    real = torch.rand(16, 3, 64, 64) * 2 - 1
    results = []
    for device, mode in (("cpu", "fp32"), ("cuda", precision)):
        trainer = Trainer(*pair(device), precision=mode)
        monkeypatch.setattr(trainer, "_draw", lambda n, device=device: z.to(device))
        results.append({name: value.item() for name, value in trainer.step(real).items()})
        trainer.check()
    for name, value in results[0].items():
        assert abs(results[1][name] - value) < tolerance * max(1, abs(value))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_goes_on_from_a_state_on_the_cpu(precision, tmp_path):
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


def test_samples_are_those_of_the_cpu():
    generator, _ = pair("cpu")
    expected = generator.sample(5, seed=3)
    images = generator.cuda().sample(5, seed=3)
    assert images.is_cuda
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-2)
