"""Every private interface of another library that the package uses, each with its reason."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def hub_http_error() -> type[Exception]:
    """Return the base of the HTTP errors of the Hub's client, which is built on httpx in versions 1 and httpx2 in 2.

    `huggingface_hub.utils.httpx` is whichever of them is in use; it is exported, but not documented.
    """
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    error: type[Exception] = httpx.HTTPError
    return error


def has_hooks(module: "nn.Module") -> bool:
    """Return whether calling a module runs more than its `forward`: torch has no public way to ask for its hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def release_from_capture(rng: "torch.Generator") -> None:
    """Make a CUDA generator usable after a failed capture: it would keep waiting for the capture to end.

    `graphsafe_set_state` is not documented, and no documented call replaces a generator's state object.
    """
    import torch

    rng.graphsafe_set_state(torch.Generator(rng.device).graphsafe_get_state())
