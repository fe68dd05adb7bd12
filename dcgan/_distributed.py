"""Training in several processes, one device each, that are in torch's default process group.

The trainer averages gradients itself instead of wrapping the networks in `DistributedDataParallel`: that expects one
backward pass for each forward pass, and gradients for every parameter in each, while a step passes images through
the discriminator three times and freezes it for the last. The networks keep their types, names and states, and any
framework that starts processes will do.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan._errors import DcganError, InputError
from dcgan.ema import BATCH_NORMS

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process of ours waits for another one that has not ended, but does not answer."""

_NORMS_WITH_STATISTICS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class LostProcessError(DcganError, RuntimeError):
    """Another process has ended, or does not answer."""


@contextmanager
def _explain_loss() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LostProcessError(f"another process has ended, or does not answer: {reason}") from error


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun has started, until the block ends.

    CPU tensors and objects go through gloo, and CUDA tensors through NCCL.
    """
    # Not in builds of torch without distributed training.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    with _explain_loss():
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun may keep the store when it starts processes again: gloo would find the addresses of the dead ones.
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # after an error, it could wait for processes that have gone


def local_device(name: str) -> torch.device:
    """Return the device of this one of several processes: the CPU, or the GPU with its number on this machine.

    Raises:
        ValueError: If it is neither, or there is no GPU for this process.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda in several processes, each with its own GPU, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    rank, gpus = dist.get_node_local_rank(fallback_rank=process_rank()), torch.cuda.device_count()
    if rank >= gpus:
        raise InputError(
            f"device {name!r} needs a GPU for each process, but there are {gpus} here for process {rank}: start fewer, "
            "as torchrun --nproc-per-node gpu does"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def process_count() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if process_count() > 1 else 0


def gather(value: T) -> list[T]:
    """Return the values of all processes, which may be any that can be pickled, in their order."""
    if process_count() == 1:
        return [value]
    values: list[T] = [value] * process_count()
    with _explain_loss():
        dist.all_gather_object(values, value)
    return values


def largest(number: int) -> int:
    """Return the largest of the numbers of all processes, which must be in a group with a backend for CPU tensors."""
    if process_count() == 1:
        return number
    message = torch.tensor(number, device="cpu")
    with _explain_loss():
        dist.all_reduce(message, dist.ReduceOp.MAX)
    return int(message)


@contextmanager
def fail_together() -> Iterator[None]:
    """Let a block, in which no process waits for another, fail in all processes if it fails in one."""
    failure: DcganError | OSError | None = None
    try:
        yield
    except (DcganError, OSError) as error:
        if process_count() == 1:
            raise
        failure = error
    messages = gather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise InputError(f"process {rank}: {message}")


def compute_parts(compute: Callable[[int, int], T], number: int, size: int) -> list[T]:
    """Compute something of each of `number` images, in parts of at most `size`, each process consecutive ones of them.

    With the same `size`, a part holds the same images in any number of processes. The fastest process waits for the
    slowest one, at most as long as the timeout of the group.

    Args:
        compute: Called with the index of the first image of a part, and with that after its last one; it returns what
            can be pickled, and waits for no other process.
        number: Number of images.
        size: Number of images in a part.

    Returns:
        What `compute` has returned, in the order of the parts, in the first process; nothing in the others.
    """
    starts, rank, processes = range(0, number, size), process_rank(), process_count()
    own = starts[len(starts) * rank // processes : len(starts) * (rank + 1) // processes]
    with fail_together():
        found = [compute(start, min(start + size, number)) for start in own]
    if processes == 1:
        return found
    gathered: list[list[T]] | None = [[]] * processes if rank == 0 else None
    with _explain_loss():
        dist.gather_object(found, gathered)
    return list(chain.from_iterable(gathered or []))


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
        ValueError: If the networks of the processes differ in more than their values, or each process holds a part.
    """
    if process_count() == 1:
        return
    if any(map(_is_sharded, networks)):
        raise InputError("each process must hold whole networks, got some that FSDP has split: leave them unwrapped")
    tensors = [tensor for network in networks for tensor in _named_tensors(network)]
    layout = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    layouts = gather(layout)
    for rank, other in enumerate(layouts):
        if other != layouts[0]:
            ours, theirs = next(pair for pair in zip_longest(layouts[0], other) if pair[0] != pair[1])
            raise InputError(
                f"the networks of all processes must be the same, but process 0 has {ours}, and process {rank} {theirs}"
            )
    for _, tensor in tensors:
        own = tensor.contiguous().flatten().view(torch.uint8)  # bytes, whatever its layout and type of number
        first = own.clone()
        with _explain_loss():
            dist.broadcast(first, src=0)
        if not torch.equal(own, first):
            tensor.copy_(first.view(tensor.dtype).view(tensor.shape))


def _is_sharded(network: nn.Module) -> bool:
    # By name, for these take long to import.
    wrapped = any(type(part).__name__ == "FullyShardedDataParallel" for part in network.modules())
    return wrapped or any(type(parameter.data).__name__ == "DTensor" for parameter in network.parameters())


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
        with _explain_loss():
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
