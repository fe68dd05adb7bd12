"""What TensorBoard and Weights & Biases get from a run, read back from their files."""

import json
import os
import random
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan import images
from dcgan._loggers import open_loggers

RECIPE = "data: digits\nsteps: 60\nlr: 0.0002\naugment:\n- translation\n"
COLLAPSE = "for 120 steps, D(x) has been above 0.98"


def record(step, **more):
    return {"step": step, "d_loss": step / 100, "g_loss": 2.0, "d_real": 0.75, "images_per_second": 310.5, **more}


def random_states():
    state = np.random.get_state()  # noqa: NPY002 - the global one
    return random.getstate(), state[1].tolist(), state[2:], torch.get_rng_state().tolist()


# --- TensorBoard


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def texts(folder, tag):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator  # the page's own

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    found = events.Tensors(f"{tag}/text_summary")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found}


def curve(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}


def test_tensorboard_gets_every_figure_once_it_is_logged(tmp_path):
    before = random_states()
    (logger,) = open_loggers(["tensorboard"], tmp_path, config=RECIPE)
    logger.log(20, record(20))
    logger.log(40, record(40, fd=12.5, collapse=COLLAPSE))
    events = read_events(tmp_path)  # as a killed run would leave them
    assert curve(events, "loss/D") == {20: pytest.approx(0.2), 40: pytest.approx(0.4)}
    assert curve(events, "loss/G") == {20: 2.0, 40: 2.0}
    assert curve(events, "output/D_real") == {20: 0.75, 40: 0.75}
    assert curve(events, "speed/images_per_second") == {20: 310.5, 40: 310.5}
    assert curve(events, "quality/frechet_distance") == {40: 12.5}
    assert len(events.Tags()["scalars"]) == 5  # a step is not a figure, and there is no D(G(z)) here
    assert texts(tmp_path, "collapse") == {40: COLLAPSE}
    (recipe,) = texts(tmp_path, "recipe").values()
    assert "".join(line.removeprefix("    ") for line in recipe.splitlines(keepends=True)) == RECIPE
    logger.close()
    assert random_states() == before


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensorboard_gets_the_samples(tmp_path, channels):
    grid = images.grid(torch.randint(0, 256, (4, channels, 5, 6), dtype=torch.uint8))
    images.save_png(tmp_path / "grid.png", grid)
    (logger,) = open_loggers(["tensorboard"], tmp_path, config=RECIPE)
    logger.picture(20, tmp_path / "grid.png")
    logger.close()
    (image,) = read_events(tmp_path).Images("samples")
    pixels = np.asarray(Image.open(BytesIO(image.encoded_image_string)))
    assert image.step == 20
    assert np.array_equal(pixels, grid.expand(max(channels, 3), -1, -1).permute(1, 2, 0).numpy())


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    (logger,) = open_loggers(["tensorboard"], tmp_path, config=RECIPE)
    for step in (20, 40, 60, 80):
        logger.log(step, record(step, collapse=COLLAPSE))
    logger.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.out.tfevents.1000000000.host.1.0"))  # long ago: they are read in this order
    (logger,) = open_loggers(["tensorboard"], tmp_path, config=RECIPE, resume_step=40)
    assert list(curve(read_events(tmp_path), "loss/D")) == [20, 40]
    logger.log(60, record(60, d_loss=9.0))
    logger.close()
    events = read_events(tmp_path)
    assert curve(events, "loss/D") == {20: pytest.approx(0.2), 40: pytest.approx(0.4), 60: 9.0}
    assert list(texts(tmp_path, "collapse")) == [20, 40]
    assert len(texts(tmp_path, "recipe")) == 1


# --- Weights & Biases

SCRIPT = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dcgan._loggers import open_loggers
from test_loggers import COLLAPSE, RECIPE, random_states, record
folder, steps, resume_step = pathlib.Path(sys.argv[1]), range(20, 61, 20), None
before = random_states()
for steps, resume_step in [((20, 40, 60), None), ((60, 80), 40)]:
    (logger,) = open_loggers(["wandb"], folder, config=RECIPE, resume_step=resume_step)
    for step in steps:
        logger.log(step, record(step, **({{"collapse": COLLAPSE}} if step in (40, 60) else {{"fd": 12.5}})))
        logger.picture(step, folder / "grid.png")
    logger.close()
