"""Small runs, in this process and in others that are killed or have little room, and what a folder of one holds."""

import json
import multiprocessing
import os
import signal
import sys

import torch

from dcgan import checkpoint, cli
from dcgan.recipe import Recipe
from dcgan.run import Run

TINY = Recipe(
    base_channels=4,
    image_size=16,
    batch_size=200,  # 8 steps an epoch
    steps=19,
    log_every=4,
    sample_every=5,
    save_every=7,
    samples=9,
    ema_decay=0.9,
    device="cpu",
)

EAGER = TINY.replace(steps=6, log_every=1, sample_every=1, save_every=1, batch_size=50)

# Processes of their own that need not import torch again.
_FORKS = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
_FORKS.set_forkserver_preload(["dcgan.run", "dcgan.cli", "tqdm", "pytest", "sklearn.datasets", "safetensors.torch"])


def _command(arguments, log, kill_at, file_limit):
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if file_limit is not None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if kill_at is not None:
        folder, left = kill_at

        def count(event, details):
            nonlocal left
            if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(details[0]).startswith(folder):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
    sys.exit(cli.main(arguments))


def command(log, *arguments, kill_at=None, file_limit=None):
    """Run a command in a new process; return its exit code."""
    process = _FORKS.Process(target=_command, args=([*map(str, arguments)], str(log), kill_at, file_limit))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the command hangs"
    return process.exitcode


def options(recipe):
    """Write a recipe as a command line."""
    given = {name: getattr(recipe, name) for name in recipe.changes(Recipe())}
    for name, value in given.items():
        yield f"--{name.replace('_', '-')}"
        yield str(value)


def start_and_stop(recipe, folder, stop=None):
    """Train to the end, or save and leave after step `stop`; return the folder."""
    run = Run.start(recipe, folder)
    steps = run.train()
    for _ in steps:
        if run.trainer.steps == stop:
            run.save()
            break
    steps.close()
    run.close()
    return folder


def flat(value):
    """Write a state as something that == compares exactly."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def computed(folder):
    """Return all that a run has computed, exactly: its folder but for the times in the log and in its picture."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in (
            "*.safetensors",
            "*/*.safetensors",
            "samples/*",
            "*.gif",
            "*.json",
            "*/*.json",
            "recipe.yaml",
        )
        for path in folder.glob(pattern)
    }
    states = {path.name: flat(checkpoint.load(path)) for path in checkpoint.list_states(folder / "state")}
    metrics = [{k: v for k, v in record.items() if k != "images_per_second"} for record in records(folder)]
    return {**files, **states, "metrics": metrics}


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
