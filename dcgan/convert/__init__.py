"""Networks that other programs trained, as ours: PyTorch state dicts and the paper authors' arrays.

A layout is a map of keys: the names of the layers with weights, in the order they are applied. Ours, in the same order,
are those of the network that the shapes of the weights lead to. Files are read as tensors in plain containers; whatever
else they hold is refused, never unpickled.

Shapes: N batch, K channels, H×W image_size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dcgan._config import pyramid, sides
from dcgan._files import atomic_write
from dcgan.convert._layouts import DetectedNetwork, Kind, discriminator_layers, generator_layers, networks_in
from dcgan.hub._pretrained import expect_fit
from dcgan.latents import Distribution, seeded_latents
from dcgan.models import Discriminator, Generator, eval_mode

Network = TypeVar("Network", Generator, Discriminator)

_BATCH, _BATCHES = 128, 32  # what statistics are estimated over


@dataclass(frozen=True)
class Converted:
    """The networks of some files, in evaluation mode, and how the files were understood.

    Args:
        generator: The generator, if there is one.
        discriminator: The discriminator, if there is one.
        layouts: The layout of each, by class name: "tutorial", "biased", "linear5" or "authors".
        notes: What was inferred, assumed, estimated, changed and left out, a line each.
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
    output: Literal["tanh", "sigmoid"] | None = None,
    images: Tensor | None = None,
) -> Converted:
    """Read a generator, a discriminator or both.

    Args:
        files: State dicts and training checkpoints (`.pth`, `.pt`, `.ckpt`, `.safetensors`), and the authors' arrays: a
            `.jl` file, of which only the `.npy` files beside it are read, one of those, or their folder.
        keys: Where in their file the networks are, if there are several of a kind, such as "netG_ema".
        image_size: Side, or (height, width). By default what the smallest map leads to, which is taken to be square
            where the weights tell its area only.
        latent: Distribution of the latents. By default "normal", for the authors' arrays "uniform" but for SVHN's.
        norm_eps: ε of the normalisations. By default 1e-5, for the authors' arrays 1e-8.
        stem_activation: Whether a ReLU follows the generator's stem. By default it does, but for linear5.
        output: The generator's last activation. By default "tanh".
        images: `(N, K, H, W)`, in the range the discriminator was trained on, to estimate its statistics over if its
            file has none. By default generated ones.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, holds other objects than tensors, or no network, or several of a kind, or one
            that ours cannot express.
    """
    found: list[DetectedNetwork] = []
    notes: list[str] = []
    for path in map(Path, files):
        found += networks_in(path, notes)
    if not found:
        raise ValueError("files must name at least one file")
    there = sorted({one.key for one in found})
    if strange := [key for key in keys if key not in there]:
        raise ValueError(f"keys must be among {', '.join(map(repr, there))}, got {strange[0]!r}")
    g, d = _only(found, Generator, keys), _only(found, Discriminator, keys)
    given = {"latent": latent, "stem_activation": stem_activation, "output": output, "norm_eps": norm_eps}
    generator = _build(Generator, g, image_size, given, notes) if g else None
    discriminator = _build(Discriminator, d, image_size, given, notes) if d else None
    shapes = [(net.config["channels"], *sides(net.config)) for net in (generator, discriminator) if net is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"the generator makes images of {shapes[0]}, but the discriminator takes {shapes[1]}")
    if g and generator is not None and g.layout == "authors":
        length, latent = generator.config["latent_dim"], generator.config["latent"]
        starts = range(0, _BATCH * _BATCHES, _BATCH)
        estimate_statistics(
            generator, (seeded_latents(_BATCH, length, seed=0, start=i, distribution=latent) for i in starts)
        )
        notes.append(f"{g.where}: running statistics estimated over {_BATCHES} batches of {_BATCH} {latent} latents")
    if d and discriminator is not None and d.layout == "authors":
        source = "generated" if images is None else "given"
        if images is None:
            if generator is None:
                raise ValueError(f"{d.where} has no running statistics: give its generator too, or images")
            images = generator.sample(_BATCH * _BATCHES, seed=1)
        estimate_statistics(discriminator, torch.split(images, _BATCH))
        notes.append(f"{d.where}: running statistics estimated over {len(images)} {source} images, {_BATCH} at a time")
    layouts = {one.kind.__name__: one.layout for one in (g, d) if one}
    return Converted(generator, discriminator, layouts, tuple(notes))


