"""Reading checkpoints of other implementations and recognising the networks in them.

A layout is the names of the layers that have weights, in the order they are applied. Files are read as tensors in plain
containers; any other object in them is refused, never unpickled.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcgan.hub._pretrained import CONFIG
from dcgan.models import Discriminator, Generator

NetworkClass = type[Generator] | type[Discriminator]
Layer = dict[str, Tensor]

_WRAPPERS = {"module", "_orig_mod"}  # DataParallel and AveragedModel; torch.compile
_ARRAY_FILE = re.compile(r"(.+)_(\d+)\.npy")
_SUPPORTED_LAYOUTS = (
    "supported are the tutorial's layout (main.0.weight, main.1.weight, main.3.weight, ...) with or without biases, "
    "the layout of linear5 (fc.weight, convs.0.weight, ...; model.0.weight, ...) and the paper authors' numbered arrays"
)


@dataclass(frozen=True)
class DetectedNetwork:
    """A network recognised in a file.

    Args:
        location: The file and the key within it, for messages.
        key: Where the file holds the network, such as "netG_ema"; empty if at the top.
        network_class: `Generator` or `Discriminator`.
        layout: Name of the layout: "tutorial", "biased", "linear5" or "authors".
        layers: The tensors of each layer by parameter name, in the order the layers are applied.
    """

    location: str
    key: str
    network_class: NetworkClass
    layout: str
    layers: list[Layer]


# Layouts: the names of n convolutions and linear layers and of the normalisations between them.


def generator_layers(n: int) -> list[str]:
    """Return 0 1, 3 4, 6 7, ...: a convolution, its normalisation, and a gap for the activation."""
    return [str(3 * i + j) for i in range(n) for j in (0, 1)][:-1]


def discriminator_layers(n: int) -> list[str]:
    """Return 0, 2 3, 5 6, ...: the same, except that the first convolution is not normalised."""
    return ["0", *(str(3 * i + j) for i in range(1, n) for j in (-1, 0))][:-1]


def _flatten_discriminator_layers(n: int) -> list[str]:
    """Return the same with a gap for `nn.Flatten` before the last layer."""
    return [*discriminator_layers(n)[:-1], str(3 * n - 3)]


def _linear5_generator_layers(n: int) -> list[str]:
    """Return the linear layer, its normalisation `convs.0`, then `convs.1 convs.2, convs.4 convs.5, ...`."""
    return ["fc", "convs.0", *(f"convs.{3 * i + j}" for i in range(1, n) for j in (-2, -1))][:-1]


class _Layout(NamedTuple):
    network_class: NetworkClass
    name: str
    layer_names: Callable[[int], list[str]]
    first_dim: int  # dimensions of the first weight: 4 in a convolution, 2 in a linear layer
    last_dim: int


_LAYOUTS = [
    _Layout(Generator, "tutorial", generator_layers, 4, 4),  # "biased" if it has biases
    _Layout(Generator, "linear5", _linear5_generator_layers, 2, 4),
    _Layout(Discriminator, "tutorial", discriminator_layers, 4, 4),
    _Layout(Discriminator, "linear5", discriminator_layers, 4, 2),
    _Layout(Discriminator, "linear5", _flatten_discriminator_layers, 4, 2),
]


def detect_network(location: str, key: str, layers: dict[str, Layer]) -> DetectedNetwork | None:
    """Recognise a network by the names of its layers and the shapes of their weights."""
    n = sum("weight" in layer and layer["weight"].dim() > 1 for layer in layers.values())
    for network_class, layout, layer_names, first_dim, last_dim in _LAYOUTS:
        names = layer_names(n)
        if set(names) != set(layers):
            continue
        ordered = [layers[name] for name in names]
        if _shapes_match(network_class, ordered, first_dim, last_dim):
            biased = layout == "tutorial" and "bias" in ordered[0]
            return DetectedNetwork(location, key, network_class, "biased" if biased else layout, ordered)
    return None


def _shapes_match(network_class: NetworkClass, layers: list[Layer], first_dim: int, last_dim: int) -> bool:
    """Whether normalisations stand where the network has them, and each layer is as wide as the next expects."""
    weights = [layer["weight"] for layer in layers if "weight" in layer and layer["weight"].dim() > 1]
    weight_dims = [first_dim, *[4] * (len(weights) - 2), last_dim]
    normalised = range(0 if network_class is Generator else 1, len(weights) - 1)
    expected = [
        dim
        for i, weight_dim in enumerate(weight_dims)
        for dim in ([weight_dim, 1] if i in normalised else [weight_dim])
    ]
    in_dim, out_dim = (0, 1) if network_class is Generator else (1, 0)  # transposed convolutions are (in, out, k, k)
    return expected == [layer["weight"].dim() if "weight" in layer else 0 for layer in layers] and all(
        a.shape[out_dim] == b.shape[in_dim] for a, b in pairwise(weights) if a.dim() == b.dim() == 4
    )


# Files.


def detect_networks(path: Path, notes: list[str]) -> list[DetectedNetwork]:
    """Find the networks in a file or a folder of arrays; add what is ignored to `notes`.

    Raises:
        FileNotFoundError: If there is none at `path`.
        ValueError: If it is damaged, contains other objects than tensors, or contains no known network.
    """
    if path.is_dir() or path.suffix in {".jl", ".npy"}:
        return [_detect_in_arrays(prefix, arrays) for prefix, arrays in _read_arrays(path).items()]
    detected: list[DetectedNetwork] = []
    unknown: dict[str, Tensor] = {}
    for state_key, state in _find_state_dicts(_load(path)):
        networks, rest = _detect_in_state_dict(path, state_key, state)
        detected += networks
        unknown |= rest
    if not detected and any(re.search(r"(^|\.)blocks\.\d+x\d+\.", name) for name in unknown):
        raise ValueError(f"{path} is already a network of this library: load its folder with from_pretrained")
    if not detected:
        raise ValueError(f"{path}: recognised no network in {_format_shapes(unknown)}; {_SUPPORTED_LAYOUTS}")
    if unknown:
        notes.append(f"{path}: ignored {_format_shapes(unknown)}")
    return detected


def _detect_in_state_dict(
    path: Path, state_key: str, state: dict[str, Tensor]
) -> tuple[list[DetectedNetwork], dict[str, Tensor]]:
    """Return the networks in a state dict, and the tensors that belong to none."""
    detected: list[DetectedNetwork] = []
    owners: set[tuple[str, ...]] = set()  # the modules that contain the detected networks
    unmatched: set[tuple[str, ...]] = set()
    rest: dict[str, Tensor] = {}
    for prefix, layers in group_layers(path, state).items():
        owner = prefix if "fc" in layers else prefix[:-1]
        key = ".".join(filter(None, (state_key, *owner)))
        network = detect_network(f"{path}, {key}" if key else str(path), key, layers)
        if network is not None:
            detected.append(network)
            owners.add(owner)
            continue
        unmatched.add(prefix)
        for name, layer in layers.items():
            for parameter, tensor in layer.items():
                rest[".".join(filter(None, (state_key, *prefix, name, parameter)))] = tensor
    if any(prefix[: len(owner)] == owner for prefix in unmatched for owner in owners):
        name = detected[-1].network_class.__name__
        raise ValueError(f"{path}: recognised a {name}, but its layout has no {_format_shapes(rest)}")
    return detected, rest


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        try:
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:8]
        except Exception:  # noqa: BLE001 - it reads whole zip archives only, those of PyTorch 1.6 and later
            names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
        if not names:
            raise ValueError(f"{path} is damaged or not a file of torch.save, and is not unpickled") from error
        raise ValueError(
            f"{path} contains a pickled module or other Python objects ({', '.join(names)}), and unpickling them can "
            "run arbitrary code: where the file was made, save only the weights, with "
            "torch.save(network.state_dict(), 'netG.pth')"
        ) from error
    except Exception as error:  # damaged files fail anywhere in the parsers, even with an OSError
        if isinstance(error, OSError) and error.filename is not None:
            raise
        file_format = "safetensors file" if path.suffix == ".safetensors" else "file of torch.save"
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or not a {file_format}: {reason}") from error


def _find_state_dicts(value: object, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the state dicts in a checkpoint at any depth; yield each with its key."""
    sequence = enumerate(value) if isinstance(value, list | tuple) else ()
    items: list[tuple[Any, Any]] = list(value.items() if isinstance(value, Mapping) else sequence)
    tensors = {str(name): item for name, item in items if isinstance(item, Tensor)}
    if any(name.rpartition(".")[2] == "weight" for name in tensors):
        yield key, tensors
    for name, item in items:
        yield from _find_state_dicts(item, f"{key}.{name}" if key else str(name))


