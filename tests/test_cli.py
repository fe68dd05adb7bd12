"""The command line: correct and mistaken commands, exit codes, and real processes with signals."""

import errno
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import dcgan
from dcgan import Generator, checkpoint, cli
from dcgan._errors import InputError, MissingPackageError
from dcgan.cli import _messages, _migration
from dcgan.cli._messages import in_options
from dcgan.cli._terminal import RunError, UsageError, collect_signals, exit_on_error, log_above_progress_bar
from dcgan.data import BadImages
from dcgan.recipe import Recipe
from dcgan.run import CollapseError
from dcgan.trainer import Trainer

SMALL = shlex.split("--base-channels 4 --image-size 16 --samples 4 --device cpu")
TINY = [*SMALL, "--batch-size", "8"]

_FLAGS = """
--activation --architecture --augment --base-channels --batch-size --beta1 --beta2 --bias --cache --cache-dir
--channels --classes --compile --conditional --config --convs-per-stage --d-activation --d-base-channels --d-lr
--d-norm --d-slope --d-steps --data --device --discriminator --dry-run --ema-decay --epochs --eval-every --flip --from
--g-lr --generator --gradient-penalty --image-size --keep --kernel-size --label-smoothing --latent --latent-dim --log
--log-every --loss --lr --lr-decay --max-channels --max-pixels --no-augment --no-bias --no-cache --no-conditional
--no-flip --no-log --no-skip-bad --no-stem-activation --no-sync-batchnorm --norm --norm-eps --on-collapse --out
--output --precision --print-recipe --r1 --recipe --resize --resume --root --sample-every --samples --save-every
--schedule --seed --skip-bad --slope --stages --stem --stem-activation --stem-norm --steps --sync-batchnorm --upsample
--watch --weight-decay --workers
"""
FLAGS = set(_FLAGS.split())
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of other systems differ")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dcgan_says(capfd):
    """Run a command in this process; return its exit code and what it printed to the two streams, on one line each."""

    def run(*arguments):
        capfd.readouterr()
        code = cli.main([*map(str, arguments)])
        captured = capfd.readouterr()
        out, err = (re.sub(r"[│╭╮╰╯─\s]+", " ", text).strip() for text in captured)
        return code, out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", *TINY, "--steps", "3", "--out", str(folder)]) == 0
    return folder


def python(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dcgan.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        **options,
    )


def wait_for(path, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def test_help_lists_the_commands(dcgan_says):
    code, out, _ = dcgan_says("--help")
    assert code == 0
    assert all(command in out for command in ("train", "recipes", "generate", "bench"))


def test_the_flags_of_train_are_these(dcgan_says):
    """A flag that goes or changes its name breaks somebody's script: change this list on purpose only."""
    code, out, _ = dcgan_says("train", "--help")
    assert code == 0
    of_torchrun = {"--nproc-per-node", "--max-restarts"}  # in its description
    listed = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", out)) - {"--no"} - of_torchrun
    assert listed == FLAGS


def test_every_field_of_a_recipe_is_a_flag():
    fields = {f"--{name.replace('_', '-')}" for name in Recipe.__dataclass_fields__}
    assert fields <= FLAGS


def test_the_help_of_training_has_a_section_for_each_subject(dcgan_says):
    _, out, _ = dcgan_says("train", "--help")
    headings = ("Data", "Networks", "Training", "Run")
    sections = [
        re.search(rf" {heading} (--.*?)(?: (?:Data|Networks|Training|Run) --|$)", out)[1] for heading in headings
    ]
    for section, first, last in zip(
        sections,
        ("--data", "--architecture", "--steps", "--log-every"),
        ("--skip-bad", "--discriminator", "--device", "--samples"),
        strict=True,
    ):
        assert section.startswith(first)
        assert last in section


@pytest.mark.parametrize("command", ["train", "recipes", "show", "generate", "explore", "convert", "export", "bench"])
def test_lines_of_help_stand_alone(dcgan_says, command):
    code, out, _ = dcgan_says(command, "--help")
    assert code == 0
    assert not re.findall(r" (?:Its|Their|Such as|For them) [^.]*\.", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train --g-channels 32",
            "dcgan: --g-channels is now --base-channels, and the discriminator has the same width",
        ),
        ("train --d-channels=32", "dcgan: --d-channels is now --d-base-channels"),
        ("bench --work step", "dcgan: --work is now --workload"),
        ("train --base-chanels 32", "Unknown option: --base-chanels. Did you mean --base-channels?"),
        ("bench --base-chanels 32", "Unknown option: --base-chanels. Did you mean --base-channels?"),
        ("bench --workload steps", 'Did you mean "step"?'),
    ],
)
def test_a_wrong_name_suggests_the_right_one(dcgan_says, arguments, message):
    code, out, err = dcgan_says(*arguments.split())
    assert (code, out) == (2, "")
    assert message in err


