"""The robustness suite: every combination once, goes on after a kill, and counts what died."""

import json

import pytest
from PIL import Image

from dcgan import _build, _quality, cli
from dcgan._files import read_json_lines
from dcgan.bench import robustness
from dcgan.bench.robustness import Subject, run_suite, table

SMALL = {"widths": (2, 3), "batch_sizes": (8,), "seeds": (0, 1), "device": "cpu"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(robustness, "_STEPS", {1: 3, 3: 2})
    monkeypatch.setattr(_quality, "_GENERATED", 40)
    monkeypatch.setattr(_quality, "_REAL", 60)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_set_is_a_name_or_a_folder_at_a_size(tmp_path):
    (tmp_path / "my faces").mkdir()
    assert Subject.parse("mnist:64", tmp_path) == ("mnist", tmp_path, 64)
    assert Subject.parse("digits:16", tmp_path) == ("digits", None, 16)  # which come with scikit-learn
    subject = Subject.parse(f"{tmp_path}/my faces:32")
    assert subject == ("folder", tmp_path / "my faces", 32)
    assert (subject.label, Subject.parse("digits:16").label) == ("my faces 32", "digits 16")


@pytest.mark.parametrize("text", ["digits", "digits:", "digits:x", ":32", "nosuch:32", ""])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="a set must be"):
        Subject.parse(text)


def test_every_combination_is_trained_and_an_interrupted_suite_goes_on(tmp_path):
    subjects, whole, broken = [Subject.parse("digits:16")], tmp_path / "whole", tmp_path / "broken"
    assert list(run_suite(subjects, whole, **SMALL)) == [(done, 8) for done in range(9)]
    rows = read_json_lines(whole)
    assert len({(row["width"], row["seed"], row["recipe"]) for row in rows}) == 8
    assert all(row["steps"] == 3 and row["distance"] > 0 and row["collapse"] is None for row in rows)
    assert len({row["distance"] for row in rows}) == 8

    lines = whole.read_text().splitlines(keepends=True)
    broken.write_text("".join(lines[:5]) + lines[5][:20])  # killed while it wrote
    assert list(run_suite(subjects, broken, **SMALL)) == [(done, 8) for done in range(5, 9)]
    assert without_times(read_json_lines(broken)) == without_times(rows)


def test_colour_takes_more_steps_and_each_recipe_is_what_its_name_says(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(9):
        Image.effect_noise((20, 20), 50 + index).convert("RGB").save(folder / f"{index}.png")
    trained, build = [], _build.build_trainer
    monkeypatch.setattr(
        _build, "build_trainer", lambda recipe, *networks: trained.append(recipe) or build(recipe, *networks)
    )
    list(run_suite([Subject.parse(f"{folder}:16")], tmp_path / "out", widths=(2,), batch_sizes=(4,), seeds=(3,)))
    assert [row["steps"] for row in read_json_lines(tmp_path / "out")] == [2, 2]
    tutorial, ours = trained
    assert (tutorial.lr, tutorial.ema_decay, tutorial.augment) == (2e-4, None, ())
    assert ours.ema_decay == 0.999
    for recipe in trained:
        assert (recipe.base_channels, recipe.d_base_channels, recipe.batch_size, recipe.seed) == (2, 2, 4, 3)


def test_a_run_that_diverges_is_dead(tmp_path):
    recipe = tmp_path / "wild.yaml"
    recipe.write_text("lr: 1.0e+30\n")
    subjects, out = [Subject.parse("digits:16")], tmp_path / "out"
    options = {"widths": (2,), "batch_sizes": (8,), "seeds": (0,), "recipes": [str(recipe)], "device": "cpu"}
    assert list(run_suite(subjects, out, **options)) == [(0, 1), (1, 1)]
    (dead,) = read_json_lines(out)
    assert dead["distance"] is None
    assert "turned non-finite" in dead["collapse"]
    assert f"{recipe}: 1 of 1 runs dead at the end" in table([dead])
    assert list(run_suite(subjects, out, **options)) == [(1, 1)]


def test_two_sets_of_one_name_are_refused(tmp_path):
    for name in ("a/pics", "b/pics"):
        (tmp_path / name).mkdir(parents=True)
    subjects = [Subject.parse(f"{tmp_path}/{name}/pics:16") for name in "ab"]
    with pytest.raises(ValueError, match="sets must differ in name or size, got pics 16, pics 16"):
        list(run_suite(subjects, tmp_path / "out"))


def row(recipe, distance, collapse=None, *, width=16, seed=0, warned=False):
    cell = {"set": "mnist 32", "width": width, "batch_size": 64, "seed": seed, "recipe": recipe}
    return cell | {"distance": distance, "collapse": collapse, "warned": warned or collapse is not None}


def test_the_table_has_medians_of_what_lived_and_counts_what_died():
    rows = [row("tutorial", value, seed=seed) for seed, value in enumerate((10.0, 30.0, 20.0))]
    rows += [row("ours", 5.0, warned=True), row("ours", 9.0, "all are alike", seed=1), row("ours", 3.0, seed=2)]
    rows += [row("tutorial", 700.0, "all are alike", width=32), row("ours", 4.0, width=32)]
    assert table(rows).splitlines() == [
        "| set | width | batch | seeds | tutorial: distance, dead | ours: distance, dead | ratio |",
        "|---|---|---|---|---|---|---|",
        "| mnist 32 | 16 | 64 | 3 | 20.0 | 4.0, 1 of 3 dead | 5.0 |",
        "| mnist 32 | 32 | 64 | 1 | -, 1 of 1 dead | 4.0 |  |",
        "",
        "tutorial: 1 of 4 runs dead at the end, 0 more that were warned about.",
        "",
        "ours: 1 of 4 runs dead at the end, 1 more that were warned about.",
    ]


def test_the_command_prints_the_table_of_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "SHORT_WIDTHS", (2,))
    out = tmp_path / "runs.jsonl"
    command = ["bench", "--suite", "robustness", "--short", "--sets", "digits:16", "--out", str(out), "--device", "cpu"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == table(read_json_lines(out)) + "\n"
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_json_lines(out)
    assert cli.main([*command, "--sets", "digits"]) == 2
    assert "a set must be NAME:SIZE" in capsys.readouterr().err


def test_a_log_of_something_else_is_refused_before_anything_is_trained(tmp_path, capfd):
    (tmp_path / "rows.jsonl").write_text("garbage}\n")
    arguments = ["--suite", "robustness", "--short", "--sets", "digits:32", "--out", str(tmp_path / "rows.jsonl")]
    assert cli.main(["bench", *arguments]) == 2
    assert "rows.jsonl is not a log of one JSON object a line" in capfd.readouterr().err
    assert (tmp_path / "rows.jsonl").read_text() == "garbage}\n"
