"""A recorded step is the step itself: whatever Python computes anew for each has to lie in a tensor.

CUDA graphs need a GPU. Here a recorder stands in for them that repeats the recorded kernels, on the memory they ran
on; tests/test_gpu.py compares the real ones.
"""

import copy
import gc
import logging
import pickle
import re
import threading
import warnings
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from recorder import RecordedStep, is_recording, state_of

import dcgan.trainer
from dcgan import Discriminator, Generator, Trainer, _cuda_graphs
from dcgan._devices import device_defaults
from dcgan._optim import hyperparameters

OPTIONS = [
    {},
    {"ema_decay": None},
    {"ema_decay": 0.5},
    {"loss": "hinge", "d_steps": 3},
    {"loss": "wasserstein", "gradient_penalty": 10.0, "d_norm": "layer"},
    {"loss": "least-squares", "label_smoothing": 0.1, "schedule": "alternate", "d_steps": 2},
    {"r1": 1.0, "d_norm": "none", "augmentations": ("color", "translation", "cutout")},
    {"precision": "bf16"},
    {"precision": "fp16", "d_steps": 2},
    {"latent": "uniform", "weight_decay": 1e-3},
]


def trainer_of(*, captured, d_norm="batch", **options):
    torch.manual_seed(0)
    small = {"image_size": 16, "channels": 1, "base_channels": 2}
    generator, discriminator = Generator(latent_dim=4, **small), Discriminator(norm=d_norm, **small)
    trainer = Trainer(generator, discriminator, seed=5, **options)
    if captured:
        trainer._cuda_graphs = RecordedStep(trainer)
    return trainer


def batches(n, size=6):
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (size, 1, 16, 16), dtype=torch.uint8, generator=rng) for _ in range(n)]


def assert_same(one, other):
    for ours, theirs in zip(state_of(one), state_of(other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(map(str, options)) or "default" for options in OPTIONS])
def test_steps_and_states_are_the_same_bits(options):
    captured, plain = trainer_of(captured=True, **options), trainer_of(captured=False, **options)
    kept = []
    for real in batches(40):
        metrics, expected = captured.step(real), plain.step(real)
        assert metrics.keys() == expected.keys()
        kept.append((metrics, expected))
    assert captured._cuda_graphs._graphs
    assert_same(captured, plain)
    for metrics, expected in kept:  # read only now: no replay may have written over what an earlier one returned
        for name, value in expected.items():
            assert torch.equal(metrics[name], value)


@pytest.mark.parametrize("steps", [1, 50, pytest.param(500, marks=pytest.mark.slow)])
def test_one_recorded_step_from_any_point_of_a_run_equals_one_eager_step(steps):
    captured = trainer_of(captured=True)
    stream = batches(20)
    for index in range(steps):
        captured.step(stream[index % 20])
    plain = trainer_of(captured=False)
    plain.load_state_dict(captured.state_dict())
    expected, metrics = plain.step(stream[0]), captured.step(stream[0])
    for name, value in expected.items():
        assert torch.equal(metrics[name], value)
    assert_same(captured, plain)


def test_training_continues_from_a_loaded_state_with_other_tensors():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for real in batches(8):
        captured.step(real)
    state = copy.deepcopy(captured.state_dict())
    for real in batches(9)[8:]:
        captured.step(real)
    for trainer in (captured, plain):
        trainer.load_state_dict(state)
        for real in batches(8):
            trainer.step(real)
    assert_same(captured, plain)


def test_batches_of_another_size_and_kind_are_steps_of_their_own():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for size in (6, 6, 6, 6, 4, 6, 4, 4, 4, 4, 6):
        for trainer in (captured, plain):
            trainer.step(batches(1, size)[0])
            trainer.step(batches(1, size)[0] / 127.5 - 1)
    assert len(captured._cuda_graphs._graphs) == 4
    assert_same(captured, plain)


def test_a_new_learning_rate_takes_effect():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for index, real in enumerate(batches(20)):
        for trainer in (captured, plain):
            trainer.g_optimizer.param_groups[0]["lr"] = 1e-3 if index < 10 else 1e-4
            trainer.step(real)
    assert len(captured._cuda_graphs._graphs) == 2
    assert_same(captured, plain)


@pytest.mark.parametrize(("device", "kinds"), [("cpu", 2), ("meta", 1)])  # the second stands for a CUDA device
def test_a_learning_rate_in_a_tensor_is_a_setting_only_on_the_host(device, kinds):
    lr = torch.tensor(1e-3, device=device)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], capturable=True)
    optimizer.param_groups[0]["lr"] = lr
    seen = {hyperparameters(g_optimizer=optimizer)}
    lr.fill_(5.0)
    seen.add(hyperparameters(g_optimizer=optimizer))
    assert len(seen) == kinds


