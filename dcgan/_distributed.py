"""Training in several processes, one device each, that are in torch's default process group.

The trainer averages gradients itself instead of wrapping the networks in `DistributedDataParallel`: that expects one
backward pass for each forward pass, and gradients for every parameter in each, while a step passes images through
the discriminator three times and freezes it for the last. The networks keep their types, names and states, and any
framework that starts processes will do.
"""

import logging
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan.ema import BATCH_NORMS

logger = logging.getLogger(__name__)


def process_count() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if process_count() > 1 else 0


def warn_if_alone() -> None:
    """Warn if a launcher has started several processes, but none of them has joined a process group."""
    started = os.environ.get("WORLD_SIZE", "1")
    if process_count() == 1 and started != "1":
        logger.warning(
            "WORLD_SIZE is %s, but there is no process group, so that each process trains networks of its own: call "
            "torch.distributed.init_process_group before you build the trainer",
            started,
        )


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside a `DistributedDataParallel`, any other as it is."""
    if dist.is_available() and isinstance(network, nn.parallel.DistributedDataParallel):
        inner: nn.Module = network.module
        return inner
    return network


@torch.no_grad()
def broadcast(networks: Sequence[nn.Module]) -> None:
    """Give all processes the parameters and buffers of the first."""
    if process_count() > 1:
        for network in networks:
            for tensor in [*network.parameters(), *network.buffers()]:
                sent = tensor.contiguous()  # processes could have different layouts
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, one message for each type of number."""
    count = process_count()
    if count == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        message = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(message)
        message /= count
        for tensor, mean in zip(group, torch.split(message, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


def average_batchnorm_statistics(networks: Iterable[nn.Module]) -> None:
    """Replace the running statistics of every BatchNorm that is in training mode by their means over all processes."""
    if process_count() > 1:
        norms = [module for network in networks for module in network.modules() if isinstance(module, BATCH_NORMS)]
        buffers = [buffer for norm in norms if norm.training for buffer in norm.buffers(recurse=False)]
        average(buffer for buffer in buffers if buffer.is_floating_point())
