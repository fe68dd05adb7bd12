"""From a recipe to the objects of a run."""

from collections.abc import Callable
from typing import Any

import torch

from dcgan import data
from dcgan.hub._pretrained import Pretrained
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
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def networks(recipe: Recipe) -> tuple[Recipe, Generator, Discriminator]:
    """Build or load the networks; return them and the resolved recipe, which takes over what loaded ones settle.

    Raises:
        ValueError: If a loaded network is not what the recipe asks for, or as the networks themselves.
    """
    generator, discriminator = None, None
    if recipe.generator is not None:
        generator = Generator.from_pretrained(recipe.generator, dtype=torch.float32)
        recipe = _taking_over(recipe, generator, recipe.generator, _SHARED | _GENERATOR)
    if recipe.discriminator is not None:
        discriminator = Discriminator.from_pretrained(recipe.discriminator, dtype=torch.float32)
        size = {name: _SHARED[name] for name in ("image_size", "channels")}
        recipe = _taking_over(recipe, discriminator, recipe.discriminator, size | _DISCRIMINATOR)
    recipe = recipe.resolved()

    def arguments(fields: dict[str, str]) -> dict[str, Any]:
        values = {argument: getattr(recipe, field) for field, argument in fields.items()}
        return {argument: value for argument, value in values.items() if value is not None}

    # Fresh weights are a function of the seed alone, and leave the process's own random state as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        if generator is None:
            generator = Generator.from_architecture(recipe.architecture, **arguments(_SHARED | _GENERATOR))
        if discriminator is None:
            same_norm = arguments({"norm": "norm"})  # unless d_norm is given
            own = same_norm | arguments(_SHARED | _DISCRIMINATOR)
            discriminator = Discriminator.from_architecture(recipe.architecture, **own)
    return recipe, generator, discriminator


# The recipe's fields, and the arguments of the networks that they are.
_SHARED = {
    name: name
    for name in ("image_size", "channels", "max_channels", "kernel_size", "stages", "convs_per_stage", "stem", "bias")
}
_GENERATOR = {"g_channels": "base_channels", **{name: name for name in ("latent_dim", "norm", "upsample", "latent")}}
_DISCRIMINATOR = {"d_channels": "base_channels", "d_norm": "norm"}


def _taking_over(recipe: Recipe, network: Pretrained, name: str, fields: dict[str, str]) -> Recipe:
    for field, argument in fields.items():
        value = network.config[argument]
        value = tuple(value) if isinstance(value, list) else value
        if (asked := getattr(recipe, field)) not in (None, value):
            raise ValueError(f"the {type(network).__name__.lower()} of {name} has {field} {value}, the recipe {asked}")
        recipe = recipe.replace(**{field: value})
    return recipe


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
        compile=recipe.compile,
        seed=recipe.seed,
    )