def test_settings_of_any_kind_are_told_apart():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for trainer in (captured, plain):
        trainer.d_optimizer.param_groups[0]["betas"] = [0.5, 0.999]
        for real in batches(6):
            trainer.step(real)
    assert len(captured._cuda_graphs._graphs) == 1
    assert_same(captured, plain)


def test_a_learning_rate_that_changes_at_every_step_is_never_recorded_and_the_cure_is_logged_once(caplog):
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for index, real in enumerate(batches(40)):
        for trainer in (captured, plain):
            trainer.g_optimizer.param_groups[0]["lr"] = 1e-3 / (index + 1)
            trainer.step(real)
        assert ("32 kinds of steps" in caplog.text) == (index >= 31)
    assert not captured._cuda_graphs._graphs
    assert caplog.text.count("pass it as a tensor on the device") == 1
    assert_same(captured, plain)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "operation not permitted when stream is capturing: _local_scalar_dense"),
        (
            AttributeError("no attribute 'register_generator_state'\nMore of it"),
            "no attribute 'register_generator_state'",
        ),
        (AssertionError(), "AssertionError"),
    ],
    ids=["waits", "lacks", "asserts"],
)
def test_whatever_fails_in_a_capture_the_steps_are_the_plain_ones_and_it_is_logged_once(error, reason, caplog):
    trainer, plain = (trainer_of(captured=captured, loss="hinge", d_steps=2) for captured in (True, False))
    update = trainer._cuda_graphs._step

    def failing(*arguments):
        metrics = update(*arguments)
        if is_recording():
            if error is None:
                metrics["d_loss"].item()
            try:
                int("")
            except ValueError:
                raise error  # noqa: B904 - the reason is this one, and not what it came from
        return metrics

    trainer._cuda_graphs._step = failing
    with caplog.at_level(logging.WARNING, "dcgan"):
        for real in batches(20):
            trainer.step(real)
            plain.step(real)
    (record,) = caplog.records
    assert record.getMessage() == f"steps of this kind run without a CUDA graph: they cannot be captured ({reason})"
    assert_same(trainer, plain)


def test_one_kind_of_step_that_cannot_be_recorded_does_not_keep_the_others_from_it(caplog):
    trainer, plain = (trainer_of(captured=captured, d_steps=2) for captured in (True, False))
    update = trainer._cuda_graphs._step

    def failing(turns, *tensors):
        if is_recording() and turns == (True, True):
            raise RuntimeError("not this one")
        return update(turns, *tensors)

    trainer._cuda_graphs._step = failing
    recorded = []
    for real in batches(24):
        trainer.step(real)
        plain.step(real)
        recorded.append([key[0] for key in trainer._cuda_graphs._graphs])
    # The first kind was recorded before the failure, dropped with it, and recorded anew.
    assert [len(turns) for turns in recorded] == [0] * 6 + [1] + [0] * 7 + [1] * 10
    assert recorded[6] == recorded[-1] == [(True, False)]
    assert caplog.text.count("cannot be captured") == 1
    assert_same(trainer, plain)
    trainer._cuda_graphs.reset()
    trainer._cuda_graphs._step = update
    for real in batches(8):
        trainer.step(real)
        plain.step(real)
    assert [key[0] for key in trainer._cuda_graphs._graphs] == [(True, False), (True, True)]
    assert_same(trainer, plain)


def test_an_interrupt_during_a_recording_passes_and_drops_the_others():
    trainer = trainer_of(captured=True)
    for real in batches(4):
        trainer.step(real)
    assert trainer._cuda_graphs._graphs
    update = trainer._cuda_graphs._step

    def interrupted(*arguments):
        if is_recording():
            raise KeyboardInterrupt
        return update(*arguments)

    trainer._cuda_graphs._step = interrupted
    stream = batches(4, size=4)
    for real in stream[:3]:
        trainer.step(real)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(stream[3])
    assert not trainer._cuda_graphs._graphs
    trainer._cuda_graphs._step = update
    for real in stream:
        trainer.step(real)
    assert len(trainer._cuda_graphs._graphs) == 1  # the kind was not refused


