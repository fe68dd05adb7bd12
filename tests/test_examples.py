"""The examples run as their docstrings say, in one process and in two, and go on exactly after an interruption.

A recorder in each process notes what the trainer does, so that the examples need no line for their tests.
"""

import ast
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcgan import zoo

FOLDER = Path(__file__).parents[1] / "examples"
# Those that embed nothing, and take files or hours.
TOOLS = {"beside_tutorial", "diagrams", "guidelines", "image_classifier", "pictures", "zoo_model", "zoo_train"}
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in TOOLS)
LIBRARIES = {
    "accelerate_loop": "accelerate",
    "fabric": "lightning",
    "ignite_loop": "ignite",
    "lightning_module": "lightning",
    "streamed_loop": "datasets",
}
IN_ONE_PROCESS = ["any_networks", "own_loop"]
# What comes before the script, and after it.
IN_TWO_PROCESSES = {
    "accelerate_loop": ("torchrun --standalone --nproc-per-node 2", ""),
    "fabric": ("fabric run --main-port PORT --accelerator cpu --devices 2 --strategy ddp", ""),
    "ignite_loop": ("torchrun --standalone --nproc-per-node 2", ""),
    "lightning_module": ("python", "2 2"),
    "streamed_loop": ("torchrun --standalone --nproc-per-node 2", ""),
    "torchvision_loop": ("torchrun --standalone --nproc-per-node 2", ""),
}
# In a sitecustomize.py, which Python imports when it starts, in whatever way a process is started.
RECORDER = """
import atexit, hashlib, json, os
from pathlib import Path

import torch
import torch.distributed as dist

from dcgan import Trainer
from dcgan._checks import expect_images

step, images = Trainer.step, []


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def write(trainer, first, rank):
    state = trainer.state_dict()
    adams = [value for name in ("g_optimizer", "d_optimizer") for value in state[name]["state"].values()]
    networks = [tensor for name in ("generator", "discriminator", "ema") for tensor in state[name].values()]
    moments = [tensor for values in adams for tensor in values.values()]
    record = {"first": first, "steps": trainer.steps, "images": images, "state": digest(networks + moments)}
    Path(os.environ["RECORDS"], f"{rank}.json").write_text(json.dumps(record), encoding="utf-8")


def recorded_step(trainer, batch):
    rank = dist.get_rank() if dist.is_initialized() else 0
    if not images:
        atexit.register(write, trainer, trainer.steps, rank)
    images.append([digest([image]) for image in expect_images(batch)])
    metrics = step(trainer, batch)
    if trainer.steps == int(os.environ["KILL_AT"]):
        write(trainer, trainer.steps - len(images), rank)
        if dist.is_initialized():
            dist.barrier()  # the others have written, too
        os._exit(9)  # as if killed: the example can neither save nor clean up
    return metrics


Trainer.step = recorded_step
"""


@pytest.fixture
def launch(tmp_path):
    """Run an example in a folder, where its checkpoints are, and return what each process recorded."""
    (tmp_path / "sitecustomize.py").write_text(RECORDER, encoding="utf-8")

    def run(name, folder, *, processes=1, kill_at=0, options=()):
        if name in LIBRARIES:
            pytest.importorskip(LIBRARIES[name])
        before, after = IN_TWO_PROCESSES[name] if processes == 2 else ("python", "")
        program, *arguments = before.replace("PORT", free_port()).split()
        program = sys.executable if program == "python" else str(Path(sys.executable).with_name(program))
        command = [program, *arguments, str(FOLDER / f"{name}.py"), *after.split(), *options]
        records = tmp_path / f"records-{len(list(tmp_path.iterdir()))}"
        for path in (tmp_path / folder, records):
            path.mkdir(exist_ok=True)
        environment = {**os.environ, "RECORDS": str(records), "KILL_AT": str(kill_at)}
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command, cwd=tmp_path / folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert (done.returncode != 0) == bool(kill_at), done.stdout + done.stderr
        ranks = [records / f"{rank}.json" for rank in range(processes)]
        assert sorted(records.iterdir()) == ranks, done.stdout + done.stderr
        return [SimpleNamespace(**json.loads(rank.read_text(encoding="utf-8"))) for rank in ranks]

    return run


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_how_to_run_it(name):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert source.count("\n") <= 60
    docstring = ast.get_docstring(ast.parse(source))
    assert f"python examples/{name}.py" in docstring
    if name in IN_TWO_PROCESSES:
        before, _ = IN_TWO_PROCESSES[name]
        assert f"{before.replace('--main-port PORT ', '')} examples/{name}.py" in docstring


def test_the_examples_are_those_that_are_run():
    assert sorted([*IN_ONE_PROCESS, *IN_TWO_PROCESSES]) == EXAMPLES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "own_loop" else pytest.mark.slow) for name in IN_ONE_PROCESS]
)
def test_an_example_runs(launch, name):
    (run,) = launch(name, "run")
    assert run.first == 0
    assert run.steps == len(run.images) > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", sorted(IN_TWO_PROCESSES))
