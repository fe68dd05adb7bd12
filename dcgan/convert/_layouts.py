"""Files of other programs, read as the layers of a network.

A layout is a map of keys: the names of the layers with weights, in the order they are applied. Files are read as
tensors in plain containers; whatever else they hold is refused, never unpickled.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcgan.hub._pretrained import CONFIG
from dcgan.models import Discriminator, Generator

Kind = type[Generator] | type[Discriminator]
Layer = dict[str, Tensor]

_WRAPPERS = {"module", "_orig_mod"}  # DataParallel and AveragedModel; torch.compile
_ARRAY = re.compile(r"(.+)_(\d+)\.npy")
_KNOWN = (
    "known are the tutorial's layout (main.0.weight, main.1.weight, main.3.weight, ...), with and without biases, that "
    "of linear5 (fc.weight, convs.0.weight, ...; model.0.weight, ...) and the paper authors' numbered arrays"
)


@dataclass(frozen=True)
class DetectedNetwork:
    """The layers of a network that a file holds, and where it holds them."""

    where: str
    key: str
    kind: Kind
    layout: str
    layers: list[Layer]  # in the order they are applied


# Layouts: the names of n convolutions and linear layers and of the normalisations between them.


def generator_layers(n: int) -> list[str]:
    """0 1, 3 4, 6 7, ...: a convolution, its normalisation, and room for the activation."""
    return [str(3 * i + j) for i in range(n) for j in (0, 1)][:-1]


def discriminator_layers(n: int) -> list[str]:
    """0, 2 3, 5 6, ...: the same, but for the first layer, which is not normalised."""
    return ["0", *(str(3 * i + j) for i in range(1, n) for j in (-1, 0))][:-1]


def _flattened_places(n: int) -> list[str]:
    """The same, with room for the flattening before the last layer."""
    return [*discriminator_layers(n)[:-1], str(3 * n - 3)]


def _linear5_places(n: int) -> list[str]:
    """The linear layer, its normalisation `convs.0`, then `convs.1 convs.2, convs.4 convs.5, ...`."""
    return ["fc", "convs.0", *(f"convs.{3 * i + j}" for i in range(1, n) for j in (-2, -1))][:-1]


# The first and the last weight have 4 dimensions in a convolution, 2 in a linear layer. Without one, the layout is
# called after its biases.
_LAYOUTS: list[tuple[Kind, str, Callable[[int], list[str]], int, int]] = [
    (Generator, "", generator_layers, 4, 4),
    (Generator, "linear5", _linear5_places, 2, 4),
    (Discriminator, "", discriminator_layers, 4, 4),
    (Discriminator, "linear5", discriminator_layers, 4, 2),
    (Discriminator, "linear5", _flattened_places, 4, 2),
]


def _match(where: str, key: str, layers: dict[str, Layer]) -> DetectedNetwork | None:
    """Recognise a network by the names of its layers and the shapes of their weights."""
    n = sum("weight" in layer and layer["weight"].dim() > 1 for layer in layers.values())
    for kind, layout, places, first, last in _LAYOUTS:
        names = places(n)
        if set(names) == set(layers) and _fits(kind, ordered := [layers[name] for name in names], first, last):
            plain = "biased" if "bias" in ordered[0] else "tutorial"
            return DetectedNetwork(where, key, kind, layout or plain, ordered)
    return None


def _fits(kind: Kind, layers: list[Layer], first: int, last: int) -> bool:
    """Whether layers are those of a network: normalised where they should be, each as wide as the next expects."""
    weights = [layer["weight"] for layer in layers if "weight" in layer and layer["weight"].dim() > 1]
    dims = [first, *[4] * (len(weights) - 2), last]
    normed = range(0 if kind is Generator else 1, len(weights) - 1)
    expected = [
        dim for i, convolution in enumerate(dims) for dim in ([convolution, 1] if i in normed else [convolution])
    ]
    into, out = (0, 1) if kind is Generator else (1, 0)  # transposed convolutions are (in, out, k, k)
    return expected == [layer["weight"].dim() if "weight" in layer else 0 for layer in layers] and all(
        a.shape[out] == b.shape[into] for a, b in pairwise(weights) if a.dim() == b.dim() == 4
    )


# Files.


def networks_in(path: Path, notes: list[str]) -> list[DetectedNetwork]:
    """Find the networks in a file or a folder of arrays; what is left out is added to `notes`.

    Raises:
        FileNotFoundError: If there is none at `path`.
        ValueError: If it is damaged, or holds other objects than tensors or no network.
    """
    if path.is_dir() or path.suffix in {".jl", ".npy"}:
        return [_from_arrays(name, arrays) for name, arrays in _arrays(path).items()]
    found: list[DetectedNetwork] = []
    unknown: dict[str, Tensor] = {}
    for outer, state in _states(_load(path)):
        owners, rest = set(), {}
        for root, layers in _groups(path, state).items():
            owner = root if "fc" in layers else root[:-1]
            key = ".".join(filter(None, (outer, *owner)))
            one = _match(f"{path}, {key}" if key else str(path), key, layers)
            if one is not None:
                found.append(one)
                owners.add(owner)
            else:
                rest[root] = {f"{name}.{k}".lstrip("."): v for name, layer in layers.items() for k, v in layer.items()}
        left = {".".join(filter(None, (outer, *root, k))): v for root, part in rest.items() for k, v in part.items()}
        if any(root[: len(owner)] == owner for root in rest for owner in owners):
            raise ValueError(f"{path}: recognised a {found[-1].kind.__name__}, but not {_listed(left)} beside it")
        unknown |= left
    if not found and any(re.search(r"(^|\.)blocks\.\d+x\d+\.", name) for name in unknown):
        raise ValueError(f"{path} is a network of this library already: load its folder with from_pretrained")
    if not found:
        raise ValueError(f"{path}: recognised no network in {_listed(unknown)}; {_KNOWN}")
    if unknown:
        notes.append(f"{path}: left out {_listed(unknown)}")
    return found


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
            raise ValueError(f"{path} is not a whole file of torch.save, and is not unpickled as another") from error
        raise ValueError(
            f"{path} holds a whole pickled module or other objects ({', '.join(names)}), and unpickling them may run "
            "any code: where it was made, save the weights alone, with torch.save(network.state_dict(), 'netG.pth')"
        ) from error
    except Exception as error:  # rubbish fails anywhere, even with an OSError
        if isinstance(error, OSError) and error.filename is not None:
            raise
        kind = "safetensors file" if path.suffix == ".safetensors" else "file of torch.save"
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a whole {kind}: {reason}") from error


def _states(value: object, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the state dicts in a checkpoint, however deep, each with where it was."""
    sequence = enumerate(value) if isinstance(value, list | tuple) else ()
    pairs: list[tuple[Any, Any]] = list(value.items() if isinstance(value, Mapping) else sequence)
    tensors = {str(name): part for name, part in pairs if isinstance(part, Tensor)}
    if any(name.rpartition(".")[2] == "weight" for name in tensors):
        yield key, tensors
    for name, part in pairs:
        yield from _states(part, f"{key}.{name}" if key else str(name))


