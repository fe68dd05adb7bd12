"""A training run as plain data: what `dcgan train` takes, from the command line or from a YAML file.

This module does not import torch, so that the command line can answer at once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from dcgan.architectures import ARCHITECTURES, Architecture

_DATA = Parameter(group=Group("Data", sort_key=1))
_NETWORKS = Parameter(group=Group("Networks", sort_key=2))
_TRAINING = Parameter(group=Group("Training", sort_key=3))
_RUN = Parameter(group=Group("Run", sort_key=4))
_WORDS = Parameter(consume_multiple=True, negative=())
_AUGMENT = Parameter(consume_multiple=True, negative_iterable="no-", negative_none="")


def _size(_: Any, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    try:
        sides = [int(side) for token in tokens for side in token.value.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise ValueError(f"image size must be SIDE or HEIGHTxWIDTH, got {' '.join(token.value for token in tokens)}")
    return sides[0] if len(sides) == 1 else tuple(sides)


def _whole(_: Any, tokens: Sequence[Token]) -> int | None:
    word = tokens[0].value
    if word.lower() in ("none", "null"):
        return None
    try:
        return int(word)  # by itself, the command line would round 2.5
    except ValueError:
        raise ValueError(f"expected a whole number, got {word!r}") from None


WHOLE = Parameter(converter=_whole)
SIZE = Parameter(converter=_size, n_tokens=1, negative=())

DataName = Literal[
    "digits",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "svhn",
    "stl10",
    "celeba",
    "lsun",
    "lfw",
    "imagenet",
    "folder",
    "fake",
]

Precision = Literal["fp32", "bf16", "fp16"]

Compile = Literal["auto", "off", "graph", "full"]

Augmentation = Literal["color", "translation", "cutout"]

_GREY_32 = {"image_size": 32, "channels": 1}
_COLOUR_32 = {"image_size": 32, "channels": 3}
_COLOUR_64 = {"image_size": 64, "channels": 3}
# What suits a data set where nothing else is said. The digits are few and small: two minutes on two cores.
_SUITED: dict[str, dict[str, Any]] = {
    "digits": {**_GREY_32, "d_channels": 32, "batch_size": 64, "steps": 1000, "augment": ("translation",)},
    "mnist": _GREY_32,
    "fashion-mnist": _GREY_32,
    "cifar10": _COLOUR_32,
    "svhn": _COLOUR_32,
}


_RANGES: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
    (
        (
            *("g_channels", "d_channels", "max_channels", "latent_dim", "stages"),
            *("steps", "epochs", "batch_size", "d_steps"),
            *("log_every", "sample_every", "save_every", "keep", "samples"),
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (("workers", "weight_decay", "gradient_penalty", "r1"), lambda value: value >= 0, "at least 0"),
    (("seed",), lambda value: 0 <= value < 2**63, "in [0, 2**63)"),
    (("beta1", "beta2", "label_smoothing", "ema_decay"), lambda value: 0 <= value < 1, "in [0, 1)"),
    (("lr",), lambda value: value > 0, "above 0"),
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, and how often it reports.

    Args:
        data: Data set.
        root: Folder where the data set lies, or is downloaded to.
        classes: Classes of LSUN to take, such as bedroom.
        image_size: Side of the images in pixels, or HEIGHTxWIDTH; by default what suits the data set.
        channels: 1 grey, 3 colour, 4 colour and alpha; by default what suits the data set.
        resize: Crop to the centre after scaling the shorter side, or squash to the shape.
        flip: Mirror half of the images at random.
        cache: Decode the data set once into a packed file; otherwise stream it, decoding every time.
        cache_dir: Folder of packed files; by default ~/.cache/dcgan.
        workers: Threads that decode; by default one a core.
        skip_bad: Leave out files that cannot be decoded instead of stopping.
        architecture: Published network to start from; the options below change it.
        latent_dim: Length of a latent.
        g_channels: Width of the generator next to the image.
        d_channels: Width of the discriminator next to the image.
        max_channels: Cap on the width of a stage.
        kernel_size: Side of the kernels.
        stages: Number of doublings from the first map to the image.
        convs_per_stage: Layers a stage.
        stem: Layer between the latent and the first map, and between the last map and the logit.
        bias: Whether layers have biases.
        norm: Normalisation of the generator.
        d_norm: Normalisation of the discriminator; by default that of the generator.
        upsample: Transposed convolutions, or enlargement and convolutions.
        latent: Distribution of the latents.
        generator: Run, folder or Hub repository whose generator to start from.
        discriminator: Run, folder or Hub repository whose discriminator to start from.
        steps: Batches to train on.
        epochs: Passes over the data set, instead of steps; 25 if neither is given.
        batch_size: Images a batch; by default 128.
        loss: Loss of both networks.
        lr: Learning rate of Adam.
        beta1: Its first decay rate.
        beta2: Its second decay rate.
        weight_decay: L2 added to the gradients.
        d_steps: Updates of the discriminator for each of the generator.
        schedule: Train both networks on every batch, or one network a batch in turn (the authors' way).
        label_smoothing: How far below 1 the target for real images lies.
        gradient_penalty: Weight of the gradient penalty; 10 is usual with the wasserstein loss.
        r1: Weight of the R1 penalty.
        augment: Differentiable augmentations for small data sets; by default translation for digits, else none.
        ema_decay: Decay of the generator's moving average, which is what is sampled and saved; none keeps no average.
        precision: Arithmetic of the networks.
        compile: What makes steps faster on a CUDA device: graph captures the step as one CUDA graph, full compiles the
            networks besides, for a minute; auto is graph, and full for 20,000 steps or more; off is neither.
        seed: Seed of weights, latents, order and augmentation.
        device: Such as cpu, cuda, cuda:1 or mps; auto takes the best there is.
        log_every: Steps between lines of metrics.jsonl.
        sample_every: Steps between sample grids.
        save_every: Steps between checkpoints.
        keep: Number of checkpoints that stay.
        samples: Images of a sample grid.
    """

    data: Annotated[DataName, _DATA] = "digits"
    root: Annotated[Path | None, _DATA] = None
    classes: Annotated[tuple[str, ...], _DATA, _WORDS] = ()
    image_size: Annotated[int | tuple[int, int] | None, _DATA, SIZE] = None
    channels: Annotated[Literal[1, 3, 4] | None, _DATA] = None
    resize: Annotated[Literal["crop", "squash"], _DATA] = "crop"
    flip: Annotated[bool, _DATA] = False
    cache: Annotated[bool, _DATA] = True
    cache_dir: Annotated[Path | None, _DATA] = None
    workers: Annotated[int | None, _DATA, WHOLE] = None
    skip_bad: Annotated[bool, _DATA] = False

    architecture: Annotated[Architecture, _NETWORKS] = "tutorial"
    latent_dim: Annotated[int | None, _NETWORKS, WHOLE] = None
    g_channels: Annotated[int | None, _NETWORKS, WHOLE] = None
    d_channels: Annotated[int | None, _NETWORKS, WHOLE] = None
    max_channels: Annotated[int | None, _NETWORKS, WHOLE] = None
    kernel_size: Annotated[Literal[3, 4, 5] | None, _NETWORKS] = None
    stages: Annotated[int | None, _NETWORKS, WHOLE] = None
    convs_per_stage: Annotated[Literal[1, 2] | None, _NETWORKS] = None
    stem: Annotated[Literal["conv", "linear"] | None, _NETWORKS] = None
    bias: Annotated[bool | None, _NETWORKS] = None
    norm: Annotated[Literal["batch", "instance", "layer", "none"] | None, _NETWORKS] = None
    d_norm: Annotated[Literal["batch", "instance", "layer", "none"] | None, _NETWORKS] = None
    upsample: Annotated[Literal["transpose", "resize"] | None, _NETWORKS] = None
    latent: Annotated[Literal["normal", "uniform"] | None, _NETWORKS] = None
    generator: Annotated[str | None, _NETWORKS] = None
    discriminator: Annotated[str | None, _NETWORKS] = None

    steps: Annotated[int | None, _TRAINING, WHOLE] = None
    epochs: Annotated[int | None, _TRAINING, WHOLE] = None
    batch_size: Annotated[int | None, _TRAINING, WHOLE] = None
    loss: Annotated[Literal["non-saturating", "minimax", "hinge", "least-squares", "wasserstein"], _TRAINING] = (
        "non-saturating"
    )
    lr: Annotated[float, _TRAINING] = 2e-4
    beta1: Annotated[float, _TRAINING] = 0.5
    beta2: Annotated[float, _TRAINING] = 0.999
    weight_decay: Annotated[float, _TRAINING] = 0.0
    d_steps: Annotated[int, _TRAINING, WHOLE] = 1
    schedule: Annotated[Literal["together", "alternate"], _TRAINING] = "together"
    label_smoothing: Annotated[float, _TRAINING] = 0.0
    gradient_penalty: Annotated[float, _TRAINING] = 0.0
    r1: Annotated[float, _TRAINING] = 0.0
    augment: Annotated[tuple[Augmentation, ...] | None, _TRAINING, _AUGMENT] = None
    ema_decay: Annotated[float | None, _TRAINING] = 0.999
    precision: Annotated[Precision, _TRAINING] = "fp32"
    compile: Annotated[Compile, _TRAINING] = "auto"
    seed: Annotated[int, _TRAINING, WHOLE] = 0
    device: Annotated[str, _TRAINING] = "auto"

    log_every: Annotated[int, _RUN, WHOLE] = 20
    sample_every: Annotated[int, _RUN, WHOLE] = 100
    save_every: Annotated[int, _RUN, WHOLE] = 500
    keep: Annotated[int, _RUN, WHOLE] = 2
    samples: Annotated[int, _RUN, WHOLE] = 64

    def resolved(self) -> "Recipe":
        """Return the recipe with every default that depends on another field filled in.

        Raises:
            ValueError: If a field is out of range or contradicts another.
        """
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps and epochs exclude each other, got {self.steps} and {self.epochs}")
        for names, fits, bounds in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"{name} must be {bounds}, got {value}")
        network = ARCHITECTURES[self.architecture]
        width = {"g_channels": network.get("base_channels"), "d_channels": network.get("base_channels")}
        suited = {
            **_COLOUR_64,
            "g_channels": 64,
            "d_channels": 64,
            "batch_size": 128,
            **_SUITED.get(self.data, {}),
        }
        suited |= {k: v for k, v in {"image_size": network.get("image_size"), **width}.items() if v is not None}
        if self.epochs is not None:
            suited.pop("steps", None)
        elif "steps" not in suited and self.steps is None:
            suited["epochs"] = 25
        return self.replace(**{name: value for name, value in suited.items() if getattr(self, name) is None})

    def replace(self, **changed: Any) -> "Recipe":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changed)

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `--config` reads."""
        import yaml

        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return yaml.safe_dump(plain, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Read what `to_yaml` wrote.

        Raises:
            ValueError: If the text is not that of a recipe.
        """
        import yaml

        try:
            plain: dict[str, Any] = yaml.safe_load(text)
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
            }
            paths = {name: Path(values[name]) for name in ("root", "cache_dir") if values.get(name) is not None}
            return cls(**values | paths)
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"not a recipe: {error}") from error

    def changes(self, other: "Recipe") -> list[str]:
        """Return the names of the fields in which two recipes differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]
