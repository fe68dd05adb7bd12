"""Build the objects of a run from its recipe."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dcgan import _distributed, _labelled, checkpoint, data
from dcgan._devices import best_device
from dcgan._errors import InputError
from dcgan.models import Discriminator, Generator, from_pretrained
from dcgan.recipe import Recipe
from dcgan.trainer import Trainer

logger = logging.getLogger(__name__)

N = TypeVar("N", Generator, Discriminator)

# Fields of the recipe, and the network arguments that they set. The discriminator's own have the prefix d_.
_FIELDS = {field.name for field in fields(Recipe)}
_GENERATOR = {name: name for name in signature(Generator).parameters if name in _FIELDS}
_DISCRIMINATOR = {
    f"d_{name}" if f"d_{name}" in _FIELDS else name: name
    for name in signature(Discriminator).parameters
    if name in _FIELDS
}
# The fields that a loaded discriminator determines; its other arguments may differ from the generator's.
_LOADED_DISCRIMINATOR = {
    field: name for field, name in _DISCRIMINATOR.items() if field != name or name in ("image_size", "channels")
}


def select_device(name: str) -> torch.device:
    """Return the device with this name; for "auto", the best one available; in several processes, this one's own.

    Raises:
        ValueError: If the device is not available.
    """
    if _distributed.process_count() > 1:
        return _distributed.local_device(name)
    if name == "auto":
        return best_device()
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def build_networks(recipe: Recipe) -> tuple[Recipe, Generator, Discriminator]:
    """Build or load the networks on the CPU; return them with the resolved recipe, updated from loaded ones.

    Raises:
        ValueError: If a loaded network contradicts the recipe, or an argument is invalid.
    """
    generator, discriminator = None, None
    num_classes = None
    if recipe.conditional:
        num_classes = _labelled.count_classes(recipe.data, root=recipe.root, cache_dir=recipe.cache_dir)
    if recipe.discriminator is None:
        # Resolved before a generator is loaded, since its width must not become the discriminator's.
        recipe = recipe.replace(d_base_channels=recipe.resolve().d_base_channels)
    if recipe.generator is not None:
        generator = _load_network(Generator, recipe.generator)
        recipe = _adopt_config(recipe, generator, recipe.generator, _GENERATOR)
    if recipe.discriminator is not None:
        discriminator = _load_network(Discriminator, recipe.discriminator)
        recipe = _adopt_config(recipe, discriminator, recipe.discriminator, _LOADED_DISCRIMINATOR)
    recipe = recipe.resolve()

    def arguments(chosen: dict[str, str]) -> dict[str, Any]:
        values = {argument: getattr(recipe, field) for field, argument in chosen.items()}
        return {argument: value for argument, value in values.items() if value is not None}

    with _seeded_on_cpu(recipe.seed):
        if generator is None:
            own = arguments(_GENERATOR)
            generator = Generator.from_architecture(recipe.architecture, **own, num_classes=num_classes)
        if discriminator is None:
            # Those with the prefix d_, if given, replace what both networks have.
            own = arguments({"norm": "norm", "slope": "slope"}) | arguments(_DISCRIMINATOR)
            discriminator = Discriminator.from_architecture(recipe.architecture, **own, num_classes=num_classes)
    for network, name in ((generator, recipe.generator), (discriminator, recipe.discriminator)):
        if (has := network.config["num_classes"]) != num_classes:
            raise InputError(
                f"the {type(network).__name__.lower()} of {name} has num_classes {has}, and the run needs num_classes "
                f"{num_classes}, with conditional {recipe.conditional}"
            )
    return recipe, generator, discriminator


def open_images(recipe: Recipe, progress: Callable[[int, int], None] | None) -> data.Images:
    """Open the dataset of a resolved recipe, with labels if the run is conditional; it raises as `data.load` does."""
    options: dict[str, Any] = {
        "root": recipe.root,
        "image_size": recipe.image_size or 64,
        "channels": recipe.channels or 3,
        "resize": recipe.resize,
        "cache": recipe.cache,
        "cache_dir": recipe.cache_dir,
        "skip_bad": recipe.skip_bad,
        "max_pixels": recipe.max_pixels,
        "progress": progress,
    }
    if recipe.conditional:
        workers = (os.cpu_count() or 1) if recipe.workers is None else recipe.workers
        return _labelled.open_training_set(recipe.data, workers=workers, **options)
    return data.load(recipe.data, classes=recipe.classes, workers=recipe.workers, **options)


def fit_batch_size(recipe: Recipe, chosen: int | None, images: data.Images) -> Recipe:
    """Return a resolved recipe with a default batch no larger than its dataset.

    Args:
        recipe: Resolved.
        chosen: Size of the batch before it was resolved; None if it is a default.
        images: The dataset.

    Raises:
        ValueError: If the dataset is smaller than a batch that was chosen.
    """
    if chosen is None and 0 < len(images) < (recipe.batch_size or 1):
        noun = "image" if len(images) == 1 else "images"
        logger.info("batches of %d %s, as many as there are, instead of %s", len(images), noun, recipe.batch_size)
        return recipe.replace(batch_size=len(images))
    # Raises if the set is smaller than a batch, or it cannot be shared.
    data.Batches(images, recipe.batch_size or 1, processes=_distributed.process_count())
    return recipe


def build_trainer(
    recipe: Recipe, generator: Generator, discriminator: Discriminator
) -> Trainer[Generator, Discriminator]:
    """Build the trainer of a resolved recipe.

    Raises:
        ValueError: If norms are to be synchronised between processes, where PyTorch cannot.
    """
    if recipe.sync_batchnorm and _distributed.process_count() > 1:
        _expect_synchronizable(recipe, next(generator.parameters()).device)
        for network in (generator, discriminator):
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # torch has no types
    return Trainer(
        generator,
        discriminator,
        loss=recipe.loss,
        lr=recipe.lr,
        g_lr=recipe.g_lr,
        d_lr=recipe.d_lr,
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


def _expect_synchronizable(recipe: Recipe, device: torch.device) -> None:
    if device.type == "cpu":
        raise InputError(
            "sync_batchnorm needs GPUs: PyTorch's SyncBatchNorm does not train on CPUs. Without it, each process "
            'normalises its own images; norm "layer" or "none" has no statistics of the batch'
        )
    if recipe.r1 or recipe.gradient_penalty:
        raise InputError(
            "sync_batchnorm excludes r1 and gradient_penalty: PyTorch's SyncBatchNorm cannot be differentiated twice"
        )


def adopt_state(recipe: Recipe, trainer: Trainer[Generator, Discriminator]) -> None:
    """Give a new trainer the moments of both Adams, if both networks come from one state of a run.

    Rates and other settings stay those of the recipe, and the steps are counted anew. The average begins
    anew, too: a young one would forget that of the state within a few steps.
    """
    if recipe.generator != recipe.discriminator or not (path := _find_state(recipe.generator)):
        return
    state, own = load_state(path)["trainer"], trainer.state_dict()
    parts = {name: own[name] | {"state": state[name]["state"]} for name in ("g_optimizer", "d_optimizer")}
    trainer.load_state_dict(parts, strict=False)


def _load_network(cls: type[N], name: str) -> N:
    if (path := _find_state(name)) is None:
        return cls.from_pretrained(name, device="cpu", dtype=torch.float32)
    state = load_state(path)
    (network,) = (network for network in networks_of(state, path.parents[1]) if isinstance(network, cls))
    network.load_state_dict(state["trainer"][cls.__name__.lower()])
    return network


# What the state of a run holds, by type; and what it has held only since 0.3.
_STATE = {"trainer": dict, "images": int, "sums": dict, "counts": dict}
_STATE_SINCE_0_3 = {"figures": dict, "recipe": str, "fingerprint": str, "configs": dict}


def load_state(path: Path) -> dict[str, Any]:
    """Read the state of a run.

    Raises:
        ValueError: As `checkpoint.load`, or if it is the state of something else.
    """
    state = checkpoint.load(path)
    expected = _STATE | {name: kind for name, kind in _STATE_SINCE_0_3.items() if name in state}
    wrong = [name for name, kind in expected.items() if not isinstance(state.get(name), kind)]
    if "trainer" not in wrong:
        wrong += [part for part in ("generator", "discriminator") if not isinstance(state["trainer"].get(part), dict)]
    if wrong:
        raise InputError(f"{path} is not the state of a run: it lacks {', '.join(wrong)}, or has other things in place")
    return state


def networks_of(state: dict[str, Any], folder: Path) -> tuple[Generator, Discriminator]:
    """Build the networks of a state, in evaluation mode, into which the weights are still to be loaded."""
    if "configs" not in state:  # before 0.3
        return from_pretrained(folder)
    configs = state["configs"]
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return Generator(**configs["generator"]).eval(), Discriminator(**configs["discriminator"]).eval()


def _find_state(name: str | None) -> Path | None:
    """Return the path of the state that a name stands for, such as `runs/digits/state/step-000500.pt`, if it is one.

    Raises:
        FileNotFoundError: If the run does not keep it.
    """
    path = Path(name or "").expanduser()
    if path.suffix != ".pt" or path.parent.name != "state":
        return None
    if not path.is_file():
        kept = ", ".join(state.name for state in checkpoint.list_states(path.parent)) or "none"
        raise FileNotFoundError(f"there is no state {path}; kept in {path.parent}: {kept}")
    return path


def _adopt_config(recipe: Recipe, network: Generator | Discriminator, name: str, fields: dict[str, str]) -> Recipe:
    for field, argument in fields.items():
        value = network.config[argument]
        value = tuple(value) if isinstance(value, list) else value
        if (asked := getattr(recipe, field)) not in (None, value):
            raise InputError(f"the {type(network).__name__.lower()} of {name} has {field} {value}, the recipe {asked}")
        recipe = recipe.replace(**{field: value})
    return recipe


@contextmanager
def _seeded_on_cpu(seed: int) -> Iterator[None]:
    """Make fresh weights depend on the seed alone, and leave the process's random state unchanged.

    They are drawn in float32 on the CPU, whatever the default device and dtype.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)
