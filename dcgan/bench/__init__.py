"""Timings of this package beside the loop of the public tutorial, on the machine they are taken on.

Absolute times of a shared machine mean little, so both sides work in turn, each in a process of its own, and the ratio
of their medians is what counts.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision

import dcgan
from dcgan.architectures import ARCHITECTURES, Architecture
from dcgan.models import Generator
from dcgan.trainer import Compile, Precision

# Of each work: what it is called, beside what, in which unit, and the works of both sides.
_TUTORIAL = "the tutorial's"
_CONTESTS: dict[str, tuple[str, str, str, tuple[str, str], tuple[str, str]]] = {
    "step": ("training step", _TUTORIAL, "images/s", ("tutorial", "step"), ("dcgan", "step")),
    "epoch": ("training from disk", _TUTORIAL, "images/s", ("tutorial", "epoch"), ("dcgan", "epoch")),
    "overhead": ("training from disk", "steps on one batch", "images/s", ("dcgan", "step"), ("dcgan", "epoch")),
    "serve": ("batches from disk", "ImageFolder, two workers", "images/s", ("tutorial", "serve"), ("dcgan", "serve")),
    "sample": ("sampling", "eager batches of 64", "images/s", ("tutorial", "sample"), ("dcgan", "sample")),
    "generate": ("PNG files", "one save_image each", "images/s", ("tutorial", "generate"), ("dcgan", "generate")),
    "archive": ("one archive", "sampling alone", "images/s", ("dcgan", "sample"), ("dcgan", "archive")),
    "load": (
        "from_pretrained",
        "build, load_file, load_state_dict",
        "a second",
        ("tutorial", "load"),
        ("dcgan", "load"),
    ),
    "load_file": ("from_pretrained", "load_file alone", "a second", ("dcgan", "load_file"), ("dcgan", "load")),
}
# Both print the seconds they take; Python's own start is part of the second's.
_IMPORT = """
import time, torch
began = time.perf_counter()
import dcgan
dcgan.Generator, dcgan.Discriminator, dcgan.Trainer
print(time.perf_counter() - began)
"""
_HELP = "import sys; from dcgan.cli import main; sys.exit(main(['--help']))"
WORKS = (*_CONTESTS, "start")
"""All that can be timed."""

SUITE: tuple[dict[str, Any], ...] = (
    {},
    {"batch_size": 1024, "works": ("step",)},
    {"image_size": 32, "channels": 1, "base_channels": 32, "works": ("step", "sample")},
    {"image_size": 128, "works": ("step", "sample")},
    {"architecture": "paper", "base_channels": 128, "works": ("step", "sample")},
)
"""Settings that together show what there is to know of a machine, each in a table."""


def benchmark(
    *,
    architecture: Architecture = "tutorial",
    image_size: int = 64,
    channels: int = 3,
    base_channels: int = 64,
    batch_size: int = 128,
    samples: int = 1024,
    repeats: int = 5,
    precision: Precision = "fp32",
    compile: Compile = "auto",  # noqa: A002 - as in Trainer
    device: torch.device | str = "cpu",
    works: Sequence[str] = WORKS,
) -> dict[str, Any]:
    """Time this package's works, each beside something to compare it with.

    Args:
        architecture: Published network. The tutorial's side of "tutorial" is built of plain layers.
        image_size: Side of the images in pixels.
        channels: Image channels.
        base_channels: Width of both networks next to the image.
        batch_size: Images a batch.
        samples: Images to sample and to write.
        repeats: Rounds of one call of each, after one round to warm up.
        precision: Arithmetic of our side; the tutorial's is fp32, as published.
        compile: As in `Trainer`.
        device: Where to run.
        works: Which of `WORKS` to time.

    Returns:
        The machine; the setting; `facts`: operations an image, the machine's ceilings in operations a second, and the
        peak of memory of both sides; and for each work the seconds a unit of both, medians, and their ratio.

    Raises:
        ValueError: If `repeats` is below 1, `batch_size` below 2, a work is unknown, or an argument does not suit
            the networks.
        RuntimeError: If a side fails; it has written why to standard error.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if unknown := [work for work in works if work not in WORKS]:
        raise ValueError(f"works must be among {', '.join(WORKS)}, got {unknown[0]!r}")
    device = torch.device(device)
    count = max(512, 2 * batch_size) if device.type == "cpu" else max(4096, 8 * batch_size)
    setting: dict[str, Any] = {
        "architecture": architecture,
        "image_size": image_size,
        "channels": channels,
        "base_channels": base_channels,
        "batch_size": batch_size,
        "precision": precision,
        "compile": compile,
        "device": str(device),
        "samples": samples,
        "images": count,
        "latent_dim": ARCHITECTURES[architecture].get("latent_dim", 100),
    }
    report: dict[str, Any] = {"machine": machine(device), "setting": {**setting, "repeats": repeats}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        generator = Generator.from_architecture(
            architecture, image_size=image_size, channels=channels, base_channels=base_channels
        )
        generator.save_pretrained(Path(folder, "model"))
        if {"serve", "epoch", "overhead"} & set(works):
            _write_photographs(Path(folder, "images", "all"), count)
        sides = {
            name: stack.enter_context(_side(name, {**setting, "folder": folder})) for name in ("tutorial", "dcgan")
        }
        for work in works:
            if work != "start":
                *_, theirs, ours = _CONTESTS[work]
                report[work] = _contest([(sides[side], name) for side, name in (theirs, ours)], repeats)
        report["facts"] = {name: side("facts") for name, side in sides.items()}
    if "start" in works:
        report["start"] = _starts(repeats)
    return report


def table(report: dict[str, Any]) -> str:
    """Lay a report of `benchmark` out as a Markdown table, its machine above."""
    facts, setting = report["facts"], report["setting"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in report["machine"].items()),
        ", ".join(f"{name} {value}" for name, value in setting.items() if name not in ("images", "latent_dim")),
        "",
        "| work | beside | unit | it | dcgan | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, (label, beside, unit, *_) in _CONTESTS.items():
        if name in report:
            result = report[name]
            it, ours = (f"{1 / result[who]:,.0f}" for who in ("beside_seconds", "dcgan_seconds"))
            lines.append(f"| {label} | {beside} | {unit} | {it} | {ours} | {result['ratio']:.2f} |")
    if "start" in report:
        start = report["start"]
        lines.append(f"| import dcgan | torch imported | ms | | {1000 * start['import_seconds']:,.0f} | |")
        lines.append(f"| dcgan --help | | ms | | {1000 * start['help_seconds']:,.0f} | |")
    flop, ours = facts["tutorial"]["flop"], facts["dcgan"]
    ceilings = f"matrix product {ours['matmul'] / 1e9:,.0f}, convolution {ours['conv'] / 1e9:,.0f} GFLOP/s"
    lines += [
        "",
        f"A training image is {flop / 1e9:.3g} GFLOP. In {setting['precision']} this machine does {ceilings}.",
    ]
    if "step" in report:
        rates = [flop / report["step"][who] / 1e9 for who in ("beside_seconds", "dcgan_seconds")]
        lines.append(f"The tutorial's step does {rates[0]:,.0f} of them, dcgan's {rates[1]:,.0f}.")
    memory = [facts[side]["memory"] / 2**20 for side in ("tutorial", "dcgan")]
    lines.append(f"Peak of memory: {memory[0]:,.0f} MiB and {memory[1]:,.0f} MiB.")
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


class _Side:
    """A contestant in its process."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process

    def __call__(self, line: str) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the contestant has no pipes")
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone, and has no answer
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a side of the benchmark ended with exit code {self._process.wait()}")
        return json.loads(answer)

    def tell(self, setting: dict[str, Any]) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(setting) + "\n")


@contextmanager
def _side(name: str, setting: dict[str, Any]) -> Iterator[_Side]:
    command = [sys.executable, "-m", "dcgan.bench._contender", name]
    with subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        side = _Side(process)
        try:
            side.tell(setting)
            yield side
        finally:
            process.terminate()


def _contest(pair: list[tuple[_Side, str]], repeats: int) -> dict[str, float]:
    seconds: list[list[float]] = [[], []]
    for round_number in range(repeats + 1):
        for taken, (side, work) in zip(seconds, pair, strict=True):
            spent, units = side(work)
            if round_number:  # the first round warms up
                taken.append(spent / units)
    beside, own = map(median, seconds)
    return {"beside_seconds": beside, "dcgan_seconds": own, "ratio": beside / own}


def _starts(repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"import_seconds": [], "help_seconds": []}
    for round_number in range(repeats + 1):
        imported = subprocess.run([sys.executable, "-c", _IMPORT], check=True, stdout=subprocess.PIPE)  # noqa: S603 - ours
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _HELP], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - likewise
        if round_number:
            seconds["import_seconds"].append(float(imported.stdout))
            seconds["help_seconds"].append(time.perf_counter() - began)
    return {name: median(taken) for name, taken in seconds.items()}


def _write_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 178×218 pixels, as faces come, of smooth noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (27, 22, 3), np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=90)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
