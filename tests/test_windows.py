"""What differs on Windows, simulated where it can be; where it cannot, what the code must not use is looked for."""

import ast
import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, client, digest

from dcgan import Discriminator, Generator, _files
from dcgan._files import atomic_write

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "dcgan").rglob("*.py"))
TINY = {"image_size": 16, "channels": 1, "base_channels": 2, "latent_dim": 4}


# Replacing files


@pytest.fixture
def held(monkeypatch):
    """Return a function that makes the next `times` replacements fail, as for a file that another program has open."""
    replace, slept = Path.replace, []
    monkeypatch.setattr(_files, "_WINDOWS", True)
    monkeypatch.setattr(_files.time, "sleep", slept.append)

    def hold(times):
        def attempt(source, target):
            nonlocal times
            times -= 1
            if times >= 0:
                raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
            return replace(source, target)

        monkeypatch.setattr(Path, "replace", attempt)
        return slept

    return hold


@pytest.mark.parametrize("times", [0, 1, 5, 8])
def test_a_file_that_is_open_for_a_moment_is_replaced_after_it(tmp_path, held, times):
    path, slept = tmp_path / "model.safetensors", held(times)
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert slept == _files._RETRY_DELAYS[:times]


def test_a_file_that_stays_open_is_named_after_a_short_time_and_left_whole(tmp_path, held):
    path, slept = tmp_path / "model.safetensors", held(1000)
    path.write_bytes(b"old")
    reason = "cannot be replaced: another program has the file open"
    with pytest.raises(PermissionError, match=reason) as raised, atomic_write(path) as file:
        file.write(b"new")
    assert (raised.value.filename, raised.value.errno) == (str(path), errno.EACCES)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert 1 < sum(slept) < 5


