"""`dcgan bench`."""

import json
from typing import Annotated, Any

from cyclopts import Parameter

from dcgan._choices import ArchitectureName, CompileMode, Precision, Workload
from dcgan.cli._options import FLAG, INTEGER, WORDS
from dcgan.cli._terminal import RunError, exit_on_error, say


def bench(
    *,
    suite: Annotated[bool, FLAG] = False,
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
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Time training, reading, sampling and loading on this machine, alternating with the loop of PyTorch's tutorial.

    Args:
        suite: Run all settings shown in the documentation, one table each; takes half an hour on two cores.
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
        as_json: Print JSON instead of tables.
    """
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
        for setting in SUITE if suite else ({},):
            try:
                report = benchmark(**options | setting)
            except RuntimeError as error:
                raise RunError(str(error)) from error
            say(json.dumps(report, indent=2) if as_json else table(report) + "\n")
    return 0
