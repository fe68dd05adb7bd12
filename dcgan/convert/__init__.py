"""Networks trained by other implementations, converted to ours: PyTorch state dicts and the paper authors' arrays.

Networks are recognised by the order and the shapes of their layers, whatever these are called. Files are read as
tensors in plain containers; any other object is refused, never unpickled.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dcgan import checkpoint
from dcgan._choices import Activation, Distribution, Output
from dcgan._config import pyramid
from dcgan._errors import InputError
from dcgan._files import atomic_write
from dcgan.convert._build import Found, build
from dcgan.convert._chains import (
    Chain,
    Layer,
    NetworkClass,
    chain_of_arrays,
    describe,
    find_chains,
    group_layers,
    is_neighbour,
)
from dcgan.convert._files import find_weights, read_arrays, read_state_dicts
from dcgan.convert._statistics import lacks_statistics
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.hub._client import download_weights
from dcgan.hub._pretrained import CONFIG
from dcgan.latents import seeded_latents
from dcgan.models import Discriminator, Generator

# "organisation/name" or "organisation/name/file", but not "folder/netG.pth".
_REPOSITORY = re.compile(r"(?![^/]*/[^/]*\.(?:pth|pt|ckpt|bin|safetensors|model|jl|npy)$)(\w[\w.-]*/[\w.-]+)(?:/(.+))?")
_BATCH_SIZE, _BATCHES = 128, 32  # for estimating BatchNorm statistics; the authors' batch size
# Programs known by names of their layers, and what their networks do that the weights do not show.
_PROGRAMS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("linear5", r"^(?=.*\bfc .*\bconvs\.0 )", {"stem_activation": False}, {}),
    ("mmgeneration", r"\b(noise2feat|downsamples\.0)\.conv ", {}, {"activation": "leaky-relu", "slope": 0.01}),
    # Biases in the discriminator's first and last layer alone. There are two such classes, whose activations differ.
    ("rasbt", r"^(?=.*\bgenerator\.0 )(?=.*\bdiscriminator\.0 bias)(?!.*\bdiscriminator\.2 bias)", {}, {}),
    ("udacity", r"\bt_conv1\.0 ", {"latent": "uniform"}, {}),
    ("wassersteingan", r"\binitial[:.](conv[:.]\d+-\d+|\d+-\d+[:.]conv) ", {}, {}),
]


@dataclass(frozen=True)
class ConversionResult:
    """The networks of some files, in evaluation mode, and how the files were interpreted.

    Args:
        generator: The generator, if the files contain one.
        discriminator: The discriminator, if the files contain one.
        layouts: Where each is from, by class name: "authors" for the paper authors' arrays, the name of a program that
            is known by its layers' names, such as "mmgeneration", and otherwise "plain".
        notes: What was inferred, assumed, estimated, converted and ignored, one line each.
        layers: What each layer was taken for, one line each.
    """

    generator: Generator | None
    discriminator: Discriminator | None
    layouts: dict[str, str]
    notes: tuple[str, ...]
    layers: tuple[str, ...]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the networks into a folder that `from_pretrained` loads.

        A new or empty folder gets all of them or, at a kill or on a full disk, none; in another one, each network is
        the old or the new one.
        """
        target = Path(folder).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-", ignore_cleanup_errors=True) as temporary:
            new = Path(temporary, target.name)
            for network in (self.generator, self.discriminator):
                if network is not None:
                    network.save_pretrained(new)
            with suppress(OSError):  # it is there already, and holds something
                if target.exists():
                    target.rmdir()
                new.rename(target)
                return
            for network in (self.generator, self.discriminator):
                if network is not None:
                    network.save_pretrained(target)


