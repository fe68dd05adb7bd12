"""What a training step asks of optimisers beside their updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def backward_and_step(optimizer: Optimizer, scaler: torch.amp.GradScaler, loss: Tensor) -> None:
    """Take one step down the gradient of a loss."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward without types
    scaler.step(optimizer)
    scaler.update()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Take a network's parameters out of the gradient for a while; each is then as it was."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def hyperparameters(*optimizers: Optimizer) -> Iterator[str]:
    """Yield all settings, such as learning rates, as text, but those that are tensors."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            plain = (value for name, value in group.items() if name != "params" and not isinstance(value, Tensor))
            yield from map(repr, plain)


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state, but for the way updates are computed, which depends on the device and not on the state.

    Raises:
        ValueError: If the state is of other parameters.
    """
    ways = ("fused", "capturable", "foreach", "differentiable")
    kept = [{name: group[name] for name in ways if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, way in zip(optimizer.param_groups, kept, strict=True):
        group.update(way)
    match_memory_format(optimizer)


def match_memory_format(*optimizers: Optimizer) -> None:
    """Give moments the memory format of their weights, and tensors that are no other optimiser's.

    Fused optimisers walk weights and moments side by side in memory, whatever the strides of either.
    """
    for parameter, moments in (item for optimizer in optimizers for item in optimizer.state.items()):
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, Tensor):
                moments[name] = value.clone()