def test_each_thread_warms_up_on_its_own():
    trainer, plain = trainer_of(captured=True), trainer_of(captured=False)
    stream = batches(8)

    def train(part):
        for real in part:
            trainer.step(real)
        recorded.append(len(trainer._cuda_graphs._graphs))

    recorded = []
    train(stream[:3])
    for part in (stream[3:4], stream[4:6], stream[6:7]):
        thread = threading.Thread(target=train, args=(part,))
        thread.start()
        thread.join()
    train(stream[7:])
    assert recorded == [0, 0, 0, 0, 1]
    for real in stream:
        plain.step(real)
    assert_same(trainer, plain)


class Counting(torch.optim.SGD):
    """An optimiser that counts its steps in Python, and divides its rate by their number."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["steps"] = state.get("steps", 0) + 1
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / state["steps"])


def test_an_optimiser_that_counts_on_the_host_is_not_recorded(caplog):
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for trainer in (captured, plain):
        trainer._g_optimizer = Counting(trainer.generator.parameters(), lr=0.1)
        for real in batches(8):
            trainer.step(real)
    assert not captured._cuda_graphs._graphs
    assert "they cannot be captured (Counting keeps 'steps' on the host)" in caplog.text
    assert_same(captured, plain)


def test_a_step_that_was_seen_to_wait_is_never_recorded(caplog):
    trainer = trainer_of(captured=True)
    asked = []

    def warm_up(*, is_last):
        asked.append(is_last)
        return nullcontext(["train.py, line 7, waits for the device"] if is_last else [])

    trainer._cuda_graphs.warm_up = warm_up
    for real in batches(6):
        trainer.step(real)
    assert asked == [False, False, True, False, False, False]
    assert not trainer._cuda_graphs._graphs
    (record,) = caplog.records
    assert record.getMessage().endswith("cannot be captured (train.py, line 7, waits for the device)")


def test_waits_are_listed_by_line_and_other_warnings_passed_on(monkeypatch):
    modes = ["default"]

    def set_mode(mode):
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _cuda_graphs.find_synchronizations() as waits:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else"]
    (wait,) = waits
    assert re.search(r"test_cuda_graphs.py, line \d+, waits for the device$", wait)
    assert modes == ["default", "warn", "default"]


class FakeState:
    def __init__(self, seed):
        self.seed, self.capturing = seed, False


class FakeGenerator:
    """A CUDA generator of torch before 2.14, which a capture that fails leaves capturing."""

    def __init__(self, seed):
        self.state = FakeState(seed)

    def clone_state(self):
        return FakeGenerator(self.state.seed)

    def graphsafe_set_state(self, other):
        self.state = other.state

    def draw(self):
        if self.state.capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return self.state.seed


class FakeGraph:
    """A graph with the states of the generators that take part, its stream, and the pool that it has to release."""

    def __init__(self, cuda):
        self.cuda, self.states, self.stream, self.pool = cuda, [], None, None

    def replay(self):
        if self not in self.cuda.valid:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def reset(self):
        if self.pool is not None:
            for graph in [graph for graph in self.cuda.valid if graph.stream == self.stream]:
                self.cuda.valid.remove(graph)  # it uses the workspace of cuBLAS, which is freed
            self.cuda.release_pool(0, self.pool)
            self.pool = None

    __del__ = reset


class OldFakeGraph(FakeGraph):
    """The newest torch has no method to add a generator."""

    def register_generator_state(self, rng):
        self.states = [self.cuda.default.state, rng.state]


class SideStream(str):
    """A stream by its name."""

    cuda_stream = 1


class FakeCapture:
    """`torch.cuda.graph`, a class as well: CPython 3.12 keeps alive what fails within a generator's context."""

    def __init__(self, cuda, graph, pool, stream, mode):
        self.cuda, self.graph, self.pool, self.stream, self.mode = cuda, graph, pool, stream, mode

    def __enter__(self):
        cuda, pool = self.cuda, self.pool
        cuda.used.append((pool, self.stream, self.mode))
        assert cuda.uses.get(pool, 1) > 0, "use_count > 0 INTERNAL ASSERT FAILED"
        cuda.uses[pool] = cuda.uses.get(pool, 0) + 1
        cuda.streams.append(self.stream)
        cuda.pools.add(pool)
        cuda.benchmarks.append(torch.backends.cudnn.benchmark)
        for state in self.graph.states:
            state.capturing = True
        self.graph.stream = self.stream
        if not cuda.old:
            self.graph.pool = pool  # which it releases, even if the capture fails

    def __exit__(self, kind, *_):
        if kind in (ZeroDivisionError, KeyboardInterrupt):  # the capture is broken, and ending it fails, too
            if not self.cuda.old:
                self.cuda.end_allocate_to_pool(0, self.pool)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.cuda.end_capture(self.graph, self.pool)  # a LookupError stands for what is wrong in Python only


