"""From a recipe to the objects of a run."""

from collections.abc import Callable
from typing import Any

import torch

from dcgan import data
from dcgan.models import Discriminator, Generator
from dcgan.recipe import Recipe
from dcgan.trainer import Trainer


def device_named(name: str) -> torch.device:
    """Return the device of that name, or for "auto" the best there is.

    Raises:
        ValueError: If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def networks(recipe: Recipe) -> tuple[Recipe, Generator, Discriminator]:
    """Build or load the networks, and the recipe that they resolve."""
    loaded: dict[str, Any] = {}
    for kind, name in ((Generator, recipe.generator), (Discriminator, recipe.discriminator)):
        if name is None:
            continue
        network = kind.from_pretrained(name)
        loaded[kind.__name__] = network
        for field in ("image_size", "channels"):
            value = network.config[field]
            value = tuple(value) if isinstance(value, list) else value
            if (asked := getattr(recipe, field)) not in (None, value):
                raise ValueError(f"the {kind.__name__.lower()} of {name} has {field} {value}, and the recipe {asked}")
            recipe = recipe.replace(**{field: value})
    recipe = recipe.resolved()

    def arguments(*names: str, **renamed: Any) -> dict[str, Any]:
        shared = (
            "image_size",
            "channels",
            "max_channels",
            "kernel_size",
            "stages",
            "convs_per_stage",
            "stem",
            "bias",
        )
        values = {name: getattr(recipe, name) for name in (*shared, *names)} | renamed
        return {name: value for name, value in values.items() if value is not None}

    g_arguments = arguments("latent_dim", "norm", "upsample", "latent", base_channels=recipe.g_channels)
    d_arguments = arguments(base_channels=recipe.d_channels, norm=recipe.d_norm or recipe.norm)
    # Fresh weights are a function of the seed alone, and leave the process's own random state as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = Generator.from_architecture(recipe.architecture, **g_arguments)
        discriminator = Discriminator.from_architecture(recipe.architecture, **d_arguments)
    return recipe, loaded.get("Generator", generator), loaded.get("Discriminator", discriminator)


def images(recipe: Recipe, progress: Callable[[int, int], None] | None) -> data.Images:
    """Open the data set of a resolved recipe.

    Raises:
        ValueError: If it is smaller than a batch, or as `data.load`.
    """
    loaded = data.load(
        recipe.data,
        root=recipe.root,
        image_size=recipe.image_size or 64,
        channels=recipe.channels or 3,
        resize=recipe.resize,
        classes=recipe.classes,
        cache=recipe.cache,
        cache_dir=recipe.cache_dir,
        workers=recipe.workers,
        skip_bad=recipe.skip_bad,
        progress=progress,
    )
    data.Batches(loaded, recipe.batch_size or 1)  # raises where the set is smaller than a batch
    return loaded


def trainer(recipe: Recipe, generator: Generator, discriminator: Discriminator) -> Trainer[Generator, Discriminator]:
    """Build the trainer of a resolved recipe."""
    return Trainer(
        generator,
        discriminator,
        loss=recipe.loss,
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        d_steps=recipe.d_steps,
        schedule=recipe.schedule,
        label_smoothing=recipe.label_smoothing,
        gradient_penalty=recipe.gradient_penalty,
        r1=recipe.r1,
        augmentations=recipe.augment or (),
        ema_decay=recipe.ema_decay,
        precision=recipe.precision,
        seed=recipe.seed,
    )
