"""Throughput of this package compared with the training loop of PyTorch's DCGAN tutorial, on the machine at hand.

Absolute times of a shared machine mean little, so both contenders run alternately, each in its own process, and the
ratio of their medians is what counts.
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
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torchvision

import dcgan
from dcgan._choices import ArchitectureName, CompileMode, Precision, Workload
from dcgan._errors import InputError
from dcgan.architectures import ARCHITECTURES
from dcgan.models import Generator

WORKLOADS: tuple[Workload, ...] = get_args(Workload)
"""Everything that can be timed."""

SUITE: tuple[dict[str, Any], ...] = (
    {},
    {"batch_size": 1024, "workloads": ("step",)},
    {"image_size": 32, "channels": 1, "base_channels": 32, "workloads": ("step", "sample")},
    {"image_size": 128, "workloads": ("step", "sample")},
    {"architecture": "paper", "base_channels": 128, "workloads": ("step", "sample")},
)
"""Arguments of `benchmark` that together characterise a machine, one table each."""


class _Comparison(NamedTuple):
    """What a workload of ours is compared with; `label`, `baseline` and `unit` are for the table."""

    label: str
    baseline: str
    unit: str
    baseline_contender: Literal["tutorial", "dcgan"]
    baseline_workload: str
    workload: str


_COMPARISONS: dict[Workload, _Comparison] = {
    "step": _Comparison("training step", "tutorial", "images/s", "tutorial", "step", "step"),
    "epoch": _Comparison("training from disk", "tutorial", "images/s", "tutorial", "epoch", "epoch"),
    "overhead": _Comparison("training from disk", "dcgan, one batch in memory", "images/s", "dcgan", "step", "epoch"),
    "serve": _Comparison(
        "loading batches from disk", "ImageFolder, two workers", "images/s", "tutorial", "serve", "serve"
    ),
    "sample": _Comparison("sampling", "eager, batches of 64", "images/s", "tutorial", "sample", "sample"),
    "generate": _Comparison(
        "writing PNG files", "save_image per image", "images/s", "tutorial", "generate", "generate"
    ),
    "archive": _Comparison("writing one archive", "dcgan, sampling only", "images/s", "dcgan", "sample", "archive"),
    "load": _Comparison(
        "from_pretrained", "constructor, load_file, load_state_dict", "loads/s", "tutorial", "load", "load"
    ),
    "load_file": _Comparison("from_pretrained", "load_file only", "loads/s", "dcgan", "load_file", "load"),
}

# Prints the seconds. The time of `--help` includes starting Python.
_TIME_IMPORT = """
import time, torch
start = time.perf_counter()
import dcgan
dcgan.Generator, dcgan.Discriminator, dcgan.Trainer
print(time.perf_counter() - start)
"""
_HELP = "import sys; from dcgan.cli import main; sys.exit(main(['--help']))"


def benchmark(
    *,
    architecture: ArchitectureName = "tutorial",
    image_size: int = 64,
    channels: int = 3,
    base_channels: int = 64,
    batch_size: int = 128,
    samples: int = 1024,
    repeats: int = 5,
    precision: Precision = "fp32",
    compile: CompileMode = "auto",  # noqa: A002 - as in Trainer
    device: torch.device | str = "cpu",
    workloads: Sequence[Workload] = WORKLOADS,
) -> dict[str, Any]:
    """Time workloads of this package, each compared with a baseline.

    Args:
        architecture: Published architecture. The baseline of "tutorial" is built of plain layers.
        image_size: Side of the images in pixels.
        channels: Number of image channels.
        base_channels: Width of both networks next to the image.
        batch_size: Number of images per batch.
        samples: Number of images to sample and to write.
        repeats: Number of timed rounds, after one to warm up; each round runs every workload once.
        precision: Floating-point format that dcgan computes in; the tutorial's loop uses fp32, as published.
        compile: As in `Trainer`.
        device: Device to compute on.
        workloads: Workloads to time, from `WORKLOADS`.

    Returns:
        `machine` and `settings`; `profile`, measured once for each contender: its peak memory in bytes (None where the
        system does not report it), the floating-point operations of a training step per image, and the highest
        throughput of a matrix product and of a convolution in FLOP/s; and for each workload the median seconds per
        unit of the baseline and of dcgan, and their ratio.

    Raises:
        ValueError: If `repeats` or `samples` is below 1, `batch_size` below 2, a workload is unknown, or an argument
            is not valid for the networks.
        RuntimeError: If a contender fails; its error is on standard error.
    """
    for name, value, minimum in (("repeats", repeats, 1), ("batch_size", batch_size, 2), ("samples", samples, 1)):
        if value < minimum:
            raise InputError(f"{name} must be at least {minimum}, got {value}")
    if unknown := [workload for workload in workloads if workload not in WORKLOADS]:
        raise InputError(f"workloads must be among {', '.join(WORKLOADS)}, got {unknown[0]!r}")
    device = torch.device(device)
    images = max(512, 2 * batch_size) if device.type == "cpu" else max(4096, 8 * batch_size)
    settings: dict[str, Any] = {
        "architecture": architecture,
        "image_size": image_size,
        "channels": channels,
        "base_channels": base_channels,
        "batch_size": batch_size,
        "precision": precision,
        "compile": compile,
        "device": str(device),
        "samples": samples,
        "images": images,
        "latent_dim": ARCHITECTURES[architecture].get("latent_dim", 100),
    }
    report: dict[str, Any] = {"machine": describe_machine(device), "settings": {**settings, "repeats": repeats}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        generator = Generator.from_architecture(
            architecture, image_size=image_size, channels=channels, base_channels=base_channels
        )
        generator.save_pretrained(Path(folder, "model"))
        if {"serve", "epoch", "overhead"} & set(workloads):
            _write_photos(Path(folder, "images", "all"), images)
        contenders = {
            name: stack.enter_context(_start_contender(name, {**settings, "folder": folder}))
            for name in ("tutorial", "dcgan")
        }
        for workload in workloads:
            if workload != "start":
                report[workload] = _compare(_COMPARISONS[workload], contenders, repeats)
        report["profile"] = {name: contender.request("profile") for name, contender in contenders.items()}
    if "start" in workloads:
        report["start"] = _time_startup(repeats)
    return report


def table(report: dict[str, Any]) -> str:
    """Format a report of `benchmark` as a Markdown table, with the machine above it."""
    profile, settings = report["profile"], report["settings"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in report["machine"].items()),
        ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("images", "latent_dim")),
        "",
        "| workload | compared with | unit | baseline | dcgan | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for workload, comparison in _COMPARISONS.items():
        if workload in report:
            result = report[workload]
            baseline, ours = (f"{1 / result[name]:,.0f}" for name in ("baseline_seconds", "dcgan_seconds"))
            cells = [comparison.label, comparison.baseline, comparison.unit, baseline, ours, f"{result['ratio']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    if "start" in report:
        start = report["start"]
        lines.append(f"| import dcgan, after torch | | ms | | {1000 * start['import_seconds']:,.0f} | |")
        lines.append(f"| dcgan --help | | ms | | {1000 * start['help_seconds']:,.0f} | |")
    flop = profile["tutorial"]["flop_per_image"]
    matmul, conv = (f"{profile['dcgan'][name] / 1e9:,.0f} GFLOP/s" for name in ("matmul_flops", "conv_flops"))
    lines += ["", f"A training step takes {flop / 1e9:.3g} GFLOP per image."]
    lines += [f"Peak throughput in {settings['precision']}: matrix product {matmul}, convolution {conv}."]
    if "step" in report:
        rates = [flop / report["step"][name] / 1e9 for name in ("baseline_seconds", "dcgan_seconds")]
        lines.append(f"Training step: baseline {rates[0]:,.0f} GFLOP/s, dcgan {rates[1]:,.0f} GFLOP/s.")
    peaks = [profile[name]["peak_memory"] for name in ("tutorial", "dcgan")]
    memory = ["not available" if peak is None else f"{peak / 2**20:,.0f} MiB" for peak in peaks]
    lines.append(f"Peak memory: tutorial {memory[0]}, dcgan {memory[1]}.")
    return "\n".join(lines)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Describe the hardware and the versions that the timings are taken with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dcgan": dcgan.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class _ContenderProcess:
    """A contender in its own process, which answers each line of input with a line of JSON."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process

    def send(self, line: str) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the contender's process has no input pipe")
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading its answer reports that

    def request(self, line: str) -> Any:
        self.send(line)
        answer = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not answer:
            raise RuntimeError(f"a contender of the benchmark ended with exit code {self._process.wait()}")
        return json.loads(answer)