def convert(
    files: Iterable[str | PathLike[str]],
    *,
    keys: Sequence[str] = (),
    revision: str | None = None,
    image_size: int | Sequence[int] | None = None,
    latent_dim: int | None = None,
    latent: Distribution | None = None,
    norm_eps: float | None = None,
    activation: Activation | None = None,
    slope: float | None = None,
    stem_activation: bool | None = None,
    output: Output | None = None,
    images: Tensor | None = None,
) -> ConversionResult:
    """Convert a generator, a discriminator or both.

    Args:
        files: State dicts and training checkpoints (`.pth`, `.pt`, `.ckpt`, `.bin`, `.safetensors`, `.model`); folders
            of other programs' `PyTorchModelHubMixin`; repositories on the Hub, `"organisation/name"`, or a file in one,
            `"organisation/name/netG.pth"`; and the authors' arrays: a `.jl` file, of which only the `.npy` files next
            to it are read, one of these, or their folder.
        keys: Names of the networks to read, such as "netG_ema", if a file contains several generators or
            discriminators.
        revision: Branch, tag or commit of a repository; by default the latest commit, which a note names.
        image_size: Side in pixels, or (height, width). By default inferred from the smallest feature map, which is
            assumed to be square where the weights show only its area.
        latent_dim: Length of the latents to expect.
        latent: Distribution of the latents. By default "normal"; for the authors' arrays "uniform", except SVHN's.
        norm_eps: Epsilon of the normalisations. By default 1e-5; for the authors' arrays 1e-8.
        activation: Activation of the generator. By default "relu"; of a discriminator alone, "leaky-relu".
        slope: Slope of LeakyReLU below zero, in both networks. By default 0.2.
        stem_activation: Whether an activation follows the generator's stem. By default it does, except in linear5 and
            where no normalisation follows it.
        output: The generator's last activation. By default "tanh".
        images: `(N, K, H, W)`, in the range the discriminator was trained on, to estimate its BatchNorm statistics if
            its file has none. By default images of the converted generator.

    Where a known program, or the running statistics of the generator's BatchNorms, tell otherwise than these defaults,
    that is taken instead, and a note says so.

    Raises:
        FileNotFoundError: If a file is missing.
        OSError: If a download fails.
        ValueError: If a file is damaged, contains other objects than tensors, no network of this family, several
            generators or discriminators, or a network that `Generator` and `Discriminator` cannot express or that the
            weights leave open.
    """
    notes: list[str] = []
    found = [network for file in files for network in _find_networks(file, keys, revision, notes)]
    if not found:
        raise InputError("files must name at least one file")
    available = sorted({network.chain.key for network in found})
    if unknown := [key for key in keys if key not in available]:
        known = ", ".join(map(repr, filter(None, available))) or "none: the only network has no key"
        raise InputError(f"keys must be among {known}, got {unknown[0]!r}")
    g, d = _select(found, Generator, keys), _select(found, Discriminator, keys)
    layers: list[str] = []
    options = {"norm_eps": norm_eps, "activation": activation, "slope": slope}
    own = {"latent": latent, "stem_activation": stem_activation, "output": output}
    generator = build(Generator, g, image_size, options | own, notes, layers) if g else None
    if generator is not None and latent_dim not in (None, generator.config["latent_dim"]):
        raise InputError(f"the generator takes latents of length {generator.config['latent_dim']}, not {latent_dim}")
    if generator is not None:  # whose activation `activation` is
        image_size, options["activation"] = generator.config["image_size"], None
    discriminator = build(Discriminator, d, image_size, options, notes, layers) if d else None
    if generator is not None and discriminator is not None:
        made, taken = generator.config["channels"], discriminator.config["channels"]
        if made != taken:
            raise InputError(f"the generator makes images of {made} channels, but the discriminator takes {taken}")
    networks = [network for network in (generator, discriminator) if network is not None]
    if slope is not None and all(network.config["activation"] == "relu" for network in networks):
        raise InputError(f"a slope, {slope}, needs the activation leaky-relu, and the network has relu: give both")
    notes += _estimate_statistics((g, generator), (d, discriminator), images)
    layouts = {network.chain.network_class.__name__: network.layout for network in (g, d) if network}
    return ConversionResult(generator, discriminator, layouts, tuple(notes), tuple(layers))


