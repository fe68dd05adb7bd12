"""One contender of the benchmark, in its own process: `python -m dcgan.bench._contender tutorial|dcgan`.

`Tutorial` is the training loop of PyTorch's public DCGAN tutorial, written out plainly; `Dcgan` is this package as the
command line uses it. Separate processes keep either from inheriting the other's memory or settings.

The protocol is lines of JSON: the settings come in first, then the name of a workload for each line of results.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from dcgan._allocator import keep_memory
from dcgan._errors import InputError
from dcgan._precision import DTYPES
from dcgan.generate import default_batch_size, write_images
from dcgan.models import Discriminator, Generator, weights_init
from dcgan.trainer import Trainer


class Contender:
    """The workloads of either contender; each method returns the number of units it processed."""

    def __init__(self, settings: dict[str, Any]):
        self.settings, self.device = settings, torch.device(settings["device"])
        self.batch_size: int = settings["batch_size"]
        self.samples: int = settings["samples"]
        self.folder = Path(settings["folder"])
        self.config = {name: settings[name] for name in ("image_size", "channels", "base_channels")}
        shape = (self.batch_size, self.config["channels"], self.config["image_size"], self.config["image_size"])
        self.real = torch.rand(shape, device=self.device) * 2 - 1
        # A single step is too short to time on a fast device or for small images.
        self.steps_per_run = 20 if self.device.type == "cuda" else min(16, -(-(2**20) // self.real.numel()))

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build both networks on the device."""
        name = self.settings["architecture"]
        generator = Generator.from_architecture(name, **self.config)
        discriminator = Discriminator.from_architecture(name, **self.config)
        return generator.to(self.device), discriminator.to(self.device)

    def profile(self) -> dict[str, float | None]:
        """Return what is measured once: here, the peak memory in bytes."""
        return {"peak_memory": peak_memory(self.device)}


