"""`dcgan recipes`."""

from dcgan.cli._terminal import say, say_table
from dcgan.recipe import Recipe, list_recipes, load_recipe

_HEADINGS = ("name", "networks", "image size", "width", "batch", "length", "what it is")


def recipes() -> int:
    """List the recipes that `dcgan train --recipe` takes by name: ours, one per dataset, and the published ones.

    The width is that of the stage next to the image; the generator's first, where the discriminator's is another.
    """
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for name, description in list_recipes().items():
        rows.append((name, *_summarize(load_recipe(name).resolve()), description))
    say_table(rows)
    say("\nnext:")
    say("  dcgan train --recipe tutorial --print-recipe")
    say("  dcgan train --recipe mnist")
    return 0


def _summarize(recipe: Recipe) -> tuple[str, ...]:
    size = recipe.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    widths = dict.fromkeys((recipe.base_channels, recipe.d_base_channels))
    return (
        recipe.architecture,
        f"{height}x{width}x{recipe.channels}",
        ", ".join(map(str, widths)),
        str(recipe.batch_size),
        f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs",
    )
