"""One side of the benchmark, in a process of its own: `python -m dcgan.bench._contender tutorial|dcgan`.

The tutorial's side is the loop of PyTorch's public DCGAN tutorial, written out straightforwardly; the other is this
package as the command line uses it. A process each, so that neither inherits the memory of the other, or its settings.

Lines of JSON go in and out: first the setting, then a name of `Side.works` for each line that comes back.
"""

import json
import resource
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
from dcgan.generate import default_batch_size, write_images
from dcgan.models import Discriminator, Generator, weights_init
from dcgan.trainer import DTYPES, Trainer


class Contender:
    """What both sides do with a setting, each in its own way; a work returns how many units it did."""

    def __init__(self, setting: dict[str, Any]):
        self.setting, self.device = setting, torch.device(setting["device"])
        self.batch_size: int = setting["batch_size"]
        self.samples: int = setting["samples"]
        self.folder = Path(setting["folder"])
        self.config = {name: setting[name] for name in ("image_size", "channels", "base_channels")}
        shape = (self.batch_size, self.config["channels"], self.config["image_size"], self.config["image_size"])
        self.real = torch.rand(shape, device=self.device) * 2 - 1
        # Steps a turn: a single one of a fast device, or of small images, is too short to time.
        self.turns = 20 if self.device.type == "cuda" else min(16, -(-(2**20) // self.real.numel()))
        self.works: dict[str, Callable[[], int]] = {
            name: getattr(self, name) for name in ("step", "serve", "epoch", "sample", "generate", "load")
        }

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build both networks on the device."""
        name = self.setting["architecture"]
        generator = Generator.from_architecture(name, **self.config)
        discriminator = Discriminator.from_architecture(name, **self.config)
        return generator.to(self.device), discriminator.to(self.device)

    def facts(self) -> dict[str, float]:
        """Return what is measured once: here, the peak of memory in bytes."""
        if self.device.type == "cuda":
            return {"memory": torch.cuda.max_memory_allocated(self.device)}
        return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


class Tutorial(Contender):
    """The tutorial: plain networks and layout, probabilities, four reads of results a step, files one by one."""

    def __init__(self, setting: dict[str, Any]):
        super().__init__(setting)
        self.generator, self.discriminator = self.networks()
        self.generator.apply(weights_init)
        self.discriminator.apply(weights_init)
        self.latent_dim = setting["latent_dim"]
        self.criterion = nn.BCELoss()
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.loader: Any = None

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build the tutorial's networks layer by layer; of other architectures there is only ours."""
        if self.setting["architecture"] != "tutorial":
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
        """Train on one batch that is there."""
        for _ in range(self.turns):
            self._train(self.real)
        return self.turns * self.batch_size

    def _batches(self) -> Iterator[Tensor]:
        from torchvision import datasets, transforms

        side = self.config["image_size"]
        if self.loader is None:
            steps = [transforms.Resize(side), transforms.CenterCrop(side), transforms.ToTensor()]
            if self.config["channels"] == 1:
                steps.append(transforms.Grayscale())
            steps.append(transforms.Normalize((0.5,) * self.config["channels"], (0.5,) * self.config["channels"]))
            self.loader = torch.utils.data.DataLoader(
                datasets.ImageFolder(str(self.folder / "images"), transforms.Compose(steps)),
                batch_size=self.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=2,
                persistent_workers=True,  # kinder than the tutorial: a small set would mostly wait for new workers
            )
        for images, _ in self.loader:
            yield images.to(self.device)

    def serve(self) -> int:
        """Read an epoch of batches from files, normalised."""
        return sum(len(real) for real in self._batches())

    def epoch(self) -> int:
        """Train on them."""
        done = 0
        for real in self._batches():
            self._train(real)
            done += len(real)
        return done

    @torch.no_grad()
    def _sample(self) -> Tensor:
        self.generator.eval()
        z = torch.randn(self.samples, self.latent_dim, 1, 1, device=self.device)
        images = torch.cat([self.generator(part) for part in torch.split(z, 64)])
        self.generator.train()
        return images

    def sample(self) -> int:
        """Compute samples, 64 at a time."""
        return len(self._sample())

    def generate(self) -> int:
        """Write samples as files, one by one."""
        from torchvision.utils import save_image

        with TemporaryDirectory(dir=self.folder) as out:
            for index, image in enumerate(self._sample()):
                save_image(image, f"{out}/{index:06d}.png", normalize=True, value_range=(-1, 1))
        return self.samples

    def load(self) -> int:
        """Build a generator and load its weights."""
        from safetensors.torch import load_file

        network = Generator.from_architecture(self.setting["architecture"], **self.config)
        network.load_state_dict(load_file(self.folder / "model" / "model.safetensors"))
        network.eval()
        return 1

    def facts(self) -> dict[str, float]:
        """Add the floating-point operations of a step, an image."""
        facts = super().facts()
        with FlopCounterMode(display=False) as counter:
            self._train(self.real[:2])
        return {**facts, "flop": counter.get_total_flops() / 2}


class Dcgan(Contender):
    """This package."""

    def __init__(self, setting: dict[str, Any]):
        keep_memory()  # as the command line does
        super().__init__(setting)
        self.works |= {name: getattr(self, name) for name in ("archive", "load_file")}
        networks = self.networks()
        self.generator, discriminator = cast("Generator", networks[0]), networks[1]
        precision, compile_ = setting["precision"], setting["compile"]
        self.trainer = Trainer(self.generator, discriminator, precision=precision, compile=compile_)
        self.dtype = DTYPES[precision]
        self.options: dict[str, Any] = {"batch_size": default_batch_size(self.generator), "dtype": self.dtype}
        self.batches: Iterator[Tensor] | None = None

    def step(self) -> int:
        """Train on one batch that is there."""
        for _ in range(self.turns):
            self.trainer.step(self.real)
        return self.turns * self.batch_size

    def _stream(self) -> Iterator[Tensor]:
        if self.batches is None:
            from dcgan.data import Batches, load

            size, channels = self.config["image_size"], self.config["channels"]
            cache = self.folder / "packed"
            images = load("folder", root=self.folder / "images", image_size=size, channels=channels, cache_dir=cache)
            self.batches = iter(Batches(images, self.batch_size, device=self.device))
        return self.batches

    def serve(self) -> int:
        """Read batches from the packed file, normalised."""
        from dcgan.images import from_uint8

        return sum(len(from_uint8(real)) for real in islice(self._stream(), -(-20_000 // self.batch_size)))

    def epoch(self) -> int:
        """Train on them."""
        done = 0
        for real in islice(self._stream(), self.setting["images"] // self.batch_size):
            self.trainer.step(real)
            done += len(real)
        return done

    def sample(self) -> int:
        """Compute samples."""
        return len(self.generator.sample(self.samples, **self.options))

    def _write(self, name: str) -> int:
        with TemporaryDirectory(dir=self.folder) as out:
            *_, done = write_images(self.generator, Path(out, name), self.samples, **self.options)
        return done

    def generate(self) -> int:
        """Write samples as files."""
        return self._write("images")

    def archive(self) -> int:
        """Write samples as one archive."""
        return self._write("images.npz")

    def load(self) -> int:
        """Load a generator from a folder."""
        Generator.from_pretrained(self.folder / "model")
        return 1

    def load_file(self) -> int:
        """Load the weights alone, which is as fast as loading gets."""
        from safetensors.torch import load_file

        load_file(self.folder / "model" / "model.safetensors")
        return 1

    def facts(self) -> dict[str, float]:
        """Add what the machine can do at most, in operations a second: a matrix product, and a convolution."""
        facts = super().facts()
        side = 8192 if self.device.type == "cuda" else 2048
        matrix = torch.randn(side, side, device=self.device, dtype=self.dtype)
        layout = torch.channels_last
        n = 2048 if self.device.type == "cuda" else 128
        images = torch.randn(n, 128, 16, 16, device=self.device, dtype=self.dtype).to(memory_format=layout)
        kernels = torch.randn(256, 128, 4, 4, device=self.device, dtype=self.dtype).to(memory_format=layout)
        matmul = 2 * side**3 / self._best(lambda: matrix @ matrix)
        conv = 2 * n * 256 * 8 * 8 * 128 * 16 / self._best(lambda: conv2d(images, kernels, stride=2, padding=1))
        return {**facts, "matmul": matmul, "conv": conv}

    def _best(self, work: Callable[[], object]) -> float:
        return min(seconds_of(lambda: bool(work() is None) or 1, self.device)[0] for _ in range(10))


def tutorial_networks(*, image_size: int, channels: int, base_channels: int) -> tuple[nn.Module, nn.Module]:
    """Return the tutorial's generator and discriminator as plain sequences of layers.

    Raises:
        ValueError: If `image_size` is not 4 times a power of two, at least 16.
    """
    depth = image_size.bit_length() - 4  # layers between the smallest map and the image
    if image_size != 8 * 2**depth or depth < 1:
        raise ValueError(f"image_size must be a power of two, at least 16, got {image_size}")
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


def seconds_of(work: Callable[[], int], device: torch.device) -> tuple[float, int]:
    """Time a work until the device has done it; return the seconds, and the units it did."""
    _wait(device)
    began = time.perf_counter()
    units = work()
    _wait(device)
    return time.perf_counter() - began, units


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def main() -> None:
    """Answer the benchmark, line by line."""
    answer, sys.stdout = sys.stdout, sys.stderr  # nothing else may come between the lines
    side = {"tutorial": Tutorial, "dcgan": Dcgan}[sys.argv[1]](json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        name = line.strip()
        result = side.facts() if name == "facts" else seconds_of(side.works[name], side.device)
        answer.write(json.dumps(result) + "\n")
        answer.flush()


if __name__ == "__main__":
    main()
