"""Networks trained by other implementations, converted to ours: PyTorch state dicts and the paper authors' arrays.

The layers of a recognised layout, in the order they are applied, are matched with those of the network that the shapes
of their weights imply. Files are read as tensors in plain containers; any other object is refused, never unpickled.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dcgan._choices import Distribution, Output
from dcgan._config import pyramid, sides
from dcgan._files import atomic_write
from dcgan.convert._layouts import (
    DetectedNetwork,
    NetworkClass,
    detect_networks,
    discriminator_layers,
    generator_layers,
)
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.hub._pretrained import expect_fit
from dcgan.latents import seeded_latents
from dcgan.models import Discriminator, Generator

Network = TypeVar("Network", Generator, Discriminator)

_BATCH_SIZE, _BATCHES = 128, 32  # for estimating BatchNorm statistics; the authors' batch size


@dataclass(frozen=True)
class ConversionResult:
    """The networks of some files, in evaluation mode, and how the files were interpreted.

    Args:
        generator: The generator, if the files contain one.
        discriminator: The discriminator, if the files contain one.
        layouts: The layout of each, by class name: "tutorial", "biased", "linear5" or "authors".
        notes: What was inferred, assumed, estimated, converted and ignored, one line each.
    """

    generator: Generator | None
    discriminator: Discriminator | None
    layouts: dict[str, str]
    notes: tuple[str, ...]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the networks into a folder that `from_pretrained` loads."""
        for network in (self.generator, self.discriminator):
            if network is not None:
                network.save_pretrained(folder)


def convert(
    files: Iterable[str | PathLike[str]],
    *,
    keys: Sequence[str] = (),
    image_size: int | Sequence[int] | None = None,
    latent: Distribution | None = None,
    norm_eps: float | None = None,
    stem_activation: bool | None = None,
    output: Output | None = None,
    images: Tensor | None = None,
) -> ConversionResult:
    """Convert a generator, a discriminator or both.

    Args:
        files: State dicts and training checkpoints (`.pth`, `.pt`, `.ckpt`, `.safetensors`), and the authors' arrays: a
            `.jl` file, of which only the `.npy` files next to it are read, one of these, or their folder.
        keys: Names of the networks to read, such as "netG_ema", if a file contains several generators or
            discriminators.
        image_size: Side in pixels, or (height, width). By default inferred from the smallest feature map, which is
            assumed to be square where the weights show only its area.
        latent: Distribution of the latents. By default "normal"; for the authors' arrays "uniform", except SVHN's.
        norm_eps: Epsilon of the normalisations. By default 1e-5; for the authors' arrays 1e-8.
        stem_activation: Whether a ReLU follows the generator's stem. By default it does, except in linear5.
        output: The generator's last activation. By default "tanh".
        images: `(N, K, H, W)`, in the range the discriminator was trained on, to estimate its BatchNorm statistics if
            its file has none. By default images of the converted generator.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, contains other objects than tensors, no known network, several generators
            or discriminators, or a network that `Generator` and `Discriminator` cannot express.
    """
    notes: list[str] = []
    detected = [network for path in map(Path, files) for network in detect_networks(path, notes)]
    if not detected:
        raise ValueError("files must name at least one file")
    available = sorted({network.key for network in detected})
    if unknown := [key for key in keys if key not in available]:
        raise ValueError(f"keys must be among {', '.join(map(repr, available))}, got {unknown[0]!r}")
    g, d = _select(detected, Generator, keys), _select(detected, Discriminator, keys)
    options = {"latent": latent, "stem_activation": stem_activation, "output": output, "norm_eps": norm_eps}
    generator = _build(Generator, g, image_size, options, notes) if g else None
    discriminator = _build(Discriminator, d, image_size, options, notes) if d else None
    if generator is not None and discriminator is not None:
        made, taken = ((net.config["channels"], *sides(net.config)) for net in (generator, discriminator))
        if made != taken:
            raise ValueError(f"the generator makes images of shape {made}, but the discriminator takes {taken}")
    if g and generator is not None and g.layout == "authors":
        length, latent = generator.config["latent_dim"], generator.config["latent"]
        starts = range(0, _BATCH_SIZE * _BATCHES, _BATCH_SIZE)
        batches = (seeded_latents(_BATCH_SIZE, length, seed=0, start=i, distribution=latent) for i in starts)
        estimate_batchnorm_statistics(generator, batches, unbiased=False)
        notes.append(
            f"{g.location}: BatchNorm statistics estimated from {_BATCHES} batches of {_BATCH_SIZE} {latent} latents"
        )
    if d and discriminator is not None and d.layout == "authors":
        source = "generated" if images is None else "given"
        if images is None:
            if generator is None:
                raise ValueError(f"{d.location} has no BatchNorm statistics: pass its generator too, or images")
            images = generator.sample(_BATCH_SIZE * _BATCHES, seed=1)
        estimate_batchnorm_statistics(discriminator, torch.split(images, _BATCH_SIZE), unbiased=False)
        count = f"{len(images)} {source} images"
        notes.append(f"{d.location}: BatchNorm statistics estimated from {count} in batches of {_BATCH_SIZE}")
    layouts = {network.network_class.__name__: network.layout for network in (g, d) if network}
    return ConversionResult(generator, discriminator, layouts, tuple(notes))


