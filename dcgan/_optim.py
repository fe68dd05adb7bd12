"""Updates, settings and states of optimisers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dcgan._choices import LearningRate
from dcgan._compat import forget_scaled_step
from dcgan._distributed import average_gradients
from dcgan._errors import InputError

_RATE_TIMES_WIDTH = 2e-4 * 128
# How an update is computed, which depends on the device and not on the training state.
_IMPLEMENTATION_FLAGS = ("fused", "capturable", "foreach", "differentiable")


def learning_rate(network: nn.Module, lr: LearningRate) -> float:
    """Return `lr`, or for "auto" the rate of Adam that fits a network's width C, next to the image.

    The paper (Section 4) trained width 128 at 2e-4. Adam moves each weight by about its rate, whatever the gradient, so
    a layer's output changes with the rate times its number of inputs, which grows with the width: the rate that fits
    goes with 1/C (Yang et al., 2022, https://arxiv.org/abs/2203.03466).

    Raises:
        ValueError: If the network has no `config["base_channels"]`.
    """
    if lr != "auto":
        return lr
    config = getattr(network, "config", None)
    width = config.get("base_channels") if isinstance(config, Mapping) else None
    if width is None:
        raise InputError(
            f'lr="auto" needs the width of a network, config["base_channels"], which {type(network).__name__} does not '
            "have: pass g_lr and d_lr; the paper's rate is 2e-4 at width 128, and the rate goes with 1/width"
        )
    return _RATE_TIMES_WIDTH / float(width)


def backward_and_step(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, *, max_grad_norm: float | None = None
) -> None:
    """Update an optimiser's parameters along the gradient of a loss.

    The gradient is scaled against underflow, averaged over all processes, and clipped if asked. If the optimiser
    raises, its next update is as if this one had not been tried.
    """
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward without types
    average_gradients(parameters_of(optimizer))
    try:
        if max_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters_of(optimizer), max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
    except BaseException:
        forget_scaled_step(scaler, optimizer)
        raise
    torch.clear_autocast_cache()  # of casts of the weights, which have just changed


@contextmanager
def freeze(network: nn.Module) -> Iterator[None]:
    """Compute no gradients of a network's parameters inside the block; on exit each is as it was."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad = True


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def hyperparameters(**optimizers: Optimizer) -> tuple[tuple[str, str], ...]:
    """Return what Python reads of optimisers' settings by name, such as learning rates, as text.

    Tensors are left out, except on the CPU, where a kernel takes their values as it takes numbers.
    """
    return tuple(
        (f"{name}{f' of group {index}' if len(optimizer.param_groups) > 1 else ''} of {optimizer_name}", _text(value))
        for optimizer_name, optimizer in optimizers.items()
        for index, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if name != "params" and not (isinstance(value, Tensor) and value.device.type != "cpu")
    )


def _text(value: object) -> str:
    value = value.tolist() if isinstance(value, Tensor) else value
    return repr(float(value) if type(value) is int else value)  # 0 is as good as 0.0


class RateDecay:
    """Lets learning rates fall in a straight line, to zero at the end of a run.

    Args:
        optimizers: Whose rates these are, as they are now.
        share: Share of the run, at its end, in which they fall; 0 leaves them alone.
        steps: Number of steps of the run.
    """

    def __init__(self, optimizers: Iterable[Optimizer], share: float, steps: int):
        self._optimizers, self._share, self._steps = list(optimizers), share, steps
        self._rates = [float(group["lr"]) for group in self._groups()]

    def set(self, step: int) -> None:
        """Set the rates for step number `step`, counted from 0."""
        if not self._share:
            return
        factor = max(0.0, min(1.0, (self._steps - step) / (self._share * self._steps)))
        for group, rate in zip(self._groups(), self._rates, strict=True):
            if group.get("capturable"):  # a captured step reads its rate from the device
                device = group["params"][0].device
                lr = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
                group["lr"] = lr.fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _groups(self) -> list[dict[str, Any]]:
        # Asked for each time: a state that is loaded replaces them.
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state, but keep how updates are computed.

    Raises:
        ValueError: If the state is for other parameters.
    """
    own = [{name: group[name] for name in _IMPLEMENTATION_FLAGS if name in group} for group in optimizer.param_groups]
    groups = state["param_groups"]
    if len(groups) == len(own):  # otherwise torch refuses it
        # Before, and not after: by these flags, torch decides where the counts of steps are kept.
        state = {**state, "param_groups": [{**group, **flags} for group, flags in zip(groups, own, strict=True)]}
    optimizer.load_state_dict(state)
    match_memory_format(optimizer)


def make_capturable(optimizer: Optimizer) -> None:
    """Make an optimiser on a CUDA device keep its counts on the device, if it can, so that a graph advances them."""
    for group in optimizer.param_groups:
        if group.get("capturable") is not False:
            continue
        group["capturable"] = True
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.dim() == 0:
                    moments[name] = value.to(parameter.device)


def restore_flags(optimizer: Optimizer) -> None:
    """Set what PyTorch's optimisers set when they are built, and leave out of their copies."""
    vars(optimizer)["_warned_capturable_if_run_uncaptured"] = True  # eager steps are intended
    if optimizer.param_groups and all(group.get("fused") for group in optimizer.param_groups):
        vars(optimizer)["_step_supports_amp_scaling"] = True  # or a scaler waits for the device


def find_host_state(*optimizers: Optimizer) -> str | None:
    """Describe what an optimiser keeps on the host, where a graph would read it once and never again; None if nothing.

    Such are the counts of steps of Adagrad and Adafactor.
    """
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, int | float) or (isinstance(value, Tensor) and value.device != parameter.device):
                    return f"{type(optimizer).__name__} keeps {name!r} on the host"
    return None


def match_memory_format(optimizer: Optimizer) -> None:
    """Give moments the memory format of their weights, and copy all tensors, so that no other optimiser shares them.

    Fused optimisers process weights and moments in the order of memory, whatever their strides.
    """
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, Tensor):
                moments[name] = value.clone()