def test_the_version_is_printed(dcgan_says):
    assert dcgan_says("--version") == (0, dcgan.__version__, "")


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "train --help",
        "generate --help",
        "--version",
        "trian",
        "train --lerning-rate 1",
        "train --print-recipe",
        "train --recipe tutorial --print-recipe",
        "recipes",
    ],
)
def test_help_and_typos_do_not_import_torch(arguments):
    code = "import sys; from dcgan.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    process = python("-c", code, *arguments.split())
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_check_for_torch_can_fail():
    process = python("-c", "import dcgan.trainer, sys; sys.exit('torch' in sys.modules)")
    process.communicate(timeout=60)
    assert process.returncode == 1


@posix
@pytest.mark.parametrize("arguments", ["train --help", "train --print-recipe", "recipes", "--version"])
def test_a_reader_that_goes_away_is_not_an_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    process = python("-m", "dcgan", *arguments.split(), stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


THEIRS = {
    "train --dataset cifar10 --dataroot X --niter 5 --batchSize=64 --imageSize 64 --cuda --ngpu 2 --outf o": (
        "dcgan train --recipe tutorial --data cifar10 --root X --epochs 5 --batch-size 64 --image-size 64 "
        "--device cuda --out o"
    ),
    "--dataset lsun --dataroot a=b --classes x,y --netG= --niter 3": (
        "dcgan train --recipe tutorial --data lsun --root a=b --classes x y --epochs 3 --batch-size 64"
    ),
    "--dataroot faces --niter 3": (
        "dcgan train --recipe tutorial --data folder --root faces --epochs 3 --batch-size 64"
    ),
    "--dataset imagenet --dataroot X --niter 5": (
        "dcgan train --recipe tutorial --data folder --root X --epochs 5 --batch-size 64"
    ),
    "--dataset lsun --dataroot X --niter 5 --batchSize 32": (
        "dcgan train --recipe tutorial --data lsun --root X --epochs 5 --batch-size 32 --classes bedroom"
    ),
    "--dataset fake --dataroot X --niter 5": "dcgan train --recipe tutorial --data fake --epochs 5 --batch-size 64",
    "-load_path m.pth": "dcgan generate m.pth after dcgan convert m.pth FOLDER",
    "train --niter 5 --lr 0.1": "dcgan train --epochs 5 --lr 0.1",
    "train --nz 9 --ngf 8 --ndf 4 --manualSeed 1 --accel": (
        "dcgan train --latent-dim 9 --base-channels 8 --d-base-channels 4 --seed 1"
    ),
    "train --netG g.pth": "dcgan train --generator g.pth after dcgan convert g.pth FOLDER, and with this folder",
    "generate -load_path model/m.pth -num_output 9": "dcgan generate model/m.pth --number 9 after dcgan convert",
}


@pytest.mark.parametrize("line", THEIRS)
def test_options_of_published_scripts_are_answered_with_the_command(line, dcgan_says):
    code, out, err = dcgan_says(*line.split())
    assert (code, out) == (2, "")
    assert f"these are options of a published script; here it is {THEIRS[line]}" in err


def test_the_page_for_users_of_other_scripts_has_every_option():
    page = (Path(__file__).parents[1] / "docs/migrating.md").read_text(encoding="utf-8")
    for theirs in {**_migration.RENAMED, **_migration.FLAGS} | dict.fromkeys(_migration.DROPPED):
        assert f"`{theirs}`" in page
    for ours in filter(None, [*_migration.RENAMED.values(), *_migration.FLAGS.values()]):
        assert f"`{ours.split()[0]}" in page


MISTAKES = {
    "trian": 'Unknown command "trian". Did you mean "train"?',
    "train extra": "Unused Tokens: ['extra']",
    "train --batchsize 3": "Unknown option: --batchsize. Did you mean --batch-size?",
    "train --out": "--out requires an argument",
    "train --lr abc": 'Invalid value for --lr: unable to convert "abc" into float',
    "train --lr -1": "--lr must be above 0, got -1.0",
    "train --data cifar": 'Did you mean "cifar10"?',
    "train --data folder": "the dataset 'folder' needs --root, the folder of images",
    "train --root missing": "missing must be a folder of images, but does not exist",
    "train --data digits --root faces": "the dataset 'digits' takes no --root, got faces: 'folder' reads the images of",
    "train --data folder --root missing": "missing must be a folder of images, but does not exist",
    "train --data fake --resize squash": "the dataset 'fake' takes no --resize squash: its images and the image size",
    "train --data fake --skip-bad": "the dataset 'fake' takes no --skip-bad, which is for image files",
    "train --max-pixels 9": "the dataset 'digits' takes no --max-pixels, which is for image files",
    "train --no-cache --cache-dir packed": "--cache-dir packed is for packed files, which --no-cache leaves out",
    "train --no-cache --skip-bad --data mnist": "--skip-bad needs --cache: only packing looks at every image",
    "train --image-size=48 80": "--image-size takes HEIGHTxWIDTH: 48x80",
    "train --image-size 48 80": "--image-size takes HEIGHTxWIDTH: 48x80",
    "train --image-size 37": "or halve down to 7 or less, got 37, which does not halve",
    "train --image-size 50": "--image-size must be a multiple of 16, or halve down to 7 or less, got 50",
    "train --image-size 16x": "image size must be SIDE or HEIGHTxWIDTH, got 16x",
    "train --image-size 0": "--image-size must be at least 1, got 0",
    "train --channels 2": 'Invalid value "2" for --channels. Choose from: 1, 3, 4.',
    "train --steps 0": "--steps must be at least 1, got 0",
    "train --steps 10 --epochs 3": "--steps and --epochs exclude each other, got 10 and 3",
    "train --batch-size 0": "--batch-size must be at least 1, got 0",
    "train --batch-size 5000": "--batch-size must be at most the number of images, 1797, got 5000",
    "train --device nonsense": "--device 'nonsense' is not available",
    "train --ema-decay 1": "--ema-decay must be in [0, 1), got 1.0",
    "train --augment blur": 'Invalid value "blur" for --augment. Choose from: "color", "translation", "shift"',
    "train --d-steps 0": "--d-steps must be at least 1, got 0",
    "train --epochs 2.5": "Invalid value for --epochs: expected a whole number, got '2.5'",
    "train --seed -1": "--seed must be in [0, 2**63), got -1",
    "train --keep 0": "--keep must be at least 1, got 0",
    "train --label-smoothing 0.1 --loss hinge": "--label-smoothing needs a loss with targets",
    "train --generator /missing": "there is no folder '/missing'",
    "train --resume missing": "missing is not the folder of a run",
    "train --from missing": "missing is not the folder of a run: it does not exist",
    "train --from a --resume b": "--resume continues a run, and --from starts a new one: give one of them",
    "train --from a --recipe tutorial": "--from uses the recipe of its run: omit --recipe",
    "train --from a --generator b --architecture paper": "--from takes both networks of its run: omit --architecture",
    "train --recipe cifar": "recipe must be a file or one of digits, mnist, fashion-mnist, cifar10, svhn, faces, tut",
    "train --recipe missing.yaml": "there is no recipe file missing.yaml",
    "train --recipe faces": "the dataset 'folder' needs --root, the folder of images",
    "train --recipe tutorial --resume b": "--resume uses the recipe of its run: omit --recipe",
    "train --recipe tutorial --config a.yaml": "--config is the older spelling of --recipe: give one of them",
    "train --config missing.yaml": "there is no recipe file missing.yaml",
    "train --config tutorial": "there is no recipe file tutorial",
    "train --config a.yaml --resume b": "--resume uses the recipe of its run: omit --config",
    "recipes tutorial": "Unused Tokens: ['tutorial']",
    "show nosuch": "there is no folder 'nosuch', and no model of that name: cifar10, ",
    "show faces --recipe mnist": "show one of MODEL, --architecture and --recipe at a time, got faces and mnist",
    "show --architecture pape": 'Did you mean "paper"?',
    "show --recipe nosuch": "recipe must be a file or one of digits, mnist, ",
    "show --out networks.png": "--out must end in .svg, got networks.png",
    "generate nosuch": "there is no folder 'nosuch', and no model of that name: cifar10, ",
    "generate /missing": "there is no folder '/missing'",
    "generate . -n 0": 'Invalid value "0" for -n. Must be >= 1.',
    "generate . -n x": "Invalid value for -n: expected a whole number, got 'x'",
    "generate . --seed -1": 'Invalid value "-1" for --seed. Must be >= 0.',
    "generate .": ". has no Generator: config.json is missing",
    "bench --image-size 50": "--image-size must be a multiple of 16",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_reported_in_a_line_and_exits_2(dcgan_says, arguments):
    code, out, err = dcgan_says(*arguments.split())
    assert (code, out) == (2, "")
    assert MISTAKES[arguments] in err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(dcgan_says):
    for command in (["train"], ["generate", "model"]):
        code, _, err = dcgan_says(*command, "--device", "cuda")
        assert code == 2
        assert "device 'cuda' is not available" in err


def test_a_batch_of_one_trains(dcgan_says):
    code, out, _ = dcgan_says("train", *SMALL, "--batch-size", 1, "--dry-run")
    assert (code, "trained, sampled and saved one step" in out) == (0, True)


def test_a_set_smaller_than_the_default_batch_trains_and_one_smaller_than_a_chosen_batch_does_not(dcgan_says):
    Path("pictures").mkdir()
    for index in range(5):
        Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(f"pictures/{index}.png")
    code, out, err = dcgan_says("train", *SMALL, "--root", "pictures", "--steps", 1, "--out", "run")
    assert (code, "0 to 1, 5 images each" in out) == (0, True)
    assert "batches of 5 images, as many as there are, instead of 128" in err
    assert Recipe.from_yaml(Path("run/recipe.yaml").read_text()).batch_size == 5
    code, _, err = dcgan_says("train", *TINY, "--root", "pictures", "--steps", 1, "--out", "other")
    assert (code, "--batch-size must be at most the number of images, 5, got 8" in err) == (2, True)
    assert not Path("other").exists()


def test_one_image_and_one_bad_file_are_counted_in_the_singular(dcgan_says):
    Path("pictures").mkdir()
    Image.new("RGB", (16, 16)).save("pictures/good.png")
    Path("pictures/bad.png").touch()
    code, out, err = dcgan_says("train", *SMALL, "--root", "pictures", "--skip-bad", "--steps", 1, "--out", "run")
    assert (code, "batches of 1 image, as many as there are" in err) == (0, True), err
    assert "skipped 1 file, such as" in out
    assert "folder: 1 image 16x16x3" in out
    assert "step 0 to 1, 1 image each" in out


@pytest.mark.parametrize(
    ("field", "damage", "message"),
    [
        ("device: cpu", "device: cqu", "dcgan: --device 'cqu' is not available"),
        ("root: null", "root: nulm", "dcgan: the dataset 'digits' takes no --root, got nulm"),
    ],
)
def test_what_a_damaged_recipe_sets_is_refused_with_its_line(dcgan_says, trained, tmp_path, field, damage, message):
    folder = shutil.copytree(trained, tmp_path / "copy")
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace(field, damage))
    code, _, err = dcgan_says("train", "--resume", folder, "--steps", 5)
    line = recipe[: recipe.index(field)].count("\n") + 1
    assert (code, message in err, err.endswith(f"({folder}/recipe.yaml: line {line})")) == (2, True, True), err


def test_a_dry_run_leaves_nothing_behind(dcgan_says):
    code, out, _ = dcgan_says("train", *TINY, "--steps", 50, "--dry-run", "--out", "run")
    assert (code, "step 0 to 1" in out, "nothing was kept" in out) == (0, True, True)
    assert list(Path().iterdir()) == []


def test_a_named_recipe_trains_on_the_dataset_of_choice(dcgan_says):
    """The authors' SVHN training, made small: their own networks, on every other batch the generator."""
    options = ["--data", "digits", "--base-channels", 2, "--batch-size", 8, "--steps", 2, "--samples", 4]
    code, out, err = dcgan_says("train", "--recipe", "paper-svhn", *options, "--device", "cpu", "--out", "run")
    assert (code, "digits: 1,797 images 32x32x1" in out, "networks svhn: generator" in out) == (0, True, True), err
    recipe = Recipe.from_yaml(Path("run/recipe.yaml").read_text())
    assert (recipe.data, recipe.schedule, recipe.weight_decay, recipe.lr) == ("digits", "alternate", 1e-5, 5e-4)
    assert checkpoint.list_states(Path("run/state"))[-1].stem == "step-000002"


def test_a_dry_run_refuses_what_the_run_would(dcgan_says):
    code, _, err = dcgan_says("train", *SMALL, "--steps", 3, "--epochs", 2, "--dry-run")
    assert (code, "--steps and --epochs exclude each other, got 3 and 2" in err) == (2, True)
    Path("taken").mkdir()
    Path("taken/file").touch()
    code, _, err = dcgan_says("train", *TINY, "--steps", 2, "--out", "taken", "--dry-run")
    assert (code, "taken exists: choose another folder" in err) == (2, True)


def test_what_cannot_be_written_is_refused_before_the_work(dcgan_says, trained, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")
    Path("locked").mkdir()
    code, _, err = dcgan_says("walk", trained, "--out", "locked/deep/walk.png")
    assert code == 2
    assert "locked/deep/walk.png cannot be written: there is no permission to write to" in " ".join(err.split())


def test_a_dry_run_resumes_nothing(dcgan_says, trained):
    code, _, err = dcgan_says("train", *TINY, "--watch", "--dry-run")
    assert (code, err) == (2, "dcgan: --dry-run ends before there is anything to see: omit --watch")
    code, _, err = dcgan_says("train", "--resume", trained, "--dry-run")
    assert (code, "omit --resume" in err) == (2, True)


def test_a_run_that_exists_is_not_overwritten(dcgan_says, trained):
    code, _, err = dcgan_says("train", *TINY, "--out", trained)
    assert code == 2
    assert f"{trained} exists: continue with --resume {trained}, or choose another folder" in " ".join(err.split())


def test_a_finished_run_says_how_to_train_more(dcgan_says, trained):
    code, _, err = dcgan_says("train", "--resume", trained)
    assert code == 2
    assert err.endswith(f"has completed all of its 3 steps; to train longer: dcgan train --resume {trained} --steps N")


def test_a_resumed_run_changes_its_length_but_not_its_numbers(dcgan_says, tmp_path):
    folder = tmp_path / "run"
    assert dcgan_says("train", *SMALL, "--batch-size", 900, "--steps", 1, "--out", folder)[0] == 0
    code, _, err = dcgan_says("train", "--resume", folder, "--lr", 0.1, "--steps", 2)
    assert (code, "a resumed run cannot change --lr; it can change --cache, --cache-dir, --compile" in err) == (2, True)
    assert err.endswith(f"A new run that starts from its networks can: dcgan train --from {folder} --steps 2 --lr 0.1")
    code, _, err = dcgan_says("train", "--resume", folder, "--out", "other")
    assert (code, "omit --out" in err) == (2, True)
    assert dcgan_says("train", "--resume", folder, "--steps", 2)[0] == 0
    assert dcgan_says("train", "--resume", folder, "--epochs", 3)[0] == 0
    assert [path.stem for path in checkpoint.list_states(folder / "state")] == ["step-000000", "step-000003"]


def test_the_advice_at_the_end_works_as_it_stands(dcgan_says, tmp_path, capfd):
    folder = tmp_path / "a run"
    assert cli.main(["train", *TINY, "--steps", "2", "--out", str(folder)]) == 0
    advice = [line.strip() for line in capfd.readouterr().out.splitlines() if line.startswith("  dcgan ")]
    assert len(advice) == 2
    for line in advice:
        assert cli.main(shlex.split(line)[1:]) == 0
    assert len(list(Path("samples").iterdir())) == 64
    assert checkpoint.list_states(folder / "state")[-1].stem == "step-000004"


def test_a_run_whose_rates_have_fallen_is_not_said_to_be_longer(dcgan_says, capfd):
    code, out, _ = dcgan_says("train", *TINY, "--steps", 2, "--lr-decay", 0.5, "--out", "run")
    assert (code, "--resume" in out) == (0, False)
    code, _, err = dcgan_says("train", "--resume", "run")
    assert (code, "has completed all of its 2 steps" in err, "longer" in err) == (2, True, False)
    assert err.endswith("to start a new run from its networks: dcgan train --from run")


def test_a_new_run_starts_from_the_newest_state_of_another(dcgan_says, trained):
    """The networks and the moments are its own to the bit, and the recipe tells where they are from."""
    code, out, err = dcgan_says(
        "train", "--from", trained, "--batch-size", 16, "--g-lr", 1e-4, "--steps", 2, "--out", "a"
    )
    assert (code, "step 0 to 2, 16 images each" in out) == (0, True), err
    source = checkpoint.list_states(trained / "state")[-1]
    recipe, theirs = (Recipe.from_yaml(Path(folder, "recipe.yaml").read_text()) for folder in ("a", trained))
    networks = {"generator": str(source), "discriminator": str(source)}
    expected = theirs.replace(batch_size=16, g_lr=1e-4, steps=2, **networks)
    assert all(getattr(expected, name) is None for name in recipe.changes(expected))  # filled in from the networks

    old, new = (checkpoint.load(path)["trainer"] for path in (source, Path("a/state/step-000000.pt")))
    assert (old["steps"], new["steps"]) == (3, 0)
    for part, source in (("generator", "generator"), ("discriminator", "discriminator"), ("ema", "generator")):
        assert all(torch.equal(tensor, new[part][name]) for name, tensor in old[source].items()), part
    for part, rate in (("g_optimizer", 1e-4), ("d_optimizer", old["d_optimizer"]["param_groups"][0]["lr"])):
        assert new[part]["param_groups"][0]["lr"] == rate
        moments = [state["exp_avg"] for state in old[part]["state"].values()]
        assert all(moment.count_nonzero() for moment in moments)
        assert all(map(torch.equal, moments, (state["exp_avg"] for state in new[part]["state"].values())))

    assert dcgan_says("train", "--recipe", "a/recipe.yaml", "--out", "b")[0] == 0
    ends = [checkpoint.load(Path(folder, "state/step-000002.pt"))["trainer"]["generator"] for folder in ("a", "b")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_network_that_does_not_fit_the_options_is_not_started_from(dcgan_says, trained):
    code, _, err = dcgan_says("train", "--from", trained, "--base-channels", 8)
    assert (code, "step-000003.pt has --base-channels 4, the recipe 8" in err) == (2, True)
    Path("old/state").mkdir(parents=True)
    Path("old/recipe.yaml").write_text("steps: 3")
    code, _, err = dcgan_says("train", "--from", "old")
    assert (code, err) == (2, "dcgan: old has no state to start from: its folder state is empty or missing")
    code, _, err = dcgan_says("train", *TINY, "--generator", trained / "state/step-000002.pt")
    kept = "step-000000.pt, step-000003.pt"
    assert (
        code,
        err.endswith(f"there is no state {trained}/state/step-000002.pt; kept in {trained}/state: {kept}"),
    ) == (2, True)


def test_the_answer_to_another_dataset_works_as_it_stands(dcgan_says, capfd):
    """The folder of the old run's images is not that of the new one's."""
    Path("pictures").mkdir()
    for index in range(8):
        Image.new("RGB", (16, 16), (30 * index, 0, 0)).save(f"pictures/{index}.png")
    assert dcgan_says("train", *TINY, "--root", "pictures", "--steps", 1, "--out", "run")[0] == 0
    assert cli.main(["train", "--resume", "run", "--data", "digits", "--samples", "9"]) == 2
    said, line = capfd.readouterr().err.splitlines()
    assert "a resumed run cannot change" in said
    assert line == "  dcgan train --from run --data digits --samples 9"
    assert cli.main(shlex.split(line)[1:]) == 0
    recipe = Recipe.from_yaml(Path("runs/digits/recipe.yaml").read_text())
    assert (recipe.data, recipe.root, recipe.samples, recipe.channels) == ("digits", None, 9, 3)


def test_a_logger_can_be_left_out_again(dcgan_says, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert dcgan_says("train", *TINY, "--steps", 2, "--out", "run")[0] == 0
    recipe = Path("run/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("log: []", "log: [wandb]"))
    code, _, err = dcgan_says("train", "--resume", "run", "--steps", 3)
    assert (code, 'pip install "dcgan[wandb]"' in err) == (2, True)
    assert dcgan_says("train", "--resume", "run", "--steps", 3, "--no-log")[0] == 0


def test_images_of_any_kept_step_can_be_generated(dcgan_says, trained, tmp_path, monkeypatch):
    def pixels(*step):
        assert dcgan_says("generate", trained, "-n", 2, *step, "--out", tmp_path / "out", "--force")[0] == 0
        return [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]

    assert pixels("--step", 3) == pixels()
    assert pixels("--step", 0) != pixels()
    code, _, err = dcgan_says("generate", trained, "--step", 1.5)
    assert (code, "expected a whole number, got '1.5'" in err) == (2, True)
    code, _, err = dcgan_says("generate", trained, "--step", 2)
    assert (code, "has no state of step 2: it keeps those of 0, 3" in err) == (2, True)
    code, _, err = dcgan_says("generate", trained, "--step", "best")
    assert (code, "has no figure of quality to choose by" in err) == (2, True)
    last = trained / "state/step-000003.pt"
    torch.save(torch.load(last, weights_only=True) | {"figures": {0: 1.5, 3: 1.6}}, last)
    assert pixels("--step", "best") == pixels("--step", 0)


def test_divergence_exits_1_and_names_the_last_good_state(dcgan_says):
    code, _, err = dcgan_says("train", *TINY, "--lr", 1e30, "--steps", 200, "--out", "run")
    assert code == 1
    state = re.fullmatch(r"dcgan: step \d+: the (?:generator|discriminator)\b.*; the last good state is (\S+)", err)[1]
    weights = checkpoint.load(Path(state))["trainer"]["generator"].values()
    assert all(tensor.isfinite().all() for tensor in weights)


def test_an_error_of_the_program_is_not_hidden(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", *TINY, "--steps", "1", "--out", "run"])


ERRORS = [
    # (error, its exit code before the work began, and while it was under way; None is a traceback)
    (InputError("a value"), 2, None),
    (MissingPackageError("a package"), 2, None),
    (ValueError("a bug"), None, None),
    (ImportError("a bug"), None, None),
    (CollapseError("stopped"), 2, 1),
    (FileExistsError("a file"), 2, 1),
    (OSError("a full disk"), 2, 1),
    (BadImages([("x.png", "broken")]), 2, 1),
    (FloatingPointError("step 3: a network"), 1, 1),
    (torch.OutOfMemoryError("CUDA out of memory"), 1, 1),
    (BrokenPipeError("a pipe"), None, 1),
    (RuntimeError("a bug"), None, None),
    (ZeroDivisionError("a bug"), None, None),
]


@pytest.mark.parametrize(("error", "before", "running"), ERRORS, ids=[type(error[0]).__name__ for error in ERRORS])
def test_errors_have_their_exit_codes(error, before, running):
    for code, under_way in ((before, False), (running, True)):
        expected = {1: RunError, 2: UsageError, None: type(error)}[code]
        message = str(error) if code is None else str(error).replace("skip_bad", "--skip-bad")  # as it was typed
        with pytest.raises(expected, match=re.escape(message)) as caught, exit_on_error(running=under_way):
            raise error
        assert type(caught.value) is expected


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a file"), "a file: No space left on device"),
        (MemoryError("of the array"), "memory ran out: of the array"),
        (
            RuntimeError("[fail] . DefaultCPUAllocator: can't allocate memory: 4 bytes"),
            "memory ran out: can't allocate",
        ),
    ],
    ids=["disk", "Python's memory", "torch's memory"],
)
def test_what_runs_out_is_no_mistake_of_the_user(error, message, running):
    with pytest.raises(RunError, match=re.escape(message)), exit_on_error(running=running):
        raise error


def test_control_characters_in_a_name_do_not_reach_the_terminal(dcgan_says):
    code, _, err = dcgan_says("show", "\x1b]0;X\x07\x1b[31mred")
    assert (code, "\x1b" in err, "\x07" in err) == (2, False, False)
    assert r"\x1b]0;X\x07\x1b[31mred" in err


def test_arguments_are_called_what_was_typed():
    message = "image_size must be a multiple of 16: see 'my image_size.png', image_size=3 and runs/batch_size"
    with pytest.raises(UsageError) as caught, exit_on_error():
        raise InputError(message)
    assert str(caught.value) == message.replace("image_size must", "--image-size must")


def test_a_device_out_of_memory_suggests_a_remedy():
    with pytest.raises(RunError, match=r"out of memory; try a smaller --batch-size \(3 GiB\)"), exit_on_error():
        raise torch.OutOfMemoryError("3 GiB")


def test_what_the_package_logs_is_shown_above_the_bar(capsys):
    with log_above_progress_bar():
        logging.getLogger("dcgan.data._packing").warning("a warning of %s", "data")
        logging.getLogger("dcgan.trainer").info("an info")
        logging.getLogger("dcgan.trainer").debug("a detail")
        logging.getLogger("other").info("not ours")
    logging.getLogger("dcgan.trainer").info("after")
    assert capsys.readouterr().err == "a warning of data\nan info\n"
    assert logging.getLogger("dcgan").level == logging.NOTSET


def test_what_is_logged_while_a_run_is_built_is_shown(dcgan_says):
    code, _, err = dcgan_says("train", *TINY, "--compile", "full", "--dry-run")
    assert code == 0
    assert "compile='full'" in err


def test_the_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), collect_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_command_that_then_leaves_nothing(tmp_path, number):
    process = python("-m", "dcgan", "generate", "digits", "-n", 1_000_000, "--out", tmp_path / "a.zip")
    while not any(tmp_path.iterdir()):  # until a temporary file is there
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    said = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert (process.returncode, out, err) == (128 + number, "", f"dcgan: {said}\n")
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_python_ignores_ends_the_command_at_its_next_progress(
    tmp_path, number, code, dcgan_says, monkeypatch
):
    before = signal.getsignal(number)

    class Callback:
        def __del__(self):  # whose exceptions are ignored, as those of callbacks while a module is loaded
            signal.raise_signal(number)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr("dcgan._build.select_device", lambda _: (Callback(), torch.device("cpu"))[1])
    assert dcgan_says("generate", "digits", "-n", 9, "--batch-size", 3, "--out", tmp_path / "out")[0] == code
    assert len(list(tmp_path.glob("out/*.png"))) <= 3
    assert signal.getsignal(number) is before


def test_what_can_lose_an_interrupt_is_loaded_before_any_work():
    # Modules by Cython ignore every exception, also that of a Ctrl-C, in a part of their loading.
    process = python("-c", "import dcgan.models, sys; print(*sys.modules)")
    out, err = process.communicate(timeout=60)
    assert "numpy.random._generator" in out.split(), err


@posix
@pytest.mark.parametrize(("where", "code"), [("pipe", 0), ("/dev/full", 1)])
def test_a_command_goes_on_where_its_output_cannot_be_written(tmp_path, where, code):
    if where == "pipe":
        reader, output = os.pipe()
        os.close(reader)
    elif not Path(where).exists():
        pytest.skip(f"there is no {where}")
    else:
        output = os.open(where, os.O_WRONLY)
    command = [sys.executable, "-m", "dcgan", "train", *map(str, TINY), "--steps", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(output)
    expected = "dcgan: standard output: No space left on device; it goes on without\n" if code else ""
    assert (done.returncode, done.stderr) == (code, expected)
    assert (tmp_path / "run/state/step-000002.pt").exists()


@posix
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_saves_and_the_printed_command_resumes(tmp_path, number):
    folder = tmp_path / "a run"
    process = python("-m", "dcgan", "train", *TINY, "--steps", 100_000, "--log-every", 1, "--out", folder)
    wait_for(folder / "metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    step = int(re.search(r"stopped at step (\d+) of 100000, and saved; to resume:", out)[1])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step
    assert checkpoint.list_states(folder / "state")[-1].stem == f"step-{step:06d}"

    advice = shlex.split(out.splitlines()[-1])
    assert advice == ["dcgan", "train", "--resume", str(folder)]
    process = python("-m", *advice, "--steps", step + 2)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"step {step} to {step + 2}" in out


@pytest.mark.slow
@posix
def test_a_process_killed_at_any_moment_leaves_a_run_that_resumes(tmp_path):
    folder = tmp_path / "run"
    every = ["--steps", 100_000, "--save-every", 1, "--sample-every", 1, "--log-every", 1]
    process = python("-m", "dcgan", "train", *TINY, *every, "--out", folder)
    for sample in ("step-000003", "step-000006"):
        wait_for(folder / "samples" / f"{sample}.png", process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert Generator.from_pretrained(folder).sample(1, seed=0).isfinite().all()
        (folder / "samples" / "step-000006.png").unlink(missing_ok=True)
        process = python("-m", "dcgan", "train", "--resume", folder)
    process.kill()
    process.communicate()
    code = cli.main(["train", "--resume", str(folder), "--steps", "8"])
    assert code in {0, 2}  # 2 if it had come further than that


def test_messages_offer_what_the_command_line_has(dcgan_says, tmp_path):
    generator = Generator(image_size=16, base_channels=4)
    generator.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, err = dcgan_says("generate", tmp_path / "model")
    assert (code, "is damaged" in err) == (2, True)
    assert "if it was downloaded, remove it to download it again. If they were changed on purpose, " in err
    assert err.endswith(
        "from_pretrained(FOLDER, verify=False) of dcgan.Generator or dcgan.Discriminator loads them in Python"
    )
    weights.write_bytes(content[:-9])
    code, _, err = dcgan_says("generate", tmp_path / "model")
    assert (code, "force_download" in err, "remove it to download it again" in err) == (2, False, True)
    assert (
        in_options("x is private, pass token= or log in") == "x is private, set HF_TOKEN, or log in with: hf auth login"
    )


def test_what_messages_say_of_python_is_what_the_library_says():
    """A message that is worded anew must be worded anew for the command line."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (Path(dcgan.__file__).parent / "hub").glob("*.py"))
    assert [phrase for phrase in _messages._PYTHON_ONLY if phrase not in sources] == []


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("steps and epochs exclude each other", "--steps and --epochs exclude each other"),
        ("stem_norm 'unit' needs stem 'linear' and", "--stem-norm 'unit' needs --stem 'linear' and"),
        ("svhn is unreadable: root must be it", "svhn is unreadable: --root must be it"),
        ("skip_bad needs cache=True, not cache=False", "--skip-bad needs --cache, not --no-cache"),
        ("cannot change lr, data; it can change root.", "cannot change --lr, --data; it can change --root."),
        ("the generator must have the steps of data", "the generator must have the steps of data"),
        ("a/batch_size/steps: No such file", "a/batch_size/steps: No such file"),
    ],
)
def test_names_become_options_where_they_are_names(said, typed):
    assert in_options(said) == typed
