"""Runs: their folder, exact resumption, kills at any moment, full disks."""

import base64
import contextlib
import copy
import errno
import json
import os
import re
import shutil
import signal
import sys
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import EAGER, TINY, command, computed, flat, listing, options, records, start_and_stop
from torch.optim.swa_utils import update_bn

from dcgan import Discriminator, Generator, checkpoint, cli, data
from dcgan._optim import RateDecay
from dcgan.checkpoint import step_of
from dcgan.latents import seeded_latents
from dcgan.recipe import Recipe
from dcgan.run import RESUMABLE, CollapseError, Run, load_generator


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return start_and_stop(TINY, tmp_path_factory.mktemp("unbroken") / "run")


def test_a_run_writes_the_documented_files(unbroken):
    assert listing(unbroken) == sorted(
        [
            ".lock",
            "README.md",
            "config.json",
            "curves.png",
            "discriminator/config.json",
            "discriminator/model.safetensors",
            "metrics.jsonl",
            "model.safetensors",
            "recipe.yaml",
            "samples.gif",
            *(f"samples/step-{step:06d}.png" for step in (0, 5, 10, 15, 19)),
            *(f"state/step-{step:06d}.pt" for step in (14, 19)),
        ]
    )
    assert "trained on digits for 19 steps of 200 images" in (unbroken / "README.md").read_text(encoding="utf-8")


def shown_in_a_notebook(run):
    """Return the lines and the pictures that a notebook shows of a run, by their names."""
    page = ET.fromstring(run._repr_html_())  # every tag is closed, every text escaped
    lines = {row.find("th").text: row.find("td").text for row in page.iter("tr")}
    pictures = {}
    for image in page.iter("img"):
        kind, _, content = image.get("src").partition(";base64,")
        assert kind == "data:image/webp"
        pictures[image.get("alt")] = Image.open(BytesIO(base64.b64decode(content)))
    return lines, pictures


def test_a_notebook_shows_a_run_before_its_first_record_and_at_its_end(tmp_path):
    folder = tmp_path / "<a> & b"
    with contextlib.closing(Run.start(TINY.replace(steps=4, sample_every=3), folder)) as run:
        lines, pictures = shown_in_a_notebook(run)
        assert lines == {"folder": str(folder), "steps": "0 of 4"}
        assert {name: picture.size for name, picture in pictures.items()} == {"samples of step 0": (56, 56)}
        list(run.train())
        lines, pictures = shown_in_a_notebook(run)
        assert lines == {"folder": str(folder), "steps": "4 of 4", **run.summary()}
        assert {name: picture.size for name, picture in pictures.items()} == {
            "curves": (900, 580),
            "samples of step 4": (56, 56),
        }
        with Image.open(folder / "samples/step-000004.png") as grid:
            difference = np.asarray(grid.convert("RGB"), float) - np.asarray(pictures["samples of step 4"], float)
        assert abs(difference).mean() < 8
        assert len(run._repr_html_()) < 200_000

        Image.new("RGB", (2000, 1000)).save(folder / "samples/step-000009.png")
        assert shown_in_a_notebook(run)[1]["samples of step 9"].size == (900, 450)


def test_the_card_follows_the_run_until_somebody_edits_it(tmp_path):
    pictures = tmp_path / "secret place/pictures"
    pictures.mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (16, 16), (i, 2 * i, 3 * i)).save(pictures / f"{i}.png")
    recipe = TINY.replace(data="folder", root=pictures, cache_dir=tmp_path / "cache", batch_size=10, steps=2)
    folder = start_and_stop(recipe, tmp_path / "run")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    assert ", trained for 2 steps of 10 images." in text
    assert "root: pictures" in text
    assert "secret place" not in text
    assert str(tmp_path) not in text

    def resume(steps):
        with contextlib.closing(Run.resume(folder, recipe.replace(steps=steps))) as run:
            list(run.train())
        return card.read_text(encoding="utf-8")

    assert ", trained for 3 steps of 10 images." in resume(3)
    edited = card.read_text(encoding="utf-8").replace("# run", "# My cats")
    card.write_text(edited, encoding="utf-8")
    assert resume(4) == edited
    card.unlink()
    assert ", trained for 5 steps of 10 images." in resume(5)


def test_the_recipe_in_the_folder_is_the_resolved_one(unbroken):
    stored = Recipe.from_yaml((unbroken / "recipe.yaml").read_text(encoding="utf-8"))
    assert stored == TINY.resolve() == stored.resolve()


def test_metrics_are_means_since_the_record_before(tmp_path):
    every = start_and_stop(TINY.replace(log_every=1, steps=8), tmp_path / "every")
    fourth = start_and_stop(TINY.replace(log_every=4, steps=8), tmp_path / "fourth")
    single, means = records(every), records(fourth)
    assert [record["step"] for record in single] == list(range(1, 9))
    assert [record["step"] for record in means] == [4, 8]
    for index, record in enumerate(means):
        assert list(record) == ["step", "d_loss", "d_real", "d_fake", "g_loss", "images_per_second"]
        for name in ("d_loss", "g_loss", "d_real", "d_fake"):
            mean = sum(step[name] for step in single[4 * index : 4 * index + 4]) / 4
            assert record[name] == pytest.approx(mean, abs=2e-6)
        assert record["images_per_second"] > 0


