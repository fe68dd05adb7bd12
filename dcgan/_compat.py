"""Every private interface of another library that the package uses, each with its reason."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def hub_http_error() -> type[Exception]:
    """Return the base of the HTTP errors of the Hub's client, which is built on httpx in versions 1 and httpx2 in 2.

    `huggingface_hub.utils.httpx` is whichever of them is in use; it is exported, but not documented.
    """
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    error: type[Exception] = httpx.HTTPError
    return error


def hub_connection_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the Hub's client when no connection can be made; see `hub_http_error`."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError


def has_hooks(module: "nn.Module") -> bool:
    """Return whether calling a module runs more than its `forward`: torch has no public way to ask for its hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def forget_scaled_step(scaler: "torch.amp.GradScaler", optimizer: "torch.optim.Optimizer") -> None:
    """Undo what a step of an optimiser that raised leaves behind, and what would go into its next update.

    The scaler leaves its scale on the optimiser and what it knows of the gradients in its own records; torch has no
    public way to discard either.
    """
    for name in ("grad_scale", "found_inf"):
        vars(optimizer).pop(name, None)
    if scaler.is_enabled():  # otherwise it has no records
        scaler._per_optimizer_states.clear()  # noqa: SLF001


def graphs_register_generators() -> bool:
    """Return whether a CUDA graph registers the random generators that it draws from, as it does from torch 2.14 on.

    There `register_generator_state` does nothing, and will be removed. Before, a generator also remains in the middle
    of a capture that fails.
    """
    import torch

    return torch.__version__ >= "2.14.dev0"  # a `TorchVersion`, which compares numbers, and comes before all of 2.14


def end_failed_capture(device: "torch.device", pool: Any) -> None:
    """Let the allocator leave and release the memory pool of a capture that failed, which torch 2.11 does not."""
    import torch

    with suppress(RuntimeError):  # raised by the first where it has left the pool
        torch._C._cuda_endAllocateToPool(device.index, pool)  # noqa: SLF001
        torch._C._cuda_releasePool(device.index, pool)  # noqa: SLF001


def lerp_all(means: "list[Tensor]", values: "list[Tensor]", weight: "Tensor") -> None:
    """Move each tensor towards its value by `weight`, a scalar on their device.

    On a GPU, in three launches for all of them: torch has no documented function of several tensors.
    """
    import torch

    if weight.is_cuda:
        differences = torch._foreach_sub(values, means)  # noqa: SLF001
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(means, differences)
        return
    for mean, value in zip(means, values, strict=True):  # one pass over memory instead of three
        mean.lerp_(value, weight.to(mean.dtype))
