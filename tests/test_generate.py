"""Images as files: the same ones whatever the batches, and nothing overwritten unasked."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from dcgan import Generator, cli, images
from dcgan.generate import default_batch_size, existing_files, sample_uint8, write_images


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    Generator(image_size=(16, 24), channels=request.param, base_channels=4, latent_dim=8).save_pretrained(folder)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out"


def generate(*arguments):
    return cli.main(["generate", *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_are_numbered_and_have_the_generators_shape(model, out):
    assert generate(model, "-n", 5, "--batch-size", 2, "--out", out) == 0
    assert sorted(contents(out)) == [f"{index:06d}.png" for index in range(5)]
    generator = Generator.from_pretrained(model)
    expected = sample_uint8(generator, 5, seed=0)
    for index in range(5):
        with Image.open(out / f"{index:06d}.png") as picture:
            assert (picture.size, picture.mode) == ((24, 16), "L" if len(expected[0]) == 1 else "RGB")
            pixels = np.asarray(picture).reshape(16, 24, -1)
        assert np.abs(pixels.astype(int) - expected[index].permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize(("n", "start", "batch_size"), [(9, 0, 4), (3, 4, 64), (6, 1, 1), (8, 0, 8), (9, 0, 3)])
def test_an_image_is_the_same_however_many_are_asked_for(model, tmp_path, n, start, batch_size):
    generate(model, "-n", 9, "--out", tmp_path / "all")
    generate(model, "-n", n, "--start", start, "--batch-size", batch_size, "--out", tmp_path / "some")
    for name in contents(tmp_path / "some"):
        both = [np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("all", "some")]
        assert np.abs(both[0] - both[1]).max() <= 1  # sums of another batch size may round otherwise
    assert sorted(contents(tmp_path / "some")) == [f"{index:06d}.png" for index in range(start, start + n)]


def test_another_seed_gives_other_images(model, tmp_path):
    for seed in (0, 1):
        generate(model, "-n", 1, "--seed", seed, "--out", tmp_path / str(seed))
    assert contents(tmp_path / "0") != contents(tmp_path / "1")


def test_the_number_of_written_images_is_yielded(model, out):
    generator = Generator.from_pretrained(model)
    assert list(write_images(generator, out, 7, batch_size=3)) == [3, 6, 7]


def test_a_grid_is_one_picture(model, out, capsys):
    assert generate(model, "-n", 5, "--grid", "--out", out) == 0
    assert capsys.readouterr().out == f"5 images in {out / 'grid.png'}\n"
    expected = images.grid(sample_uint8(Generator.from_pretrained(model), 5, seed=0))
    assert sorted(contents(out)) == ["grid.png"]
    with Image.open(out / "grid.png") as picture:
        assert np.array_equal(np.asarray(picture).reshape(*expected.shape[1:], -1), expected.permute(1, 2, 0).numpy())


def test_files_are_replaced_only_by_force(model, out, capsys):
    assert generate(model, "-n", 3, "--out", out) == 0
    before = contents(out)
    assert generate(model, "-n", 4, "--start", 2, "--seed", 1, "--out", out) == 2
    assert "000002.png exists" in capsys.readouterr().err
    assert contents(out) == before
    assert generate(model, "-n", 4, "--start", 2, "--seed", 1, "--out", out, "--force") == 0
    after = contents(out)
    assert after["000001.png"] == before["000001.png"]
    assert after["000002.png"] != before["000002.png"]
    assert len(after) == 6


def test_a_grid_is_replaced_only_by_force(model, out, capsys):
    assert generate(model, "-n", 3, "--grid", "--out", out) == 0
    before = contents(out)
    assert generate(model, "-n", 3, "--grid", "--seed", 1, "--out", out) == 2
    assert "--force overwrites existing files" in capsys.readouterr().err
    assert contents(out) == before
    assert generate(model, "-n", 3, "--grid", "--seed", 1, "--out", out, "--force") == 0
    assert contents(out) != before


def test_other_files_in_the_folder_stay(model, out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    assert existing_files(out, 3) == []
    assert generate(model, "-n", 1, "--out", out) == 0
    assert contents(out)["notes.txt"] == b"mine"


def test_a_file_is_not_a_folder_for_images(model, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert generate(model, "--out", tmp_path / "out") == 2
    assert f"--out must be a folder, but {tmp_path / 'out'} is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in folders")
@pytest.mark.parametrize(("name", "message"), [("pipe", "must be a folder, but"), ("pipe.zip", "and is no file")])
def test_a_pipe_is_neither_a_folder_nor_an_archive(model, tmp_path, capsys, name, message):
    os.mkfifo(tmp_path / name)
    assert generate(model, "-n", 1, "--out", tmp_path / name, "--force") != 0
    assert message in capsys.readouterr().err
    assert (tmp_path / name).is_fifo()


def test_existing_files_are_found_however_many_images_are_asked_for(out):
    out.mkdir(parents=True)
    names = ["000001.png", "0000001.png", "000003.png", "999999.png", "1000000.png", "12345678901234.png", "mine.png"]
    for name in [*names, "0000002.png", "\u0660\u0660\u0660\u0660\u0660\u0664.png"]:
        (out / name).touch()
    found = existing_files(out, 10**12, start=2)
    assert [path.name for path in found] == ["000003.png", "999999.png", "1000000.png"]
    assert existing_files(out, 2) == [out / "000001.png"]


def test_a_file_that_cannot_be_opened_stays(model, out, monkeypatch):
    out.mkdir(parents=True)
    (out / "000000.png").write_text("mine")
    generator = Generator.from_pretrained(model)

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(Path, "open", refuse)
        list(write_images(generator, out, 1))
    assert contents(out) == {"000000.png": b"mine"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"half", "is not a complete safetensors file"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "must hold a JSON object, got list"),
    ],
)
def test_a_broken_model_is_named_and_exits_2(model, tmp_path, capsys, name, content, message):
    broken = tmp_path / "model"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    if content is None:
        (broken / name).unlink()
    else:
        (broken / name).write_bytes(content)
    assert generate(broken, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_image_at_all_is_a_mistake(model, out, capsys):
    assert generate(model, "-n", 0, "--out", out) == 2
    assert 'Invalid value "0" for -n' in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("ending", ["zip", "npz", "ZIP", "Npz"])
def test_an_archive_holds_the_same_images(model, tmp_path, ending, capsys):
    archive = tmp_path / "deep" / f"images.{ending}"
    assert generate(model, "-n", 5, "--start", 2, "--batch-size", 2, "--out", archive) == 0
    assert capsys.readouterr().out == f"5 images in {archive}\n"
    expected = sample_uint8(Generator.from_pretrained(model), 5, seed=0, start=2).permute(0, 2, 3, 1).numpy()
    if ending.lower() == "npz":
        with np.load(archive) as arrays:
            assert list(arrays) == ["arr_0"]
            pixels = arrays["arr_0"]
    else:
        with ZipFile(archive) as files:
            assert files.namelist() == [f"{index:06d}.png" for index in range(2, 7)]
            assert files.testzip() is None
            pictures = [np.asarray(Image.open(io.BytesIO(files.read(name)))) for name in files.namelist()]
        pixels = np.stack(pictures).reshape(expected.shape)
    assert (pixels.dtype, pixels.shape) == (np.uint8, expected.shape)
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_an_archive_is_the_same_bytes_every_time(model, tmp_path):
    for name in ("a.zip", "b.zip"):
        assert generate(model, "-n", 3, "--out", tmp_path / name) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_archive_is_replaced_only_by_force(model, tmp_path, capsys):
    archive = tmp_path / "images.npz"
    assert generate(model, "-n", 3, "--out", archive) == 0
    before = archive.read_bytes()
    assert generate(model, "-n", 4, "--out", archive) == 2
    assert f"{archive} exists: --force overwrites existing files" in capsys.readouterr().err
    assert archive.read_bytes() == before
    assert generate(model, "-n", 4, "--out", archive, "--force") == 0
    with np.load(archive) as arrays:
        assert len(arrays["arr_0"]) == 4


def test_an_interrupted_archive_leaves_the_old_one(model, tmp_path):
    archive = tmp_path / "images.npz"
    archive.write_bytes(b"old")
    generator = Generator.from_pretrained(model)
    writing = write_images(generator, archive, 9, batch_size=3)
    assert next(writing) == 3
    writing.close()
    assert contents(tmp_path) == {"images.npz": b"old"}


def test_a_grid_and_a_folder_are_not_archives(model, tmp_path, capsys):
    assert generate(model, "--grid", "--out", tmp_path / "a.zip") == 2
    assert "--grid writes a picture, but --out is an archive" in capsys.readouterr().err
    for name in ("b.npz", "b.ZIP"):
        (tmp_path / name).mkdir()
        assert generate(model, "--out", tmp_path / name) == 2
        assert f"{name} is a folder" in capsys.readouterr().err


def test_endings_mean_what_they_say(model, tmp_path, capsys):
    for ending in ("gif", "mp4", "npy", "png", "JPG", "TAR", "tar.gz", "7z"):
        assert generate(model, "--out", tmp_path / f"walk.{ending}") == 2
        assert f"with --grid, a folder or a .png; got {tmp_path / f'walk.{ending}'}" in capsys.readouterr().err
    assert generate(model, "--grid", "--out", tmp_path / "walk.gif") == 2
    assert not list(tmp_path.iterdir())
    capsys.readouterr()
    assert generate(model, "-n", 2, "--grid", "--out", tmp_path / "pictures/grid.png") == 0
    assert capsys.readouterr().out == f"2 images in {tmp_path / 'pictures/grid.png'}\n"
    with Image.open(tmp_path / "pictures/grid.png") as picture:
        assert picture.format == "PNG"
    assert generate(model, "-n", 2, "--grid", "--out", tmp_path / "pictures/grid.png") == 2
    assert "grid.png exists: --force" in capsys.readouterr().err
    assert generate(model, "-n", 2, "--out", tmp_path / "v1.2") == 0  # a folder's name may have a dot


def test_images_in_bfloat16_are_close(model, tmp_path):
    for precision in ("fp32", "bf16"):
        assert generate(model, "-n", 6, "--precision", precision, "--out", tmp_path / f"{precision}.npz") == 0
    pixels = [np.load(tmp_path / f"{precision}.npz")["arr_0"].astype(int) for precision in ("fp32", "bf16")]
    assert np.abs(pixels[0] - pixels[1]).mean() < 2


# After torch is imported: some packages that it imports, if they are installed, look for a folder to write to.
GENERATE_ON_A_FULL_DISK = """
import resource, sys
import torch
from dcgan.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.exit(main(["generate", *sys.argv[1:]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_reported_and_leaves_no_partial_file(model, out):
    command = [sys.executable, "-c", GENERATE_ON_A_FULL_DISK, str(model), "-n", "3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert ".png" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(out) == {}


@pytest.mark.parametrize(("size", "count"), [(16, 256), (64, 256), (128, 64), ((128, 256), 32), (512, 16)])
def test_a_batch_is_a_million_pixels_within_bounds(size, count):
    assert default_batch_size(Generator(image_size=size, base_channels=1, max_channels=1)) == count