def test_an_example_goes_on_exactly_after_it_was_killed(launch, name, processes):
    unbroken = launch(name, "unbroken", processes=processes)
    expect_shared_training(unbroken)
    half = unbroken[0].steps // 2
    kill_at = half + half // 4  # within an epoch, and apart from the last checkpoint
    launch(name, "killed", processes=processes, kill_at=kill_at)
    resumed = launch(name, "killed", processes=processes)
    for whole, rest in zip(unbroken, resumed, strict=True):
        assert 0 < rest.first < kill_at
        assert rest.images == whole.images[rest.first :]
        assert (rest.steps, rest.state) == (whole.steps, whole.state)


def expect_shared_training(ranks):
    """The processes share out the images of an epoch in batches of one size, and agree on all that is trained."""
    epoch = [batch for run in ranks for batch in run.images[: run.steps // 2]]
    images = [image for batch in epoch for image in batch]
    assert len(images) == len(set(images)) == len(epoch) * len(epoch[0]) > 0
    assert len({(run.steps, run.state) for run in ranks}) == 1


@pytest.mark.slow
def test_the_bare_loop_trains_on_mnist(launch, real_data):
    ranks = launch("torchvision_loop", "run", processes=2, kill_at=20, options=["--mnist", str(real_data)])
    expect_shared_training(ranks)
    noise = launch("torchvision_loop", "noise", processes=2, kill_at=20)
    assert ranks[0].state != noise[0].state


def load_example(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def guidelines(monkeypatch):
    module = load_example("guidelines")
    for name, value in {"WIDTH": 4, "BATCH": 8, "SAMPLES": 16, "REAL": 64, "CHECKPOINTS": 4}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_every_guideline_can_be_taken_away_and_a_second_call_goes_on(guidelines, tmp_path, monkeypatch, capsys):
    small = [variant._replace(batch=8) for variant in guidelines.VARIANTS]
    monkeypatch.setattr(guidelines, "VARIANTS", small)
    command = ["guidelines.py", "--steps", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "BatchNorm"])
    guidelines.main()
    monkeypatch.setattr(sys, "argv", command)
    guidelines.main()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["variant"] for row in rows) == sorted(variant.name for variant in small)
    assert all([*row["distances"]] == [*"1234"] and [*row["moved"]] == [*"234"] for row in rows)
    assert len(list(tmp_path.glob("digits-*-0.png"))) == len(rows)
    drawn = {path.name for path in tmp_path.glob("*-digits.png")}
    assert drawn == {"curves-digits.png", "samples-digits.png"}
    *_, table = capsys.readouterr().out.strip().split("digits\n")
    assert table.count("\n") == len(rows) + 1


def test_a_guideline_matters_if_every_seed_says_so(guidelines):
    assert guidelines.verdict("moves", [1.3, 1.5], dead=0) == "holds"
    assert guidelines.verdict("moves", [1.3, 1.0], dead=0) == "does not show here"
    assert guidelines.verdict("moves", [0.5, 0.8], dead=0) == "the other way round"
    assert guidelines.verdict("", [0.5, 0.8], dead=0) == "better"
    assert guidelines.verdict("distance", [1.3], dead=2) == "holds: 2 of 3 died"


def test_a_guideline_is_judged_by_what_its_claim_is_about(guidelines):
    def row(variant, distances, moved):
        steps = ["1", "2", "3", "4"]
        return {
            "set": "digits",
            "variant": variant,
            "seed": 0,
            "collapse": None,
            "distances": dict(zip(steps, distances, strict=True)),
            "moved": dict(zip(steps[1:], moved, strict=True)),
        }

    rows = [
        row("ours", [9, 8, 4, 2], [0.5, 0.1, 0.1]),
        row("β₁ 0.9", [9, 8, 4, 1], [0.5, 0.3, 0.3]),  # it swings, though it is nearer in the end
        row(
            "averaged maps before the logit", [20, 9, 9, 8], [0.5, 0.1, 0.1]
        ),  # it takes four steps to half-way, not two
        row("sigmoid output", [9, 8, 1, 1], [0.5, 0.1, 0.1]),
    ]
    *_, averaged, sigmoid, beta = guidelines.table(rows, "digits").splitlines()
    assert averaged.endswith("| 8 | 0.1 | 4 | half-way × 2 | holds |")
    assert sigmoid.endswith("| 1 | 0.1 | 2 | distance × 0.5 | the other way round |")
    assert beta.endswith("| 1 | 0.3 | 2 | moves × 3 | holds |")


def test_a_recipe_is_compared_at_equal_steps_and_seconds(tmp_path, monkeypatch, capsys):
    module = load_example("beside_tutorial")
    for name, value in {"_GENERATED": 16, "_REAL": 64}.items():
        monkeypatch.setattr(f"dcgan._quality.{name}", value)
    monkeypatch.setattr(module, "CHECKPOINTS", 2)
    recipe = tmp_path / "small.yaml"
    recipe.write_text("data: digits\nimage_size: 16\nchannels: 1\nbase_channels: 4\nbatch_size: 16\nsteps: 1\n")
    command = ["beside_tutorial.py", str(recipe), "--steps", "2", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    rows = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text(encoding="utf-8").splitlines()]
    for theirs, ours, joint in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert [point["step"] for point in theirs["curve"]] == [1, 2]
        assert [point["step"] for point in joint["curve"]] == [1, 2]
        assert ours["curve"][1]["step"] == 2
        assert ours["curve"][-1]["seconds"] >= theirs["curve"][-1]["seconds"]
    first = capsys.readouterr().out
    module.main()
    assert capsys.readouterr().out == first
    assert "| the tutorial | 2 |" in first


def test_distances_are_compared_in_pairs_of_seeds():
    module = load_example("beside_tutorial")
    rows = [
        {"recipe": name, "seed": seed, "curve": [{"step": s, "seconds": 1.0 * s, "distance": d} for s, d in curve]}
        for name, seed, curve in (
            ("tutorial", 0, [(10, 8.0)]),
            ("tutorial", 1, [(10, 4.0)]),
            ("ours", 0, [(10, 4.0), (20, 2.0)]),
            ("ours", 1, [(10, 1.0), (20, 0.5)]),
            ("ours, with their batches", 0, [(10, 2.0)]),
            ("ours, with their batches", 1, [(10, 0.5)]),
        )
    ]
    assert module.compare(rows, 10).splitlines()[2:] == [
        "| the tutorial | 10 | 10 | 6.00 (4.00 to 8.00) | 1.00 |",
        "| ours, as many steps | 10 | 10 | 2.50 (1.00 to 4.00) | 0.38 |",
        "| ours, as many steps and images | 10 | 10 | 1.25 (0.50 to 2.00) | 0.19 |",
        "| ours, as many seconds | 20 | 20 | 1.25 (0.50 to 2.00) | 0.19 |",
    ]


def test_models_are_trained_with_several_seeds_and_recorded(tmp_path, monkeypatch, capsys):
    training, model = load_example("zoo_train"), load_example("zoo_model")
    for name, value in {"_GENERATED": 16, "_REAL": 64}.items():
        monkeypatch.setattr(f"dcgan._quality.{name}", value)
    before = zoo.load_record("digits")
    for name in ("RECORDS", "WEIGHTS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(zoo, name, tmp_path / name)
    monkeypatch.setattr(zoo, "_records", zoo._records.__wrapped__)  # which reads the new ones
    monkeypatch.setattr(model, "SEEDS", [100, 101])

    small = [
        "--steps",
        "2",
        "--eval-every",
        "1",
        "--base-channels",
        "4",
        "--samples",
        "4",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--precision",
        "bf16",
    ]
    command = ["zoo_train.py", "digits", "--seeds", "0", "1", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*command, *small])
    training.main()
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split(" | ")[:3] for row in rows] == [["| digits", "0", "2"], ["| digits", "1", "2"]]
    state = (tmp_path / "runs/digits-0/metrics.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", command)
    training.main()  # all is done
    assert capsys.readouterr().out.splitlines()[-2:] == rows
    assert (tmp_path / "runs/digits-0/metrics.jsonl").read_bytes() == state

    about = ["description", "data", "terms", "licence", "source"]
    (tmp_path / "about.yaml").write_text(json.dumps({name: getattr(before, name) for name in about}), encoding="utf-8")
    command = ["zoo_model.py", "digits", str(tmp_path / "runs/digits-0"), "--machine", "an abacus"]
    monkeypatch.setattr(sys, "argv", [*command, "--about", str(tmp_path / "about.yaml")])
    model.main()
    record = zoo.load_record("digits")
    assert [getattr(record, name) for name in about] == [getattr(before, name) for name in about]
    assert record.training["command"] == "dcgan train --recipe digits --precision bf16"
    assert record.training["machine"] == "an abacus, bf16"
    assert [f"{distance:.2f}" for distance in record.training["distance_by_seed"].values()] == [
        row.split(" | ")[3] for row in rows
    ]
    assert sorted(record.sha256) == ["discriminator/model.safetensors", "model.safetensors", "reference.safetensors"]
    card = (record.folder / "README.md").read_text(encoding="utf-8")
    assert "with seed 1" in card
    (tmp_path / "WEIGHTS/digits/README.md").unlink()
    monkeypatch.setattr(sys, "argv", command[:2])
    model.main()
    assert (record.folder / "README.md").read_text(encoding="utf-8") == card
