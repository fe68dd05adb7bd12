"""Timings of this package beside the loop of the public tutorial, on the machine they are taken on.

Absolute times of a shared machine mean little, so both loops run in turn, in one process, and the ratio of their
medians is what counts.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import dcgan
from dcgan.models import Discriminator, Generator, weights_init
from dcgan.trainer import Precision, Trainer


def benchmark(
    *,
    image_size: int = 64,
    channels: int = 3,
    base_channels: int = 64,
    batch_size: int = 128,
    repeats: int = 5,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Time a training step and the sampling of a batch, ours and the tutorial's.

    Args:
        image_size: Side of the images in pixels.
        channels: Image channels.
        base_channels: Width of both networks next to the image.
        batch_size: Images a batch.
        repeats: Rounds of one call of each, after one round to warm up.
        precision: Arithmetic of our step; the tutorial's is fp32, as published.
        device: Where to run.

    Returns:
        The machine, the setting and, each with the median seconds of both and their ratio, "step", "sample", "load"
        (ours beside building, `load_file` and `load_state_dict`) and "load_file" (ours beside that call alone).

    Raises:
        ValueError: If `repeats` is below 1, `batch_size` below 2, or an argument does not suit the networks.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    device = torch.device(device)
    shape: dict[str, Any] = {"image_size": image_size, "channels": channels, "base_channels": base_channels}
    real = torch.rand(batch_size, channels, image_size, image_size, device=device) * 2 - 1

    theirs = _Tutorial(Generator(**shape).to(device), Discriminator(**shape).to(device))
    trainer = Trainer(Generator(**shape).to(device), Discriminator(**shape).to(device), precision=precision)
    sampler = trainer.generator
    contests: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "step": (lambda: theirs.step(real), lambda: trainer.step(real)),
        "sample": (lambda: theirs.sample(batch_size), lambda: sampler.sample(batch_size, batch_size=batch_size)),
    }
    with tempfile.TemporaryDirectory() as folder:
        sampler.save_pretrained(folder)
        weights = Path(folder, "model.safetensors")

        def load_usually() -> Generator:
            network = Generator(**shape)
            network.load_state_dict(load_file(weights))
            return network.eval()

        loads: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "load": (load_usually, lambda: Generator.from_pretrained(folder)),
            "load_file": (lambda: load_file(weights), lambda: Generator.from_pretrained(folder)),
        }
        loading = {name: _contest(*pair, repeats=10 * repeats, device=device) for name, pair in loads.items()}
    setting = {**shape, "batch_size": batch_size, "precision": precision, "repeats": repeats}
    results = {name: _contest(*pair, repeats=repeats, device=device) for name, pair in contests.items()}
    return {"machine": machine(device), "setting": setting, **results, **loading}


def table(report: dict[str, Any]) -> str:
    """Lay a report of `benchmark` out as a Markdown table, its machine above."""
    setting, batch = report["setting"], report["setting"]["batch_size"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in report["machine"].items()),
        ", ".join(f"{name} {value}" for name, value in setting.items()),
        "",
        "| work | beside | unit | it | dcgan | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, label, beside, unit, count in (
        ("step", "training step", "the tutorial's", "images/s", batch),
        ("sample", "sampling", "the tutorial's", "images/s", batch),
        ("load", "from_pretrained", "build, load_file, load_state_dict", "networks/s", 1),
        ("load_file", "from_pretrained", "load_file alone", "networks/s", 1),
    ):
        result = report[name]
        rates = [f"{count / result[who]:,.0f}" for who in ("tutorial_seconds", "dcgan_seconds")]
        lines.append(f"| {label} | {beside} | {unit} | {rates[0]} | {rates[1]} | {result['ratio']:.2f} |")
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, str]:
    """Describe what the timings are taken on."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": accelerator,
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dcgan": dcgan.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class _Tutorial:
    """The training loop of PyTorch's public DCGAN example, written straightforwardly."""

    def __init__(self, generator: Generator, discriminator: Discriminator):
        self.generator, self.discriminator = generator, discriminator
        self.generator.apply(weights_init)
        self.discriminator.apply(weights_init)
        self.criterion = nn.BCELoss()
        self.g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def step(self, real: Tensor) -> tuple[float, ...]:
        n, device = len(real), real.device
        ones, zeros = torch.full((n,), 1.0, device=device), torch.full((n,), 0.0, device=device)

        self.discriminator.zero_grad()
        output = self.discriminator(real).sigmoid()
        d_loss_real = self.criterion(output, ones)
        d_loss_real.backward()
        d_x = output.mean().item()
        fake = self.generator(torch.randn(n, self.generator.config["latent_dim"], 1, 1, device=device))
        output = self.discriminator(fake.detach()).sigmoid()
        d_loss_fake = self.criterion(output, zeros)
        d_loss_fake.backward()
        d_g_z1 = output.mean().item()
        self.d_optimizer.step()

        self.generator.zero_grad()
        output = self.discriminator(fake).sigmoid()
        g_loss = self.criterion(output, ones)
        g_loss.backward()
        d_g_z2 = output.mean().item()
        self.g_optimizer.step()
        return (d_loss_real + d_loss_fake).item(), g_loss.item(), d_x, d_g_z1, d_g_z2

    @torch.no_grad()
    def sample(self, n: int) -> list[Tensor]:
        device = next(self.generator.parameters()).device
        z = torch.randn(n, self.generator.config["latent_dim"], 1, 1, device=device)
        self.generator.eval()
        images = [self.generator(z[i : i + 64]) for i in range(0, n, 64)]
        self.generator.train()
        return images


def _contest(
    tutorial: Callable[[], object], ours: Callable[[], object], *, repeats: int, device: torch.device
) -> dict[str, float]:
    seconds: dict[Callable[[], object], list[float]] = {tutorial: [], ours: []}
    for round_number in range(repeats + 1):
        for work, taken in seconds.items():
            _wait(device)
            began = time.perf_counter()
            work()
            _wait(device)
            if round_number:  # the first round warms up
                taken.append(time.perf_counter() - began)
    theirs, own = median(seconds[tutorial]), median(seconds[ours])
    return {"tutorial_seconds": theirs, "dcgan_seconds": own, "ratio": theirs / own}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
