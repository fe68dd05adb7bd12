"""A function of tensors, recorded once as a CUDA graph and replayed.

A training step of a small GAN is hundreds of short kernels: launched one by one, they keep the GPU waiting for Python.
A graph launches them all at once.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Work = Callable[..., dict[str, Tensor]]

_WARM_UP = 3  # calls before recording: libraries choose kernels and optimisers make their state in the first ones
_MOST = 8  # graphs, each of which holds a step's memory


class Recording(Protocol):
    """Work that can be repeated on whatever its input tensors hold by then."""

    def replay(self) -> None:
        """Repeat it."""


Recorder = Callable[[Callable[[], None]], Recording]
Beside = Callable[[bool], AbstractContextManager[list[str]]]


class CudaGraphStep:
    """`work(kind, *tensors)`, run as it is at first, then replayed.

    `kind` and the shapes and types of the tensors have to tell apart all calls that launch other kernels, and what
    `work` reads and writes besides has to stay where it is in memory. What cannot be recorded runs as it is for good,
    and is said once.

    Args:
        work: Returns scalars by name.
        record: Makes a recording of a function without executing it.
        beside: Context of calls before a recording. Told whether the next is to be one, it yields a list of what will
            stand in its way.
    """

    def __init__(self, work: Work, record: Recorder, beside: Beside):
        self._work, self._record, self._beside = work, record, beside
        self._calls: dict[Hashable, int] = {}
        self._began = 0.0
        self._replays: dict[Hashable, _Replay] = {}
        self._refused = False

    def __call__(self, kind: Hashable, *tensors: Tensor) -> dict[str, Tensor]:
        """Compute `work(kind, *tensors)`."""
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key in self._replays or self._recorded(key, kind, tensors):
            return self._replays[key](tensors)
        with self._beside(self._calls.get(key) == _WARM_UP) as obstacles:
            results = self._work(kind, *tensors)
        if obstacles:
            self._refuse(obstacles[0])
        return results

    def forget(self) -> None:
        """Drop all recordings: something they read or write has moved."""
        self._calls, self._replays = {}, {}

    def _recorded(self, key: Hashable, kind: Hashable, tensors: tuple[Tensor, ...]) -> bool:
        if self._refused:
            self._calls = {}
            return False
        if len(self._calls) > 100 * _MOST:
            self._calls = {}  # kinds that never come back, such as those of a changing learning rate
        if not self._calls.get(key):
            self._began = time.perf_counter()
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= _WARM_UP:
            return False
        if len(self._replays) == _MOST:
            self._refuse(f"{_MOST} kinds of step are recorded already")
            return False
        try:
            self._replays[key] = _Replay(self._work, self._record, kind, tensors)
        except RuntimeError as error:
            self._refuse(str(error).strip().splitlines()[0])
            return False
        logger.info("the step is captured, %.1f s after the first of its kind", time.perf_counter() - self._began)
        return True

    def _refuse(self, reason: str) -> None:
        self._refused = True
        logger.warning("further kinds of step run kernel by kernel, for they cannot be captured: %s", reason)


class _Replay:
    """One recording, with tensors of its own for what goes in and what comes out."""

    def __init__(self, work: Work, record: Recorder, kind: Hashable, tensors: tuple[Tensor, ...]):
        self._inputs = [tensor.clone() for tensor in tensors]
        self._names: list[str] = []
        self._values = torch.empty(0)

        def body() -> None:
            results = work(kind, *self._inputs)
            self._names, self._values = list(results), torch.stack(list(results.values()))

        self._recording = record(body)

    def __call__(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        self._recording.replay()
        # Copied, for the next replay writes over them.
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))


def on_cuda(work: Work, device: torch.device, rng: torch.Generator) -> CudaGraphStep:
    """Capture `work`, which draws from `rng`, as CUDA graphs."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it without types

    @contextmanager
    def beside(last: bool) -> Iterator[list[str]]:  # noqa: FBT001 - its only argument
        # On the stream that is captured later, so that what autograd and the libraries tie to a stream is tied to it.
        noting: AbstractContextManager[list[str]] = _noted_waits() if last else nullcontext([])
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), fastest_convolutions(), noting as waits:
            yield waits
        torch.cuda.current_stream(device).wait_stream(stream)

    def record(body: Callable[[], None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(rng)
        try:
            with (
                torch.cuda.stream(torch.cuda.current_stream(device)),  # so that it is that again after a failure, too
                fastest_convolutions(),
                # Other threads may go on to pin and copy batches meanwhile.
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                body()
        except RuntimeError:
            # A failed capture leaves the generator waiting for its end: give it a state that is not.
            rng.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
            raise
        return graph

    return CudaGraphStep(work, record, beside)


def can_compile(device: torch.device) -> bool:
    """Tell whether `torch.compile` has all it needs for a device, such as Triton and a C compiler; say so if not."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - what is missing decides what is raised
        logger.warning("the networks are not compiled: %s", str(error).strip().splitlines()[0])
        return False
    return True


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Note where work waits for the device, which no graph can: better known before a capture than by its failure."""
    waits: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing CUDA operation" in str(warning.message):
            waits.append(f"{warning.filename}, line {warning.lineno}, waits for the device")
        elif "Synchronization debug mode is a prototype" not in str(warning.message):  # which it says of itself
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Have cuDNN time its algorithms at the first meeting of a shape, which pays where shapes stay the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