def test_train_yields_the_records_it_logs(tmp_path):
    run = Run.start(TINY.replace(steps=9), str(tmp_path / "run"))
    yielded = list(run.train())
    run.close()
    assert [record is not None for record in yielded] == [False] * 3 + [True] + [False] * 3 + [True, True]
    assert [record for record in yielded if record] == records(run.folder)


def test_samples_become_an_animation(unbroken):
    grids = sorted((unbroken / "samples").iterdir())
    for path in grids:
        with Image.open(path) as grid:
            assert (grid.size, grid.mode) == ((3 * 18 + 2, 3 * 18 + 2), "L")
    assert len({path.read_bytes() for path in grids}) == len(grids)
    with Image.open(unbroken / "samples.gif") as animation:
        assert (animation.n_frames, animation.size) == (len(grids), (56, 56))


def test_the_published_generator_is_the_average_with_statistics_of_its_own(unbroken):
    state = checkpoint.load(checkpoint.list_states(unbroken / "state")[-1])["trainer"]
    published = load_file(unbroken / "model.safetensors")
    statistics = [name for name in published if "running" in name]
    assert statistics
    for name, tensor in published.items():
        if name in statistics:
            assert not torch.equal(tensor, state["generator"][name]), name
        elif "num_batches" not in name:
            assert torch.equal(tensor, state["ema"][name]), name
            assert not torch.equal(tensor, state["generator"][name]), name
    # In evaluation mode, the re-estimated statistics do what those of a large batch do.
    generator = Generator.from_pretrained(unbroken)
    assert not generator.training
    z = torch.randn(2048, generator.config["latent_dim"])
    with torch.no_grad():
        fixed, batch = generator(z), generator.train()(z)
    assert (fixed - batch).abs().mean() < 0.02


def test_the_statistics_of_the_average_are_those_that_torch_would_estimate(tmp_path):
    run = Run.start(TINY, tmp_path / "run")
    run.close()
    z = seeded_latents(1024, 100, seed=TINY.seed + 1, distribution="normal")
    expected = copy.deepcopy(run.trainer.ema)
    update_bn(z.split(128), expected)
    for name, tensor in run.ema_generator().state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_without_an_average_the_generator_itself_is_published(tmp_path):
    folder = start_and_stop(TINY.replace(ema_decay=None, steps=3), tmp_path / "run")
    state = checkpoint.load(checkpoint.list_states(folder / "state")[-1])["trainer"]
    assert "ema" not in state
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, state["generator"][name])


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_states_stay_as_are_kept(tmp_path, keep):
    folder = start_and_stop(TINY.replace(steps=4, save_every=1, keep=keep), tmp_path / "run")
    assert [path.stem for path in checkpoint.list_states(folder / "state")] == [
        f"step-{step:06d}" for step in range(5 - keep, 5)
    ]


FIGURES = {4: 9.5, 8: 3.25, 12: 7.0, 16: 3.26, 19: 8.0}


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """A finished run whose figures of quality are `FIGURES`."""
    monkeypatch.setattr(Run, "evaluate", lambda run, generator: FIGURES[run.trainer.steps])
    return start_and_stop(TINY.replace(eval_every=4, keep=1), tmp_path / "evaluated")


def test_figures_of_quality_are_logged_and_the_best_state_stays_beside_the_last(evaluated):
    assert {record["step"]: record["fd"] for record in records(evaluated) if "fd" in record} == FIGURES
    assert [path.stem for path in checkpoint.list_states(evaluated / "state")] == ["step-000008", "step-000019"]


def test_a_kept_generator_is_the_published_one_of_its_step(evaluated, tmp_path):
    stopped = start_and_stop(TINY, tmp_path / "stopped", stop=8)
    published, last = Generator.from_pretrained(stopped).state_dict(), Generator.from_pretrained(evaluated).state_dict()
    for step, expected in ((8, published), ("best", published), (19, last)):
        loaded = load_generator(evaluated, step)
        assert not loaded.training
        for name, tensor in loaded.state_dict().items():  # the statistics are estimated anew, in another memory format
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6 if "running" in name else 0)


