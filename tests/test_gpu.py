"""What needs a CUDA device; run with `pytest -m gpu -n 0`."""

import copy
import os
import pickle
import warnings

import pytest
import torch

import dcgan.trainer
from dcgan import Discriminator, Generator, Trainer

# Without it, matrix products are refused under deterministic algorithms; torch reads it once in a process.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# The last two come of compiling, once a process.
IGNORED = ["Synchronization debug mode is a prototype", "The .grad attribute of a Tensor that is not a leaf"]
IGNORED += ["TensorFloat32 tensor cores"]
pytestmark = [pytest.mark.gpu, *(pytest.mark.filterwarnings(f"ignore:{message}") for message in IGNORED)]

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}  # of float32, as it is computed without TF32
OPTIONS = [
    {},
    {"d_steps": 3},
    {"schedule": "alternate", "d_steps": 2},
    {"loss": "wasserstein", "gradient_penalty": 10.0},
    {"loss": "hinge", "r1": 1.0},
    {"augmentations": ("color", "translation", "cutout")},
    {"ema_decay": None, "weight_decay": 1e-4},
]


@pytest.fixture(autouse=True)
def _full_precision():
    """Compute float32 as such: with TF32, it has three decimal digits."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def plain_step(trainer, real):
    """Step with other algorithms of convolution than a captured step: those of another entry of cuDNN's cache."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        return trainer.step(real)


def pair(device, d_norm="batch"):
    torch.manual_seed(0)
    generator, discriminator = Generator(base_channels=16), Discriminator(base_channels=16, norm=d_norm)
    return generator.to(device), discriminator.to(device)


def trainer_of(**options):
    penalised = options.get("r1") or options.get("gradient_penalty")
    return Trainer(*pair("cuda", "layer" if penalised else "batch"), seed=3, **options)


def pixels(n=16):
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, device="cuda")


def deviation(ours, theirs):
    """Return the largest difference of two trainers' weights, over the largest weight."""
    differences = [
        (a - b).abs().max() / b.abs().max().clamp(min=1e-3)
        for part in ("generator", "discriminator")
        for a, b in zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True)
    ]
    return torch.stack(differences).max().item()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 5e-2)])
def test_a_step_on_a_gpu_agrees_with_one_on_the_cpu(precision, tolerance, monkeypatch):
    z = torch.randn(16, 100)
    real = torch.rand(16, 3, 64, 64) * 2 - 1
    results = []
    for device, mode in (("cpu", "fp32"), ("cuda", precision)):
        trainer = Trainer(*pair(device), precision=mode)
        if mode == "fp16":  # from its usual scale, the first update overflows, and is skipped
            trainer.g_scaler, trainer.d_scaler = (torch.amp.GradScaler(device, init_scale=2.0**8) for _ in range(2))
        monkeypatch.setattr(dcgan.trainer, "sample_latents", lambda *_, device=device, **__: z.to(device))
        results.append({name: value.item() for name, value in trainer.step(real).items()})
        trainer.check()
    for name, value in results[0].items():
        assert abs(results[1][name] - value) < tolerance * max(1, abs(value))


@pytest.mark.parametrize(("compile_", "steps"), [("graph", 5), ("graph", 50), ("graph", 500), ("full", 50)])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_captured_step_equals_the_eager_one(precision, steps, compile_):
    captured = trainer_of(precision=precision, compile=compile_)
    for _ in range(steps):
        captured.step(pixels())
    for _ in range(5):  # equal calls, so that the last ones are replays
        plain = trainer_of(precision=precision, compile="off")
        plain.load_state_dict(captured.state_dict())
        real = pixels()
        expected, metrics = plain_step(plain, real), captured.step(real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
        assert deviation(captured, plain) < 10 * TOLERANCE[precision]
    assert captured._cuda_graphs._graphs
    assert (captured._g_forward is captured.generator) == (compile_ == "graph")
    captured.check()


@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(map(str, options)) or "default" for options in OPTIONS])
def test_every_kind_of_step_is_captured(options, caplog):
    captured = trainer_of(compile="graph", **options)
    for _ in range(30):
        plain = trainer_of(compile="off", **options)
        plain.load_state_dict(captured.state_dict())
        real = pixels()
        expected, metrics = plain_step(plain, real), captured.step(real)
        assert expected.keys() == metrics.keys()
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
    assert captured._cuda_graphs._graphs
    assert "cannot be captured" not in caplog.text
    captured.check()


def test_captured_steps_do_not_wait_for_the_device():
    trainer = trainer_of(precision="bf16")
    real = pixels()
    for _ in range(5):
        trainer.step(real)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer.step(real)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Waiting(torch.optim.SGD):
    """An optimiser that reads its first gradient."""

    def step(self, closure=None):
        self.param_groups[0]["params"][0].grad.sum().item()
        return super().step(closure)


