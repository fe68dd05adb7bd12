"""Autocast and gradient scaling of each precision; weights, losses and averages stay in float32 or better."""

import torch

from dcgan._choices import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context that networks compute in; for "fp32", one that disables an enclosing autocast."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, DTYPES[precision])


def grad_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return a scaler that keeps the gradients of "fp16" from underflowing; for the others it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
