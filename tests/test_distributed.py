"""Several processes train one pair of networks. Each process checks its own side; the first failure is raised here."""

import contextlib
import copy
import io
import itertools
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed_commands import finish, start, wait, workers
from processes import run_in_processes
from small_runs import TINY as RECIPE
from small_runs import computed, listing, records
from torch import nn

from dcgan import Discriminator, Generator, Trainer, _distributed, checkpoint, cli, data
from dcgan._errors import InputError
from dcgan.cli import _evaluate, _real_images
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.latents import derive_seed
from dcgan.losses import LOSSES
from dcgan.run import CollapseError, Run

TINY = {"image_size": 16, "channels": 1, "base_channels": 4}
STEPS = 4


def networks(norm, seed=1):
    torch.manual_seed(seed)
    return Generator(latent_dim=6, norm=norm, **TINY).double(), Discriminator(norm=norm, **TINY).double()


def joint_batches(processes):
    rng = torch.Generator().manual_seed(2)
    return [torch.rand(4 * processes, 1, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(STEPS)]


def tensors(trainer):
    return [
        tensor
        for network in (trainer.generator, trainer.discriminator, trainer.ema)
        for tensor in [*network.parameters(), *network.buffers()]
    ]


def expect_the_same_everywhere(trainer):
    for tensor in tensors(trainer):
        first = tensor.detach().double().clone()
        dist.broadcast(first, src=0)
        assert torch.equal(tensor.double(), first)


def equal_to_one_process(rank, processes, references, in_shards):
    """N processes with parts of a batch do what one does with all of it, whatever weights they start from."""
    for options, expected, expected_metrics in references:
        trainer = Trainer(*networks("none", seed=1 + rank), **options)
        for batch, metrics in zip(joint_batches(processes), expected_metrics, strict=True):
            found = trainer.step(batch.chunk(processes)[rank])
            torch.testing.assert_close(found, metrics, rtol=0, atol=1e-10)
            expect_the_same_everywhere(trainer)
        for ours, one in zip(tensors(trainer), expected, strict=True):
            torch.testing.assert_close(ours, one, rtol=0, atol=1e-10)

    with_batchnorm(rank, processes, in_shards)
    wrapped(rank, processes)
    with_other_parts(rank, processes)
    finding_the_same(rank)
    estimating_alone(rank)
    drawing_apart(rank)
    of_other_shapes(rank)


def with_batchnorm(rank, processes, expected):
    """Each process normalises its own images; statistics, weights and resumed runs stay the same in all."""
    trainer = Trainer(*networks("batch", seed=1 + rank), max_grad_norm=1.0)
    state = None
    for step, batch in enumerate(joint_batches(processes)):
        trainer.step(batch.chunk(processes)[rank])
        expect_the_same_everywhere(trainer)
        if step == 1:
            state = [copy.deepcopy(trainer.state_dict())]
            dist.broadcast_object_list(state, src=0)
    for ours, one in zip(tensors(trainer)[: len(expected)], expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=0, atol=1e-10)

    resumed = Trainer(*networks("batch", seed=9), max_grad_norm=1.0)
    resumed.load_state_dict(state[0])
    for batch in joint_batches(processes)[2:]:
        resumed.step(batch.chunk(processes)[rank])
    assert all(map(torch.equal, tensors(trainer), tensors(resumed)))


def trained_in_shards(processes):
    """The tensors of both networks after the steps, each part of a batch normalised by itself, in one process."""
    whole = networks("batch", seed=1)
    adams = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in whole]
    loss = LOSSES["non-saturating"]
    for step, batch in enumerate(joint_batches(processes)):
        rng = torch.Generator().manual_seed(derive_seed(0, step, 1))
        latents = torch.randn(len(batch), 6, generator=rng, dtype=torch.float64).chunk(processes)
        generators, discriminators = ([copy.deepcopy(network) for _ in range(processes)] for network in whole)
        fakes = [generator(z) for generator, z in zip(generators, latents, strict=True)]
        for discriminator, real, fake in zip(discriminators, batch.chunk(processes), fakes, strict=True):
            loss.discriminator(discriminator(real), discriminator(fake.detach())).backward()
        update(whole[1], discriminators, adams[1])
        for discriminator, fake in zip(discriminators, fakes, strict=True):
            loss.generator(discriminator(fake)).backward()
        update(whole[0], generators, adams[0])
        for network, copies in zip(whole, (generators, discriminators), strict=True):
            for name, buffer in network.named_buffers():
                buffer.copy_(mean([each.get_buffer(name).double() for each in copies]))
    return [tensor.detach() for network in whole for tensor in [*network.parameters(), *network.buffers()]]


