"""`dcgan show`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcgan._choices import ArchitectureName
from dcgan.cli._latents import expect_new_file
from dcgan.cli._options import FLAG
from dcgan.cli._terminal import UsageError, exit_on_error, say, say_table

if TYPE_CHECKING:
    from dcgan.models import Discriminator, Generator


def show(
    model: str | None = None,
    *,
    architecture: ArchitectureName | None = None,
    recipe: str | None = None,
    out: Path | None = None,
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Show the networks of a model, or those that would be trained: stages, sizes, parameters, multiplications.

    Multiplications are those of convolutions and linear layers for one image, each with its addition.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of saved networks; or Hub repository. By
            default faces.
        architecture: Published architecture to show instead.
        recipe: Name of a recipe, which dcgan recipes lists, or YAML file of options, whose networks to show instead.
        out: Also draw them, as this .svg.
        force: Overwrite an existing file.
    """
    with exit_on_error():
        if len(given := [name for name in (model, architecture, recipe) if name is not None]) > 1:
            raise UsageError(f"show one of MODEL, --architecture and --recipe at a time, got {' and '.join(given)}")
        if out is not None:
            expect_new_file(out, (".svg",), force=force)
        from dcgan.drawing import save_svg, table

        networks = _load(model or "faces") if architecture is recipe is None else _build(architecture, recipe)
        for network in networks:
            say(type(network).__name__.lower())
            say_table(_align(table(network)))
            say("")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            save_svg(out, *networks)
            say(f"{out}: {' and '.join(type(network).__name__.lower() for network in networks)}")
    return 0


def _load(model: str) -> "list[Generator | Discriminator]":
    """Load both networks of a model, or the one that it has."""
    from dcgan.models import Discriminator, Generator

    networks: list[Generator | Discriminator] = []
    errors = []
    for network in (Generator, Discriminator):
        try:
            networks.append(network.from_pretrained(model))
        except FileNotFoundError as error:
            errors.append(error)
    if not networks:
        raise errors[0]
    return networks


def _build(architecture: ArchitectureName | None, recipe: str | None) -> "list[Generator | Discriminator]":
    """Build the networks of an architecture or a recipe."""
    from dcgan._build import build_networks
    from dcgan.models import Discriminator, Generator
    from dcgan.recipe import load_recipe

    if architecture is not None:
        return [Generator.from_architecture(architecture), Discriminator.from_architecture(architecture)]
    return [*build_networks(load_recipe(recipe or ""))[1:]]


def _align(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Put the numbers of the last two columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (*row[:-2], *(cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True))) for row in rows
    ]