def to_tutorial(network: Generator | Discriminator) -> dict[str, Tensor]:
    """Return a network's tensors under the names they have in the classes of PyTorch's example and tutorial.

    Raises:
        ValueError: If those classes cannot compute what the network does.
    """
    free = {"image_size", "channels", "latent_dim", "base_channels", "max_channels", "stages", "latent"}
    usual = {name: p.default for name, p in signature(type(network)).parameters.items() if name not in free}
    wrong = [f"{k} {v!r}, not {network.config[k]!r}" for k, v in usual.items() if network.config[k] != v]
    sizes, widths = pyramid(network.config)
    if sizes[-1] != (4, 4):
        wrong.append(f"a smallest map of 4x4, not {sizes[-1][0]}x{sizes[-1][1]}")
    if widths != [widths[0] << stage for stage in range(len(widths))]:
        wrong.append(f"widths that double, not {widths}")
    if wrong:
        raise ValueError(f"the tutorial's {type(network).__name__} has " + "; ".join(wrong))
    state = network.state_dict()
    places = generator_layers if isinstance(network, Generator) else discriminator_layers
    names = dict(zip(_layer_names(state), places(len(widths) + 1), strict=True))
    split = {key: key.rpartition(".") for key in state}
    return {f"main.{names[split[key][0]]}.{split[key][2]}": tensor.detach().cpu() for key, tensor in state.items()}


def write_tutorial(network: Generator | Discriminator, path: Path) -> None:
    """Save a network as a state dict that the classes of PyTorch's example and tutorial load.

    Raises:
        ValueError: As `to_tutorial`.
    """
    state = to_tutorial(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm to the means of the batches' means and biased variances.

    So the authors freeze theirs, over batches of 128 (`infer_bnorm_stats` in their code). On its way a batch is
    normalised with its own statistics.

    Raises:
        ValueError: If there is no batch.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all of them
    norms = [module for module in network.modules() if isinstance(module, batch_norm)]
    sums: dict[nn.Module, Tensor] = {norm: torch.zeros(2, len(norm.weight)).double() for norm in norms}

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], [0, *range(2, inputs[0].dim())], correction=0)
        sums[norm] += torch.stack([mean, var]).cpu()

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    n = 0
    try:
        with eval_mode(network), torch.no_grad():
            network.train()
            for batch in batches:
                network(batch)
                n += 1
    finally:
        for hook in hooks:
            hook.remove()
    if n == 0:
        raise ValueError("statistics need at least one batch")
    for norm, total in sums.items():
        mean, var = total / n
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": var})


def _only(found: list[DetectedNetwork], kind: Kind, keys: Sequence[str]) -> DetectedNetwork | None:
    here = [one for one in found if one.kind is kind]
    if len(here) > 1:
        here = [one for one in here if one.key in keys] or here
    if len(here) > 1:
        places = "; ".join(one.where for one in here)
        raise ValueError(f"found {len(here)} {kind.__name__}s, give one file or the key of one: {places}")
    return here[0] if here else None


def _build(
    kind: type[Network],
    found: DetectedNetwork,
    image_size: int | Sequence[int] | None,
    given: dict[str, Any],
    notes: list[str],
) -> Network:
    name = f"{found.where}: a {kind.__name__} of layout {found.layout}"
    try:
        shown = _inferred(found, image_size)
        hidden = _assumed(found, shown)
        hidden |= {k: v for k, v in given.items() if v is not None and k in hidden}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            network = kind(**shown, **hidden).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}, but {error}") from error
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    for ours, layer in zip(_layer_names(expected), found.layers, strict=True):
        weight = layer["weight"]
        extra = {"num_batches_tracked": torch.tensor(0)}  # which files from before PyTorch 0.4.1 lack
        if found.layout == "authors":  # until they are estimated
            extra |= {"running_mean": weight.new_zeros(len(weight)), "running_var": weight.new_ones(len(weight))}
        state |= {f"{ours}.{k}": v for k, v in extra.items() if f"{ours}.{k}" in expected}
        state |= {f"{ours}.{k}": v for k, v in layer.items()}
    expect_fit(state, expected, f"{name} does not fit {shown}")
    types = {tensor.dtype for tensor in state.values()} - {torch.float32, torch.int64}
    network.load_state_dict(state)
    notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in shown.items() if v is not None))
    slope = ", LeakyReLU(0.2)" if kind is Discriminator else ", ReLU"
    unseen = [f"{k} {v}" + (" (given)" if given[k] is not None else "") for k, v in hidden.items()]
    notes.append(f"{found.where}: not seen in weights, so assumed: " + ", ".join(unseen) + slope)
    if types:
        notes.append(f"{found.where}: turned {', '.join(sorted(map(str, types)))} into float32")
    return network.eval()