class Tutorial(Contender):
    """The tutorial: plain layers and memory format, a sigmoid before the loss, metrics read in every step."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.generator, self.discriminator = self.networks()
        self.generator.apply(weights_init)
        self.discriminator.apply(weights_init)
        self.latent_dim = settings["latent_dim"]
        self.criterion = nn.BCELoss()
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.loader: Any = None

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build the tutorial's networks layer by layer; other architectures use our classes."""
        if self.settings["architecture"] != "tutorial":
            return super().networks()
        return tuple(network.to(self.device) for network in tutorial_networks(**self.config))  # type: ignore[return-value]  # two

    def _train(self, real: Tensor) -> None:
        n, device = len(real), self.device
        ones, zeros = torch.full((n,), 1.0, device=device), torch.full((n,), 0.0, device=device)

        self.discriminator.zero_grad()
        output = self.discriminator(real).view(-1).sigmoid()
        d_loss_real = self.criterion(output, ones)
        d_loss_real.backward()
        output.mean().item()
        fake = self.generator(torch.randn(n, self.latent_dim, 1, 1, device=device))
        output = self.discriminator(fake.detach()).view(-1).sigmoid()
        d_loss_fake = self.criterion(output, zeros)
        d_loss_fake.backward()
        output.mean().item()
        self.d_optimizer.step()

        self.generator.zero_grad()
        output = self.discriminator(fake).view(-1).sigmoid()
        g_loss = self.criterion(output, ones)
        g_loss.backward()
        output.mean().item()
        self.g_optimizer.step()
        (d_loss_real + d_loss_fake).item()
        g_loss.item()

    def step(self) -> int:
        """Train on one batch in memory."""
        for _ in range(self.steps_per_run):
            self._train(self.real)
        return self.steps_per_run * self.batch_size

    def _batches(self) -> Iterator[Tensor]:
        from torchvision import datasets, transforms

        side = self.config["image_size"]
        if self.loader is None:
            pipeline = [transforms.Resize(side), transforms.CenterCrop(side), transforms.ToTensor()]
            if self.config["channels"] == 1:
                pipeline.append(transforms.Grayscale())
            pipeline.append(transforms.Normalize((0.5,) * self.config["channels"], (0.5,) * self.config["channels"]))
            self.loader = torch.utils.data.DataLoader(
                datasets.ImageFolder(str(self.folder / "images"), transforms.Compose(pipeline)),
                batch_size=self.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=2,
                persistent_workers=True,  # unlike the tutorial: a small dataset would mostly wait for workers to start
            )
        for images, _ in self.loader:
            yield images.to(self.device)

    def serve(self) -> int:
        """Load one epoch of normalised batches from image files."""
        return sum(len(real) for real in self._batches())

    def epoch(self) -> int:
        """Train for one epoch from image files."""
        done = 0
        for real in self._batches():
            self._train(real)
            done += len(real)
        return done

    @torch.no_grad()
    def _sample(self) -> Tensor:
        self.generator.eval()
        z = torch.randn(self.samples, self.latent_dim, 1, 1, device=self.device)
        images = torch.cat([self.generator(batch) for batch in torch.split(z, 64)])
        self.generator.train()
        return images

    def sample(self) -> int:
        """Sample in batches of 64."""
        return len(self._sample())

    def generate(self) -> int:
        """Write samples as PNG files, one by one."""
        from torchvision.utils import save_image

        with TemporaryDirectory(dir=self.folder) as out:
            for index, image in enumerate(self._sample()):
                save_image(image, f"{out}/{index:06d}.png", normalize=True, value_range=(-1, 1))
        return self.samples

    def load(self) -> int:
        """Build a generator and load its weights."""
        from safetensors.torch import load_file

        network = Generator.from_architecture(self.settings["architecture"], **self.config)
        network.load_state_dict(load_file(self.folder / "model" / "model.safetensors"))
        network.eval()
        return 1

    def profile(self) -> dict[str, float | None]:
        """Add the floating-point operations of a training step per image."""
        profile = super().profile()
        with FlopCounterMode(display=False) as counter:
            self._train(self.real[:2])
        return {**profile, "flop_per_image": counter.get_total_flops() / 2}


