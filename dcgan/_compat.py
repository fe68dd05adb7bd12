"""Every private interface of another library that the package uses, each with its reason."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module runs more than its `forward`: torch has no public way to ask for its hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001
