"""A function of tensors, captured once as a CUDA graph and replayed.

A training step of a small GAN is hundreds of short kernels: launched one by one, they keep the GPU waiting for Python.
A graph launches them all at once.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from dcgan._compat import release_from_capture

logger = logging.getLogger(__name__)

Step = Callable[..., dict[str, Tensor]]

WARM_UP_CALLS = 3  # before the capture: libraries choose kernels and optimisers make their state in the first ones
MAX_GRAPHS = 8  # each holds a step's memory


class CudaGraphStep:
    """`step(mode, *tensors)`, run eagerly at first, then as one CUDA graph for each key.

    A key is the mode, the `hyperparameters`, and the shapes and types of the tensors: calls that launch different
    kernels must have different keys. Everything else that the step reads or writes must stay at its address. A step
    that cannot be captured keeps running eagerly, which is logged once.

    Args:
        step: Returns scalars by name.
        device: A CUDA device.
        rng: The generator on this device that the step draws from.
    """

    def __init__(self, step: Step, device: torch.device, rng: torch.Generator):
        self._step, self._device, self._rng = step, device, rng
        self._stream: torch.cuda.Stream | None = None
        self._calls: dict[Hashable, int] = {}
        self._warm_up_began = 0.0
        self._graphs: dict[Hashable, _Replay] = {}
        self._disabled = False

    def __call__(self, mode: Hashable, *tensors: Tensor, hyperparameters: Hashable = ()) -> dict[str, Tensor]:
        """Compute `step(mode, *tensors)`."""
        key = (mode, hyperparameters, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key in self._graphs or self._captured(key, mode, tensors):
            return self._graphs[key](tensors)
        with self.warm_up(is_last=self._calls.get(key) == WARM_UP_CALLS) as obstacles:
            results = self._step(mode, *tensors)
        if obstacles:
            self._disable(obstacles[0])
        return results

    def reset(self) -> None:
        """Drop all graphs: something they read or write has moved."""
        self._calls, self._graphs = {}, {}

    def _captured(self, key: Hashable, mode: Hashable, tensors: tuple[Tensor, ...]) -> bool:
        if self._disabled:
            self._calls = {}
            return False
        if len(self._calls) > 100 * MAX_GRAPHS:
            self._calls = {}  # keys that never recur, such as those of a changing learning rate
        if not self._calls.get(key):
            self._warm_up_began = time.perf_counter()
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= WARM_UP_CALLS:
            return False
        if len(self._graphs) == MAX_GRAPHS:
            self._disable(f"there are {MAX_GRAPHS} CUDA graphs already")
            return False
        try:
            self._graphs[key] = _Replay(self._step, self.capture, mode, tensors)
        except RuntimeError as error:
            self._disable(str(error).strip().splitlines()[0])
            return False
        seconds = time.perf_counter() - self._warm_up_began
        logger.info("captured the training step as a CUDA graph, %.1f s after its first call", seconds)
        return True

    def _disable(self, reason: str) -> None:
        self._disabled = True
        logger.warning("no further CUDA graphs: the training step cannot be captured (%s)", reason)

    @contextmanager
    def warm_up(self, *, is_last: bool) -> Iterator[list[str]]:
        """Run a call before the capture; after the last one, the list holds what would prevent capturing."""
        # On the stream that is captured later, so that what autograd and libraries bind to a stream is bound to it.
        stream, current = self._capture_stream(), torch.cuda.current_stream(self._device)
        watch: AbstractContextManager[list[str]] = find_synchronizations() if is_last else nullcontext([])
        stream.wait_stream(current)
        with torch.cuda.stream(stream), cudnn_benchmark(), watch as obstacles:
            yield obstacles
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture what `body` launches, without executing it.

        Raises:
            RuntimeError: If it does something that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._rng)
        try:
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),  # restores it on failure too
                cudnn_benchmark(),
                # Other threads may pin and copy batches meanwhile.
                torch.cuda.graph(graph, stream=self._capture_stream(), capture_error_mode="thread_local"),
            ):
                body()
        except RuntimeError:
            release_from_capture(self._rng)
            raise
        return graph

    def _capture_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch leaves it without types
        return self._stream


class _Replay:
    """A captured graph with its own input and output tensors."""

    def __init__(
        self,
        step: Step,
        capture: Callable[[Callable[[], None]], torch.cuda.CUDAGraph],
        mode: Hashable,
        tensors: tuple[Tensor, ...],
    ):
        self._inputs = [tensor.clone() for tensor in tensors]
        self._names: list[str] = []
        self._values = torch.empty(0)

        def body() -> None:
            results = step(mode, *self._inputs)
            self._names, self._values = list(results), torch.stack(list(results.values()))

        self._graph = capture(body)

    def __call__(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for static, given in zip(self._inputs, tensors, strict=True):
            static.copy_(given)
        self._graph.replay()
        # Copied, since the next replay overwrites them.
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` works for a device; log what is missing, such as Triton."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - what is missing decides what is raised
        logger.warning("the networks are not compiled: %s", str(error).strip().splitlines()[0])
        return False
    return True


@contextmanager
def find_synchronizations() -> Iterator[list[str]]:
    """Collect the lines of code that wait for the device, which a graph cannot do, before a capture fails on them."""
    waits: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing CUDA operation" in str(warning.message):
            waits.append(f"{warning.filename}, line {warning.lineno}, waits for the device")
        elif "Synchronization debug mode is a prototype" not in str(warning.message):  # about the mode itself
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time its algorithms on the first call with a shape, which pays off if shapes stay the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
