"""Unusual environments: no home, other encodings, closed streams, threads, archives, interpreters without a lock."""

import os
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest

from dcgan.cli import main
from dcgan.cli._terminal import collect_signals

ROOT = Path(__file__).parents[1]
TRAIN = [
    *("train", "--data", "fake", "--steps", "2", "--image-size", "16", "--base-channels", "2"),
    *("--batch-size", "4", "--samples", "4", "--device", "cpu"),
]
ODD = "Модель ü"  # a folder that neither ASCII nor Windows' usual encoding can write


def python(*arguments, cwd, env=(), without=(), **options):
    """Run this interpreter in another environment; return the completed process."""
    names = {"PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG", "XDG_CACHE_HOME", *without}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=kept | dict(env), timeout=100, check=False, **options)


def dcgan(*arguments, **options):
    return python("-m", "dcgan", *arguments, **options)


# Homes


def no_home(tmp_path):
    return {"without": ["HOME", "USERPROFILE"]}


def unwritable_home(tmp_path):
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")  # below a file, where nothing can be created, not even by root
    return {"env": {"HOME": home, "USERPROFILE": home}}


@pytest.mark.parametrize("home", [no_home, pytest.param(unwritable_home, marks=pytest.mark.slow)])
def test_a_home_is_not_needed(tmp_path, home):
    code = """
import dcgan
generator = dcgan.Generator(image_size=16, base_channels=2)
generator.save_pretrained("saved")
assert dcgan.Generator.from_pretrained("saved").sample(4, seed=0).equal(generator.sample(4, seed=0))
from dcgan.cli import main
raise SystemExit(main())
"""
    ran = python("-c", code, *TRAIN, "--out", "run", cwd=tmp_path, **home(tmp_path))
    assert ran.returncode == 0, ran.stderr.decode()


def test_a_cache_that_cannot_be_written_is_named_without_a_traceback(tmp_path):
    ran = dcgan(*TRAIN, "--out", "run", cwd=tmp_path, **unwritable_home(tmp_path), without=["DCGAN_CACHE"])
    message = ran.stderr.decode()
    assert ran.returncode == 2
    assert "Traceback" not in message
    assert str(tmp_path / "file/home/.cache") in message
    assert not (tmp_path / "run").exists()


# Encodings and streams


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "command", [[], ["train"], ["show"], ["generate"], ["convert"], ["export"], ["bench"]], ids=" ".join
)
def test_help_can_be_written_in_any_encoding(command, encoding, capsys, monkeypatch):
    assert main([*command, "--help"]) == 0
    printed = capsys.readouterr().out
    words = "".join(character for character in printed if character not in "╭╮╰╯─│")  # rich has others for boxes
    assert words.encode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_in_another_encoding(tmp_path, encoding):
    ran = dcgan("train", "--help", cwd=tmp_path, env={"PYTHONIOENCODING": encoding})
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"--image-size" in ran.stdout