def test_without_an_average_a_kept_generator_is_the_raw_one(tmp_path):
    folder = start_and_stop(TINY.replace(ema_decay=None, steps=5), tmp_path / "run")
    expected = load_file(folder / "model.safetensors")
    for name, tensor in load_generator(folder, 5).state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (9, r"has no state of step 9: it keeps those of 14, 19$"),
        ("best", r"has no figure of quality to choose by: pass one of 14, 19$"),
    ],
)
def test_a_step_that_is_not_kept_is_refused_with_those_that_are(unbroken, step, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_generator(unbroken, step)
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it has no state"):
        load_generator(unbroken / "discriminator", step)


def test_a_generator_that_has_seen_the_digits_is_nearer_to_them(tmp_path):
    run = Run.start(TINY.replace(image_size=32, base_channels=8, batch_size=64, lr=1e-3), tmp_path / "run")
    before = run.evaluate()
    assert run.evaluate() == before
    batches = data.Batches(run.images, 64, seed=0)
    run.trainer.fit(batches, 100)
    after = run.evaluate()
    run.close()
    assert after < 0.8 * before


DECLINE = {4: 9.0, 8: 1.0, 12: 3.5, 16: 3.25, 19: 2.0}
DECLINED = "the distance from the images was 1 at step 8, and has been more than 3 times that since step 12"


def test_a_late_collapse_shows_in_the_figures(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Run, "evaluate", lambda run, generator: DECLINE[run.trainer.steps])
    folder = start_and_stop(TINY.replace(eval_every=4), tmp_path / "run")
    collapsed = {record["step"]: record["collapse"] for record in records(folder) if "collapse" in record}
    assert collapsed == {16: DECLINED}  # one bad figure, at step 12, is none; at step 19 it is over
    assert [record.getMessage() for record in caplog.records] == [
        f"step 16: training has collapsed: {DECLINED}. The state of the best step is kept"
    ]
    stopped = tmp_path / "stopped"
    with pytest.raises(CollapseError, match=f"stopped and saved at step 16: {DECLINED}"):
        start_and_stop(TINY.replace(eval_every=4, keep=1, on_collapse="stop"), stopped)
    assert [path.stem for path in checkpoint.list_states(stopped / "state")] == [
        *("step-000008", "step-000014", "step-000016")  # the best, the last that was due, and where it stopped
    ]


def test_a_logger_gets_what_the_log_and_the_folder_get_also_after_a_resumption(unbroken, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = start_and_stop(TINY.replace(log=("tensorboard",)), tmp_path / "run", stop=11)
    run = Run.resume(folder)
    list(run.train())
    run.close()
    expected, found = computed(unbroken), computed(folder)
    for figures in (expected, found):
        del figures["recipe.yaml"]
        for state in (figure for name, figure in figures.items() if name.endswith(".pt")):
            del state["recipe"]
    assert found == expected
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss/D")}
    assert logged == pytest.approx({record["step"]: record["d_loss"] for record in records(folder)}, rel=1e-6)
    assert [event.step for event in events.Images("samples")] == [0, 5, 10, 15, 19]


def test_a_logger_whose_package_is_missing_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "dcgan\[tensorboard\]"'):
        Run.start(TINY.replace(log=("tensorboard",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_logger_that_fails_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    folder = start_and_stop(TINY, tmp_path / "run", stop=8)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
    with pytest.raises(ImportError, match="pip install"):
        Run.resume(folder, recipe.replace(log=("wandb",)))
    assert {path: path.read_bytes() for path in before} == before
    Run.resume(folder).close()


def test_a_figure_that_cannot_be_computed_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Run, "evaluate", fail)
    folder = start_and_stop(TINY.replace(eval_every=10), tmp_path / "run")
    assert len(checkpoint.list_states(folder / "state")) == 2
    assert "step 10: no figure of quality could be computed: no memory left" in caplog.text


def test_a_dataset_of_one_image_trains_without_figures(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.effect_noise((16, 16), 80).save(tmp_path / "pictures/one.png")
    recipe = TINY.replace(data="folder", root=tmp_path / "pictures", channels=1, batch_size=1, steps=3, eval_every=1)
    folder = start_and_stop(recipe, tmp_path / "run")
    assert all("fd" not in record for record in records(folder))


def test_what_a_killed_process_logged_last_does_not_hide_the_best_state(evaluated):
    expected = load_generator(evaluated, "best").state_dict()
    with (evaluated / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "fd": 0.5, "images_per_second": 1.0}\n{"step": 21, "fd": 0.')
    for name, tensor in load_generator(str(evaluated), "best").state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_resumed_run_stops_for_a_late_collapse_only_when_it_sees_one_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "evaluate", lambda run, generator: DECLINE[run.trainer.steps])
    recipe = TINY.replace(eval_every=4, on_collapse="stop")
    with pytest.raises(CollapseError, match="stopped and saved at step 16"):
        start_and_stop(recipe, tmp_path / "run")
    run = Run.resume(tmp_path / "run")
    list(run.train())  # at step 19 it is over
    run.close()
    assert run.trainer.steps == 19


def test_the_end_is_summarised_in_words(evaluated, unbroken):
    run = Run.resume(evaluated)
    run.close()
    assert run.summary() == {
        "health": "no sign of collapse in 19 steps",
        "balance": run.summary()["balance"],
        "quality": "distance 8.00 from the images at step 19, and 3.25 at step 8, the best",
        "speed": run.summary()["speed"],
    }
    last = records(evaluated)[-5:]
    means = [sum(record[name] for record in last) / 5 for name in ("d_real", "d_fake")]
    assert run.summary()["balance"] == f"D(x) {means[0]:.2f}, D(G(z)) {means[1]:.2f} over the last 5 lines of the log"
    with (evaluated / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "images_per_second": 1.0, "collapse": "all are alike"}\n')
    assert run.summary()["health"] == "collapsed: all are alike"
    with (evaluated / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "images_per_second": 1.0}\n')
    assert run.summary()["health"] == "collapsed for a time, last at step 20, and recovered"


def test_a_run_does_not_depend_on_what_ran_before(unbroken, tmp_path):
    torch.randn(5)
    assert computed(start_and_stop(TINY, tmp_path / "again")) == computed(unbroken)


RECIPES = {
    "plain": {},
    "augmented": {"augment": ("color", "translation", "cutout"), "flip": True},
    "d-steps": {"d_steps": 3, "loss": "hinge"},
    "alternate": {"schedule": "alternate", "d_steps": 2, "label_smoothing": 0.1},
    "penalties": {"loss": "wasserstein", "gradient_penalty": 10.0, "r1": 1.0, "d_norm": "layer", "beta1": 0.0},
    "evaluated": {"eval_every": 5, "save_every": 7, "log_every": 3},
    "decayed": {"lr_decay": 0.75, "lr": 1e-3},
    "streamed": {"cache": False, "workers": 2, "ema_decay": None, "flip": True},
    "other": {"data": "fake", "channels": 3, "image_size": (16, 24), "latent": "uniform", "epochs": 4, "steps": None},
}


# Every option of the trainer is resumed in its own tests; here it is the run around it.
_QUICK = ("plain", "streamed", "penalties")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in RECIPES]
)
def test_a_run_resumed_by_another_process_equals_an_unbroken_one(tmp_path, name):
    recipe = TINY.replace(**RECIPES[name])
    whole = start_and_stop(recipe, tmp_path / "whole")
    broken = start_and_stop(recipe, tmp_path / "broken", stop=11)  # in the middle of an epoch and of a record
    assert command(tmp_path / "log", "train", "--resume", broken) == 0, (tmp_path / "log").read_text()
    assert computed(broken) == computed(whole)


def test_rates_fall_to_zero_at_the_end_of_a_run(tmp_path, caplog):
    recipe = TINY.replace(steps=8, lr_decay=0.5, lr=0.01, d_lr=0.02, save_every=1, keep=9)
    folder = start_and_stop(recipe, tmp_path / "run", stop=6)
    run = Run.resume(folder)
    assert not caplog.records  # a rate that has fallen is no surprise
    with pytest.raises(ValueError, match="a resumed run cannot change steps; it can change cache"):
        Run.resume(folder, run.recipe.replace(steps=9))
    list(run.train())
    run.close()
    rates = [0.01] * 5 + [0.0075, 0.005, 0.0025, 0.0]  # of the step after each state
    for path, rate in zip(checkpoint.list_states(folder / "state"), rates, strict=True):
        state = checkpoint.load(path)["trainer"]
        assert state["g_optimizer"]["param_groups"][0]["lr"] == pytest.approx(rate), path
        assert state["d_optimizer"]["param_groups"][0]["lr"] == pytest.approx(2 * rate), path
    constant = start_and_stop(recipe.replace(lr_decay=0.0), tmp_path / "constant")
    fourth, eighth = (
        [flat(checkpoint.load(other / "state" / f"step-{step:06d}.pt")["trainer"]) for other in (folder, constant)]
        for step in (4, 8)
    )
    assert fourth[0] == fourth[1]
    assert eighth[0] != eighth[1]


def test_a_captured_step_finds_its_falling_rate_where_it_was():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    optimizer.param_groups[0]["capturable"] = True  # as a CUDA device has it
    decay = RateDecay([optimizer], share=1.0, steps=10)
    decay.set(0)
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor)
    decay.set(4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.3)


def test_a_run_of_0_1_continues_as_it_would_have_there(tmp_path):
    """The folder is one of 0.1 after 3 of 5 steps; the figures are those of its last 2."""
    folder = shutil.copytree(Path(__file__).parent / "data/run-0.1", tmp_path / "run")
    run = Run.resume(folder, Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8")).replace(steps=5))
    assert (run.trainer.steps, run.recipe.base_channels, run.recipe.d_base_channels) == (3, 2, 3)
    list(run.train())
    run.close()
    expected = [
        {"step": 4, "d_loss": 1.377483, "d_real": 0.505779, "d_fake": 0.500975, "g_loss": 0.690943},
        {"step": 5, "d_loss": 1.382952, "d_real": 0.503322, "d_fake": 0.501547, "g_loss": 0.689221},
    ]
    for record, figures in zip(records(folder)[3:], expected, strict=True):
        assert {name: record[name] for name in figures} == pytest.approx(figures, abs=2e-6)
    stored = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "base_channels: 2\nd_base_channels: 3\n" in stored
    assert "g_channels" not in stored


def test_a_run_with_a_recipe_of_0_1_resumes_bit_for_bit(unbroken, tmp_path):
    folder = start_and_stop(TINY, tmp_path / "run", stop=11)
    path = folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("d_base_channels", "d_channels").replace("base_channels", "g_channels"), "utf-8")
    run = Run.resume(folder)
    list(run.train())
    run.close()
    assert computed(folder) == computed(unbroken)


def test_a_longer_run_is_a_shorter_one_continued(unbroken, tmp_path):
    folder = start_and_stop(TINY.replace(steps=12, log_every=4, sample_every=6), tmp_path / "run")
    run = Run.resume(folder, TINY.resolve().replace(steps=19, sample_every=5))
    assert (run.trainer.steps, run.steps) == (12, 19)
    list(run.train())
    run.close()
    for name in ("model.safetensors", "discriminator/model.safetensors"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8")).steps == 19


def test_a_length_in_epochs_replaces_one_in_steps_and_back(tmp_path):
    folder = start_and_stop(TINY.replace(steps=3), tmp_path / "run")
    stored = Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
    for recipe, steps in ((stored.replace(epochs=1), 8), (stored.replace(steps=None, epochs=2), 16)):
        run = Run.resume(folder, recipe)
        run.close()
        assert (run.steps, run.recipe.steps) == (steps, None)
    run = Run.resume(folder, run.recipe.replace(steps=5))
    run.close()
    assert (run.steps, run.recipe.epochs) == (5, None)


@pytest.mark.parametrize("name", ["lr", "seed", "batch_size", "augment", "data", "samples"])
def test_a_resumed_run_refuses_what_would_change_its_numbers(unbroken, name):
    value = {"lr": 1.0, "seed": 1, "batch_size": 3, "augment": (), "data": "fake", "samples": 4}[name]
    before = computed(unbroken)
    with pytest.raises(ValueError, match=f"a resumed run cannot change {name}; it can change cache, .* steps"):
        Run.resume(unbroken, TINY.resolve().replace(**{name: value}))
    assert computed(unbroken) == before


def test_what_a_resumed_run_may_change_are_fields():
    assert set(Recipe.__dataclass_fields__) >= RESUMABLE


def test_a_folder_that_holds_anything_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists: choose another folder"):
        Run.start(TINY, tmp_path)
    killed = tmp_path / "recipe.yaml"  # of a run that was killed before its first state
    killed.write_text(TINY.to_yaml())
    with pytest.raises(FileExistsError, match="exists: remove it, for it has no state yet, or choose another folder"):
        Run.start(TINY, tmp_path)
    killed.unlink()
    with pytest.raises(FileExistsError, match="exists"):
        Run.start(TINY, tmp_path / "notes.txt")
    assert listing(tmp_path) == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path):
    run = Run.start(TINY, tmp_path)
    run.close()
    assert (tmp_path / "recipe.yaml").is_file()


def test_runs_without_a_name_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [Run.start(TINY) for _ in range(3)]
    for run in runs:
        run.close()
    assert [str(run.folder) for run in runs] == [str(Path("runs", name)) for name in ("digits", "digits-2", "digits-3")]


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path):
    run = Run.start(TINY.replace(steps=2), tmp_path / "run")
    before = listing(run.folder)
    assert command(tmp_path / "log", "train", "--resume", run.folder) == 2
    assert "another process is training in" in (tmp_path / "log").read_text()
    assert listing(run.folder) == before
    run.close()
    assert command(tmp_path / "log", "train", "--resume", run.folder) == 0


def test_reasons_not_to_resume_are_told_apart(tmp_path, unbroken):
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it has no recipe"):
        Run.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it does not exist"):
        Run.resume(tmp_path / "nowhere")
    for inner in ("state", "state/step-000001.pt"):
        with pytest.raises(
            FileNotFoundError, match=f"is not the folder of a run: .*; its run is {re.escape(str(unbroken))}$"
        ):
            Run.resume(unbroken / inner)
    (tmp_path / "recipe.yaml").write_text(TINY.to_yaml())
    with pytest.raises(
        FileNotFoundError, match="has no state to resume from: start again in another folder, or remove it"
    ):
        Run.resume(tmp_path)


def test_a_broken_state_is_named(tmp_path):
    folder = start_and_stop(TINY.replace(steps=2), tmp_path / "run")
    path = checkpoint.list_states(folder / "state")[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-000002\.pt is not a complete training state"):
        Run.resume(folder)


@pytest.mark.parametrize("cache", [True, False])
def test_a_dataset_that_changed_is_noticed(tmp_path, cache):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(6):
        Image.new("L", (16, 16), 40 * index).save(pictures / f"{index}.png")
    recipe = TINY.replace(data="folder", root=pictures, batch_size=4, steps=2, channels=1, cache=cache)
    folder = start_and_stop(recipe, tmp_path / "run")
    pictures.rename(tmp_path / "moved")
    pictures = tmp_path / "moved"
    Run.resume(folder, recipe.replace(root=pictures)).close()
    whole = (pictures / "4.png").read_bytes()
    noise = torch.randint(256, (16, 16), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(pictures / "4.png")
    with pytest.raises(ValueError, match="the dataset has as many images as when training began, but other ones"):
        Run.resume(folder)
    (pictures / "4.png").write_bytes(whole)
    (pictures / "5.png").unlink()
    with pytest.raises(ValueError, match="the dataset has 5 images, but had 6 when training began"):
        Run.resume(folder)


def test_training_starts_from_the_networks_of_another_run(unbroken, tmp_path):
    recipe = TINY.replace(generator=str(unbroken), discriminator=str(unbroken), image_size=None, ema_decay=None, seed=3)
    run = Run.start(recipe, tmp_path / "run")
    run.close()
    assert (run.recipe.image_size, run.recipe.channels) == (16, 1)
    for kind, network in ((Generator, run.trainer.generator), (Discriminator, run.trainer.discriminator)):
        for name, tensor in kind.from_pretrained(unbroken).state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), name
    assert (run.folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(("field", "value"), [("image_size", 32), ("channels", 3)])
def test_networks_of_another_size_are_refused(unbroken, tmp_path, network, field, value):
    recipe = TINY.replace(**{network: str(unbroken), field: value})
    with pytest.raises(ValueError, match=f"the {network} of .* has {field} .*, the recipe {value}"):
        Run.start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_later_than_the_resumed_state_are_removed(tmp_path):
    """A run that was killed had sampled on; a shorter cadence must not leave its pictures among the new ones."""
    run = Run.start(TINY, tmp_path / "run")
    steps = run.train()
    while run.trainer.steps < 10:
        next(steps)
    steps.close()
    run.close()
    (run.folder / ".samples.gif.1.tmp").touch()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "d_lo')
    resumed = Run.resume(run.folder)
    resumed.close()
    assert resumed.trainer.steps == 7
    assert [record["step"] for record in records(run.folder)] == [4]
    assert sorted(path.stem for path in (run.folder / "samples").iterdir()) == ["step-000000", "step-000005"]
    assert not list(run.folder.rglob("*.tmp"))


def test_fewer_steps_than_are_done_are_refused_and_change_nothing(tmp_path):
    start_and_stop(TINY, tmp_path / "run")
    before = (tmp_path / "run/recipe.yaml").read_bytes()
    for _ in range(2):  # the refusal lets go of the folder, or the second would say that another process has it
        with pytest.raises(ValueError, match="is already at step 19, beyond the requested 2 steps"):
            Run.resume(tmp_path / "run", TINY.resolve().replace(steps=2))
    assert (tmp_path / "run/recipe.yaml").read_bytes() == before


def test_a_start_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "_save", lambda self, generator=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run.start(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_start_that_fails_leaves_the_folder_that_was_there(tmp_path, monkeypatch, kind):
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty"
    if kind == "link":
        folder = tmp_path / "link"
        folder.symlink_to("empty", target_is_directory=True)
    monkeypatch.setattr(Run, "sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run.start(TINY, folder)
    assert folder.is_symlink() == (kind == "link")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have text for names")
def test_a_folder_whose_name_is_no_text_is_trained_in(tmp_path):
    with Run.start(TINY.replace(steps=1), tmp_path / os.fsdecode(b"out\xff")) as run:
        list(run.train())
        assert r"out\udcff" in (run.folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change", [{"trainer": None}, {"fingerprint": 5}, {"sums": 3}, {"recipe": 5}, {"figures": []}, {"images": "1"}]
)
def test_a_state_of_something_else_is_refused(unbroken, tmp_path, change):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    newest = checkpoint.list_states(folder / "state")[-1]
    ((name, _),) = change.items()
    torch.save(checkpoint.load(newest) | change, newest)
    with pytest.raises(ValueError, match=f"is not the state of a run: it lacks {name}.*; remove it to resume from"):
        Run.resume(folder)
    torch.save({"a": torch.zeros(3)}, newest)
    with pytest.raises(ValueError, match="is not the state of a run: it lacks trainer, images, sums, counts"):
        load_generator(folder, step_of(newest))


def test_a_half_precision_generator_continues_in_full_precision(tmp_path):
    generator = Generator(image_size=16, channels=1, base_channels=4).half()
    generator.save_pretrained(tmp_path / "half")
    run = Run.start(TINY.replace(generator=str(tmp_path / "half"), steps=2), tmp_path / "run")
    assert {p.dtype for p in run.trainer.generator.parameters()} == {torch.float32}
    assert "its own architecture" in (tmp_path / "run/README.md").read_text(encoding="utf-8")
    run.close()


def test_frames_are_in_order_beyond_six_digits(unbroken, tmp_path):
    run = Run.start(TINY, tmp_path / "run")
    run.close()
    for step in (999_999, 1_000_000, 20_000):
        (run.folder / "samples" / f"step-{step:06d}.png").touch()
    assert [path.stem for path in run._frames()] == ["step-000000", "step-020000", "step-999999", "step-1000000"]


def test_a_run_killed_while_it_writes_ends_as_an_unbroken_one(tmp_path):
    """Killed by SIGKILL at the first, third, ... file operation of training and saving, again and again."""
    whole = start_and_stop(EAGER, tmp_path / "whole")
    folder = tmp_path / "broken"
    Run.start(EAGER, folder).close()
    killed = 0
    for at in (1, 6, 12, 19, 27, 36):
        code = command(tmp_path / "log", "train", "--resume", folder, kill_at=(str(folder), at))
        if code == 0:
            break
        killed += 1
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert Generator.from_pretrained(folder).sample(1, seed=0).isfinite().all()
        Discriminator.from_pretrained(folder)
        checkpoint.load(checkpoint.list_states(folder / "state")[-1])
    else:
        assert command(tmp_path / "log", "train", "--resume", folder) == 0, (tmp_path / "log").read_text()
    assert killed >= 5
    assert computed(folder) == computed(whole)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("at", [1, 9, 22, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 16))])
def test_a_run_killed_as_it_starts_resumes_or_says_to_start_again(tmp_path, at):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert command(log, "train", *options(EAGER), "--out", folder, kill_at=(str(folder), at)) == -signal.SIGKILL
    code = command(log, "train", "--resume", folder)
    if not (folder / "recipe.yaml").exists():
        assert (code, "is not the folder of a run" in log.read_text()) == (2, True)
    elif not checkpoint.list_states(folder / "state"):
        assert (code, "start again in another folder" in log.read_text()) == (2, True)
    else:
        assert code == 0, log.read_text()


@pytest.fixture(scope="module")
def before_the_end(tmp_path_factory):
    """A run that stopped one step before its end, and the same run at its end."""
    folder = tmp_path_factory.mktemp("end")
    recipe = EAGER.replace(steps=3)
    return start_and_stop(recipe, folder / "stopped", stop=2), start_and_stop(recipe, folder / "run")


@pytest.mark.parametrize("at", [9, 14, 18, *(pytest.param(at, marks=pytest.mark.slow) for at in range(1, 30))])
def test_a_run_killed_in_its_last_step_has_the_files_of_an_unbroken_one_once_it_is_resumed(
    tmp_path, before_the_end, at
):
    stopped, whole = before_the_end
    folder, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(stopped, folder)
    code = command(log, "train", "--resume", folder, kill_at=(str(folder), 20 + at))  # 20 before the last step
    if code == -signal.SIGKILL:
        code = command(log, "train", "--resume", folder)
        assert code == 0 or (code, "has completed all of its 3 steps" in log.read_text()) == (2, True)
    assert computed(folder) == computed(whole)
    assert listing(folder) == listing(whole)
    assert (folder / "README.md").read_bytes() == (whole / "README.md").read_bytes()


def test_a_damaged_state_is_named_with_the_one_before_it(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    earlier, newest = checkpoint.list_states(folder / "state")[-2:]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{newest} is not a complete .*; remove it to resume from {earlier.name}$"):
        Run.resume(folder)
    with pytest.raises(ValueError, match=rf"{newest} is not a complete .*; kept beside it: .*{earlier.name}$"):
        load_generator(folder, step_of(newest))
    with pytest.raises(ValueError, match=rf"{newest} is not a complete .*; kept beside it: .*{earlier.name}$"):
        Run.start(TINY.replace(generator=str(newest), discriminator=str(newest)), tmp_path / "new")
    newest.unlink()
    with contextlib.closing(Run.resume(folder)) as run:
        list(run.train())
    assert computed(folder) == computed(unbroken)


def test_states_that_may_not_be_read_are_not_called_absent(tmp_path, unbroken, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "state":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match=f"Permission denied: '{folder}/state'"):
        Run.resume(folder)


def test_a_full_disk_after_a_signal_names_the_last_good_state(tmp_path, monkeypatch):
    with contextlib.closing(Run.start(TINY, tmp_path / "run")) as run:
        next(run.train())

        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

        monkeypatch.setattr(Generator, "save_pretrained", fail)
        with pytest.raises(
            OSError, match=r"No space .*; the last good state is .*step-000001\.pt, from which --resume"
        ):
            run.save()


def test_pictures_of_other_names_among_the_samples_do_not_matter(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    (folder / "samples/step-abc.png").write_bytes(b"mine")
    Run.resume(folder).close()
    assert (folder / "samples/step-abc.png").read_bytes() == b"mine"
    (folder / "samples/step-abc.png").unlink()
    assert computed(folder) == computed(unbroken)


def test_a_run_that_goes_on_without_packed_images_says_that_it_could_not_compare_them(tmp_path, unbroken, caplog):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    state = checkpoint.load(checkpoint.list_states(folder / "state")[-1])
    kind, _, content = state["fingerprint"].partition(":")
    checkpoint.save(folder / "state", state | {"fingerprint": f"files:{content}"}, step=state["trainer"]["steps"])
    Run.resume(folder).close()
    assert kind == "crc32"
    assert "the images could not be compared with those of before" in caplog.text


def test_a_recipe_that_is_no_longer_that_of_the_run_is_refused(tmp_path, unbroken, caplog):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    path = folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("seed: 0", "seed: 4"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path} is not the recipe of this run any more: seed is 4 instead of 0"):
        Run.resume(folder)
    path.write_text(text.replace("log_every: 4", "log_every: 5"), encoding="utf-8")
    with caplog.at_level("INFO"), contextlib.closing(Run.resume(folder)) as run:
        assert run.recipe.log_every == 5
    assert f"{path} differs from the newest state: log_every is 5 instead of 4" in caplog.text


def test_a_run_is_resumed_from_its_state_whatever_became_of_its_other_files(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for lost in ("model.safetensors", "discriminator/config.json", "README.md", "samples.gif", "curves.png"):
        (folder / lost).unlink()
    (folder / "config.json").write_text("{")
    Run.resume(folder).close()
    assert computed(folder) == computed(unbroken)
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"step"', b'"stup"'),
        lambda line: line.replace(b'"d_loss": ', b'"d_loss": "', 1).replace(b", ", b'", ', 1),
        lambda line: line.replace(b"step", b"st\xc5p"),
        lambda line: line.replace(b":", b";", 1),
        lambda _: b"[]}\n",
        lambda line: line.replace(b'"step": ', b'"step": 1.'),
        lambda line: line.replace(b'"step": ', b'"step": 9'),
        lambda line: line.replace(b'"step": ', b'"step": -'),
    ],
)
def test_damaged_lines_of_the_log_are_set_aside_and_the_others_stay_as_they_are(tmp_path, unbroken, caplog, damage):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:1], damage(lines[1]), *lines[2:]]))
    with contextlib.closing(Run.resume(folder)) as run:
        assert run.summary()["health"] == "no sign of collapse in 19 steps"
    assert log.read_bytes() == b"".join([*lines[:1], *lines[2:]])
    assert (folder / "metrics.jsonl.damaged").read_bytes() == damage(lines[1])
    assert "has damaged lines: 1, set aside in metrics.jsonl.damaged" in caplog.text


