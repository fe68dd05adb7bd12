"""TensorBoard and Weights & Biases, which a run reports to on request."""

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dcgan._choices import LoggerName
from dcgan._errors import InputError, MissingPackageError
from dcgan._files import atomic_write

# What the keys of a record are called there: the part before the slash is the heading of a group of charts.
_TAGS = {
    "d_loss": "loss/D",
    "g_loss": "loss/G",
    "d_real": "output/D_real",
    "d_fake": "output/D_fake",
    "fd": "quality/frechet_distance",
    "images_per_second": "speed/images_per_second",
}


class Logger(Protocol):
    """Where a run reports to; nothing it does changes the numbers of the run."""

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Report a line of `metrics.jsonl`."""

    def picture(self, step: int, path: Path) -> None:
        """Report a grid of samples, a PNG file."""

    def close(self) -> None:
        """Finish all reports, and wait for them."""


def open_loggers(
    names: Iterable[LoggerName], folder: Path, *, config: str, resume_step: int | None = None
) -> list[Logger]:
    """Open the loggers of a run; each is imported only now.

    Args:
        names: Names of the loggers.
        folder: The folder of the run, which exists; they keep their files in `tensorboard/` and `wandb/` there.
        config: The run's recipe, as YAML.
        resume_step: The step that a resumed run goes on from: later reports are replaced. None for a new run.

    Raises:
        ValueError: If there is no such logger.
        ImportError: If its package is missing, naming the extra that brings it.
        ConnectionError: If it refuses to start, as Weights & Biases does without an account.
    """
    names = list(names)
    if unknown := [name for name in names if name not in _LOGGERS]:
        raise InputError(f"log must be of {', '.join(_LOGGERS)}, got {', '.join(unknown)}")
    loggers: list[Logger] = []
    try:
        for name in names:
            loggers.append(_LOGGERS[name](folder, config, resume_step))  # noqa: PERF401 - those that are open get closed
    except BaseException:
        for logger in loggers:
            logger.close()
        raise
    return loggers


class _TensorBoard:
    def __init__(self, folder: Path, config: str, resume_step: int | None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                'logging to TensorBoard needs tensorboard: pip install "dcgan[tensorboard]"'
            ) from error
        # A new run purges nothing, but TensorBoard takes only the second purge for one.
        purge_step = 0 if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        if resume_step is None:
            self._writer.add_text("recipe", "".join(f"    {line}\n" for line in config.splitlines()), 0)  # Markdown
        self._writer.flush()  # what is to be forgotten is forgotten from now on

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, step)
        if "collapse" in record:
            self._writer.add_text("collapse", record["collapse"], step)
        self._writer.flush()  # a killed run has reported what its log holds

    def picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as grid:
            pixels = np.asarray(grid)
        self._writer.add_image("samples", pixels, step, dataformats="HWC" if pixels.ndim == 3 else "HW")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, config: str, resume_step: int | None):
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError('logging to Weights & Biases needs wandb: pip install "dcgan[wandb]"') from error
        import yaml

        folder = folder.resolve()
        id_file = folder / "wandb" / "dcgan-run-id"
        resumed = resume_step is not None and id_file.exists()
        try:
            self._run = wandb.init(
                dir=str(folder),
                project=os.environ.get("WANDB_PROJECT", "dcgan"),
                name=folder.name,
                id=id_file.read_text(encoding="utf-8") if resumed else secrets.token_hex(4),
                config=yaml.safe_load(config),
                resume="allow" if resumed else None,
                reinit="create_new",  # a run of the program around stays what it is
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"Weights & Biases did not start: {reason} (with WANDB_MODE=offline it needs no account)"
            ) from error
        id_file.parent.mkdir(exist_ok=True)  # a disabled one has no folder
        with atomic_write(id_file) as file:
            file.write(self._run.id.encode())
        # Its own count of steps cannot go back to a checkpoint. With ours, steps that are trained again after it lie
        # where they did before, with the same values.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._collapsed = False

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **_scalars(record)})
        collapse = record.get("collapse")
        self._run.summary["collapse"] = collapse
        if collapse and not self._collapsed:
            self._run.alert(title="Training has collapsed", text=f"step {step}: {collapse}", level="WARN")
        self._collapsed = bool(collapse)

    def picture(self, step: int, path: Path) -> None:
        import wandb

        self._run.log({"step": step, "samples": wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()


_LOGGERS: dict[str, type[_TensorBoard | _WeightsAndBiases]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by their tags."""
    return {
        _TAGS.get(key, key): float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float)
    }
