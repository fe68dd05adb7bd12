"""A function of tensors, captured once as a CUDA graph and replayed.

A training step of a small GAN is hundreds of short kernels: launched one by one, they keep the GPU waiting for Python.
A graph launches them all at once.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakMethod, WeakValueDictionary

import torch
from torch import Tensor

from dcgan._compat import end_failed_capture, graphs_register_generators

logger = logging.getLogger(__name__)

Step = Callable[..., dict[str, Tensor]]

WARM_UP_CALLS = 3  # before the capture: libraries choose kernels and optimisers make their state in the first ones
MAX_GRAPHS = 8
_MANY_KINDS = 4 * MAX_GRAPHS
_STREAMS = 32  # in PyTorch's pool, of a device


class WeakCall:
    """Calls a method without keeping its object alive, which would otherwise go only with the garbage collector."""

    def __init__(self, method: Callable[..., Any]):
        self._method = WeakMethod(method)

    def __call__(self, *arguments: Any) -> Any:
        """Call it, while its object is alive."""
        method = self._method()
        return method(*arguments) if method is not None else None

    def __reduce__(self) -> tuple[type["WeakCall"], tuple[Callable[..., Any] | None]]:
        return WeakCall, (self._method(),)  # a copy is bound to the copy of the object


class CudaGraphStep:
    """`step(mode, *tensors)`, run eagerly at first, then as one CUDA graph for each key.

    A key is the mode, the `hyperparameters`, and the shapes and types of the tensors: calls that launch different
    kernels must have different keys. Everything else that the step reads or writes must stay at its address. A key
    that cannot be captured keeps running eagerly; the reason is logged once. Graphs share their memory, since a step
    leaves nothing in it that another one reads, and the workspace of cuBLAS, which is freed with the first of them:
    beyond `MAX_GRAPHS` all are dropped, and captured anew as they are used.

    Args:
        step: Returns scalars by name.
        device: A CUDA device.
        rng: The generator on this device that the step draws from, besides the default one.
        find_obstacle: Asked before each capture for what would make a graph wrong, or None.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        rng: torch.Generator,
        find_obstacle: Callable[[], str | None],
    ):
        self._step, self._device, self._rng, self._find_obstacle = step, device, rng, find_obstacle
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # of a type that torch does not export
        self._calls: dict[Hashable, int] = {}  # by thread and key: libraries have handles for each thread
        self._graphs: dict[Hashable, _Replay] = {}
        self._refused: set[Hashable] = set()
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A copy captures its own graphs: these belong to this process and to the tensors of this step.
        fresh = CudaGraphStep(self._step, self._device, self._rng, self._find_obstacle)
        return {**vars(self), **vars(fresh)}

    def __call__(self, mode: Hashable, *tensors: Tensor, hyperparameters: Hashable = ()) -> dict[str, Tensor]:
        """Compute `step(mode, *tensors)`."""
        key = (mode, hyperparameters, *((tensor.shape, tensor.dtype) for tensor in tensors))
        calls = 0
        if key not in self._graphs and key not in self._refused:
            calls = self._count((threading.current_thread(), key))
            if calls > WARM_UP_CALLS:
                self._capture_for(key, mode, tensors)
        if key in self._graphs:
            return self._graphs[key](tensors)
        with self.warm_up(is_last=calls == WARM_UP_CALLS) as obstacles:
            results = self._step(mode, *tensors)
        if obstacles:
            self._refuse(key, obstacles[0])
        return results

    def reset(self) -> None:
        """Drop all graphs, and try refused keys again: something that a step reads or writes has moved."""
        self._drop_graphs()
        self._refused, self._warned = set(), set()

    def _drop_graphs(self) -> None:
        # A pool without graphs cannot be used again.
        self._calls, self._graphs, self._pool = {}, {}, None

    def _count(self, key: Hashable) -> int:
        if len(self._calls) > 100 * MAX_GRAPHS:
            self._calls = {}  # keys that never recur, such as those of a changing learning rate
        self._calls[key] = self._calls.get(key, 0) + 1
        if len(self._calls) == _MANY_KINDS:
            self._warn(
                f"{_MANY_KINDS} kinds of steps have come, each of which needs a CUDA graph of its own: if the learning "
                "rate changes at every step, pass it as a tensor on the device, lr=torch.tensor(2e-4, device='cuda') "
                "with capturable=True"
            )
        return self._calls[key]

    def _capture_for(self, key: Hashable, mode: Hashable, tensors: tuple[Tensor, ...]) -> None:
        if obstacle := self._find_obstacle():
            self._refuse(key, obstacle)
            return
        if len(self._graphs) == MAX_GRAPHS:
            self._drop_graphs()
        try:
            self._graphs[key] = _Replay(self._step, self.capture, mode, tensors)
        except BaseException as error:
            self._drop_graphs()
            if not isinstance(error, Exception):
                raise
            self._refuse(key, first_line(error))  # the eager step goes on, or raises it again
            return
        logger.info("captured the training step as a CUDA graph")

    def _refuse(self, key: Hashable, reason: str) -> None:
        self._refused.add(key)
        self._warn(f"steps of this kind run without a CUDA graph: they cannot be captured ({reason})")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    @contextmanager
    def warm_up(self, *, is_last: bool) -> Iterator[list[str]]:
        """Run a call before the capture; after the last one, the list holds what would prevent capturing."""
        # On the stream that is captured later, so that what autograd and libraries bind to a stream is bound to it.
        stream, current = self._capture_stream(), torch.cuda.current_stream(self._device)
        watch: AbstractContextManager[list[str]] = find_synchronizations() if is_last else nullcontext([])
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), cudnn_benchmark(enabled=True), watch as obstacles:
                yield obstacles
        finally:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture what `body` launches, without executing it.

        Raises:
            BaseException: What `body` raises, such as an interrupt, or what it does that cannot be captured. The device
                can be used as before, but earlier graphs must be dropped, since their workspace is freed, and before
                torch 2.14 the random numbers of all graphs in the process no longer follow the generators' seeds.
        """
        graph, stream = torch.cuda.CUDAGraph(), self._capture_stream()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if not graphs_register_generators():
            with torch.cuda.device(self._device):  # where the states of the generators are put
                graph.register_generator_state(self._rng)
        raised: BaseException | None = None
        try:
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),  # restores it on failure too
                # cuDNN uses the algorithms that it timed in the warm-up all the same. It chooses others by rules here,
                # since timing them would break the capture.
                cudnn_benchmark(enabled=False),
                # Other threads may pin and copy batches meanwhile.
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                try:
                    body()
                except BaseException as error:
                    raised = error
                    raise
        except BaseException:
            torch.clear_autocast_cache()  # of casts that were captured, but never computed
            if not graphs_register_generators():
                end_failed_capture(self._device, self._pool)
                for rng in (self._rng, torch.cuda.default_generators[self._device.index]):
                    rng.graphsafe_set_state(rng.clone_state())  # as it was before, and not in the midst of a capture
            graph.reset()  # now, and not when its traceback goes: that would free the workspace of later graphs
            if raised is None:
                raise
        if raised is None:
            return graph
        try:
            raise raised  # ending the capture may raise another error, which says only that there was one before
        finally:
            raised = None  # its traceback holds this frame, which would keep the tensors of the step alive

    def _capture_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = _unused_stream(self._device)
            _owners[self._stream.cuda_stream] = self
        return self._stream


_owners: WeakValueDictionary[int, CudaGraphStep] = WeakValueDictionary()  # of streams


def _unused_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of PyTorch's pool that no other step captures on, if there is one.

    With torch 2.14, a graph that goes frees the workspace of cuBLAS of its stream, which others would still use.
    """
    for _ in range(_STREAMS):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it without types
        if stream.cuda_stream not in _owners:
            break
    return stream


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
        logger.warning("the networks are not compiled: %s", first_line(error))
        return False
    return True


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
def cudnn_benchmark(*, enabled: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms on the first call with a shape, which pays off if shapes stay the same, or not.

    Where deterministic algorithms were asked for, it is never made to: two runs may find another one the fastest.
    """
    before = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark = enabled and (before or not deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