@contextmanager
def _start_contender(name: str, settings: dict[str, Any]) -> Iterator[_ContenderProcess]:
    command = [sys.executable, "-m", "dcgan.bench._contender", name]
    with subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        contender = _ContenderProcess(process)
        try:
            contender.send(json.dumps(settings))
            yield contender
        finally:
            process.terminate()


def _compare(comparison: _Comparison, contenders: dict[str, _ContenderProcess], repeats: int) -> dict[str, float]:
    runs = [
        (contenders[comparison.baseline_contender], comparison.baseline_workload),
        (contenders["dcgan"], comparison.workload),
    ]
    seconds_per_unit: list[list[float]] = [[], []]
    for round_number in range(repeats + 1):
        for measured, (contender, workload) in zip(seconds_per_unit, runs, strict=True):
            seconds, units = contender.request(workload)
            if round_number:  # the first round warms up
                measured.append(seconds / units)
    baseline, ours = map(median, seconds_per_unit)
    return {"baseline_seconds": baseline, "dcgan_seconds": ours, "ratio": baseline / ours}


def _time_startup(repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"import_seconds": [], "help_seconds": []}
    for round_number in range(repeats + 1):
        imported = subprocess.run(  # noqa: S603 - this interpreter and code of ours
            [sys.executable, "-c", _TIME_IMPORT], check=True, stdout=subprocess.PIPE
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", _HELP], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - likewise
        if round_number:  # the first round warms up
            seconds["import_seconds"].append(float(imported.stdout))
            seconds["help_seconds"].append(time.perf_counter() - start)
    return {name: median(measured) for name, measured in seconds.items()}


def _write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of smooth noise, 178×218 pixels as in CelebA."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (27, 22, 3), np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=90)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