@pytest.mark.parametrize(
    ("env", "encoding"),
    [
        pytest.param({"PYTHONIOENCODING": "cp1252"}, "cp1252", id="cp1252"),
        pytest.param({"LC_ALL": "C"}, "utf-8", id="C", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_folder_the_output_may_be_unable_to_write(tmp_path, env, encoding):
    ran = dcgan(*TRAIN, "--out", ODD, cwd=tmp_path, env=env)
    assert ran.returncode == 0, ran.stderr.decode()
    assert (tmp_path / ODD / "recipe.yaml").is_file()
    assert b"\nrun       %s: step 0 to 2" % ODD.encode(encoding, "backslashreplace") in ran.stdout.replace(b"\r", b"")


def test_what_an_encoding_lacks_is_escaped(tmp_path):
    code = "from dcgan.cli._terminal import say; say('ü Модель \\udcff'); say('Модель', error=True)"
    ran = python("-c", code, cwd=tmp_path, env={"PYTHONIOENCODING": "cp1252"})
    escaped = rb"\u041c\u043e\u0434\u0435\u043b\u044c"
    assert ran.stdout.splitlines() == [b"\xfc " + escaped + rb" \udcff"]
    assert ran.stderr.splitlines() == [escaped]


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids=" ".join)
def test_closed_streams(tmp_path, closed, monkeypatch):
    for name in closed:  # what Python has where there is no console, and in some services
        monkeypatch.setattr(sys, name, None)
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/state/step-000002.pt").is_file()
    assert main(["generate", str(tmp_path / "run"), "-n", "2", "--out", str(tmp_path / "samples")]) == 0
    assert main(["generate", str(tmp_path / "nothing")]) == 2
    for name in closed:
        assert getattr(sys, name) is None


def test_a_terminal_that_can_do_nothing(tmp_path):
    ran = dcgan("train", "--stpes", "3", cwd=tmp_path, env={"TERM": "dumb"})
    assert ran.returncode == 2
    assert b"--stpes" in ran.stderr
    assert b"\x1b" not in ran.stdout + ran.stderr


@pytest.mark.slow
def test_files_are_read_and_written_in_utf8(tmp_path):
    # The encoding of a text file is always given: the default differs from system to system.
    code = """
import sys, warnings
import cyclopts, filelock, huggingface_hub, numpy, sklearn.datasets, torch, torchvision, tqdm, yaml  # not our files
# `Path.read_text` and its like name their caller.
warnings.filterwarnings("error", category=EncodingWarning, module=r"dcgan(\\.|$)")
import dcgan
from dcgan.cli import main
assert main([*TRAIN, "--out", "run"]) == 0
assert main(["train", "--resume", "run", "--steps", "3"]) == 0
assert main(["train", "--config", "run/recipe.yaml", "--print-recipe"]) == 0
assert main(["generate", "run", "-n", "2", "--out", "samples"]) == 0
for network in dcgan.from_pretrained("run"):
    network.save_pretrained("saved")
try:
    exec("open('run/recipe.yaml')", {"__name__": "dcgan.other"})
except EncodingWarning:
    print("the check can fail")
""".replace("TRAIN", repr(TRAIN))
    ran = python("-X", "warn_default_encoding", "-c", code, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.decode().splitlines()[-1] == "the check can fail"


# Threads, archives, interpreters


def test_in_a_thread(tmp_path):
    codes, received = [], []

    def work():
        codes.append(main([*TRAIN, "--out", str(tmp_path / "run")]))
        with collect_signals() as signals:
            received.append(signals)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (codes, received) == ([0], [[]])
    assert (tmp_path / "run/state/step-000002.pt").is_file()


def test_from_an_archive(tmp_path):
    archive = tmp_path / "dcgan.whl"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((ROOT / "dcgan").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, path.relative_to(ROOT).as_posix())
    code = """
import sys, dcgan
assert "dcgan.whl" in dcgan.__file__, dcgan.__file__
generator, discriminator = dcgan.Generator(image_size=16, base_channels=2), dcgan.Discriminator(image_size=16)
generator.save_pretrained("saved")
assert dcgan.Generator.from_pretrained("saved").sample(4, seed=0).equal(generator.sample(4, seed=0))
import dcgan.bench, dcgan.convert, dcgan.data, dcgan.export, dcgan.run
"""
    env = {"PYTHONPATH": str(archive)}
    ran = python("-c", code, cwd=tmp_path, env=env)
    assert ran.returncode == 0, ran.stderr.decode()
    ran = dcgan("--help", cwd=tmp_path, env=env)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_the_package_is_pure_python_and_leaves_the_interpreters_lock_alone():
    suffixes = {path.suffix for path in (ROOT / "dcgan").rglob("*") if path.is_file()} - {".pyc"}
    assert suffixes <= {".py", ".typed", ".yaml", ".safetensors", ".json", ".md", ".png"}  # the last three of models
    for path in (ROOT / "dcgan").rglob("*.py"):
        assert "PYTHON_GIL" not in path.read_text(encoding="utf-8"), path


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_importing_the_package_does_not_enable_the_lock(tmp_path):
    before = "import sys; import torch, cyclopts, yaml; lock = sys._is_gil_enabled()\n"  # what others did
    code = before + "import dcgan, dcgan.cli, dcgan.models, dcgan.trainer; assert sys._is_gil_enabled() == lock"
    ran = python("-c", code, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr.decode()