class FakeCuda:
    """What `CudaGraphStep` uses of torch, with the state that a capture leaves behind.

    `pools` are those that the allocator is still told to use; in torch 2.11, a capture that fails does not end that.
    `uses` counts the captures and graphs of each pool. `valid` are the graphs whose memory is as they left it.
    """

    def __init__(self, monkeypatch, *, version):
        self.old = version < "2.14"
        self.default, self.own = FakeGenerator(1), FakeGenerator(2)
        self.pools, self.uses, self.valid = set(), {}, WeakSet()
        self.used, self.benchmarks, self.streams, self.ended_by_hand = [], [], ["user's"], 0
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: (OldFakeGraph if self.old else FakeGraph)(self))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: SideStream("side"))
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.streams[-1])
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1 + len(self.used)))
        monkeypatch.setattr(torch.cuda, "default_generators", (self.default,))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_by_hand, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release_pool, raising=False)
        self.step = _cuda_graphs.CudaGraphStep(self.run, torch.device("cuda", 0), self.own, lambda: None)
        monkeypatch.setattr(self.step, "warm_up", lambda **_: nullcontext([]))

    def run(self, mode, tensor):
        return {"sum": tensor.sum()}

    def graph(self, graph, *, pool, stream, capture_error_mode):
        return FakeCapture(self, graph, pool, stream, capture_error_mode)

    def end_capture(self, graph, pool):
        for state in graph.states:
            state.capturing = False
        self.end_allocate_to_pool(0, pool)
        graph.pool = pool
        self.valid.add(graph)
        self.streams.pop()

    @contextmanager
    def stream(self, stream):
        before = list(self.streams)
        try:
            yield
        finally:
            self.streams[:] = before

    def end_by_hand(self, device, pool):
        self.ended_by_hand += 1
        self.end_allocate_to_pool(device, pool)

    def end_allocate_to_pool(self, device, pool):
        if device != 0 or pool not in self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)

    def release_pool(self, device, pool):
        assert device == 0
        assert self.uses[pool] > 0
        self.uses[pool] -= 1


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, LookupError])
@pytest.mark.parametrize("version", ["2.11.0", "2.14.0a0+git1", "2.14.1+cu130"])
def test_a_capture_that_fails_leaves_the_device_as_it_was(version, error, monkeypatch):
    cuda = FakeCuda(monkeypatch, version=version)
    states = cuda.own.state, cuda.default.state
    graphs = [cuda.step.capture(lambda: None)]
    assert (cuda.own.state, cuda.default.state) == states

    alive = WeakSet()

    def fail():
        activation = torch.zeros(1)
        alive.add(activation)
        raise error("the cause")

    with pytest.raises(error, match="the cause") as caught:
        cuda.step.capture(fail)
    assert not cuda.pools
    assert list(cuda.uses.values()) == [1]
    assert cuda.streams == ["user's"]
    assert (cuda.own.draw(), cuda.default.draw()) == (2, 1)
    if not cuda.old:  # there, replacing them would part the graphs of others from their seeds
        assert (cuda.own.state, cuda.default.state) == states
        assert not cuda.ended_by_hand  # at the risk of ending the process with the graph
    graphs.append(cuda.step.capture(lambda: None))
    assert cuda.used == [((0, 1), "side", "thread_local")] * 3  # one pool, on one stream
    del caught  # with all that its traceback holds, at once
    assert not alive
    graphs[-1].replay()


@pytest.mark.parametrize("version", ["2.11.0", "2.14.1+cu130"])
def test_the_pool_and_the_workspace_that_graphs_share_go_with_all_of_them(version, monkeypatch, caplog):
    cuda = FakeCuda(monkeypatch, version=version)
    for size in [*range(1, 11)] * 2:
        for _ in range(6):
            cuda.step("train", torch.ones(size))  # of which the last two replay a graph that has to be intact
    assert list(cuda.uses.values()) == [0, 0, 4]
    cuda.step.reset()
    for size in (1, 2):
        for _ in range(6):
            cuda.step("train", torch.ones(size))
    assert len(cuda.step._graphs) == 2
    assert list(cuda.uses.values()) == [0, 0, 0, 2]
    assert not caplog.records