def test_a_log_with_other_names_is_summarized_by_those_that_are_known(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b"images_per_second", b"imagfs_per_second").replace(b"d_real", b"d_ream"))
    with contextlib.closing(Run.resume(folder)) as run:
        assert run.summary() == {"health": "no sign of collapse in 19 steps"}


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_picture_of_samples_is_set_aside(tmp_path, unbroken, caplog, content):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    picture = min((folder / "samples").iterdir())
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-30] if content is None else content)
    Run.resume(folder).close()
    assert not picture.exists()
    assert f"{picture} is damaged, and set aside as {picture.name}.damaged" in caplog.text
    assert (folder / "samples.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize("limit", [pytest.param(1_000, marks=pytest.mark.slow), 150_000])
def test_a_full_disk_stops_a_run_and_names_the_file(tmp_path, limit):
    """A limit on the size of files stands in for the disk: the write itself fails."""
    folder, log = tmp_path / "run", tmp_path / "log"
    start_and_stop(EAGER.replace(steps=2), folder)
    before = computed(folder)
    code = command(log, "train", "--resume", folder, "--steps", 4, file_limit=limit)
    said = log.read_text()
    assert code in {1, 2}  # 2 where not even the recipe could be written
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if "File too large" in line)
    assert line.startswith(f"dcgan: {folder}/")
    assert re.search(rf"the last good state is {folder}/state/step-\d+\.pt, from which --resume goes on", line)
    assert not list(folder.rglob("*.tmp"))
    state = f"step-{2:06d}.pt"
    assert flat(checkpoint.load(folder / "state" / state)) == before[state]
    Generator.from_pretrained(folder)
    assert command(log, "train", "--resume", folder, "--steps", 4) == 0, log.read_text()
    assert len(records(folder)) == 4


