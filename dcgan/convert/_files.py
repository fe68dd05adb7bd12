"""Reading files of other programs: tensors in plain containers. No other object in them is ever unpickled."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcgan._errors import InputError
from dcgan.hub._client import WEIGHT_FILES

_ARRAY_FILE = re.compile(r"(.+)_(\d+)\.npy")
_SUFFIXES = {".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".model"}
_DEEPEST = 12  # levels of containers around a state dict


def read_state_dicts(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Find the state dicts in a file, at any depth; return each with its key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or contains other objects than tensors and plain values.
    """
    content = _load(path)
    settings = content.get("config") if isinstance(content, Mapping) else None
    if str(loss := getattr(settings, "lossCriterion", "")).startswith("WGANGP"):
        raise InputError(
            f"{path}: its settings say lossCriterion {loss}, with which pytorch_GAN_zoo's generator has no last "
            "activation; none of ours is without one"
        )
    return list(_find_state_dicts(content))


def find_weights(folder: Path) -> Path | None:
    """Return the file of weights in a folder that huggingface_hub's PyTorchModelHubMixin wrote for another program."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def _find_state_dicts(
    value: object, key: str = "", parents: tuple[int, ...] = ()
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if len(parents) > _DEEPEST or id(value) in parents:  # a pickle may hold itself
        return
    sequence = enumerate(value) if isinstance(value, list | tuple) else ()
    items: list[tuple[Any, Any]] = list(value.items() if isinstance(value, Mapping) else sequence)
    tensors = {str(name): item for name, item in items if isinstance(item, Tensor)}
    if any(name.rpartition(".")[2] == "weight" for name in tensors):
        yield key, tensors
    for name, item in items:
        if isinstance(item, Mapping | list | tuple):
            yield from _find_state_dicts(item, f"{key}.{name}" if key else str(name), (*parents, id(value)))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return _load_pickle(path)
    except UnpicklingError as error:
        try:
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:8]
        except Exception:  # noqa: BLE001 - it reads whole zip archives only, those of PyTorch 1.6 and later
            names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
        if not names:
            raise InputError(f"{path} is damaged or not a file of torch.save, and is not unpickled") from error
        raise InputError(
            f"{path} contains a pickled module or other Python objects ({', '.join(names)}), and unpickling them can "
            "run arbitrary code: where the file was made, save only the weights, with "
            "torch.save(network.state_dict(), 'netG.pth')"
        ) from error
    except Exception as error:  # damaged files fail anywhere in the parsers, even with an OSError
        if isinstance(error, OSError) and error.filename is not None:
            raise
        file_format = "safetensors file" if path.suffix == ".safetensors" else "file of torch.save"
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise InputError(f"{path} is damaged or not a {file_format}: {reason}") from error


def _load_pickle(path: Path) -> Any:
    """Load tensors and plain values; objects of other programs, such as their settings, become empty stand-ins.

    A stand-in has no code of theirs, so nothing is executed. Modules are refused: their weights would be lost in one.
    """
    stand_ins: list[tuple[type, str]] = []
    first: UnpicklingError | None = None
    while True:
        try:
            with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]  # pairs, since PyTorch 2.6
                return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            first = first or error
            match = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
            name = match[1] if match else ""
            trusted = name.partition(".")[0] not in {"torch", *sys.stdlib_module_names} or name == "argparse.Namespace"
            if not name or not trusted or name in {known for _, known in stand_ins}:
                raise first from None  # which names the object that the file is about
            methods = {"__init__": lambda *_, **__: None, "__setstate__": _keep_plain_values}
            stand_ins.append((type(name.rpartition(".")[2], (), methods), name))


def _keep_plain_values(stand_in: object, state: object) -> None:
    if isinstance(state, dict):
        plain = {name: value for name, value in state.items() if type(value) in (str, int, float, bool)}
        vars(stand_in).update(plain)


def read_arrays(path: Path) -> dict[str, list[Tensor]]:
    """Read the paper authors' numbered arrays, grouped by the path they share.

    Their `.jl` file is a pickle, and stays closed.

    Raises:
        FileNotFoundError: If there are none, or some are missing.
        ValueError: If one is damaged.
    """
    folder, stem = (path, None) if path.is_dir() else (path.parent, path.name)
    if stem is not None and (match := _ARRAY_FILE.fullmatch(stem)):
        stem = match[1]
    files: dict[str, dict[int, Path]] = {}
    for file in folder.glob("*.npy"):
        if (match := _ARRAY_FILE.fullmatch(file.name)) and stem in (None, match[1]):
            files.setdefault(match[1], {})[int(match[2])] = file
    if not files:
        others = sorted(file.name for file in folder.glob("*") if file.suffix in _SUFFIXES)[:8]
        hint = f"; name one of its files: {', '.join(others)}" if others else ""
        raise FileNotFoundError(f"{folder} has no numbered arrays {stem or 'NAME'}_01.npy, ...{hint}")
    for name, numbered in files.items():
        if missing := sorted(set(range(1, max(numbered) + 1)) - numbered.keys()):
            raise FileNotFoundError(f"{folder / name}_NN.npy: numbers {', '.join(map(str, missing))} are missing")
    return {str(folder / name): [_read_array(files[name][i]) for i in sorted(files[name])] for name in sorted(files)}


def _read_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path} is damaged or not an array of numbers: {error}") from error
