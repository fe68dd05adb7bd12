"""Copies and modes of arbitrary modules."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from dcgan._errors import InputError

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module, *, share: bool = False) -> Module:
    """Return a copy of a module; with `share`, its tensors are shared instead of copied.

    Unlike `copy.deepcopy` it also takes modules that keep results of autograd as attributes, as the deprecated
    `torch.nn.utils.weight_norm` and `spectral_norm` do; in the copy these are constants until they are recomputed.
    The copy calls the same hooks; objects that they are methods of are not copied. Do not modify a copy made with
    `share`: registering a hook on it may register it on `module` as well.
    """
    memo: dict[int, Any] = {}  # what deepcopy regards as copied already
    for part in module.modules():
        if share:  # what can be shared without harm, since a deep copy of it takes as long as generating an image
            memo |= {id(value): value for value in vars(part).values() if isinstance(value, OrderedDict) and not value}
            if _is_plain_layer(part):
                memo[id(part)] = copy.copy(part)
                continue
        for value in _leaves(vars(part)):
            if share or not isinstance(value, Tensor):
                memo[id(value)] = value
            elif not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _is_plain_layer(module: nn.Module) -> bool:
    known = type(module).__module__.startswith(("torch.nn.modules.", "dcgan.layers"))
    return known and not any(True for _ in module.children()) and not any(map(callable, vars(module).values()))


def _leaves(value: object) -> Iterator[object]:
    """Yield the tensors, functions and methods in an attribute, except for methods of modules, which are copied."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Tensor | FunctionType | BuiltinFunctionType) or (
        isinstance(value, MethodType) and not isinstance(value.__self__, nn.Module)
    ):
        yield value


def expect_to_be_followed(module: nn.Module) -> None:
    """Check that a copy with other weights would compute with them.

    Raises:
        ValueError: If the `forward` of a part with tensors was replaced by a function, which would go on with those of
            the original.
    """
    for part in module.modules():
        if isinstance(getattr(part, "_orig_mod", None), nn.Module):
            continue  # of torch.compile, whose copies are compiled anew
        if isinstance(vars(part).get("forward"), FunctionType) and any(
            True for _ in chain(part.parameters(), part.buffers())
        ):
            raise InputError(
                f"the forward of {type(part).__name__} was replaced by a function, which does not follow a copy of the "
                "network, as for its average: compile with its compile(), or change its class"
            )


def stop_training(module: nn.Module) -> None:
    """Put a module into evaluation mode, not by its `eval`, which in some adapters merges their weights into others."""
    for part in module.modules():
        part.training = False


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and on exit every submodule back into its previous mode."""
    modes = [(part, part.training) for part in module.modules()]
    stop_training(module)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
