"""Training in several processes, one device each, that are in torch's default process group.

The trainer averages gradients itself instead of wrapping the networks in `DistributedDataParallel`: that expects one
backward pass for each forward pass, and gradients for every parameter in each, while a step passes images through
the discriminator three times and freezes it for the last. The networks keep their types, names and states, and any
framework that starts processes will do.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan._errors import InputError
from dcgan.ema import BATCH_NORMS

logger = logging.getLogger(__name__)

_NORMS_WITH_STATISTICS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def process_count() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if process_count() > 1 else 0


def warn_if_alone() -> None:
    """Warn if a launcher has started several processes, but none of them has joined a process group."""
    started = os.environ.get("WORLD_SIZE", "")
    if started not in ("", "1") and dist.is_available() and not dist.is_initialized():
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
    """Give all processes the parameters and buffers of the first.

    Raises:
        ValueError: If the networks of the processes differ in more than their values.
    """
    if process_count() == 1:
        return
    tensors = [tensor for network in networks for tensor in _named_tensors(network)]
    layout = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    layouts: list[list[tuple[str, tuple[int, ...], str]]] = [[] for _ in range(process_count())]
    dist.all_gather_object(layouts, layout)
    for rank, other in enumerate(layouts):
        if other != layouts[0]:
            ours, theirs = next(pair for pair in zip_longest(layouts[0], other) if pair[0] != pair[1])
            raise InputError(
                f"the networks of all processes must be the same, but process 0 has {ours}, and process {rank} {theirs}"
            )
    for _, tensor in tensors:
        own = tensor.contiguous().flatten().view(torch.uint8)  # bytes, whatever its layout and type of number
        first = own.clone()
        dist.broadcast(first, src=0)
        if not torch.equal(own, first):
            tensor.copy_(first.view(tensor.dtype).view(tensor.shape))


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
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


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; one that is missing in a process counts there as zero."""
    if process_count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    missing = [index for index, parameter in enumerate(trained) if parameter.grad is None]
    for index in missing:
        trained[index].grad = torch.zeros_like(trained[index])
    # Of each parameter, the share of processes that have a gradient.
    present = torch.ones(len(trained), device=trained[0].device)
    if missing:  # an empty list would be copied to the device, which a CUDA graph cannot hold
        present[missing] = 0
    average([*(parameter.grad for parameter in trained if parameter.grad is not None), present])
    for index in missing:
        if present[index] == 0:  # an optimiser passes over it, as in one process
            trained[index].grad = None


def average_statistics(networks: Iterable[nn.Module]) -> None:
    """Replace the running statistics of norms that are in training mode by their means over all processes."""
    if process_count() > 1:
        modules = [module for network in networks for module in network.modules()]
        norms = [module for module in modules if isinstance(module, _NORMS_WITH_STATISTICS) and module.training]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        average([buffer for buffer in buffers if buffer.is_floating_point()])
