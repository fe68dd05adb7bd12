"""`dcgan bench`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dcgan._allocator import keep_memory
from dcgan._choices import ArchitectureName, CompileMode, Precision, Workload
from dcgan._files import read_json_lines
from dcgan.cli._options import FLAG, INTEGER, WORDS
from dcgan.cli._terminal import RunError, exit_on_error, progress_bar, say


def bench(
    *,
    suite: Literal["speed", "robustness"] | None = None,
    workload: Annotated[tuple[Workload, ...], WORDS] = (),
    architecture: ArchitectureName = "tutorial",
    image_size: Annotated[int, INTEGER] = 64,
    channels: Annotated[int, INTEGER] = 3,
    base_channels: Annotated[int, INTEGER] = 64,
    batch_size: Annotated[int, INTEGER] = 128,
    samples: Annotated[int, INTEGER] = 1024,
    repeats: Annotated[int, INTEGER] = 5,
    precision: Precision = "fp32",
    compile: CompileMode = "auto",  # noqa: A002 - as in Trainer
    device: str = "auto",
    sets: Annotated[tuple[str, ...], WORDS] = ("digits:32",),
    root: Path | None = None,
    short: Annotated[bool, FLAG] = False,
    out: Path = Path("robustness.jsonl"),
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Time training, reading, sampling and loading on this machine, alternating with the loop of PyTorch's tutorial.

    With --suite robustness, train many small networks by the tutorial's recipe and by ours instead, and count how many
    die; that takes hours, and goes on where it was when it is started again.

    Args:
        suite: Run all settings shown in the documentation: speed, one table each, takes half an hour on two cores;
            robustness takes sets, root, short, out and device, and ignores the other options.
        workload: Workloads to time; by default all.
        architecture: Published architecture of the networks.
        image_size: Side of the images in pixels.
        channels: Number of image channels.
        base_channels: Width of the stage next to the image, in both networks.
        batch_size: Number of images per batch.
        samples: Number of images to sample and to write.
        repeats: Number of rounds, whose medians are reported.
        precision: Floating-point format that dcgan computes in; the tutorial computes in fp32, as published.
        compile: How dcgan speeds up steps on a CUDA device, as for train.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
        sets: Datasets of the robustness suite, each NAME:SIZE or FOLDER:SIZE.
        root: Folder that holds those of them that have a name.
        short: Only two widths, one batch size and one seed.
        out: File that the robustness suite writes its runs to, one line each.
        as_json: Print JSON instead of tables.
    """
    if suite == "robustness":
        return _bench_robustness(sets, root, out, device, short=short, as_json=as_json)
    with exit_on_error():
        from dcgan._build import select_device
        from dcgan.bench import SUITE, benchmark, table

        options: dict[str, Any] = {
            "architecture": architecture,
            "image_size": image_size,
            "channels": channels,
            "base_channels": base_channels,
            "batch_size": batch_size,
            "samples": samples,
            "repeats": repeats,
            "precision": precision,
            "compile": compile,
            "device": select_device(device),
        }
        if workload:
            options["workloads"] = workload
        for setting in SUITE if suite == "speed" else ({},):
            try:
                report = benchmark(**options | setting)
            except RuntimeError as error:
                raise RunError(str(error)) from error
            say(json.dumps(report, indent=2) if as_json else table(report) + "\n")
    return 0


def _bench_robustness(
    sets: tuple[str, ...], root: Path | None, out: Path, device: str, *, short: bool, as_json: bool
) -> int:
    with exit_on_error():
        keep_memory()
        from dcgan.bench import robustness

        subjects = [robustness.Subject.parse(text, root) for text in sets]
        options: dict[str, Any] = {"device": device}
        if short:
            options |= {"widths": robustness.SHORT_WIDTHS, "batch_sizes": robustness.SHORT_BATCH_SIZES}
            options |= {"seeds": robustness.SHORT_SEEDS}
        with progress_bar("training", "run") as progress:
            for done, total in robustness.run_suite(subjects, out, **options):
                progress(done, total)
        rows = read_json_lines(out)
    say(json.dumps(rows, indent=2) if as_json else robustness.table(rows))
    return 0
