"""What the trainer chooses for each kind of device: right before fast.

Only CPUs have been measured. The choices for CUDA devices, which include AMD's, follow PyTorch's documentation and have
never run. Numbers are those of PyTorch's issues and pull requests.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DeviceDefaults(NamedTuple):
    """Choices for one kind of device.

    Attributes:
        memory_format: Layout of our own networks and their images; other modules keep theirs.
        fused_adam: Adam's implementation; None leaves the choice to torch.
        cuda_graphs: Whether steps may be captured; Adam then keeps its count of steps on the device.
        non_blocking: Whether batches are copied to the device while the host goes on.
    """

    memory_format: torch.memory_format = torch.contiguous_format
    fused_adam: bool | None = None
    cuda_graphs: bool = False
    non_blocking: bool = False


_DEFAULTS = {
    # Convolutions and BatchNorm are faster channels-last, and the fused Adam saves passes over memory.
    "cpu": DeviceDefaults(torch.channels_last, fused_adam=True),
    "cuda": DeviceDefaults(torch.channels_last, fused_adam=True, cuda_graphs=True, non_blocking=True),
    # In versions that we support, BatchNorm's gradients for channels-last images are wrong, silently, or raise (175189,
    # 188371), the fused Adam updates weights in spite of an overflow under fp16 (186360), and a copy that does not
    # block may read a batch that is gone already (189690).
    "mps": DeviceDefaults(fused_adam=False),
}


def device_defaults(device: torch.device) -> DeviceDefaults:
    """Return the choices for a device; those that have not been tried, such as XPUs, get PyTorch's own defaults."""
    return _DEFAULTS.get(device.type, DeviceDefaults())


def to_memory_format(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Lay images `(N, K, H, W)` out in a format; without a copy if they are."""
    images = images.contiguous(memory_format=memory_format)
    if memory_format is torch.contiguous_format:
        # With one channel, both formats are the same, but not their strides, by which convolutions choose theirs.
        images = images.flatten().view(images.shape)
    return images


def best_device() -> torch.device:
    """Return the accelerator that torch would use, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator
