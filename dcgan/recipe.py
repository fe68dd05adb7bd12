"""A training run as plain data: what `dcgan train` takes, from the command line or from a YAML file.

Recipes with a name are the files `recipes/NAME.yaml` of this package. This module does not import torch, so that the
command line answers at once.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, fields
from functools import cache
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dcgan._choices import (
    Activation,
    ArchitectureName,
    AugmentationName,
    Channels,
    CompileMode,
    ConvsPerStage,
    DatasetName,
    Distribution,
    KernelSize,
    LearningRate,
    LoggerName,
    LossName,
    Norm,
    OnCollapse,
    Output,
    Precision,
    Resize,
    Schedule,
    Stem,
    StemNorm,
    Upsample,
)
from dcgan._errors import InputError
from dcgan._numbers import MAX_COUNT, MAX_PICTURED, MAX_SEED, brief
from dcgan.architectures import ARCHITECTURES

_A_FIELD = "lines such as 'steps: 1000'"
_COMMAND_LINE_ONLY = {"out", "resume", "from", "recipe", "config", "print_recipe", "dry_run"}
_RENAMED = {"g_channels": "base_channels", "d_channels": "d_base_channels"}  # since 0.1
_FOLDER = Path(__file__).with_name("recipes")
# As `dcgan recipes` lists them: ours, which are also the defaults of the dataset with that name, then published ones.
_NAMES = (
    *("digits", "mnist", "fashion-mnist", "cifar10", "svhn", "faces"),
    *("tutorial", "biased", "linear5", "paper-faces", "paper-svhn", "paper-imagenet32"),
)
_SMALL = 32  # images up to this size gain from the augmentation `shift`; larger ones lost, in short runs
_DEFAULTS = {"image_size": 64, "channels": 3, "base_channels": 64, "batch_size": 128}

_COUNTS = (
    *("image_size", "max_pixels", "base_channels", "d_base_channels", "max_channels", "latent_dim", "stages"),
    *("steps", "epochs", "batch_size", "d_steps"),
    *("log_every", "sample_every", "save_every", "eval_every", "keep", "samples"),
)
_RANGES: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
    (_COUNTS, lambda value: value >= 1, "at least 1"),
    (("samples",), lambda value: value <= MAX_PICTURED, f"at most {MAX_PICTURED:,}"),
    ((*_COUNTS, "workers"), lambda value: value <= MAX_COUNT, f"at most {MAX_COUNT:,}"),
    (("workers", "weight_decay", "gradient_penalty", "r1"), lambda value: value >= 0, "at least 0"),
    (("seed",), lambda value: 0 <= value <= MAX_SEED, "in [0, 2**63)"),
    (("beta1", "beta2", "label_smoothing", "ema_decay"), lambda value: 0 <= value < 1, "in [0, 1)"),
    (("lr_decay",), lambda value: 0 <= value <= 1, "in [0, 1]"),
    (("lr", "g_lr", "d_lr", "norm_eps", "slope", "d_slope"), lambda value: value > 0, "above 0"),
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, and how often it reports.

    Args:
        data: Dataset to train on; wds:PATTERN for shards in the layout of WebDataset, hf:NAME for a dataset or a folder
            of Hugging Face.
        root: Folder that holds the dataset, or that it is downloaded to; where YAML or a command names no dataset, a
            folder of images.
        classes: LSUN classes to train on, such as bedroom.
        image_size: Side of the images in pixels, or HEIGHTxWIDTH; the default depends on the dataset.
        channels: 1 for grey, 3 for colour, 4 for colour and alpha; the default depends on the dataset.
        resize: Scale the shorter side and crop to the centre, or squash the image to the shape.
        flip: Mirror half of the images at random.
        cache: Decode the dataset once into a packed file; otherwise decode each image every time it is used.
        cache_dir: Folder of the packed files; by default ~/.cache/dcgan.
        workers: Number of threads that decode images; by default one per core.
        skip_bad: Skip files that cannot be decoded instead of stopping.
        max_pixels: Number of pixels above which an image is refused; by default 89 million, against files that fill the
            memory.
        conditional: Train networks that are conditional on the class of an image, with the labels of the dataset; those
            of a folder are its folders, one for each class.
        architecture: Published architecture to start from; the options below override its arguments.
        latent_dim: Length of the latent vectors.
        base_channels: Width of the stage next to the image, in both networks; by default the architecture's, or that
            of the data's recipe, or 64.
        d_base_channels: Width of that stage in the discriminator alone; by default the generator's.
        max_channels: Upper limit on the width of a stage.
        kernel_size: Side of the convolution kernels.
        stages: Number of times the resolution doubles from the first feature map to the image.
        convs_per_stage: Number of convolutions per stage.
        stem: Type of the generator's first layer and of the discriminator's last.
        stem_norm: Normalise the generator's first layer per channel, or per unit, that is channel and position.
        stem_activation: Let an activation follow the generator's first layer.
        bias: Give the convolutions a bias.
        norm: Normalisation in both networks.
        d_norm: Normalisation in the discriminator alone; by default the generator's.
        norm_eps: Epsilon of the normalisation in both networks.
        activation: Activation in the generator; by default relu.
        d_activation: Activation in the discriminator; by default leaky-relu.
        slope: Slope of leaky-relu below zero in both networks; by default 0.2.
        d_slope: That slope in the discriminator alone; by default the generator's.
        output: Last activation of the generator. Training scales the images to its range, [-1, 1] or [0, 1].
        upsample: Transposed convolutions, or resizing followed by convolutions.
        latent: Distribution of the latents.
        generator: Run, folder or Hub repository to load the generator from; or a state of a run, such as
            runs/digits/state/step-000500.pt, which has it as it was trained, not averaged.
        discriminator: Run, folder, Hub repository or state to load the discriminator from. Where both networks come
            from one state, so do the moments of Adam.
        steps: Number of training steps, one batch each.
        epochs: Number of passes over the dataset, instead of steps; if neither is given, 25, or that of the data's
            recipe.
        batch_size: Number of images per batch; by default that of the data's recipe, or 128.
        loss: Loss of both networks.
        lr: Learning rate of Adam; auto is the rate that fits each network's width, 2e-4 at 128 channels.
        g_lr: Learning rate of the generator, if different.
        d_lr: Learning rate of the discriminator, if different.
        lr_decay: Share of the run, at its end, in which the rates fall to zero in a straight line.
        beta1: Adam's first decay rate.
        beta2: Adam's second decay rate.
        weight_decay: Strength of the L2 regularisation, added to the gradients.
        d_steps: Number of discriminator updates for each generator update.
        schedule: Train both networks on every batch, or alternate, one network per batch (as the paper's authors did).
        label_smoothing: How far the discriminator's target for real images lies below 1.
        gradient_penalty: Weight of the gradient penalty; 10 is usual with the wasserstein loss.
        r1: Weight of the R1 penalty.
        augment: Differentiable augmentations of what the discriminator sees; by default shift for images of at most 32
            pixels, else none.
        ema_decay: Decay of the generator's moving average, which is sampled and saved; none keeps no average.
        precision: Floating-point format to compute in; weights stay in fp32.
        compile: How to speed up steps on a CUDA device. graph captures each step as a CUDA graph; full also compiles
            the networks, which takes about a minute; auto is graph below 20,000 steps and full from there; off does
            neither.
        sync_batchnorm: In several processes, normalise the images of all of them together, by PyTorch's SyncBatchNorm,
            which needs GPUs; otherwise each process normalises its own.
        seed: Seed of weights, latents, data order and augmentation.
        device: Device to train on, such as cpu, cuda, cuda:1 or mps; auto picks the best one available.
        log_every: Number of steps between lines of metrics.jsonl.
        sample_every: Number of steps between sample grids.
        save_every: Number of steps between checkpoints.
        eval_every: Number of steps between figures of quality, the distance of 2,000 samples from the dataset; none
            computes none.
        keep: Number of checkpoints to keep, beside the one with the best figure.
        samples: Number of images in a sample grid.
        log: Loggers that get the figures and the samples as well, each an extra of the package.
        on_collapse: Go on with a warning when training has collapsed, or save and stop.
    """

    data: DatasetName = "digits"
    root: Path | None = None
    classes: tuple[str, ...] = ()
    image_size: int | tuple[int, int] | None = None
    channels: Channels | None = None
    resize: Resize = "crop"
    flip: bool = False
    cache: bool = True
    cache_dir: Path | None = None
    workers: int | None = None
    skip_bad: bool = False
    max_pixels: int | None = None
    conditional: bool = False

    architecture: ArchitectureName = "tutorial"
    latent_dim: int | None = None
    base_channels: int | None = None
    d_base_channels: int | None = None
    max_channels: int | None = None
    kernel_size: KernelSize | None = None
    stages: int | None = None
    convs_per_stage: ConvsPerStage | None = None
    stem: Stem | None = None
    stem_norm: StemNorm | None = None
    stem_activation: bool | None = None
    bias: bool | None = None
    norm: Norm | None = None
    d_norm: Norm | None = None
    norm_eps: float | None = None
    activation: Activation | None = None
    d_activation: Activation | None = None
    slope: float | None = None
    d_slope: float | None = None
    output: Output | None = None
    upsample: Upsample | None = None
    latent: Distribution | None = None
    generator: str | None = None
    discriminator: str | None = None

    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    loss: LossName = "non-saturating"
    lr: LearningRate = "auto"
    g_lr: float | None = None
    d_lr: float | None = None
    lr_decay: float = 0.0
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 0.0
    d_steps: int = 1
    schedule: Schedule = "together"
    label_smoothing: float = 0.0
    gradient_penalty: float = 0.0
    r1: float = 0.0
    augment: tuple[AugmentationName, ...] | None = None
    ema_decay: float | None = 0.999
    precision: Precision = "fp32"
    compile: CompileMode = "auto"
    sync_batchnorm: bool = False
    seed: int = 0
    device: str = "auto"

    log_every: int = 20
    sample_every: int = 100
    save_every: int = 500
    eval_every: int | None = 500
    keep: int = 2
    samples: int = 64
    log: tuple[LoggerName, ...] = ()
    on_collapse: OnCollapse = "warn"

    def resolve(self) -> "Recipe":
        """Return the recipe with every default that depends on another field filled in.

        Fields may be as YAML has them, such as a text for a path; they come back in their own types.

        Raises:
            ValueError: If a field is of another type, is out of range or contradicts another.
        """
        given = asdict(self)
        typed = {name: _convert(name, value) for name, value in to_plain(given).items()}
        if repr(typed) != repr(given):  # for 7.0 equals 7
            return self.replace(**typed).resolve()
        if self.steps is not None and self.epochs is not None:
            raise InputError(f"steps and epochs exclude each other, got {self.steps} and {self.epochs}")
        for field in fields(self):
            _expect_in_range(field.name, getattr(self, field.name))
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        architecture = ARCHITECTURES[self.architecture]
        defaults = _DEFAULTS | _dataset_defaults(self.data)
        defaults |= {name: value for name, value in architecture.items() if name in defaults}
        defaults["d_base_channels"] = self.base_channels or defaults["base_channels"]
        size = self.image_size or defaults["image_size"]
        defaults["augment"] = ("shift",) if max(size if isinstance(size, tuple) else (size,)) <= _SMALL else ()
        if self.steps is not None or self.epochs is not None:
            defaults = {name: value for name, value in defaults.items() if name not in ("steps", "epochs")}
        elif "steps" not in defaults:
            defaults.setdefault("epochs", 25)
        return self.replace(**{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def replace(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_paths(self) -> "Recipe":
        """Return a copy for others, without what tells where files are on this machine: the last names remain."""
        networks = {name: getattr(self, name) for name in ("generator", "discriminator")}
        local = {k: Path(v).name for k, v in networks.items() if v and Path(v).expanduser().exists()}
        root = self.root
        if root is not None and (self.data != "hf" or root.expanduser().exists()):  # else it is a name on the Hub
            root = Path(root.name)
        return self.replace(root=root, cache_dir=None, **local)

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `--recipe` reads."""
        plain = to_plain(asdict(self))
        if self.augment is None:
            del plain["augment"]  # where null means none
        return yaml.safe_dump(plain, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str | bytes) -> "Recipe":
        """Read what `to_yaml` wrote, in this version or 0.1, or a file written by hand.

        Raises:
            ValueError: If the text is not a recipe.
        """
        try:
            values = upgrade_fields(read_fields(text))
        except ValueError as error:
            raise InputError(f"not a recipe: {error}") from error
        if not values:
            raise InputError("not a recipe: it sets no field")
        return cls(**values)

    def changes(self, other: "Recipe") -> list[str]:
        """Return the names of the fields in which two recipes differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]

    def options(self, names: Container[str]) -> list[str]:
        """Return some fields as the words of a command line that set them; those without a value have none."""
        words = []
        for field in fields(self):
            option, value = field.name.replace("_", "-"), getattr(self, field.name)
            if field.name not in names or (value is None and field.default is None):
                continue
            if isinstance(value, bool) or value == ():
                words += [f"--{option}" if value else f"--no-{option}"]
            elif field.name == "image_size" and isinstance(value, tuple):
                words += [f"--{option}", "x".join(map(str, value))]
            else:
                values = value if isinstance(value, tuple) else ("none" if value is None else value,)
                words += [f"--{option}", *map(str, values)]
        return words


_HINTS = get_type_hints(Recipe)


def list_recipes() -> dict[str, str]:
    """Return what each recipe is that `load_recipe` and `dcgan train --recipe` take by its name."""
    return {name: yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))["description"] for name in _NAMES}