def update(network, copies, adam):
    """Update a network along the mean gradient of its copies, and then the copies' weights."""
    for name, parameter in network.named_parameters():
        parameter.grad = mean([each.get_parameter(name).grad for each in copies])
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    adam.step()
    for each in copies:
        each.load_state_dict(dict(network.named_parameters()), strict=False)


def mean(tensors):
    return torch.stack(tensors).mean(0)


def wrapped(rank, processes):
    """The network inside a DistributedDataParallel is trained, under its own name."""
    generator, discriminator = networks("batch")
    wrappers = [nn.parallel.DistributedDataParallel(network) for network in (generator, discriminator)]
    trainer = Trainer(*wrappers)
    assert trainer.generator is generator
    for batch in joint_batches(processes):
        trainer.step(batch.chunk(processes)[rank])
    expect_the_same_everywhere(trainer)
    assert trainer.ema.sample(2, seed=0).shape == (2, 1, 16, 16)


class Parts(nn.Module):
    """A discriminator whose parts depend on the process, and whose statistics and buffers are not BatchNorm's."""

    def __init__(self, rank):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1, track_running_stats=True)
        self.layers = nn.ModuleList(nn.Linear(256, 1) for _ in range(3))
        self.register_buffer("whole", torch.tensor([rank, 7], dtype=torch.int16))
        self.register_buffer("same", torch.ones(1).expand(3))
        self.rank = rank

    def forward(self, images):
        return self.layers[self.rank % 2](self.norm(images).flatten(1))


def with_other_parts(rank, processes):
    """What a process does not use counts as a gradient of zero; what none uses stays as it is."""
    torch.manual_seed(rank)
    generator, discriminator = networks("batch")[0], Parts(rank).double()
    trainer = Trainer(generator, discriminator, g_lr=0.0, weight_decay=0.1)
    assert discriminator.whole.tolist() == [0, 7]
    before = [layer.weight.detach().clone() for layer in discriminator.layers]
    for batch in joint_batches(processes):
        trainer.step(batch.chunk(processes)[rank])
        expect_the_same_everywhere(trainer)
    moved = [not torch.equal(layer.weight, weight) for layer, weight in zip(discriminator.layers, before, strict=True)]
    assert moved == [True, True, False]


def finding_the_same(rank):
    """What goes wrong in one process is found in all, by each alone."""
    trainer = Trainer(*networks("batch"))
    batch = joint_batches(1)[0]
    trainer.step(batch * float("nan") if rank else batch)
    with pytest.raises(FloatingPointError, match="step 0: the real images turned non-finite"):
        trainer.check()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcgan._monitor._STEPS_TO_WARN", 3)
        patch.setattr("dcgan._monitor._ALIKE", 0.9)  # not in the second process alone, but on average
        monitor = Trainer(*networks("none"))._monitor
        for _ in range(3):
            monitor.record(torch.tensor(0), batch, batch * (rank % 2), {"d_loss": torch.tensor(float(rank))})
        assert monitor.find_collapse().startswith("for 3 steps, the images that were generated for a batch")


def estimating_alone(rank):
    """Statistics of a synchronised norm are estimated in one process, as those of any other, without waiting."""
    if rank:
        return
    generator, _ = networks("batch")
    latents = torch.randn(4, 8, 6, dtype=torch.float64)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(generator))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules())
    for network in (generator, synchronized):
        estimate_batchnorm_statistics(network, latents)
    for ours, reference in zip(synchronized.buffers(), generator.buffers(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


def drawing_apart(rank):
    """Latents, augmentations and dropout are other numbers in each process."""
    latents, images, dropped = [], [], []
    generator, _ = networks("none")
    discriminator = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 1)).double()
    generator.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    discriminator.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    discriminator[1].register_forward_hook(lambda _, inputs, output: dropped.append(output))
    Trainer(generator, discriminator, augmentations=["translation"]).step(joint_batches(1)[0].abs() + 0.1)
    for mine in (latents[0], images[0], dropped[0]):
        first = mine.detach().clone()
        dist.broadcast(first, src=0)
        assert torch.equal(mine, first) == (rank == 0)