def to_tutorial(network: Generator | Discriminator) -> dict[str, Tensor]:
    """Return a network's tensors, on the CPU, under their names in the classes of PyTorch's example and tutorial.

    Raises:
        ValueError: If those classes cannot compute what the network does.
    """
    flexible = {"image_size", "channels", "latent_dim", "base_channels", "max_channels", "stages", "latent"}
    parameters = signature(type(network)).parameters.items()
    required = {name: parameter.default for name, parameter in parameters if name not in flexible}
    if network.config["activation"] == "relu":
        del required["slope"]  # which is that of another activation
    differences = [f"{k} {v!r}, not {network.config[k]!r}" for k, v in required.items() if network.config[k] != v]
    sizes, widths = pyramid(network.config)
    if sizes[-1] != (4, 4):
        differences.append(f"a smallest feature map of 4x4, not {sizes[-1][0]}x{sizes[-1][1]}")
    if widths != [widths[0] << stage for stage in range(len(widths))]:
        differences.append(f"widths that double, not {widths}")
    if differences:
        raise InputError(f"the tutorial's {type(network).__name__} has " + "; ".join(differences))
    state = network.state_dict()
    layer_names = _generator_names if isinstance(network, Generator) else _discriminator_names
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


def _estimate_statistics(
    g: tuple[Found | None, Generator | None], d: tuple[Found | None, Discriminator | None], images: Tensor | None
) -> list[str]:
    """Estimate the BatchNorm statistics that the authors' arrays, and some averages, lack; return notes on that."""
    notes: list[str] = []
    (found, generator), (found_d, discriminator) = g, d
    if generator is not None and found is not None and lacks_statistics(generator, found.layout):
        length, latent = generator.config["latent_dim"], generator.config["latent"]
        starts = range(0, _BATCH_SIZE * _BATCHES, _BATCH_SIZE)
        batches = (seeded_latents(_BATCH_SIZE, length, seed=0, start=i, distribution=latent) for i in starts)
        estimate_batchnorm_statistics(generator, batches, unbiased=found.layout != "authors")
        origin = f"{_BATCHES} batches of {_BATCH_SIZE} {latent} latents"
        notes.append(f"{found.location}: BatchNorm statistics estimated from {origin}")
    if discriminator is not None and found_d is not None and found_d.layout == "authors":
        source = "generated" if images is None else "given"
        if images is None and generator is None:
            raise InputError(f"{found_d.location} has no BatchNorm statistics: pass its generator too, or images")
        if images is None and generator is not None:
            images = generator.sample(_BATCH_SIZE * _BATCHES, seed=1)
        if images is not None:
            estimate_batchnorm_statistics(discriminator, torch.split(images, _BATCH_SIZE), unbiased=False)
            origin = f"{len(images)} {source} images in batches of {_BATCH_SIZE}"
            notes.append(f"{found_d.location}: BatchNorm statistics estimated from {origin}")
    return notes


def _find_networks(
    file: str | PathLike[str], keys: Sequence[str], revision: str | None, notes: list[str]
) -> list[Found]:
    """Find the networks in a file, a folder or a repository; add what is ignored to `notes`."""
    path, config = Path(file), {}
    if (
        isinstance(file, str)
        and (match := _REPOSITORY.fullmatch(file))
        and not path.exists()
        and not Path(path.parts[0]).exists()
    ):
        path, commit = download_weights(match[1], match[2], revision)
        config = _read_config(path.parent / CONFIG)
        notes.append(f"{file}: {path.name} of commit {commit}; this revision reads the same again")
    if path.is_dir() and (weights := find_weights(path)):
        config = _read_config(path / CONFIG)
        path = weights
    elif path.is_dir() or path.suffix in {".jl", ".npy"}:
        return [_find_in_arrays(prefix, arrays) for prefix, arrays in read_arrays(path).items()]
    found: list[Found] = []
    unknown: list[tuple[str, list[Layer], str]] = []
    for state_key, state in read_state_dicts(path):
        if any(re.search(r"(^|\.)blocks\.\d+x\d+\.", name) for name in state):
            folder = checkpoint.run_of(path) or path.parent
            raise InputError(f"{path} is already a network of this library: load {folder} with from_pretrained")
        try:
            layers, ordered = group_layers(state, ordered=path.suffix != ".safetensors")
            chains, rest = find_chains(layers, ordered=ordered)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        names = " ".join(f"{layer.name} {' '.join(sorted(layer.tensors))} " for layer in layers)
        for chain in chains:
            key = ".".join(filter(None, (state_key, chain.key)))
            layout, known = _identify(chain, names)
            location = f"{path}, {key}" if key else str(path)
            found.append(Found(location, layout, replace(chain, key=key), known, config))
        unknown += [(state_key, layers, why) for layers, why in rest]
    if not found:
        _, layers, why = unknown[0] if unknown else ("", [], "it has no layers")
        raise InputError(f"{path}: recognised no network, since {why}; it holds {describe(layers)}")
    _expect_no_part(found, [(state_key, layers) for state_key, layers, _ in unknown], keys)
    notes += [f"{path}: ignored {describe(layers)}: {why}" for _, layers, why in unknown]
    return found