class Dcgan(Contender):
    """This package."""

    def __init__(self, settings: dict[str, Any]):
        keep_memory()  # as the command line does
        super().__init__(settings)
        networks = self.networks()
        self.generator, discriminator = cast("Generator", networks[0]), networks[1]
        precision, compile_ = settings["precision"], settings["compile"]
        self.trainer = Trainer(self.generator, discriminator, precision=precision, compile=compile_)
        self.dtype = DTYPES[precision]
        self.options: dict[str, Any] = {"batch_size": default_batch_size(self.generator), "dtype": self.dtype}
        self.batches: Iterator[Tensor] | None = None

    def step(self) -> int:
        """Train on one batch in memory."""
        for _ in range(self.steps_per_run):
            self.trainer.step(self.real)
        return self.steps_per_run * self.batch_size

    def _stream(self) -> Iterator[Tensor]:
        if self.batches is None:
            from dcgan.data import Batches, load

            size, channels = self.config["image_size"], self.config["channels"]
            cache = self.folder / "packed"
            images = load("folder", root=self.folder / "images", image_size=size, channels=channels, cache_dir=cache)
            self.batches = iter(Batches(images, self.batch_size, device=self.device))
        return self.batches

    def serve(self) -> int:
        """Load normalised batches from the packed file."""
        from dcgan.images import from_uint8

        return sum(len(from_uint8(real)) for real in islice(self._stream(), -(-20_000 // self.batch_size)))

    def epoch(self) -> int:
        """Train for one epoch from the packed file."""
        done = 0
        for real in islice(self._stream(), self.settings["images"] // self.batch_size):
            self.trainer.step(real)
            done += len(real)
        return done

    def sample(self) -> int:
        """Sample with BatchNorms fused, in larger batches."""
        return len(self.generator.sample(self.samples, **self.options))

    def _write(self, name: str) -> int:
        with TemporaryDirectory(dir=self.folder) as out:
            *_, done = write_images(self.generator, Path(out, name), self.samples, **self.options)
        return done

    def generate(self) -> int:
        """Write samples as PNG files."""
        return self._write("images")

    def archive(self) -> int:
        """Write samples as one `.npz` archive."""
        return self._write("images.npz")

    def load(self) -> int:
        """Load a generator from a folder."""
        Generator.from_pretrained(self.folder / "model")
        return 1

    def load_file(self) -> int:
        """Load only the weights, a lower bound of the time that loading takes."""
        from safetensors.torch import load_file

        load_file(self.folder / "model" / "model.safetensors")
        return 1

    def profile(self) -> dict[str, float | None]:
        """Add the highest throughput of the device in FLOP/s: of a matrix product, and of a convolution."""
        profile = super().profile()
        side = 8192 if self.device.type == "cuda" else 2048
        matrix = torch.randn(side, side, device=self.device, dtype=self.dtype)
        layout = torch.channels_last
        n = 2048 if self.device.type == "cuda" else 128
        images = torch.randn(n, 128, 16, 16, device=self.device, dtype=self.dtype).to(memory_format=layout)
        kernels = torch.randn(256, 128, 4, 4, device=self.device, dtype=self.dtype).to(memory_format=layout)
        matmul = 2 * side**3 / self._shortest_time(lambda: matrix @ matrix)
        conv = 2 * n * 256 * 8 * 8 * 128 * 16 / self._shortest_time(lambda: conv2d(images, kernels, None, 2, 1))
        return {**profile, "matmul_flops": matmul, "conv_flops": conv}

    def _shortest_time(self, operation: Callable[[], Tensor]) -> float:
        return min(time_workload(lambda: len(operation()), self.device)[0] for _ in range(10))


def tutorial_networks(*, image_size: int, channels: int, base_channels: int) -> tuple[nn.Module, nn.Module]:
    """Return the tutorial's generator and discriminator as plain sequences of layers.

    Raises:
        ValueError: If `image_size` is not 4 times a power of two, at least 16.
    """
    depth = image_size.bit_length() - 4  # layers between the 4×4 map and the image
    if image_size != 8 * 2**depth or depth < 1:
        raise InputError(f"image_size must be a power of two, at least 16, got {image_size}")
    width = base_channels * 2**depth
    up: list[nn.Module] = [
        nn.ConvTranspose2d(100, width, 4, 1, 0, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    down: list[nn.Module] = [nn.Conv2d(channels, base_channels, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for level in range(depth):
        wide, narrow = base_channels * 2 ** (depth - level), base_channels * 2 ** (depth - level - 1)
        up += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
        c_in, c_out = base_channels * 2**level, base_channels * 2 ** (level + 1)
        down += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2, inplace=True)]
    up += [nn.ConvTranspose2d(base_channels, channels, 4, 2, 1, bias=False), nn.Tanh()]
    down += [nn.Conv2d(width, 1, 4, 1, 0, bias=False)]
    return nn.Sequential(*up), nn.Sequential(*down)


def time_workload(run: Callable[[], int], device: torch.device) -> tuple[float, int]:
    """Run a workload until the device has finished; return the seconds and the number of units."""
    _synchronize(device)
    start = time.perf_counter()
    units = run()
    _synchronize(device)
    return time.perf_counter() - start, units


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: allocated on a CUDA device, else resident; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def main() -> None:
    """Answer the benchmark's requests, line by line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # other output must not mix with the answers
    contender = {"tutorial": Tutorial, "dcgan": Dcgan}[sys.argv[1]](json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        name = line.strip()
        answer: object = (
            contender.profile() if name == "profile" else time_workload(getattr(contender, name), contender.device)
        )
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
