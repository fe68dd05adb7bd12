"""A stand-in for CUDA graphs on the CPU: it records the kernels of a function, and repeats them without it.

As in a graph, a kernel runs again on the memory it ran on, with the numbers that Python gave it then. So whatever a
function decides or computes in Python from one call to the next is frozen here as it would be there. Unlike a graph,
the recording does execute, so everything that can change is put back afterwards.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map

from dcgan._cuda_graphs import CudaGraphStep

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Recording(TorchDispatchMode):
    """Kernels and the tensors they ran on."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.__name__.split(".")[0]
        if name in SYNCHRONISING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        before = aliases((args, kwargs))
        result = function(*args, **kwargs)
        self.kernels.append(
            (function, before, [leaf.detach() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        )
        return result

    @torch.no_grad()
    def replay(self):
        for function, before, recorded in self.kernels:
            args, kwargs = aliases(before)
            results = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for into, value in zip(recorded, results, strict=True):
                if into.data_ptr() != value.data_ptr():
                    into.copy_(value)


def aliases(tree):
    """Return the same memory under tensors whose shapes no operation in place has changed, or will."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


class RecordedStep(CudaGraphStep):
    """A `CudaGraphStep` on the CPU, which records a step of `trainer` and leaves the trainer as it was."""

    def __init__(self, trainer):
        super().__init__(trainer._train_on, trainer.device, trainer._rng, trainer._find_host_state)
        self.trainer = trainer

    @contextmanager
    def warm_up(self, *, is_last):
        yield []

    def capture(self, body):
        state = tensors_of(self.trainer)
        before = [tensor.detach().clone() for tensor in state]
        rng = self.trainer._rng.get_state()
        recording = Recording()
        try:
            with recording:
                body()
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
            self.trainer._rng.set_state(rng)
        return recording


def is_recording():
    """Return whether a step is being recorded, as `torch.cuda.is_current_stream_capturing` does."""
    return isinstance(_get_current_dispatch_mode(), Recording)


def tensors_of(trainer):
    """Return every tensor that a step writes to."""
    return [*state_of(trainer), *(v for v in vars(trainer._monitor).values() if isinstance(v, torch.Tensor))]


def state_of(trainer):
    """Return every tensor that decides the next step."""
    networks = [trainer.generator, trainer.discriminator, trainer.ema]
    tensors = [tensor for network in networks if network is not None for tensor in network.state_dict().values()]
    for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
        tensors += [
            value for moments in optimizer.state.values() for value in moments.values() if torch.is_tensor(value)
        ]
    for scaler in (trainer.g_scaler, trainer.d_scaler):
        tensors += [scaler._scale, scaler._growth_tracker] if scaler.is_enabled() else []
    return tensors