def test_a_scanner_that_holds_the_new_file_does_not_hide_the_first_error(tmp_path, held, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def unlink(*_, **__):
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(ZeroDivisionError), atomic_write(path):
        _ = 1 / 0
    held(1000)
    with pytest.raises(PermissionError, match="cannot be replaced: another program"), atomic_write(path):
        pass
    assert path.read_bytes() == b"old"


def test_elsewhere_a_refusal_is_not_repeated(tmp_path, held, monkeypatch):
    slept = held(1000)
    monkeypatch.setattr(_files, "_WINDOWS", False)
    with pytest.raises(PermissionError, match="Access is denied"), atomic_write(tmp_path / "file"):
        pass
    assert slept == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_loaded_network_keeps_no_file_mapped(tmp_path):
    # Windows neither replaces nor deletes a file that is mapped into memory.
    from safetensors.torch import load_file

    def mapped():
        return "model.safetensors" in Path("/proc/self/maps").read_text()

    Generator(**TINY).save_pretrained(tmp_path)
    generator = Generator.from_pretrained(tmp_path)
    assert not mapped()
    generator.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert mapped()  # the check can fail
    del state


# What is written


def test_names_of_files_are_allowed_on_windows(tmp_path):
    from dcgan.recipe import Recipe
    from dcgan.run import Run

    recipe = Recipe(
        data="fake",
        steps=1,
        image_size=16,
        base_channels=2,
        batch_size=4,
        samples=4,
        device="cpu",
        cache_dir=tmp_path / "cache",
    )
    run = Run.start(recipe, tmp_path / "run")
    for _ in run.train():
        pass
    run.close()
    names = {part for path in tmp_path.rglob("*") for part in path.relative_to(tmp_path).parts}
    assert {"step-000001.pt", "step-000001.png", "metrics.jsonl", "discriminator"} <= names
    for name in names:
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]|[ .]$', name), name
        assert not re.fullmatch(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", name, re.IGNORECASE), name


# Links and paths


def test_the_hubs_cache_without_symbolic_links(tmp_path):
    generator, discriminator = Generator(**TINY), Discriminator(image_size=16, channels=1, base_channels=2)
    for network in (generator, discriminator):
        network.save_pretrained(tmp_path / "saved")
    saved = {p.relative_to(tmp_path / "saved").as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code = """
def symlink(*_, **__):
    raise OSError(22, "A required privilege is not held by the client")
os.symlink = symlink
for turn in range(2):
    result[str(turn)] = [digest(network) for network in dcgan.from_pretrained("me/g")]
"""
    with HubServer() as hub:
        hub.add("me/g", saved)
        ran = client(hub, code, home=tmp_path / "home", HF_HUB_DISABLE_SYMLINKS_WARNING="1")
        assert ran.result == {turn: [digest(generator), digest(discriminator)] for turn in "01"}
        assert sorted(hub.downloads()) == sorted(saved)  # each of them once
    assert not any(path.is_symlink() for path in (tmp_path / "home").rglob("*"))


def test_paths_with_backslashes_survive_messages(capsys):
    from dcgan.cli import main

    path = r"C:\[runs]\new\[/red]table"
    assert main(["train", "--resume", path]) == 2
    assert f"dcgan: {path} is not the folder of a run" in capsys.readouterr().err
    assert main(["generate", path]) == 2
    assert repr(path) in capsys.readouterr().err
    assert main(["train", "--steps", path]) == 2
    printed = re.sub(r"\s*│?\n│? *", "", capsys.readouterr().err)
    assert path.replace(" ", "") in printed.replace("\\\\", "\\").replace(" ", "")


# What Windows lacks

# Each stands behind a check of its own, or is imported where a failure is expected.
GUARDED = {
    "data/_packing.py": {"sysconf", "posix_fadvise", "POSIX_FADV_WILLNEED"},
    "bench/_contender.py": {"resource", "getrusage", "RUSAGE_SELF"},
}
ABSENT = {
    *(
        "fork",
        "forkpty",
        "sysconf",
        "mkfifo",
        "mknod",
        "symlink",
        "symlink_to",
        "hardlink_to",
        "chown",
        "lchown",
        "uname",
    ),
    *(
        "getuid",
        "geteuid",
        "getgid",
        "setsid",
        "setpgid",
        "killpg",
        "nice",
        "pread",
        "posix_fadvise",
        "posix_fallocate",
    ),
    *(
        "POSIX_FADV_WILLNEED",
        "getrusage",
        "RUSAGE_SELF",
        "sched_getaffinity",
        "getloadavg",
        "statvfs",
        "wait3",
        "wait4",
    ),
    *("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGCHLD"),
    *(
        "SIGPIPE",
        "SIGWINCH",
        "alarm",
        "setitimer",
        "pthread_sigmask",
        "sigwait",
        "preexec_fn",
        "resource",
        "fcntl",
        "pwd",
    ),
    *("grp", "termios", "tty", "pty", "syslog", "posix"),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_used_that_windows_lacks(source):
    used = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.keyword):
            used.add(node.arg)
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module, *(alias.name for alias in node.names)}
    assert used & ABSENT <= GUARDED.get(source.relative_to(ROOT / "dcgan").as_posix(), set())


def test_the_guards_hold(tmp_path):
    # Run what stands behind a check, without the modules and functions that Windows lacks.
    code = """
import os, signal, sys
import cyclopts, filelock, numpy, PIL.Image, torch, torchvision, tqdm  # these have checks of their own
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None  # what raises ImportError
for name in ("sysconf", "posix_fadvise", "POSIX_FADV_WILLNEED", "fork", "mkfifo", "uname", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGQUIT", "SIGPIPE"):
    if hasattr(signal, name):
        delattr(signal, name)
from dcgan.bench._contender import peak_memory
assert peak_memory(torch.device("cpu")) is None
import dcgan._files
dcgan._files._WINDOWS = True
from dcgan.cli import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["train", "--data", "fake", "--steps", "2", "--image-size", "16", "--base-channels", "2"]
    arguments += ["--batch-size", "4", "--samples", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run/state/step-000002.pt").is_file()


def test_child_processes_can_be_spawned_from_the_command_line():
    # A spawned process imports the parent's main module again: Python skips one that is named `__main__` in a package.
    code = """
import multiprocessing, operator, runpy, sys
import dcgan.cli
def main():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(operator.add, (1, 2)))
    return 0
dcgan.cli.main = main
sys.argv = ["dcgan"]
runpy.run_module("dcgan", run_name="__main__", alter_sys=True)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "3\n"), ran.stderr
