"""What several commands do with their arguments: load the model, and refuse to overwrite files."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcgan.cli._terminal import UsageError

if TYPE_CHECKING:
    import torch

    from dcgan.models import Discriminator, Generator


def load_generator(model: str, device: "torch.device | str", step: int | Literal["best"] | None = None) -> "Generator":
    """Load the generator of a model onto a device; of a run, as it was at a step whose state is kept."""
    if step is None:
        from dcgan.models import Generator

        return Generator.from_pretrained(model, device=device)
    from dcgan import run

    return run.load_generator(Path(model), step).to(device)


def expect_unconditional(network: "Generator | Discriminator", model: str) -> None:
    """Check that a network needs no labels."""
    if (classes := network.config["num_classes"]) is not None:
        raise UsageError(f"{model} is conditional on {classes} classes: this command is for models without classes")


def expect_new(*paths: Path, force: bool) -> None:
    """Check that no file is there yet, unless it is to be overwritten."""
    if not force and (existing := next((path for path in paths if path.exists()), None)):
        raise UsageError(f"{existing} exists: --force overwrites it")