def group_layers(path: Path, state: dict[str, Tensor]) -> dict[tuple[str, ...], dict[str, Layer]]:
    """Group a state dict by the part of its names before the first number, without wrappers; then by layer."""
    groups: dict[tuple[str, ...], dict[str, Layer]] = {}
    for name, tensor in state.items():
        *parts, parameter = (part for part in name.split(".") if part not in _WRAPPERS)
        if parameter == "n_averaged":  # AveragedModel's counter
            continue
        first_number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        layers = groups.setdefault(tuple(parts[:first_number]), {})
        layer = layers.setdefault(".".join(parts[first_number:]), {})
        if parameter in layer:
            raise ValueError(f"{path} contains {name} twice, with and without {' or '.join(sorted(_WRAPPERS))}")
        layer[parameter] = tensor.detach()
    for *owner, last in [prefix for prefix in groups if prefix]:
        if last == "fc" and (*owner, "convs") in groups:  # one network under two names
            fc, convs = groups.pop((*owner, "fc")), groups.pop((*owner, "convs"))
            merged = {f"fc.{name}".rstrip("."): layer for name, layer in fc.items()}
            merged |= {f"convs.{name}": layer for name, layer in convs.items()}
            groups.setdefault(tuple(owner), {}).update(merged)
    return groups


