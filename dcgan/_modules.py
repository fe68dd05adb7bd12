"""Modules of any kind: copies of them, and their modes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module, *, share: bool = False) -> Module:
    """Return a copy with structure of its own, its tensors copied or, with `share`, the very same.

    Unlike `copy.deepcopy` it also takes modules that keep results of autograd as attributes, as the deprecated
    `torch.nn.utils.weight_norm` and `spectral_norm` do; in the copy these are constants until they are computed anew.
    """
    tensors = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    if share:
        tensors += [*module.parameters(), *module.buffers()]
    # deepcopy takes what the memo holds for copied already.
    return copy.deepcopy(module, {id(tensor): tensor if share else tensor.detach().clone() for tensor in tensors})


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, then every submodule back into its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