def test_a_step_that_waits_for_the_device_is_not_captured(caplog):
    generator, discriminator = pair("cuda")
    trainer = Trainer(generator, discriminator, g_optimizer=Waiting(generator.parameters(), lr=1e-3))
    for _ in range(6):
        trainer.step(pixels())
    assert not trainer._cuda_graphs._graphs
    (record,) = caplog.records
    assert "test_gpu.py, line" in record.getMessage()
    assert "waits for the device" in record.getMessage()
    trainer.check()


class Broken(torch.nn.Module):
    """A loss's helper that waits for the device in a capture, and draws random numbers always."""

    def forward(self, images):
        if torch.cuda.is_current_stream_capturing():
            images.sum().item()
        return torch.nn.functional.dropout(images, 0.1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_failed_capture_does_not_change_training(precision, caplog):
    trainers = []
    for compile_ in ("graph", "off"):
        generator, discriminator = pair("cuda")
        discriminator = torch.nn.Sequential(Broken(), discriminator)
        options = {"augmentations": ("color", "translation"), "precision": precision, "max_grad_norm": 10.0}
        trainers.append(Trainer(generator, discriminator, compile=compile_, **options))
    trainer, plain = trainers
    allocated = []
    for _ in range(12):
        plain.load_state_dict(trainer.state_dict())
        real = pixels()
        metrics, expected = trainer.step(real), plain_step(plain, real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-2, atol=1e-2)
        allocated.append(torch.cuda.memory_allocated())
    assert "cannot be captured" in caplog.text
    assert "permitted when stream is capturing" in caplog.text  # the cause, and not that the capture has ended
    assert not trainer._cuda_graphs._graphs
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(1, device="cuda")  # the default generator draws
    assert allocated[-1] < 1.1 * allocated[2]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    trainer.check()


def test_a_failed_capture_leaves_other_kinds_of_steps_captured(caplog):
    options = {"d_steps": 2, "augmentations": ("color",)}
    trainer, plain = trainer_of(**options), trainer_of(**options, compile="off")
    update = trainer._cuda_graphs._step

    def failing(turns, *tensors):
        metrics = update(turns, *tensors)
        if turns == (True, True) and torch.cuda.is_current_stream_capturing():
            metrics["g_loss"].item()
        return metrics

    trainer._cuda_graphs._step = failing
    for _ in range(30):
        plain.load_state_dict(trainer.state_dict())
        real = pixels()
        metrics, expected = trainer.step(real), plain_step(plain, real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
    assert [key[0] for key in trainer._cuda_graphs._graphs] == [(True, False)]
    assert caplog.text.count("cannot be captured") == 1


OWN = [
    ("Adam", {}),
    ("Adam", {"fused": True}),
    ("AdamW", {"foreach": True}),
    ("NAdam", {}),
    ("RMSprop", {}),
    ("SGD", {}),
]


@pytest.mark.parametrize(("name", "settings"), OWN, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_optimisers_of_ones_own_are_captured(name, settings, precision, caplog):
    if precision == "fp16" and "fused" not in settings:
        pytest.skip("the scaler waits for the device")
    trainers = []
    for compile_ in ("graph", "off"):
        generator, discriminator = pair("cuda")
        make = getattr(torch.optim, name)
        optimizers = {
            "g_optimizer": make(generator.parameters(), lr=1e-4, **settings),
            "d_optimizer": make(discriminator.parameters(), lr=4e-4, **settings),
        }
        trainers.append(Trainer(generator, discriminator, precision=precision, compile=compile_, **optimizers))
    trainer, plain = trainers
    for _ in range(10):
        plain.load_state_dict(trainer.state_dict())
        real = pixels()
        metrics, expected = trainer.step(real), plain_step(plain, real)
        for metric, value in expected.items():
            torch.testing.assert_close(metrics[metric], value, rtol=1e-2, atol=1e-2)
        for ours, theirs in zip(trainer.generator.parameters(), plain.generator.parameters(), strict=True):
            assert (ours - theirs).abs().mean() < 2e-5
    assert trainer._cuda_graphs._graphs
    assert not caplog.records
    trainer.check()


def test_an_optimiser_that_counts_on_the_host_is_not_captured(caplog):
    generator, discriminator = pair("cuda")
    adagrad = torch.optim.Adagrad(generator.parameters(), lr=1e-3, lr_decay=0.1)
    trainer = Trainer(generator, discriminator, g_optimizer=adagrad)
    for _ in range(6):
        trainer.step(pixels())
    assert not trainer._cuda_graphs._graphs
    assert "Adagrad keeps 'step' on the host" in caplog.text


def test_a_state_of_a_plain_optimiser_is_captured(caplog):
    generator, discriminator = pair("cuda")
    before = Trainer(
        generator, discriminator, g_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-4), compile="off"
    )
    before.step(pixels())
    trainer = trainer_of()
    trainer.load_state_dict(before.state_dict())
    for _ in range(6):
        trainer.step(pixels())
    assert trainer._cuda_graphs._graphs
    assert "cannot be captured" not in caplog.text


def test_graphs_share_memory_and_beyond_eight_all_are_dropped():
    trainer, plain = trainer_of(compile="graph"), trainer_of(compile="off")
    sizes = [*range(4, 24, 2), 8]
    for size in [*sizes, *sizes[-3:]]:  # the last ones are replays among other graphs
        for _ in range(5):
            plain.load_state_dict(trainer.state_dict())
            real = pixels(size)
            metrics, expected = trainer.step(real), plain_step(plain, real)
            for name, value in expected.items():
                torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
    graphs = trainer._cuda_graphs._graphs
    assert [key[2][0][0] for key in graphs] == [20, 22, 8]
    assert len({replay._graph.pool() for replay in graphs.values()}) == 1


def test_a_run_that_is_loaded_between_captured_kinds_of_steps_captures_them_anew(caplog):
    trainer, plain = (trainer_of(compile=compile_, d_steps=5) for compile_ in ("graph", "off"))
    for steps in (30, 20):
        for _ in range(steps):
            plain.load_state_dict(trainer.state_dict())
            real = pixels()
            metrics, expected = trainer.step(real), plain_step(plain, real)
            for name, value in expected.items():
                torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
        assert trainer._cuda_graphs._graphs
        trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
        assert not trainer._cuda_graphs._graphs
    assert not caplog.records


def test_an_interrupted_capture_does_not_change_training():
    trainer, plain = (trainer_of(compile=compile_, augmentations=("color",)) for compile_ in ("graph", "off"))
    update = trainer._cuda_graphs._step

    def interrupted(turns, real, *tensors):
        metrics = update(turns, real, *tensors)
        if len(real) == 8 and torch.cuda.is_current_stream_capturing():
            raise KeyboardInterrupt
        return metrics

    trainer._cuda_graphs._step = interrupted
    for size in (16, 8, 16):
        for _ in range(5):
            plain.load_state_dict(trainer.state_dict())
            real = pixels(size)
            expected = plain_step(plain, real)
            try:
                metrics = trainer.step(real)
            except KeyboardInterrupt:
                continue
            for name, value in expected.items():
                torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)
    assert [key[2][0][0] for key in trainer._cuda_graphs._graphs] == [16]
    trainer.check()


def test_steps_from_another_thread_are_captured(caplog):
    import threading

    trainer = trainer_of(compile="graph")
    for _ in range(3):
        trainer.step(pixels())
    thread = threading.Thread(target=lambda: [trainer.step(pixels()) for _ in range(5)])  # with handles of its own
    thread.start()
    thread.join()
    assert trainer._cuda_graphs._graphs
    assert not caplog.records
    trainer.check()


def test_under_deterministic_algorithms_a_resumed_run_repeats_the_unbroken_one():
    torch.use_deterministic_algorithms(mode=True)
    try:
        reals = [pixels() for _ in range(12)]
        unbroken, first, resumed = (trainer_of(augmentations=("color", "translation")) for _ in range(3))
        for real in reals:
            unbroken.step(real)
        for real in reals[:6]:
            first.step(real)
        resumed.load_state_dict(first.state_dict())
        for real in reals[6:]:
            resumed.step(real)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert unbroken._cuda_graphs._graphs
    assert deviation(resumed, unbroken) == 0


def test_copies_capture_their_own_graphs():
    trainer = trainer_of(compile="graph")
    for _ in range(5):
        trainer.step(pixels())
    for twin in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert not twin._cuda_graphs._graphs
        real = pixels()
        metrics, expected = twin.step(real), copy.deepcopy(trainer).step(real)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)