def test_nothing_that_a_failed_capture_cast_is_used_after_it(monkeypatch):
    cuda = FakeCuda(monkeypatch, version="2.14.1")
    weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.linear(torch.ones(1, 1), weight)

    with torch.autocast("cpu", enabled=False):  # as around a step: only its end would clear the cache
        with pytest.raises(ZeroDivisionError):
            cuda.step.capture(lambda: forward() / 0 + 1 / 0)
        weight.data.fill_(2)  # what a kernel that did not run would have cast
        assert forward() == 2


@pytest.mark.parametrize("deterministic", [False, True])
def test_convolution_algorithms_are_timed_before_the_capture_only(deterministic, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    cuda = FakeCuda(monkeypatch, version="2.14.1")
    with _cuda_graphs.cudnn_benchmark(enabled=True):
        assert torch.backends.cudnn.benchmark is not deterministic
        cuda.step.capture(lambda: None)
        assert torch.backends.cudnn.benchmark is not deterministic
    assert cuda.benchmarks == [False]
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # by the user, who may have both
    with _cuda_graphs.cudnn_benchmark(enabled=True):
        assert torch.backends.cudnn.benchmark


def test_divergence_is_found_at_its_step():
    trainer = trainer_of(captured=True)
    for index, real in enumerate(batches(12)):
        trainer.step(real / 127.5 - 1 if index != 9 else torch.full((6, 1, 16, 16), torch.nan))
    assert len(trainer._cuda_graphs._graphs) == 1
    with pytest.raises(FloatingPointError, match="step 9: the real images turned non-finite"):
        trainer.check()


def test_beyond_the_limit_all_recordings_are_dropped_and_made_anew(caplog, monkeypatch):
    monkeypatch.setattr(_cuda_graphs, "MAX_GRAPHS", 2)
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    recorded = []
    for size in (2, 3, 4, 2):
        for real in batches(4, size):
            captured.step(real)
            plain.step(real)
        recorded.append([key[2][0][0] for key in captured._cuda_graphs._graphs])
    assert recorded == [[2], [2, 3], [4], [4, 2]]
    assert not caplog.records
    assert_same(captured, plain)


def test_copies_record_their_own_steps():
    captured = trainer_of(captured=True)
    stream = batches(12)
    for real in stream[:6]:
        captured.step(real)
    assert captured._cuda_graphs._graphs
    captured._cuda_graphs._refuse("another kind", "for a reason of this process")
    for twin in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert not twin._cuda_graphs._graphs
        assert not twin._cuda_graphs._refused
        assert twin._cuda_graphs.trainer is twin
    for real in stream[6:]:
        metrics, expected = twin.step(real), captured.step(real)
        assert metrics == expected
    assert twin._cuda_graphs._graphs
    assert_same(captured, twin)


def test_casts_that_the_caller_keeps_are_not_captured():
    captured, plain = (trainer_of(captured=captured, precision="bf16") for captured in (True, False))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a framework's mixed precision
        for real in batches(12):
            captured.generator(torch.randn(2, 4)).sum()  # which keeps casts of the weights
            captured.step(real)
            plain.step(real)
    assert captured._cuda_graphs._graphs
    weights = [parameter for trainer in (captured, plain) for parameter in trainer.discriminator.parameters()]
    half = len(weights) // 2
    assert all(torch.equal(one, other) for one, other in zip(weights[:half], weights[half:], strict=True))


@pytest.mark.parametrize("change", ["state", "memory"])
def test_what_a_graph_reads_may_move(change):
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for index, real in enumerate(batches(20)):
        for trainer in (captured, plain):
            if index == 10 and change == "state":
                trainer.g_optimizer.load_state_dict(copy.deepcopy(trainer.g_optimizer.state_dict()))
            elif index == 10:
                for parameter in trainer.generator.parameters():  # as cpu() and cuda() do
                    parameter.data = parameter.data.clone()
            trainer.step(real)
    assert captured._cuda_graphs._graphs
    assert_same(captured, plain)


def test_a_trainer_is_freed_with_its_last_reference(monkeypatch):
    defaults = device_defaults(torch.device("cpu"))._replace(cuda_graphs=True)  # as on a GPU
    monkeypatch.setattr(dcgan.trainer, "device_defaults", lambda device: defaults)
    trainer = trainer_of(captured=False)
    assert trainer._cuda_graphs is not None
    alive = weakref.ref(trainer)
    for twin in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert twin._cuda_graphs._step._method().__self__ is twin
    gc.disable()
    try:
        del trainer
        assert alive() is None
    finally:
        gc.enable()


def test_two_steps_capture_on_two_streams(monkeypatch):
    numbers = iter([1, 1, 1, 2, 1, 1])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=next(numbers)))
    steps = [_cuda_graphs.CudaGraphStep(print, torch.device("cuda", 0), None, lambda: None) for _ in range(2)]
    assert [step._capture_stream().cuda_stream for step in steps] == [1, 2]
    assert steps[0]._capture_stream().cuda_stream == 1
    del steps[0]
    other = _cuda_graphs.CudaGraphStep(print, torch.device("cuda", 0), None, lambda: None)
    assert other._capture_stream().cuda_stream == 1