def _groups(path: Path, state: dict[str, Tensor]) -> dict[tuple[str, ...], dict[str, Layer]]:
    """Split a state dict by what its names have before the first number, less the wrappers; then by layer."""
    groups: dict[tuple[str, ...], dict[str, Layer]] = {}
    for name, tensor in state.items():
        *parts, parameter = (part for part in name.split(".") if part not in _WRAPPERS)
        if parameter == "n_averaged":  # how many AveragedModel has seen
            continue
        at = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        layer = groups.setdefault(tuple(parts[:at]), {}).setdefault(".".join(parts[at:]), {})
        if parameter in layer:
            raise ValueError(f"{path} holds {name} twice, with and without {' or '.join(sorted(_WRAPPERS))}")
        layer[parameter] = tensor.detach()
    for *owner, last in [root for root in groups if root]:
        if last == "fc" and (*owner, "convs") in groups:  # one network under two names
            fc, convs = groups.pop((*owner, "fc")), groups.pop((*owner, "convs"))
            both = {f"fc.{name}".rstrip("."): layer for name, layer in fc.items()}
            groups.setdefault(tuple(owner), {}).update(both | {f"convs.{name}": layer for name, layer in convs.items()})
    return groups


def _arrays(path: Path) -> dict[str, list[Tensor]]:
    """Read numbered arrays, by the name they have in common. The `.jl` file is a pickle, and stays closed."""
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    if name is not None and (match := _ARRAY.fullmatch(name)):
        name = match[1]
    files: dict[str, dict[int, Path]] = {}
    for file in folder.glob("*.npy"):
        if (match := _ARRAY.fullmatch(file.name)) and name in (None, match[1]):
            files.setdefault(match[1], {})[int(match[2])] = file
    if not files and (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is a network of this library already: load it with from_pretrained")
    if not files:
        raise FileNotFoundError(f"{folder} has no numbered arrays, {name or 'NAME'}_01.npy and so on")
    for name, numbered in files.items():
        if absent := sorted(set(range(1, max(numbered) + 1)) - numbered.keys()):
            raise FileNotFoundError(f"of {folder / name}_NN.npy the numbers {', '.join(map(str, absent))} are missing")
    return {str(folder / name): [_array(files[name][i]) for i in sorted(files[name])] for name in sorted(files)}


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole array of numbers: {error}") from error


def _from_arrays(where: str, arrays: list[Tensor]) -> DetectedNetwork:
    """Put the authors' arrays into layers: a weight alone, or the gains and shifts of a normalisation.

    Theano convolves where PyTorch correlates, so kernels are flipped; linear weights are (in, out).
    """
    layers: list[Layer] = []
    for array in arrays:
        if array.dim() == 1 and layers and layers[-1]["weight"].dim() == 1 and "bias" not in layers[-1]:
            layers[-1]["bias"] = array
        else:
            layers.append({"weight": array.flip(2, 3) if array.dim() == 4 else array.T if array.dim() == 2 else array})
    kinds: list[tuple[Kind, int, int]] = [(Generator, 2, 4), (Discriminator, 4, 2)]
    for kind, first, last in kinds:
        if _fits(kind, layers, first, last):
            return DetectedNetwork(where, "", kind, "authors", layers)
    numbered = {f"{i:02d}": array for i, array in enumerate(arrays, 1)}
    raise ValueError(f"{where}: recognised no network of the paper's authors in {_listed(numbered)}; {_KNOWN}")


def _listed(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:12]) or "a file without weights") + more