def test_nothing_that_is_deprecated_is_called():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        trainer = trainer_of(compile="graph")
        for _ in range(5):
            trainer.step(pixels())
    assert trainer._cuda_graphs._graphs


def test_training_continues_from_a_loaded_state():
    trainer, other = trainer_of(), trainer_of()
    for _ in range(6):
        trainer.step(pixels())
        other.step(pixels())
    other.load_state_dict(trainer.state_dict())
    for _ in range(6):
        real = pixels()
        metrics, expected = other.step(real), trainer.step(real)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_continues_from_a_state_loaded_to_the_cpu(precision, tmp_path):
    trainer = Trainer(*pair("cuda"), precision=precision)
    real = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    for _ in range(3):
        trainer.step(real)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(*pair("cuda"), precision=precision)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    expected, metrics = trainer.step(real), resumed.step(real)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-3)


def test_a_trainer_with_a_state_from_the_cpu_captures_its_steps(tmp_path):
    before = Trainer(*pair("cpu"))
    before.step(pixels().cpu())
    torch.save(before.state_dict(), tmp_path / "state.pt")
    trainer = Trainer(*pair("cuda"))
    trainer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(6):
        trainer.step(pixels())
    assert trainer._cuda_graphs._graphs
    trainer.check()


def test_samples_on_a_gpu_agree_with_those_on_the_cpu():
    generator, _ = pair("cpu")
    expected = generator.sample(300, seed=3)
    images = generator.cuda().sample(300, seed=3)
    assert images.is_cuda
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-2)