def _inferred(found: DetectedNetwork, image_size: int | Sequence[int] | None) -> dict[str, Any]:
    """Read a network's arguments off the shapes of its weights."""
    generator = found.kind is Generator
    shapes = [tuple(layer["weight"].shape) for layer in found.layers if layer["weight"].dim() > 1]
    # In both networks the convolutions are, from the image on, (C, K, k, k), (2C, C, k, k), ...
    stem, convs = (shapes[0], shapes[:0:-1]) if generator else (shapes[-1], shapes[:-1])
    paired = found.layout == "authors" and len(convs) % 2 == 0 and all(conv[0] == conv[1] for conv in convs[1::2])
    widths = [conv[0] for conv in convs[:: 1 + paired]]
    cap = max(widths)
    if widths != [min(widths[0] << stage, cap) for stage in range(len(widths))]:
        raise ValueError(f"its widths must double from the image on, up to a cap, got {widths}")
    config = {
        "image_size": _image_size(stem[2:], stem[0 if generator else 1], widths, image_size),
        "channels": convs[0][1],
        "base_channels": widths[0],
        "max_channels": None if cap == widths[0] << (len(widths) - 1) else cap,
        "kernel_size": convs[0][2],
        "stages": None,
        "convs_per_stage": 1 + paired,
        "stem": "conv" if len(stem) == 4 else "linear",
        "bias": "bias" in found.layers[0],
    }
    if generator:
        unit = len(stem) == 2 and len(found.layers[1]["weight"]) == stem[0] != widths[-1]
        config |= {"latent_dim": stem[1 if len(stem) == 2 else 0], "stem_norm": "unit" if unit else "channel"}
    try:
        usual = len(pyramid(config | {"norm": "batch"})[1])
    except ValueError:  # it does not halve far enough by itself
        usual = 0
    if found.layout == "linear5" or usual != len(widths):
        config["stages"] = len(widths)
    return config


def _image_size(
    smallest: tuple[int, ...], units: int, widths: list[int], image_size: int | Sequence[int] | None
) -> int | list[int]:
    """Enlarge the smallest map, or the square one of as many pixels as `units` tell, by the stages."""
    factor = 2 ** len(widths)
    wanted = None if image_size is None else sides({"image_size": image_size})
    height, width = (side * factor for side in smallest or 2 * [round((units / widths[-1]) ** 0.5)])
    if not smallest and wanted and wanted[0] * wanted[1] * widths[-1] == units * factor**2:
        height, width = wanted
    elif not smallest and height * width * widths[-1] != units * factor**2:
        raise ValueError(f"{units} units of width {widths[-1]} make no square map: image_size must be (height, width)")
    if wanted not in (None, (height, width)):
        raise ValueError(f"its weights lead to image_size {height}x{width}, got {image_size}")
    return height if height == width else [height, width]


def _assumed(found: DetectedNetwork, config: dict[str, Any]) -> dict[str, Any]:
    """Return the usual values of what weights do not show."""
    authors = found.layout == "authors"
    norm_eps = {"norm_eps": 1e-8 if authors else 1e-5}
    if found.kind is Discriminator:
        return norm_eps
    svhn = (config["image_size"], config["kernel_size"]) == (32, 5)
    latent = "uniform" if authors and not svhn else "normal"
    return {"latent": latent, "stem_activation": found.layout != "linear5", "output": "tanh", **norm_eps}


def _layer_names(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state))