def to_tutorial(network: Generator | Discriminator) -> dict[str, Tensor]:
    """Return a network's tensors, on the CPU, under their names in the classes of PyTorch's example and tutorial.

    Raises:
        ValueError: If those classes cannot compute what the network does.
    """
    flexible = {"image_size", "channels", "latent_dim", "base_channels", "max_channels", "stages", "latent"}
    parameters = signature(type(network)).parameters.items()
    required = {name: parameter.default for name, parameter in parameters if name not in flexible}
    differences = [f"{k} {v!r}, not {network.config[k]!r}" for k, v in required.items() if network.config[k] != v]
    sizes, widths = pyramid(network.config)
    if sizes[-1] != (4, 4):
        differences.append(f"a smallest feature map of 4x4, not {sizes[-1][0]}x{sizes[-1][1]}")
    if widths != [widths[0] << stage for stage in range(len(widths))]:
        differences.append(f"widths that double, not {widths}")
    if differences:
        raise ValueError(f"the tutorial's {type(network).__name__} has " + "; ".join(differences))
    state = network.state_dict()
    layer_names = generator_layers if isinstance(network, Generator) else discriminator_layers
    tutorial_names = dict(zip(_layer_names(state), layer_names(len(widths) + 1), strict=True))
    tutorial_state = {}
    for name, tensor in state.items():
        layer, _, parameter = name.rpartition(".")
        tutorial_state[f"main.{tutorial_names[layer]}.{parameter}"] = tensor.detach().cpu()
    return tutorial_state


def write_tutorial(network: Generator | Discriminator, path: Path) -> None:
    """Save a network as a state dict that the classes of PyTorch's example and tutorial load.

    Raises:
        ValueError: As `to_tutorial`.
    """
    state = to_tutorial(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def _select(
    detected: list[DetectedNetwork], network_class: NetworkClass, keys: Sequence[str]
) -> DetectedNetwork | None:
    candidates = [network for network in detected if network.network_class is network_class]
    if len(candidates) > 1:
        candidates = [network for network in candidates if network.key in keys] or candidates
    if len(candidates) > 1:
        locations = "; ".join(network.location for network in candidates)
        raise ValueError(
            f"found {len(candidates)} {network_class.__name__}s, pass one file or the key of one: {locations}"
        )
    return candidates[0] if candidates else None


def _build(
    network_class: type[Network],
    detected: DetectedNetwork,
    image_size: int | Sequence[int] | None,
    options: dict[str, Any],
    notes: list[str],
) -> Network:
    name = f"{detected.location}: a {network_class.__name__} of layout {detected.layout}"
    try:
        inferred = _infer_config(detected, image_size)
        defaults = _default_config(detected, inferred)
        given = {k: v for k, v in options.items() if v is not None and k in defaults}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            network = network_class(**inferred, **defaults | given).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}, but {error}") from error
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    for layer_name, layer in zip(_layer_names(expected), detected.layers, strict=True):
        weight = layer["weight"]
        fallbacks = {"num_batches_tracked": torch.tensor(0, device="cpu")}  # missing in files from before PyTorch 0.4.1
        if detected.layout == "authors":  # until they are estimated
            fallbacks |= {"running_mean": weight.new_zeros(len(weight)), "running_var": weight.new_ones(len(weight))}
        state |= {f"{layer_name}.{k}": v for k, v in fallbacks.items() if f"{layer_name}.{k}" in expected}
        state |= {f"{layer_name}.{k}": v for k, v in layer.items()}
    expect_fit(state, expected, f"{name} does not fit {inferred}")
    network.load_state_dict(state)
    notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in inferred.items() if v is not None))
    activation = "LeakyReLU(0.2)" if network_class is Discriminator else "ReLU"
    assumed: list[str] = [f"{k} {v}" + (" (given)" if k in given else "") for k, v in (defaults | given).items()]
    notes.append(f"{detected.location}: not shown by the weights, so assumed: " + ", ".join([*assumed, activation]))
    if dtypes := {tensor.dtype for tensor in state.values()} - {torch.float32, torch.int64}:
        notes.append(f"{detected.location}: converted {', '.join(sorted(map(str, dtypes)))} to float32")
    return network.eval()