def test_copies_of_optimisers_keep_what_they_were_built_with():
    trainer = trainer_of(captured=False)
    trainer._g_optimizer = torch.optim.Adam(trainer.generator.parameters(), fused=True)
    twin = copy.deepcopy(trainer)
    for name in ("_step_supports_amp_scaling", "_warned_capturable_if_run_uncaptured"):
        assert getattr(twin.g_optimizer, name) is getattr(trainer.g_optimizer, name) is True


def test_a_compiler_that_fails_in_a_step_does_not_end_training(monkeypatch, caplog):
    def compiling(function, **options):
        def compiled(*inputs):
            raise torch._dynamo.exc.TorchDynamoException("no kernel for this")

        return compiled if isinstance(function, Generator | Discriminator) else function

    monkeypatch.setattr(torch, "compile", compiling)
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    captured._compile_networks()
    for real in batches(8):
        captured.step(real)
        plain.step(real)
    assert captured._cuda_graphs._graphs
    assert "the networks are no longer compiled: no kernel for this" in caplog.text
    assert_same(captured, plain)


def test_users_optimisers_are_made_capturable():
    trainer = trainer_of(captured=True)
    optimizer = trainer._g_optimizer = torch.optim.Adam(trainer.generator.parameters(), fused=True)
    trainer.step(batches(1)[0])
    assert all(group["capturable"] for group in optimizer.param_groups)
    optimizer.param_groups[0]["capturable"] = False  # as a state from elsewhere sets it
    trainer.step(batches(1)[0])
    assert all(group["capturable"] for group in optimizer.param_groups)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_compiled_networks_give_the_same_step(precision, monkeypatch):
    import torch._dynamo

    compiling = torch.compile
    # All of compilation but its code generator, which takes minutes; `fullgraph` refuses anything left in Python.
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compiling(f, backend="aot_eager", fullgraph=True, **options)
    )
    captured, plain = trainer_of(captured=True, precision=precision), trainer_of(captured=False, precision=precision)
    captured._compile_networks()
    for real in batches(8):
        plain.load_state_dict(captured.state_dict())
        metrics, expected = captured.step(real), plain.step(real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-4 if precision == "fp32" else 1e-2, atol=1e-5)
    assert not any(name.startswith("_orig_mod") for name in captured.state_dict()["generator"])
    torch._dynamo.reset()


def test_where_nothing_can_be_compiled_training_goes_on(monkeypatch, caplog):
    def broken(function, **options):
        raise RuntimeError("Cannot find a working triton installation\nMore of it")

    monkeypatch.setattr(torch, "compile", broken)
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    captured._compile_networks()
    for real in batches(6):
        captured.step(real)
        plain.step(real)
    assert_same(captured, plain)
    assert "the networks are not compiled: Cannot find a working triton installation" in caplog.text
    assert "More of it" not in caplog.text


def test_compilation_is_for_long_fits(monkeypatch):
    calls = []

    def compile_networks(trainer):
        calls.append(trainer)

    monkeypatch.setattr(Trainer, "_compile_networks", compile_networks)
    for compile_, done, steps, expected in [
        ("auto", 0, 20_000, 1),
        ("auto", 19_990, 20_000, 1),  # resumed late, it computes as before
        ("auto", 0, 19_999, 0),
        ("graph", 0, 20_000, 0),
    ]:
        calls.clear()
        trainer = trainer_of(captured=True, compile=compile_)
        trainer.steps = done
        for _ in range(2):
            next(trainer.iterate(batches(2), steps))  # the second time must not compile again
        assert len(calls) == expected


def test_compiling_is_for_gpus(caplog):
    trainer_of(captured=False, compile="full")
    assert "compile='full' is for CUDA devices: on cpu, steps run without it" in caplog.text
    with pytest.raises(ValueError, match="compile must be one of auto, off, graph, full, got 'fast'"):
        trainer_of(captured=False, compile="fast")