def load_recipe(name_or_path: str | PathLike[str]) -> Recipe:
    """Read a recipe of this package by its name, or any other from its file.

    Args:
        name_or_path: One of `list_recipes`, such as "mnist"; or a YAML file, such as the `recipe.yaml` of a run.

    Raises:
        ValueError: If the name is unknown, or the file does not hold a recipe.
        FileNotFoundError: If there is no such file.
    """
    path = find_recipe(name_or_path)
    try:
        return Recipe.from_yaml(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def find_recipe(name_or_path: str | PathLike[str]) -> Path:
    """Return the path of the file that `load_recipe` reads; it raises the same errors for a wrong name or path."""
    if name_or_path in _NAMES:
        return _FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path == path.stem:
        raise InputError(f"recipe must be a file or one of {', '.join(_NAMES)}, got {name_or_path!r}")
    raise FileNotFoundError(f"there is no recipe file {path}")


def read_fields(text: str | bytes) -> dict[str, Any]:
    """Return the fields that YAML sets, in the types of the recipe, without the recipe's description.

    The names of 0.1 are kept, for `upgrade_fields`.

    Raises:
        ValueError: If the text is not YAML in UTF-8, or sets something else than fields to values that they can have;
            the message names the line, what was expected and what came.
    """
    return {name: value for name, (_, value) in _parse(text).items()}


def field_lines(text: str | bytes) -> dict[str, int]:
    """Return the line of each field that YAML sets, from 1; it raises as `read_fields` does."""
    return {name: line for name, (line, _) in _parse(text).items()}


def to_plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields as YAML writes them: paths as text, tuples as lists, and numbers of NumPy as Python's own."""
    return {name: _to_plain(value) for name, value in values.items()}


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value.item() if hasattr(value, "item") else value


def _parse(text: str | bytes) -> dict[str, tuple[int, Any]]:
    """Return the line and the value of each field that YAML sets."""
    parsed: dict[str, tuple[int, Any]] = {}
    try:
        text = text.decode() if isinstance(text, bytes) else text
        loader = _Loader(text)
        document = loader.get_single_node()
        if document is None:
            return {}
        if not isinstance(document, yaml.MappingNode):
            kind = "a list" if isinstance(document, yaml.SequenceNode) else brief(document.value)
            raise InputError(f"it holds {kind}; expected {_A_FIELD}")
        for key, node in document.value:
            line = key.start_mark.line + 1
            name = _read_name(key, line)
            if name in parsed:
                raise InputError(f"line {line}: {name} is set already, in line {parsed[name][0]}")
            if name != "description":
                parsed[name] = line, _read_field(loader, name, node, line)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line} is not text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"line {line} is not YAML: {error.problem}; expected {_A_FIELD}") from error
    except yaml.reader.ReaderError as error:
        line = str(text)[: error.position].count("\n") + 1
        raise InputError(f"line {line} is not YAML: it has the character {chr(error.character)!r}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"it is not YAML: {str(error).partition(chr(10))[0]}; expected {_A_FIELD}") from error
    return parsed


class _Loader(yaml.SafeLoader):
    """A reader of YAML without aliases, nine of which can stand for a list of a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # in the stubs
            line = event.start_mark.line + 1
            raise InputError(f"line {line}: a recipe has no aliases, such as *{event.anchor}: write the value out")
        return super().compose_node(parent, index)


def _read_name(node: yaml.Node, line: int) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"line {line}: the name of a field must be text, got a list or a mapping")
    name: str = node.value
    return name.replace("-", "_")


def _read_field(loader: yaml.SafeLoader, name: str, node: yaml.Node, line: int) -> Any:
    if name in _COMMAND_LINE_ONLY:
        raise InputError(f"line {line}: a recipe cannot set {name}: use the command line for that")
    current = _RENAMED.get(name, name)
    if current not in _HINTS:
        close = difflib.get_close_matches(name, _HINTS, n=1)
        suggestion = f": did you mean {close[0]}?" if close else ", and dcgan train --help lists all"
        raise InputError(f"line {line}: there is no field {brief(name)}{suggestion}")
    try:
        value = loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except (ValueError, OverflowError, LookupError, AttributeError) as error:  # a date or number that is none
        if not isinstance(node, yaml.ScalarNode):
            raise InputError(f"line {line}: {name} holds what YAML cannot read") from error
        value = node.value
    if isinstance(value, int) and not -MAX_SEED <= value <= MAX_SEED:
        value = node.value  # as it was typed: Python does not write out every number
    try:
        if {str, Path} & {*_kinds(current)} and isinstance(node, yaml.ScalarNode) and value is not None:
            value = node.value  # a folder may be called 2024-01-01, or 007
        value = _convert(current, value)
        _expect_in_range(current, value)
    except ValueError as error:
        raise InputError(f"line {line}: {str(error).replace(current, name, 1)}") from error
    return value


def parse_image_size(text: str) -> int | tuple[int, int]:
    """Read `SIDE` or `HEIGHTxWIDTH`.

    Raises:
        ValueError: If it is neither.
    """
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise InputError(f"image size must be SIDE or HEIGHTxWIDTH, got {text}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


@cache
def _dataset_defaults(data: str) -> dict[str, Any]:
    if data not in _NAMES:
        return {}
    return read_fields(find_recipe(data).read_text(encoding="utf-8"))


def _kinds(name: str) -> tuple[Any, ...]:
    """Return the types that a field can have: of `float | None`, both."""
    hint = _HINTS[name]
    return (hint,) if isinstance(hint, type) or get_origin(hint) in (Literal, tuple) else get_args(hint)


def _convert(name: str, value: Any) -> Any:
    """Return the value of a field as YAML has it in the type of the field, as the command line reads it.

    Raises:
        ValueError: If the field cannot have it.
    """
    if name == "image_size" and isinstance(value, str) and "x" in value.lower():
        size = parse_image_size(value)
        value = list(size) if isinstance(size, tuple) else size
    for kind in _kinds(name):  # of which None is the last: no normalisation is named "none"
        try:
            return _read_as(kind, value)
        except (ValueError, OverflowError):  # as of the next kind
            continue
    raise InputError(f"{name} must be {' or '.join(map(_describe, _kinds(name)))}, got {brief(value)}")


def _read_as(kind: Any, value: Any) -> Any:
    choices = {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else {}
    if str(value) in choices:
        return choices[str(value)]
    if get_origin(kind) is tuple:
        parts, (part, rest) = value if isinstance(value, list) else [value], get_args(kind)
        if rest is ... or len(parts) == 2:
            return tuple(_read_as(part, one) for one in parts)
    if kind is NoneType and value in (None, "none", "null"):
        return None
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        if kind is float or isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return kind(value)
        if float(value).is_integer():
            return int(float(value))
    if kind in (str, Path) and isinstance(value, str) and value and "\0" not in value:
        return kind(value)
    raise ValueError


def _describe(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    if get_origin(kind) is Literal:
        choices = ", ".join(map(str, get_args(kind)))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if get_origin(kind) is tuple:
        return (
            "HEIGHTxWIDTH"
            if kind == tuple[int, int]
            else f"a list of {_describe(get_args(kind)[0]).removeprefix('one of ')}"
        )
    return names.get(kind, "null")


def _expect_in_range(name: str, value: Any) -> None:
    numbers = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, int | float)]
    for number in numbers:
        if not -math.inf < number < math.inf:  # which takes whole numbers of any length
            raise InputError(f"{name} must be finite, got {number}")
    for names, fits, bounds in _RANGES:
        if name in names and not all(map(fits, numbers)):
            raise InputError(f"{name} must be {bounds}, got {brief(value)}")


def upgrade_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe under their current names, with what they imply.

    A root without a dataset is a folder of images. In 0.2 and before, no augmentation was null. 0.1 had `g_channels`
    and `d_channels`, and its discriminator did not follow the generator's width, so its own default is written out.
    """
    if values.get("root") is not None and "data" not in values:
        values = values | {"data": "folder"}
    if values.get("augment", ()) is None:
        values = values | {"augment": ()}
    if not {"g_channels", "d_channels"} & values.keys():
        return values
    rest = {name: value for name, value in values.items() if name not in ("g_channels", "d_channels")}
    own = ARCHITECTURES.get(rest.get("architecture") or "tutorial", {}).get("base_channels")
    d_default = own or (32 if rest.get("data", "digits") == "digits" else 64)
    widths = {"base_channels": values.get("g_channels") or own or 64}
    return widths | {"d_base_channels": values.get("d_channels") or d_default} | rest