def _read_arrays(path: Path) -> dict[str, list[Tensor]]:
    """Read numbered arrays, grouped by the path they share. The `.jl` file is a pickle and is not opened."""
    folder, stem = (path, None) if path.is_dir() else (path.parent, path.name)
    if stem is not None and (match := _ARRAY_FILE.fullmatch(stem)):
        stem = match[1]
    files: dict[str, dict[int, Path]] = {}
    for file in folder.glob("*.npy"):
        if (match := _ARRAY_FILE.fullmatch(file.name)) and stem in (None, match[1]):
            files.setdefault(match[1], {})[int(match[2])] = file
    if not files and (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is already a network of this library: load it with from_pretrained")
    if not files:
        raise FileNotFoundError(f"{folder} has no numbered arrays {stem or 'NAME'}_01.npy, ...")
    for name, numbered in files.items():
        if missing := sorted(set(range(1, max(numbered) + 1)) - numbered.keys()):
            raise FileNotFoundError(f"{folder / name}_NN.npy: numbers {', '.join(map(str, missing))} are missing")
    return {str(folder / name): [_read_array(files[name][i]) for i in sorted(files[name])] for name in sorted(files)}


def _read_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or not an array of numbers: {error}") from error


def _detect_in_arrays(location: str, arrays: list[Tensor]) -> DetectedNetwork:
    """Group the authors' arrays into layers: a weight, or the gains and shifts of a normalisation.

    Theano convolves where PyTorch correlates, so kernels are flipped; linear weights are (in, out).
    """
    layers: list[Layer] = []
    for array in arrays:
        if array.dim() == 1 and layers and layers[-1]["weight"].dim() == 1 and "bias" not in layers[-1]:
            layers[-1]["bias"] = array
        else:
            layers.append({"weight": array.flip(2, 3) if array.dim() == 4 else array.T if array.dim() == 2 else array})
    if _shapes_match(Generator, layers, 2, 4):
        return DetectedNetwork(location, "", Generator, "authors", layers)
    if _shapes_match(Discriminator, layers, 4, 2):
        return DetectedNetwork(location, "", Discriminator, "authors", layers)
    numbered = {f"{i:02d}": array for i, array in enumerate(arrays, 1)}
    shapes = _format_shapes(numbered)
    raise ValueError(f"{location}: recognised no network of the paper's authors in {shapes}; {_SUPPORTED_LAYOUTS}")


def _format_shapes(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:12]) or "a file without weights") + more