assert random_states() == before
import wandb
assert wandb.run is None
"""


def read_offline(path):
    """The messages in the file of an offline run: a log in the format of LevelDB, of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, message, found = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:  # the rest of a block is empty if it has no room for a header
            position += 2**15 - position % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(message))
            message = b""
    return found


def test_wandb_gets_a_run_and_its_continuation_without_a_word(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    grid = torch.randint(0, 256, (3, 12, 9), dtype=torch.uint8)
    images.save_png(folder / "grid.png", grid)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder], env=environment, check=False, capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if "`resume` will be ignored" not in line]  # by old versions
    assert (done.returncode, done.stdout, said) == (0, "", [])

    identity = (folder / "wandb" / "dcgan-run-id").read_text()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in files] == [f"run-{identity}.wandb"] * 2
    for path, steps in zip(files, [[20, 40, 60], [60, 80]], strict=True):
        messages = read_offline(path)
        (run,) = [message.run for message in messages if message.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project, run.display_name) == (identity, "dcgan", "faces")
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert {name: config[name] for name in ("data", "steps", "lr", "augment")} == {
            "data": "digits",
            "steps": 60,
            "lr": 0.0002,
            "augment": ["translation"],
        }
        rows = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in message.history.item}
            for message in messages
            if message.WhichOneof("record_type") == "history"
        ]
        figures = [row for row in rows if "samples.path" not in row]
        assert [row["step"] for row in figures] == steps
        assert [row["loss/D"] for row in figures] == [step / 100 for step in steps]
        assert [row.get("quality/frechet_distance") for row in figures] == [
            None if step in (40, 60) else 12.5 for step in steps
        ]
        assert [row["step"] for row in rows if "samples.path" in row] == steps
        for row in rows:
            if "samples.path" in row:
                stored = Image.open(path.parent / "files" / row["samples.path"])
                assert np.array_equal(np.asarray(stored), grid.permute(1, 2, 0).numpy())
        alerts = [message.alert.text for message in messages if message.WhichOneof("record_type") == "alert"]
        assert alerts == [f"step {steps[1] if len(steps) == 3 else 60}: {COLLAPSE}"]
        summary = {
            item.key: json.loads(item.value_json)
            for message in messages
            if message.WhichOneof("record_type") == "summary"
            for item in message.summary.update
        }
        assert summary["collapse"] == (COLLAPSE if len(steps) == 3 else None)


def test_wandb_without_an_account_says_how_to_go_on(tmp_path):
    code = (
        "import pathlib; from dcgan._loggers import open_loggers; open_loggers(['wandb'], pathlib.Path(), config='{}')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "ConnectionError: Weights & Biases did not start: " in last
    assert last.endswith("(with WANDB_MODE=offline it needs no account)")
    assert not (tmp_path / "wandb" / "dcgan-run-id").exists()


# --- all of them


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorboard", r'logging to TensorBoard needs tensorboard: pip install "dcgan\[tensorboard\]"'),
        ("wandb", r'logging to Weights & Biases needs wandb: pip install "dcgan\[wandb\]"'),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, name, None)
    for module in [module for module in sys.modules if module.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=message):
        open_loggers([name], tmp_path, config=RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_refused_before_any_is_opened(tmp_path):
    with pytest.raises(ValueError, match="log must be of tensorboard, wandb, got mlflow"):
        open_loggers(["tensorboard", "mlflow"], tmp_path, config=RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_those_that_are_open_are_closed_when_another_cannot_be(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    closed, close = [], SummaryWriter.close
    monkeypatch.setattr(SummaryWriter, "close", lambda writer: closed.append(close(writer)))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="wandb"):
        open_loggers(["tensorboard", "wandb"], tmp_path, config=RECIPE)
    assert len(closed) == 1


def test_nothing_is_imported_for_no_logger(tmp_path):
    code = (
        "import pathlib, sys; from dcgan._loggers import open_loggers\n"
        "assert open_loggers([], pathlib.Path(), config='') == []\n"
        "print(sorted({'tensorboard', 'torch', 'wandb', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []
