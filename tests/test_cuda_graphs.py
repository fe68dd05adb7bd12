"""A recorded step is the step itself: whatever Python computes anew for each has to lie in a tensor.

CUDA graphs need a GPU. Here a recorder stands in for them that repeats the recorded kernels, on the memory they ran
on; tests/test_gpu.py compares the real ones.
"""

import copy
import logging
import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from recorder import RecordedStep, state_of

from dcgan import Discriminator, Generator, Trainer, _cuda_graphs

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


def test_settings_of_any_kind_are_told_apart():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for trainer in (captured, plain):
        trainer.d_optimizer.param_groups[0]["betas"] = [0.5, 0.999]
        for real in batches(6):
            trainer.step(real)
    assert len(captured._cuda_graphs._graphs) == 1
    assert_same(captured, plain)


def test_a_learning_rate_that_changes_at_every_step_is_never_recorded():
    captured, plain = trainer_of(captured=True), trainer_of(captured=False)
    for index, real in enumerate(batches(20)):
        for trainer in (captured, plain):
            trainer.g_optimizer.param_groups[0]["lr"] = 1e-3 / (index + 1)
            trainer.step(real)
    assert not captured._cuda_graphs._graphs
    assert_same(captured, plain)


def test_a_step_that_waits_for_the_device_runs_eagerly_and_is_logged_once(caplog):
    trainer = trainer_of(captured=True, loss="hinge")
    update = trainer._cuda_graphs._step

    def waiting(*arguments):
        metrics = update(*arguments)
        metrics["d_loss"].item()
        return metrics

    trainer._cuda_graphs._step = waiting
    plain = trainer_of(captured=False, loss="hinge")
    with caplog.at_level(logging.WARNING, "dcgan"):
        for real in batches(10):
            trainer.step(real)
            plain.step(real)
    (record,) = caplog.records
    assert record.getMessage() == (
        "no further CUDA graphs: the training step cannot be captured "
        "(operation not permitted when stream is capturing: _local_scalar_dense)"
    )
    for ours, theirs in zip(trainer.generator.parameters(), plain.generator.parameters(), strict=True):
        assert torch.isfinite(ours).all()
        assert ours.shape == theirs.shape


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


def test_divergence_is_found_at_its_step():
    trainer = trainer_of(captured=True)
    for index, real in enumerate(batches(12)):
        trainer.step(real / 127.5 - 1 if index != 9 else torch.full((6, 1, 16, 16), torch.nan))
    assert len(trainer._cuda_graphs._graphs) == 1
    with pytest.raises(FloatingPointError, match="step 9: the real images turned non-finite"):
        trainer.check()


def test_there_is_a_limit_to_recordings(caplog):
    trainer = trainer_of(captured=True)
    for size in range(2, 14):
        for real in batches(4, size):
            trainer.step(real)
    assert len(trainer._cuda_graphs._graphs) == 8
    assert "there are 8 CUDA graphs already" in caplog.text


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
    for compile_, steps, expected in [("auto", 20_000, 1), ("auto", 19_999, 0), ("graph", 20_000, 0)]:
        calls.clear()
        trainer = trainer_of(captured=True, compile=compile_)
        for done in (0, 1):
            next(trainer.iterate(batches(2), steps + done))  # the second time must not compile again
        assert len(calls) == expected


def test_compiling_is_for_gpus(caplog):
    trainer_of(captured=False, compile="full")
    assert "compile='full' is for CUDA devices: on cpu, steps run without it" in caplog.text
    with pytest.raises(ValueError, match="compile must be one of auto, off, graph, full, got 'fast'"):
        trainer_of(captured=False, compile="fast")