def test_divergence_names_the_step_the_network_and_the_last_good_state(tmp_path):
    run = Run.start(TINY.replace(lr=1e30), tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"step \d+: the .*; the last good state is .*step-000000\.pt"):
        list(run.train())
    run.close()
    state = checkpoint.load(checkpoint.list_states(run.folder / "state")[-1])
    assert all(tensor.isfinite().all() for tensor in state["trainer"]["generator"].values())
    assert Generator.from_pretrained(run.folder).sample(4, seed=0).isfinite().all()


def test_a_failed_start_leaves_no_folder(tmp_path):
    for wrong in ({"batch_size": 5000}, {"image_size": 50}, {"data": "folder"}, {"r1": -1.0}, {"device": "nonsense"}):
        with contextlib.suppress(ValueError):
            Run.start(TINY.replace(**wrong), tmp_path / "run")
            pytest.fail(f"{wrong} was accepted")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("on_collapse", ["warn", "stop"])
def test_a_collapse_is_written_into_the_log_and_stops_if_asked(tmp_path, capsys, monkeypatch, on_collapse):
    monkeypatch.setattr("dcgan._monitor._STEPS_TO_WARN", 4)
    monkeypatch.setattr("dcgan._monitor._ALIKE", 1e9)  # everything is alike
    options = ["--base-channels", 4, "--image-size", 16, "--batch-size", 200, "--steps", 12, "--log-every", 2]
    folder = tmp_path / "run"
    code = cli.main([*map(str, ["train", *options, "--device", "cpu", "--out", folder, "--on-collapse", on_collapse])])
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    collapsed = [record["step"] for record in records if "collapse" in record]
    (state,) = checkpoint.list_states(folder / "state")[-1:]
    err = capsys.readouterr().err
    assert err.count("training has collapsed: for 4 steps, the images that were generated for a batch") == 1
    if on_collapse == "warn":
        assert (code, state.name, collapsed) == (0, "step-000012.pt", [4, 6, 8, 10, 12])
    else:
        assert (code, state.name, collapsed) == (1, "step-000004.pt", [4])
        assert "stopped and saved at step 4: for 4 steps" in err
        assert Run.resume(folder).trainer.steps == 4