def _infer_config(detected: DetectedNetwork, image_size: int | Sequence[int] | None) -> dict[str, Any]:
    """Infer a network's arguments from the shapes of its weights."""
    is_generator = detected.network_class is Generator
    shapes = [tuple(layer["weight"].shape) for layer in detected.layers if layer["weight"].dim() > 1]
    # In both networks the convolutions are, from the image on, (C, K, k, k), (2C, C, k, k), ...
    stem, convs = (shapes[0], shapes[:0:-1]) if is_generator else (shapes[-1], shapes[:-1])
    paired = detected.layout == "authors" and len(convs) % 2 == 0 and all(conv[0] == conv[1] for conv in convs[1::2])
    widths = [conv[0] for conv in convs[:: 1 + paired]]
    cap = max(widths)
    if widths != [min(widths[0] << stage, cap) for stage in range(len(widths))]:
        raise ValueError(f"its widths must double from stage to stage, up to a cap, got {widths}")
    config = {
        "image_size": _infer_image_size(stem[2:], stem[0 if is_generator else 1], widths, image_size),
        "channels": convs[0][1],
        "base_channels": widths[0],
        "max_channels": None if cap == widths[0] << (len(widths) - 1) else cap,
        "kernel_size": convs[0][2],
        "stages": None,
        "convs_per_stage": 1 + paired,
        "stem": "conv" if len(stem) == 4 else "linear",
        "bias": "bias" in detected.layers[0],
    }
    if is_generator:
        unit = len(stem) == 2 and len(detected.layers[1]["weight"]) == stem[0] != widths[-1]
        config |= {"latent_dim": stem[1 if len(stem) == 2 else 0], "stem_norm": "unit" if unit else "channel"}
    try:
        default_stages = len(pyramid(config | {"norm": "batch"})[1])
    except ValueError:  # the image size needs an explicit number of stages
        default_stages = 0
    if detected.layout == "linear5" or default_stages != len(widths):
        config["stages"] = len(widths)
    return config


def _infer_image_size(
    map_size: tuple[int, ...], units: int, widths: list[int], image_size: int | Sequence[int] | None
) -> int | list[int]:
    """Scale the smallest feature map up by the stages; a linear stem shows only its `units`, so a square is assumed."""
    scale = 2 ** len(widths)
    requested = None if image_size is None else sides({"image_size": image_size})
    height, width = (side * scale for side in map_size or 2 * [round((units / widths[-1]) ** 0.5)])
    if not map_size and requested and requested[0] * requested[1] * widths[-1] == units * scale**2:
        height, width = requested
    elif not map_size and height * width * widths[-1] != units * scale**2:
        raise ValueError(
            f"{units} units of width {widths[-1]} do not make a square feature map: pass image_size as (height, width)"
        )
    if requested not in (None, (height, width)):
        raise ValueError(f"its weights imply image_size {height}x{width}, got {image_size}")
    return height if height == width else [height, width]


def _default_config(detected: DetectedNetwork, config: dict[str, Any]) -> dict[str, Any]:
    """Return the layout's usual values of the arguments that weights do not show."""
    authors = detected.layout == "authors"
    norm_eps = {"norm_eps": 1e-8 if authors else 1e-5}
    if detected.network_class is Discriminator:
        return norm_eps
    svhn = (config["image_size"], config["kernel_size"]) == (32, 5)
    latent = "uniform" if authors and not svhn else "normal"
    return {"latent": latent, "stem_activation": detected.layout != "linear5", "output": "tanh", **norm_eps}


def _layer_names(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state))