def of_other_shapes(rank):
    """Networks that are not the same are named in every process."""
    generator, _ = networks("none")
    with pytest.raises(ValueError, match=r"must be the same, but process 0 has .*0.weight', \(1, 256\).*process 1"):
        Trainer(generator, nn.Sequential(nn.Linear(256 + rank, 1)).double())


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_as_one_on_the_joint_batch(processes):
    references = []
    for options in ({}, {"schedule": "alternate", "weight_decay": 1e-3}, {"r1": 0.5, "max_grad_norm": 0.1}):
        trainer = Trainer(*networks("none"), **options)
        metrics = [trainer.step(batch) for batch in joint_batches(processes)]
        references.append((options, [tensor.detach() for tensor in tensors(trainer)], metrics))
    run_in_processes(equal_to_one_process, processes, processes, references, trained_in_shards(processes))


def test_a_trainer_of_another_number_of_processes_refuses_to_train(monkeypatch):
    trainer = Trainer(*networks("batch"))
    monkeypatch.setattr("dcgan._checks.process_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"built for 1 process\(es\), but now there are 2.*build the trainer after"):
        trainer.step(joint_batches(1)[0])
    assert trainer.steps == 0


def test_processes_that_train_alone_are_noticed(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "1")
    Trainer(*networks("batch"))
    assert not caplog.records
    monkeypatch.setenv("WORLD_SIZE", "2")
    Trainer(*networks("batch"))
    assert "WORLD_SIZE is 2, but there is no process group" in caplog.text


# Without norms, and without noise of augmentations, processes compute what one does, up to rounding.
PLAIN = RECIPE.replace(norm="none", augment=(), steps=6, batch_size=60, log_every=2, sample_every=3, save_every=3)


def train(recipe, folder, stop=None):
    """Start a run, or go on with one, to its last step or to step `stop`; return it."""
    run = Run.resume(folder) if folder.exists() else Run.start(recipe, folder)
    dist.is_initialized() and dist.barrier()
    for _ in run.train():
        if run.trainer.steps == stop:
            run.save()
            break
    run.close()
    dist.is_initialized() and dist.barrier()
    return run


def running(rank, processes, folder):
    """The first process writes what one would; runs go on exactly, and with another number of processes."""
    torch.set_num_threads(1)
    run = train(PLAIN, folder / "several")
    assert run._writes == (rank == 0)
    train(PLAIN, folder / "begun", stop=3)
    train(PLAIN, folder / "one-then-several")
    exact = RECIPE.replace(steps=6, batch_size=60, log_every=3, sample_every=3, save_every=3, eval_every=6)
    train(exact, folder / "unbroken")
    train(exact, folder / "stopped", stop=4)
    train(exact, folder / "stopped")
    refusing(rank, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcgan._monitor._STEPS_TO_WARN", 3)
        patch.setattr("dcgan._monitor._ALIKE", 1e9)
        run = Run.start(PLAIN.replace(on_collapse="stop", log_every=1), folder / "collapsed")
        with pytest.raises(CollapseError, match="stopped and saved at step 3"):
            list(run.train())
        run.close()


def refusing(rank, folder):
    """What one process cannot accept is refused by all."""
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes, 2, got 61"):
        Run.start(PLAIN.replace(batch_size=61), folder / "odd")
    with pytest.raises(ValueError, match="sync_batchnorm needs GPUs"):
        Run.start(PLAIN.replace(norm="batch", sync_batchnorm=True), folder / "synchronized")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda in several processes.*got 'cuda:1'"):
        Run.start(PLAIN.replace(device="cuda:1"), folder / "other")
    taken = (FileExistsError, ValueError)[rank]
    with pytest.raises(taken, match="several exists: continue with --resume"):
        Run.start(PLAIN, folder / "several")
    (folder / f"only-{rank}").mkdir()
    missing = PLAIN.replace(data="folder", root=folder / "nowhere" if rank else None, image_size=16)
    message = "needs root" if rank == 0 else "nowhere"
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        Run.start(missing, folder / "missing")
    with pytest.raises(InputError, match="only this") if rank else pytest.raises(InputError, match="process 1: only"):  # noqa: SIM117
        with _distributed.fail_together():
            if rank:
                raise InputError("only this")
    assert not {"odd", "synchronized", "other", "missing"} & {path.name for path in folder.iterdir()}


def weights(folder):
    state = checkpoint.load(checkpoint.list_states(folder / "state")[-1])["trainer"]
    return [state["steps"], *state["ema"].values(), *state["discriminator"].values()]


def test_runs_of_several_processes(tmp_path):
    unbroken = train(PLAIN, tmp_path / "one").folder
    train(PLAIN, tmp_path / "one-then-several", stop=3)
    data.load("digits", image_size=16, channels=1)
    run_in_processes(running, 2, 2, tmp_path)
    train(PLAIN, tmp_path / "begun")
    for name in ("several", "begun", "one-then-several"):
        folder = tmp_path / name
        assert listing(folder) == listing(unbroken), name
        torch.testing.assert_close(weights(folder), weights(unbroken), rtol=1e-3, atol=1e-4)
        for ours, reference in zip(records(folder), records(unbroken), strict=True):
            ours.pop("images_per_second"), reference.pop("images_per_second")
            assert ours == pytest.approx(reference, abs=1e-3)
    assert computed(tmp_path / "stopped") == computed(tmp_path / "unbroken")
    assert [path.name for path in checkpoint.list_states(tmp_path / "collapsed/state")][-1] == "step-000003.pt"


@pytest.mark.parametrize("processes", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(processes):
    images = data.load("digits", image_size=8, channels=1)
    options = {"seed": 5, "flip": True, "start": 7}
    whole = iter(data.Batches(images, 12, **options))
    parts = [iter(data.Batches(images, 12, **options, rank=rank, processes=processes)) for rank in range(processes)]
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate([next(part) for part in parts]), next(whole))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes, 5, got 12"):
        data.Batches(images, 12, processes=5)
    with pytest.raises(ValueError, match="rank must be from 0 to 1"):
        data.Batches(images, 12, rank=2, processes=2)


def test_all_but_the_first_process_are_silent(monkeypatch, capfd, tmp_path):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for arguments in (["train", "--stesp", "3"], ["train"], ["models"], ["walk", "x"], ["evaluate", "--out", "x.txt"]):
        assert cli.main(arguments) == 2
        assert capfd.readouterr() == ("", "")
    assert cli.main(["train", "--help"]) == 0
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["walk", "x"]) == 2
    assert "walk runs in one process, and torchrun has started 2" in capfd.readouterr().err
    assert cli.main(["evaluate", "--out", "x.txt"]) == 2
    assert capfd.readouterr().err.count("--out must be a .json file, got x.txt") == 1
    assert cli.main(["train"]) == 2
    assert "torchrun --max-restarts needs --out" in capfd.readouterr().err


def said(arguments):
    """Run a command; return its exit code and what it printed to the two streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


EVALUATE = ["--data", "digits", "-n", 250, "--real-number", 130, "--device", "cpu"]
FEATURES = ["--data", "digits", "--number", 60, "--test-number", 20, "--batch-size", 64, "--device", "cpu"]


def make_small(patch):
    patch.setattr(_real_images, "_PART", 100)
    patch.setattr(_evaluate, "_SUBSETS", 3)


def measuring(rank, folder):
    """The first process writes and says what one would, the other nothing; what fails in one fails in both."""
    for number, size in itertools.product([1, 3, 4, 5], [1, 2, 4, 7]):
        parts = _distributed.compute_parts(lambda start, end: (start, end, rank), number, size)
        assert [part[:2] for part in parts] == (
            [] if rank else [(i, min(i + size, number)) for i in range(0, number, size)]
        )
        assert [part[2] for part in parts] == [int(i >= len(parts) // 2) for i in range(len(parts))]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"WORLD_SIZE": "2", "RANK": str(rank), "TORCHELASTIC_RUN_ID": "x"}.items():
            patch.setenv(name, value)
        patch.setattr(_distributed, "process_group", contextlib.nullcontext)  # they are in one
        make_small(patch)
        cached = ["--cache-dir", folder / "several"]
        first = said(["evaluate", folder / "model", *EVALUATE, *cached, "--out", folder / "several/a.json"])
        # From what is kept of the real images.
        kept = said(["evaluate", folder / "model", *EVALUATE, *cached, "--out", folder / "several/b.json"])
        pooled = said(["features", folder / "plain", *FEATURES, *cached, "--out", folder / "several/features"])
        alone = said(["features", folder / "alone", *FEATURES, *cached, "--out", folder / "several/alone"])
        failed = said(["evaluate", folder / "model", *EVALUATE, "--no-cache", "--features", "own:fail_in_second"])
    (folder / f"said-{rank}").write_text("".join(found[1] for found in (first, kept, pooled)), encoding="utf-8")
    assert [found[0] for found in (first, kept, pooled, alone)] == [0, 0, 0, 0]
    assert [found[2] for found in (first, kept, pooled)] == ["", "", ""]
    assert alone[2].count("no samples: ") == 1 - rank
    assert failed[0] == 2
    assert failed[2] == ("" if rank else "dcgan: process 1: only here\n")


OWN_FEATURES = """
import torch.distributed as dist

def fail_in_second(images):
    if dist.get_rank() == 1:
        raise OSError("only here")
    return images.mean((2, 3))
"""


def test_processes_measure_as_one(tmp_path, monkeypatch):
    make_small(monkeypatch)
    torch.manual_seed(0)
    Generator(num_classes=10, **TINY).save_pretrained(tmp_path / "model")
    for folder, kinds in {"plain": (Generator, Discriminator), "alone": (Discriminator,)}.items():
        for kind in kinds:
            kind(**TINY).save_pretrained(tmp_path / folder)
    (tmp_path / "own.py").write_text(OWN_FEATURES)
    texts = []
    for command, name, options, out in (
        ("evaluate", "model", EVALUATE, "a.json"),
        ("evaluate", "model", EVALUATE, "b.json"),
        ("features", "plain", FEATURES, "features"),
    ):
        place = ["--cache-dir", tmp_path / "one", "--out", tmp_path / "one" / out]
        code, text, err = said([command, tmp_path / name, *options, *place])
        assert code == 0, err
        texts.append(text.replace(str(tmp_path / "one"), str(tmp_path / "several")))
    run_in_processes(measuring, 2, tmp_path)
    assert [(tmp_path / f"said-{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == ["".join(texts), ""]
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    compared = [file for file in files if file.suffix in (".json", ".png", ".npz", ".npy")]
    assert {file.suffix for file in compared} == {".json", ".png", ".npz", ".npy"}
    for file in compared:
        if "crop" not in file.name or file.suffix != ".json":  # of packed files, which names their folder
            assert (tmp_path / "several" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file


# Under torchrun, on Linux. The processes import torch, which takes longer than what they do.
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
COMMAND = ["train", "--base-channels", 4, "--image-size", 16, "--batch-size", 60, "--samples", 4, "--device", "cpu"]
COMMAND += ["--save-every", 5, "--log-every", 5, "--sample-every", 10, "--eval-every", "none", "--keep", 2]


def wait_for_state(folder, step, launcher):
    wait(lambda: any(int(path.stem[5:]) >= step for path in checkpoint.list_states(folder / "state")), launcher)


@pytest.mark.slow
@linux
def test_processes_that_are_killed_are_started_again_and_end_as_if_they_had_not(tmp_path):
    finish(start(*COMMAND, "--steps", 60, "--out", tmp_path / "unbroken"))
    folder, random_choice = tmp_path / "killed", random.Random(0)
    launcher = start(*COMMAND, "--steps", 60, "--out", folder, restarts=3)
    for step in (5, 20, 40):
        wait_for_state(folder, step, launcher)
        time.sleep(random_choice.random() / 5)
        os.kill(random_choice.choice(workers(launcher)), signal.SIGKILL)
        time.sleep(2)
    code, out, err = finish(launcher)
    assert code == 0, err
    assert out.count("trained 60 steps") == 1
    assert computed(folder) == computed(tmp_path / "unbroken")
    code, out, _ = finish(start(*COMMAND, "--steps", 60, "--out", folder, restarts=1))
    assert code == 0
    assert "has completed all of its 60 steps" in out


@pytest.mark.slow
@linux
@pytest.mark.parametrize("receiver", ["torchrun", "one process"])
def test_a_signal_saves_once_and_ends_all_processes_at_the_same_step(receiver, tmp_path):
    folder = tmp_path / "run"
    launcher = start(*COMMAND, "--steps", 100_000, "--out", folder)
    wait_for_state(folder, 5, launcher)
    os.kill(launcher.pid if receiver == "torchrun" else workers(launcher)[1], signal.SIGTERM)
    code, out, err = finish(launcher)
    assert code != 0
    assert out.count("stopped at step") == 1, err
    assert "torchrun --nproc-per-node 2 -m dcgan train --resume" in out
    last = checkpoint.list_states(folder / "state")[-1]
    assert f"stopped at step {int(last.stem[5:])} of" in out
    assert "another process has ended" not in err
    code, out, err = finish(start("train", "--resume", folder, "--steps", int(last.stem[5:]) + 2, processes=4))
    assert code == 0, err
    assert "in 4 processes of 15" in out


@pytest.mark.slow
@linux
def test_a_process_that_dies_ends_the_others(tmp_path):
    launcher = start(*COMMAND, "--steps", 100_000, "--out", tmp_path / "run")
    wait_for_state(tmp_path / "run", 5, launcher)
    os.kill(workers(launcher)[1], signal.SIGKILL)
    code, _, err = finish(launcher, seconds=60)
    assert code == 1
    assert "dcgan: another process has ended, or does not answer" in err
    assert "exitcode  : -9" in err


@pytest.mark.slow
def test_processes_generate_the_images_of_one(tmp_path):
    Generator(image_size=16, channels=1, base_channels=4).save_pretrained(tmp_path / "model")
    options = ["generate", tmp_path / "model", "-n", 70, "--batch-size", 16, "--seed", 3, "--start", 5]
    assert cli.main([*map(str, options), "--out", str(tmp_path / "one"), "--device", "cpu"]) == 0
    code, out, err = finish(start(*options, "--out", tmp_path / "several", "--device", "cpu", processes=4))
    assert code == 0, err
    assert out.count("70 images in") == 1
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "several")]
    assert len(files[0]) == 70
    assert files[0] == files[1]
    code, out, err = finish(start(*options, "--out", tmp_path / "all.zip", processes=2))
    assert code == 1
    assert err.count("dcgan: 2 processes write a folder of images together") == 1


@pytest.mark.filterwarnings("ignore:FSDP is switching to use")
def test_networks_that_are_split_are_known():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert _distributed._is_sharded(FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu")))
        assert _distributed._is_sharded(fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,))))
        assert not _distributed._is_sharded(nn.Linear(2, 2))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_evaluate_as_one(tmp_path):
    Generator(**TINY).save_pretrained(tmp_path / "model")
    Discriminator(**TINY).save_pretrained(tmp_path / "model")
    for command, options, out in (("evaluate", EVALUATE, "a.json"), ("features", FEATURES, "features")):
        arguments = [command, tmp_path / "model", *options, "--no-cache"]
        assert said([*arguments, "--out", tmp_path / "one" / out])[0] == 0
        code, text, err = finish(start(*arguments, "--out", tmp_path / "several" / out, processes=3))
        assert code == 0, err
        assert text.count("written to") == 1
        written = out if command == "evaluate" else f"{out}/results.json"
        assert (tmp_path / "several" / written).read_bytes() == (tmp_path / "one" / written).read_bytes()
        code, text, err = finish(start(*arguments, "--out", tmp_path / "several" / out))
        assert code == 1
        assert text == ""
        assert err.count("exists: --force") == 1
