"""The script that draws the documentation's pictures: what it promises to draw is there, and it draws it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures():
    specification = importlib.util.spec_from_file_location("pictures", ROOT / "examples/pictures.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_picture_of_the_script_is_on_a_page(pictures):
    pages = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    names = [name for part in pictures.PARTS.values() for name in part.pictures]
    assert len(names) == len(set(names))
    for name in names:
        assert f"assets/{name})" in pages
        assert (ROOT / "docs/assets" / name).exists()


def test_a_part_draws_its_pictures(pictures, tmp_path, monkeypatch):
    (tmp_path / "runs/mnist").mkdir(parents=True)
    records = [
        {"step": step, "d_loss": 1.4 - step / 10, "g_loss": 0.7, "d_real": 0.5, "d_fake": 0.5} for step in (1, 2)
    ]
    (tmp_path / "runs/mnist/metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    command = ["pictures.py", "curves", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    pictures.main()
    assert [path.name for path in (tmp_path / "out").iterdir()] == pictures.PARTS["curves"].pictures
    with Image.open(tmp_path / "out/curves-mnist.png") as picture:
        assert picture.size == (1800, 1160)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curves"], "the part curves needs --runs"),
        (["tables", "--data", "x"], "the part tables needs --svhn"),
        ([], "the part svhn needs --svhn"),
        (["modles"], "there is no part modles: models, latents,"),
    ],
)
def test_a_part_without_its_files_is_refused_before_any_is_drawn(pictures, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pictures.py", *arguments])
    with pytest.raises(SystemExit):
        pictures.main()
    assert message in capsys.readouterr().err