def _expect_no_part(found: list[Found], others: list[tuple[str, list[Layer]]], keys: Sequence[str]) -> None:
    """Check that nothing beside the networks may be a part of them, unless their keys are given.

    Raises:
        ValueError: If it may.
    """
    for network in (network for network in found if network.chain.key not in keys):
        for state_key, layers in others:
            if is_neighbour(layers, state_key, network.chain):
                raise InputError(
                    f"{network.location}: a {network.chain.network_class.__name__}, but {describe(layers)} beside it "
                    f"may be a part of it; if it is none, pass the key {network.chain.key!r}"
                )


def _identify(chain: Chain, names: str) -> tuple[str, dict[str, Any]]:
    """Return the program that a network is from, and what is known of its networks."""
    for program, pattern, generator, discriminator in _PROGRAMS:
        if re.search(pattern, names):
            return program, generator if chain.network_class is Generator else discriminator
    return "plain", {}


def _find_in_arrays(location: str, arrays: list[Tensor]) -> Found:
    chain = chain_of_arrays(arrays)
    if isinstance(chain, str):
        raise InputError(f"{location}: recognised no network of the paper's authors: {chain}")
    known: dict[str, Any] = {"norm_eps": 1e-8}
    if chain.network_class is Generator:
        svhn = chain.layers[1].shape[2:] == (5, 5) and len(chain.layers) == 4
        known["latent"] = "normal" if svhn else "uniform"
    return Found(location, "authors", chain, known, {})


def _read_config(path: Path) -> dict[str, Any]:
    """Read another program's configuration, if there is one.

    Raises:
        ValueError: If it is this library's, or is damaged.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        return {}
    if config and config.keys() <= {"class", "dcgan", *signature(Generator).parameters}:
        raise InputError(f"{path.parent} is already a network of this library: load it with from_pretrained")
    return config


def _generator_names(n: int) -> list[str]:
    """Return 0 1, 3 4, 6 7, ...: a convolution, its normalisation, and a gap for the activation."""
    return [str(3 * i + j) for i in range(n) for j in (0, 1)][:-1]


def _discriminator_names(n: int) -> list[str]:
    """Return 0, 2 3, 5 6, ...: the same, except that the first convolution is not normalised."""
    return ["0", *(str(3 * i + j) for i in range(1, n) for j in (-1, 0))][:-1]


def _select(found: list[Found], network_class: NetworkClass, keys: Sequence[str]) -> Found | None:
    candidates = [network for network in found if network.chain.network_class is network_class]
    if len(candidates) > 1:
        candidates = [network for network in candidates if network.chain.key in keys] or candidates
    if len(candidates) > 1:
        locations = "; ".join(network.location for network in candidates)
        raise InputError(
            f"found {len(candidates)} {network_class.__name__}s, pass one file or the key of one: {locations}"
        )
    return candidates[0] if candidates else None


def _layer_names(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state))
