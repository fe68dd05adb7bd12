"""Sets, decoding, packed files and batches: real bytes in, exact pixels out."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dcgan import data
from dcgan.data import _packing as packing
from dcgan.data import _sources as sources

REAL = Path(os.environ.get("DCGAN_TEST_DATA", "~/.cache/dcgan-data")).expanduser()


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Keep the default cache in tmp_path and the network shut."""

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("the network is shut")

    monkeypatch.setenv("DCGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    assert Image.MAX_IMAGE_PIXELS == 89478485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8).squeeze()


def folder_of(path, count, side=16):
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(noise(side, side, seed=index)).save(path / f"{index:04}.png")
    return path


def decoded(path, size, channels=3, resize="crop"):
    """The one image of a folder, `(H, W, K)`."""
    root = path if path.is_dir() else path.parent
    images = data.load("folder", root=root, image_size=size, channels=channels, resize=resize, cache=False, workers=0)
    assert len(images) == 1
    return images.batch(np.array([0]))[0].permute(1, 2, 0).numpy()


def everything(images):
    return images.batch(np.arange(len(images)))


# --- one image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("PNG", {}),
        ("bmp", {}),
        ("tif", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("TIFF", {}),
        ("webp", {"lossless": True}),
    ],
)
def test_every_lossless_format_keeps_its_bytes(tmp_path, suffix, options):
    pixels = noise(16, 16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    assert np.array_equal(decoded(tmp_path, 16), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "JpEg"])
def test_jpeg_is_what_pillow_decodes(tmp_path, suffix):
    Image.fromarray(noise(16, 16)).save(tmp_path / f"a.{suffix}", "JPEG")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert np.array_equal(decoded(tmp_path, 16), np.asarray(image))


def palette(transparency=None):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


RED, PINK, BLUE, WHITE = (255, 0, 0), (255, 127, 127), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (8, 8), 100), "png", (100, 100, 100)),
        (Image.new("1", (8, 8), 1), "png", WHITE),
        (Image.new("1", (8, 8), 0), "bmp", (0, 0, 0)),
        (palette(), "png", RED),
        (palette(transparency=1), "png", WHITE),
        (palette(transparency=0), "png", RED),
        (palette(transparency=b"\xff\x80"), "png", PINK),
        (Image.new("LA", (8, 8), (0, 128)), "png", (127, 127, 127)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "png", PINK),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "webp", WHITE),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif", RED),
        (Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), "png", (100, 100, 100)),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "tif", WHITE),
        (Image.fromarray(np.full((8, 8), 100 * 257, np.int32)), "tif", (100, 100, 100)),
        (Image.fromarray(np.full((8, 8), 2**31 - 1, np.int32)), "tif", WHITE),
        (Image.fromarray(np.full((8, 8), 0.4, np.float32)), "tif", (102, 102, 102)),
        (Image.fromarray(np.full((8, 8), 51, np.float32)), "tif", (51, 51, 51)),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "tif", (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_rgb_and_grey(tmp_path, image, suffix, expected):
    image.save(tmp_path / f"a.{suffix}")
    rgb = decoded(tmp_path, 8)
    assert rgb.shape == (8, 8, 3)
    assert (rgb == expected).all(), rgb[0, 0]
    grey = decoded(tmp_path, 8, channels=1)
    assert grey.shape == (8, 8, 1)
    luminance = np.dot(expected, (0.299, 0.587, 0.114))
    assert abs(grey.astype(float) - luminance).max() < 1, grey[0, 0]


def test_sixteen_bits_keep_their_order(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).repeat(256).reshape(256, 256) * 257
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path, 256, channels=1)[..., 0], ramp // 257)


def test_cmyk_jpeg_has_its_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert abs(decoded(tmp_path, 8).astype(int) - RED).max() <= 3


def test_four_channels_keep_alpha_and_default_to_opaque(tmp_path):
    for name, image, expected in [
        ("rgba", Image.new("RGBA", (8, 8), (9, 8, 7, 100)), (9, 8, 7, 100)),
        ("rgb", Image.new("RGB", (8, 8), (9, 8, 7)), (9, 8, 7, 255)),
        ("la", Image.new("LA", (8, 8), (9, 100)), (9, 9, 9, 100)),
        ("palette", palette(transparency=b"\xff\x80"), (255, 0, 0, 128)),
    ]:
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
        assert (decoded(tmp_path / name, 8, channels=4) == expected).all(), name


STORED = {  # what a camera that notes orientation o stores of an upright image
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.kron(noise(3, 2), np.ones((8, 8, 1), np.uint8))  # (24, 16, 3) in blocks, which JPEG keeps well
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(
        tmp_path / f"a.{suffix}",
        exif=exif,
        **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True}),
    )
    difference = abs(decoded(tmp_path, (24, 16)).astype(int) - upright)
    assert difference.max() <= (4 if suffix == "jpg" else 0)


def test_large_turned_jpegs_are_drafted_without_harm(tmp_path):
    y, x = np.mgrid[0:900, 0:600]
    upright = np.stack([x * 255 // 600, y * 255 // 900, (x + y) % 256 // 2], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright, 1).copy()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = Image.fromarray(upright).crop((0, 150, 600, 750)).resize((32, 32), Image.Resampling.BICUBIC)
    assert abs(decoded(tmp_path, 32).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_damaged_metadata_do_not_spoil_pixels(tmp_path, exif):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.jpg", exif=exif)
    assert len(data.load("folder", root=tmp_path, image_size=16)) == 1


def test_crop_covers_and_keeps_the_centre(tmp_path):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (decoded(tmp_path, 30) == RED).all()
    squashed = decoded(tmp_path, 30, resize="squash")
    assert (squashed[:, 15] == RED).all()
    assert (squashed[:, 2] == 0).all()


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert abs(decoded(tmp_path, 8, channels=1).astype(int) - 127).max() < 12


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 700)] * 2, *[st.integers(1, 40)] * 2, st.sampled_from(["crop", "squash"]))
def test_any_size_fits_any_size(height, width, tall, wide, resize):
    item = np.full((height, width), 77, np.uint8)
    decode = packing.Decoder(sources.find("digits", Path()), (tall, wide), 1, resize)._decode
    assert np.array_equal(decode(item), np.full((tall, wide, 1), 77))


# --- folders ---------------------------------------------------------------------------------------------


def test_folders_are_walked_in_order_whatever_their_shape(tmp_path):
    for name in ["b/z.png", "b/deep/er/y.JPG", "a.png", "c/x.webp", ".hidden/n.png", "b/.n.png", "notes.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(noise(8, 8)).save(path)
    found = [os.path.relpath(file, tmp_path) for file in sources.scan(tmp_path)]
    assert found == ["a.png", "b/deep/er/y.JPG", "b/z.png", "c/x.webp"]


def test_links_are_followed_and_cycles_end(tmp_path):
    elsewhere = folder_of(tmp_path / "elsewhere", 2)
    root = folder_of(tmp_path / "root", 1)
    (root / "link.png").symlink_to(elsewhere / "0000.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (elsewhere / "back").symlink_to(root)
    for a, b in itertools.permutations("pqrstuvwxy", 2):  # every folder in every other: 10! paths if followed blindly
        (root / a).mkdir(exist_ok=True)
        (root / a / b).symlink_to(root / b)
    found = [os.path.relpath(file, root) for file in sources.scan(root)]
    assert found == ["0000.png", "link.png", "linked/0000.png", "linked/0001.png"]
    assert found == [os.path.relpath(file, root) for file in sources.scan(root)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mnits"}, ValueError, "name must be one of celeba, .* got 'mnits': did you mean 'mnist'"),
        ({"name": "folder"}, ValueError, "the set 'folder' needs root, the folder of images"),
        (
            {"name": "folder", "root": "missing"},
            FileNotFoundError,
            "root must be a folder of images, got missing",
        ),
        (
            {"name": "folder", "root": "empty"},
            FileNotFoundError,
            r"root must hold images \(.bmp, .* got empty",
        ),
        ({"name": "folder", "root": "file"}, NotADirectoryError, "root must be a folder, got the file file"),
        ({"name": "mnist", "root": "file"}, NotADirectoryError, "root must be a folder, got the file file"),
        ({"name": "digits", "image_size": 0}, ValueError, "image_size must be positive, .* got 0"),
        ({"name": "digits", "channels": 2}, ValueError, "channels must be 1 .* got 2"),
        ({"name": "digits", "resize": "pad"}, ValueError, "resize must be 'crop' or 'squash', got 'pad'"),
        ({"name": "digits", "workers": -1}, ValueError, "workers must be at least 0, got -1"),
        (
            {"name": "digits", "classes": ["one"]},
            ValueError,
            r"classes apply to lsun only, got \['one'\] for digits",
        ),
        ({"name": "lsun"}, ValueError, r"classes must be a list of some of bedroom_train, .* got \(\)"),
        (
            {"name": "lsun", "classes": "tower_val"},
            ValueError,
            "classes must be a list of some .* got 'tower_val'",
        ),
        (
            {"name": "lsun", "classes": ["bedrom_train"]},
            ValueError,
            "'bedrom_train': did you mean 'bedroom_train'",
        ),
        (
            {"name": "digits", "skip_bad": True, "cache": False},
            ValueError,
            "skip_bad needs a packed file",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    with pytest.raises(error, match=message):
        data.load(**arguments)


# --- bad files -------------------------------------------------------------------------------------------


def bomb():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)  # between Pillow's warning and its error
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix), **options)
    return buffer.getvalue()


@pytest.fixture
def spoiled(tmp_path):
    """Three good images among all kinds of bad ones; returns the folder and the bad names."""
    root = folder_of(tmp_path / "spoiled", 3)
    bad = {
        "text.jpg": b"these are words, not pixels",
        "empty.png": b"",
        "bomb.png": bomb(),
        "gif.png": encoded("gif"),
        **{f"cut.{suffix}": encoded(suffix)[:700] for suffix in ["jpg", "png", "webp", "bmp", "tif"]},
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "directory.png").mkdir()
    (root / "dangling.png").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    return root, sorted([*bad, "directory.png", "dangling.png", "pipe.png"])


def test_every_bad_file_is_listed_with_its_reason(spoiled, tmp_path):
    root, bad = spoiled
    with pytest.raises(data.BadImages) as caught:
        data.load("folder", root=root, image_size=16)
    failures = {Path(file).name: reason for file, reason in caught.value.failures}
    assert sorted(failures) == bad
    assert all(failures.values())
    assert "10000x10000 pixels" in failures["bomb.png"]
    assert "known format" in failures["text.jpg"]
    assert "truncated" in failures["cut.jpg"]
    assert "not a file" in failures["directory.png"]
    assert all(f"{root / name}: {failures[name]}" in str(caught.value) for name in bad)
    assert not list((tmp_path / "cache").glob("*.npy*[!k]")), "nothing is left but a lock"
    assert pickle.loads(pickle.dumps(caught.value)).failures == caught.value.failures


def test_bad_files_can_be_left_out_and_are_recorded(spoiled):
    root, bad = spoiled
    images = data.load("folder", root=root, image_size=16, skip_bad=True)
    assert len(images) == 3
    for index in range(3):
        assert np.array_equal(images.batch(np.array([index]))[0].permute(1, 2, 0), noise(16, 16, seed=index))
    assert sorted(Path(file).name for file, _ in images.skipped) == bad
    record = json.loads(images.path.with_suffix(".json").read_text())
    assert record["count"] == 3
    assert [tuple(pair) for pair in record["skipped"]] == images.skipped
    assert np.load(images.path, mmap_mode="r").shape == (3, 16, 16, 3)
    with pytest.raises(data.BadImages):
        data.load("folder", root=root, image_size=16)


def test_a_stream_raises_at_the_bad_file(spoiled):
    root, _ = spoiled
    images = data.load("folder", root=root, image_size=16, cache=False, workers=2)
    assert images.batch(np.arange(3)).shape == (3, 3, 16, 16)
    with pytest.raises(data.BadImages, match=r"1 unreadable image.*\n.*bomb\.png: .*pixels"):
        images.batch(np.array([0, 1, 3]))  # the third name in order


def test_long_lists_are_capped_in_the_message_only(tmp_path):
    for index in range(25):
        (tmp_path / f"{index:02}.png").touch()
    with pytest.raises(data.BadImages, match="and 5 more") as caught:
        data.load("folder", root=tmp_path, skip_bad=True)  # nothing is left when all are bad
    assert len(caught.value.failures) == 25
    assert len(str(caught.value).splitlines()) == 22


def test_unreadable_permissions_are_a_reason(tmp_path, monkeypatch):
    folder_of(tmp_path / "a", 2)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(data.BadImages, match=r"0000\.png: Permission denied"):
        data.load("folder", root=tmp_path / "a")


# --- packed files ----------------------------------------------------------------------------------------


def test_a_packed_file_is_a_plain_array_with_a_record(tmp_path, caplog):
    calls = []
    root = folder_of(tmp_path / "a", 150)
    with caplog.at_level(logging.INFO):
        images = data.load(
            "folder",
            root=root,
            image_size=(8, 12),
            progress=lambda *call: calls.append(call),
            cache_dir=tmp_path / "c",
        )
    assert images.path.parent == tmp_path / "c"
    array = np.load(images.path, mmap_mode="r")
    assert (array.shape, array.dtype) == ((150, 8, 12, 3), np.uint8)
    assert (len(images), images.name, images.image_size, images.channels) == (150, "folder", (8, 12), 3)
    assert images.nbytes == 150 * 8 * 12 * 3
    assert images.skipped == []
    assert str(images.path) in caplog.text
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (150, 150)
    record = json.loads(images.path.with_suffix(".json").read_text())
    assert (record["source"], record["root"], record["count"]) == ("folder", str(root), 150)

    batch = images.batch(np.array([3, 1]))
    assert (batch.shape, batch.dtype) == ((2, 3, 8, 12), torch.uint8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.permute(0, 2, 3, 1), array[[3, 1]])
    batch.zero_()
    assert np.array_equal(images.batch(np.array([3]))[0].permute(1, 2, 0), array[3]), "a batch is the caller's own"


def test_a_packed_file_is_reused_until_its_source_changes(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root, image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_build", None)  # any build fails now
        assert data.load("folder", root=root, image_size=16).path == first.path
        for change in [{"image_size": 8}, {"channels": 1}, {"resize": "squash"}]:
            with pytest.raises(TypeError):
                data.load("folder", root=root, **{"image_size": 16, **change})
    Image.fromarray(noise(16, 16, seed=99)).save(root / "0002.png")
    os.utime(root / "0002.png", ns=(1, 1))
    second = data.load("folder", root=root, image_size=16)
    assert second.path != first.path
    assert np.array_equal(second.batch(np.array([2]))[0].permute(1, 2, 0), noise(16, 16, seed=99))
    shutil.copy(root / "0000.png", root / "0004.png")
    assert len(data.load("folder", root=root, image_size=16)) == 5


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no record", "half a record"])
def test_a_damaged_packed_file_is_made_anew(tmp_path, damage):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root)
    expected, path = everything(first), first.path
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "no record":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text('{"count"')
    assert torch.equal(everything(data.load("folder", root=root)), expected)


def test_the_cache_folder_comes_from_the_environment(monkeypatch):
    assert data.cache_folder() == Path(os.environ["DCGAN_CACHE"])
    monkeypatch.delenv("DCGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert data.cache_folder() == Path("/x/dcgan")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache/dcgan"


def test_a_disk_too_small_is_noticed_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(
        OSError, match=r"4 packed images take 49152 bytes, 10 are free: .*folder-64x64x3.*npy"
    ) as caught:
        data.load("folder", root=folder_of(tmp_path / "a", 4))
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    root = folder_of(tmp_path / "a", 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"10 packed images take 122880 bytes: File too large: .*folder-64x64x3.*npy"):
            data.load("folder", root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))


def test_only_a_few_chunks_are_held_in_memory(tmp_path, monkeypatch):
    alive, most = 0, 0
    call = packing.Decoder.__call__

    def counted(self, indices):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return call(self, indices)

    def progress(*_):
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(packing.Decoder, "__call__", counted)
    monkeypatch.setattr(packing, "_CHUNK_BYTES", 1)
    data.load("folder", root=folder_of(tmp_path / "a", 60), image_size=8, workers=2, progress=progress)
    assert most <= 6


def python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_one_of_two_processes_builds_and_both_read(tmp_path):
    script = """
        import sys, time
        import numpy as np
        from dcgan import data
        calls = []
        slow = lambda *call: (calls.append(call), time.sleep(0.2))
        images = data.load("folder", root=sys.argv[1], progress=slow)
        print(len(calls), int(np.load(images.path).astype(int).sum()))
    """
    root = folder_of(tmp_path / "a", 300)
    both = [python(script, root) for _ in range(2)]
    calls, sums = zip(*(process.communicate(timeout=60)[0].split() for process in both), strict=True)
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(int, calls)) == [0, 5]
    assert sums[0] == sums[1]


def test_a_killed_build_leaves_no_file_and_the_next_clears_up(tmp_path):
    script = """
        import os, signal, sys
        from dcgan import data
        kill = lambda done, total: done > total / 2 and os.kill(os.getpid(), signal.SIGKILL)
        data.load("folder", root=sys.argv[1], progress=kill)
    """
    root = folder_of(tmp_path / "a", 300)
    process = python(script, root)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (leftover,) = (tmp_path / "cache").glob("*.npy.tmp")
    assert not list((tmp_path / "cache").glob("*.npy"))

    data.load("digits")  # even a build of something else
    assert not leftover.exists()
    assert torch.equal(
        everything(data.load("folder", root=root)), everything(data.load("folder", root=root, cache=False))
    )


def test_a_live_build_keeps_its_temporary_file(tmp_path):
    def progress(_done, _total):
        data.load("digits", cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").glob("folder*.npy.tmp"))

    data.load("folder", root=folder_of(tmp_path / "a", 2), cache_dir=tmp_path / "cache", progress=progress)


# --- streams ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize(
    "arguments", [{}, {"channels": 1, "image_size": (20, 12)}, {"resize": "squash", "channels": 4}]
)
def test_a_stream_gives_the_bytes_of_the_packed_file(tmp_path, workers, arguments):
    root = folder_of(tmp_path / "a", 10)
    Image.fromarray(noise(300, 200)).save(root / "b.jpg")
    Image.fromarray(noise(30, 50, 4)).save(root / "c.webp")
    packed = data.load("folder", root=root, **arguments)
    stream = data.load("folder", root=root, cache=False, workers=workers, **arguments)
    assert (len(stream), stream.image_size, stream.channels, stream.nbytes) == (
        len(packed), packed.image_size, packed.channels, packed.nbytes,
    )  # fmt: skip
    assert stream.path is None
    indices = np.random.default_rng(0).permutation(len(packed))
    assert torch.equal(stream.batch(indices), packed.batch(indices))
    assert stream.batch(indices).is_contiguous(memory_format=torch.channels_last)
    for a, b, _ in zip(data.Batches(stream, 5, flip=True), data.Batches(packed, 5, flip=True), range(7), strict=False):
        assert torch.equal(a, b)


# --- batches ---------------------------------------------------------------------------------------------


class Numbered:
    """Images whose pixels tell their number and column."""

    name, image_size, channels, path, skipped = "numbered", (1, 4), 2, None, []

    def __init__(self, count):
        self.count, self.nbytes = count, 8 * count

    def __len__(self):
        return self.count

    def batch(self, indices):
        pixels = np.empty((len(indices), 1, 4, 2), np.uint8)
        pixels[..., 0], pixels[..., 1] = np.asarray(indices)[:, None, None], np.arange(4)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_order_is_the_documented_function_of_seed_and_epoch():
    batches = data.Batches(Numbered(23), 5, seed=7)
    assert batches.steps_per_epoch == 4
    drawn = [batch[:, 0, 0, 0] for batch in itertools.islice(batches, 9)]
    for step, batch in enumerate(drawn):
        order = np.random.default_rng((7, step // 4)).permutation(23)
        assert np.array_equal(batch, order[step % 4 * 5 : step % 4 * 5 + 5])
    assert len({int(i) for batch in drawn[:4] for i in batch}) == 20, "no image twice in an epoch"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(0, 2**40), st.booleans())
def test_a_resumed_order_is_the_unbroken_one(count, batch_size, start, seed, flip):
    batch_size = min(batch_size, count)
    unbroken = data.Batches(Numbered(count), batch_size, seed=seed, flip=flip)
    resumed = data.Batches(Numbered(count), batch_size, seed=seed, flip=flip, start=start)
    for a, b in zip(itertools.islice(unbroken, start, start + 4), resumed, strict=False):
        assert torch.equal(a, b)


def test_flips_mirror_whole_images_about_half_the_time():
    plain, flipped = data.Batches(Numbered(100), 100), data.Batches(Numbered(100), 100, flip=True)
    mirrored = []
    for a, b in itertools.islice(zip(plain, flipped, strict=True), 20):
        for x, y in zip(a, b, strict=True):
            mirrored.append(torch.equal(x.flip(2), y))
            assert mirrored[-1] or torch.equal(x, y)
    assert 900 < sum(mirrored) < 1100
    assert mirrored[:100] != mirrored[100:200]


def test_seeds_differ():
    orders = {tuple(next(iter(data.Batches(Numbered(50), 50, seed=seed)))[:, 0, 0, 0].tolist()) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 11}, "batch_size must be at most the number of images, 10, got 11"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2, "seed": -1}, "seed=-1"),
        ({"batch_size": 2, "start": -1}, "start=-1"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(Numbered(10), **arguments)


def test_an_error_while_decoding_ahead_reaches_the_loop(spoiled):
    root, _ = spoiled
    with pytest.raises(data.BadImages):
        list(itertools.islice(data.Batches(data.load("folder", root=root, cache=False), 4), 10))


# --- named sets ------------------------------------------------------------------------------------------


def test_names_are_sorted_and_complete():
    named = "celeba cifar10 digits fake fashion-mnist folder imagenet lfw lsun mnist stl10 svhn"
    assert tuple(named.split()) == data.NAMES


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    images = data.load("digits", image_size=8, channels=1)
    assert np.array_equal(everything(images)[:, 0], np.rint(load_digits().images / 16 * 255))
    large = everything(data.load("digits", image_size=32, channels=1))
    assert large.shape == (1797, 1, 32, 32)
    assert (large.min(), large.max()) == (0, 255)


def test_fake_is_deterministic_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    packed, stream = data.load("fake", image_size=32), data.load("fake", image_size=32, cache=False)
    assert torch.equal(state, torch.get_rng_state())
    assert packed.batch(np.arange(1000)).shape == (1000, 3, 32, 32)
    assert torch.equal(everything(packed), everything(stream))


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_is_read_from_root(tmp_path, name, folder):
    train = noise(7 * 28, 28, 1).reshape(7, 28, 28)
    for split, images in [("train", train), ("t10k", train[:2])]:
        idx(tmp_path / folder / "raw" / f"{split}-images-idx3-ubyte", images)
        idx(tmp_path / folder / "raw" / f"{split}-labels-idx1-ubyte", np.zeros(len(images), np.uint8))
    images = data.load(name, root=tmp_path, image_size=28, channels=1)
    assert np.array_equal(everything(images)[:, 0], train)


def test_cifar10_is_read_from_root(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    train = noise(10 * 32, 32).reshape(10, 32, 32, 3)
    for index in range(5):
        planes = train[2 * index : 2 * index + 2].transpose(0, 3, 1, 2).reshape(2, -1)
        (folder / f"data_batch_{index + 1}").write_bytes(pickle.dumps({"data": planes, "labels": [0, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    images = data.load("cifar10", root=tmp_path, image_size=32)
    assert np.array_equal(everything(images).permute(0, 2, 3, 1), train)


def test_svhn_is_read_from_root(tmp_path, monkeypatch):
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda *_: True)
    train = noise(3 * 32, 32).reshape(3, 32, 32, 3)
    savemat(tmp_path / "train_32x32.mat", {"X": train.transpose(1, 2, 3, 0), "y": np.array([[1], [2], [10]])})
    images = data.load("svhn", root=tmp_path, image_size=32)
    assert np.array_equal(everything(images).permute(0, 2, 3, 1), train)


def test_stl10_is_its_unlabelled_part(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
    unlabelled = noise(2 * 96, 96).reshape(2, 96, 96, 3)
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary/unlabeled_X.bin").write_bytes(unlabelled.transpose(0, 3, 2, 1).tobytes())
    images = data.load("stl10", root=tmp_path, image_size=96)
    assert np.array_equal(everything(images).permute(0, 2, 3, 1), unlabelled)


def test_celeba_is_its_training_split(tmp_path):
    folder_of(tmp_path / "celeba/img_align_celeba", 4)
    (tmp_path / "celeba/list_eval_partition.txt").write_text("0000.png 0\n0001.png 1\n0002.png 0\n0003.png 2\n")
    images = data.load("celeba", root=tmp_path, image_size=16)
    for position, index in enumerate([0, 2]):
        assert np.array_equal(images.batch(np.array([position]))[0].permute(1, 2, 0), noise(16, 16, seed=index))


@pytest.mark.parametrize(("name", "folder"), [("lfw", "lfw-py/lfw_funneled"), ("imagenet", "train")])
def test_sets_of_unpacked_files_are_read_from_root(tmp_path, name, folder):
    folder_of(tmp_path / folder / "class_a", 2)
    folder_of(tmp_path / folder / "class_b", 3)
    assert len(data.load(name, root=tmp_path, image_size=16)) == 5


def test_lsun_is_read_from_root(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb", reason="needs the extra 'lsun'")
    monkeypatch.chdir(tmp_path)
    for name, seeds in [("tower_train", [0, 1]), ("bedroom_val", [2])]:
        with (
            lmdb.open(str(tmp_path / f"{name}_lmdb"), map_size=2**20) as database,
            database.begin(write=True) as writer,
        ):
            for seed in seeds:
                buffer = io.BytesIO()
                Image.fromarray(noise(16, 16, seed=seed)).save(buffer, "WEBP", lossless=True)
                writer.put(f"key{seed}".encode(), buffer.getvalue())
    classes = ["tower_train", "bedroom_val"]
    packed = data.load("lsun", root=tmp_path, classes=classes, image_size=16)
    stream = data.load("lsun", root=tmp_path, classes=classes, image_size=16, cache=False)
    expected = np.stack([noise(16, 16, seed=seed) for seed in range(3)])
    assert np.array_equal(everything(packed).permute(0, 2, 3, 1), expected)
    assert torch.equal(everything(packed), everything(stream))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bedroom_val_lmdb",
        "cache",
        "tower_train_lmdb",
    ]


def test_lsun_without_lmdb_answers_with_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'dcgan\[lsun\]'"):
        data.load("lsun", root=tmp_path, classes=["tower_train"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("mnist", "ossci-datasets.*{root}/MNIST/raw"),
        ("fashion-mnist", "zalandoresearch.*{root}/FashionMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz and put it into {root}"),
        ("svhn", "train_32x32.mat and put it into {root}"),
        ("stl10", "stl10_binary.tar.gz and put it into {root}"),
        ("celeba", "Google Drive limits .*{root}/celeba"),
        ("lfw", "host is gone.*{root}/lfw-py/lfw_funneled"),
        ("imagenet", "registered users.*{root}"),
        ("lsun", "dl.yf.io/lsun/scenes/tower_train_lmdb.zip.*{root}/tower_train_lmdb"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_a_set_that_cannot_be_fetched_says_how_to_get_it(tmp_path, monkeypatch, name, remedy, cache):
    def quota(*_):
        raise RuntimeError("quota exceeded")

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", quota)
    if name == "lsun":
        pytest.importorskip("lmdb", reason="needs the extra 'lsun'")
    root = tmp_path / "root"
    classes = ["tower_train"] if name == "lsun" else ()
    with pytest.raises(FileNotFoundError, match=remedy.format(root=root)) as caught:
        data.load(name, root=root, classes=classes, cache=cache)
    assert str(caught.value).startswith(f"{name} is not readable in {root}")
    assert caught.value.__cause__ is not None


# --- the module ------------------------------------------------------------------------------------------


def test_import_is_light():
    script = "import sys, {}; print(*{{'torch', 'torchvision', 'PIL', 'sklearn', 'lmdb'}} & set(sys.modules))"
    for module, loaded in [
        ("dcgan.data", []),
        ("dcgan.data, PIL", ["PIL"]),
    ]:  # the second: that this can fail
        process = python(script.format(module))
        assert process.communicate(timeout=60)[0].split() == loaded
        assert process.returncode == 0


def test_a_loop_left_early_lets_the_program_end(tmp_path):
    script = """
        import sys
        from dcgan import data
        batches = iter(data.Batches(data.load("folder", root=sys.argv[1], cache=False), 4))
        print(next(batches).shape[0])
    """
    process = python(script, folder_of(tmp_path / "a", 8))
    assert process.communicate(timeout=60)[0].split() == ["4"]
    assert process.returncode == 0


# --- real data -------------------------------------------------------------------------------------------


def real(path):
    return pytest.mark.skipif(not (REAL / path).is_dir(), reason=f"needs {path} in DCGAN_TEST_DATA")


@real("MNIST/raw")
def test_real_mnist():
    images = data.load("mnist", root=REAL, image_size=28, channels=1)
    raw = np.fromfile(REAL / "MNIST/raw/train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    assert len(images) == 60_000
    assert np.array_equal(images.batch(np.arange(1000))[:, 0], raw[:1000])


@real("cifar10-images/train")
def test_real_cifar10_images_in_class_folders():
    images = data.load("folder", root=REAL / "cifar10-images/train", image_size=32, cache=False)
    first = min((REAL / "cifar10-images/train").glob("*/*.jpg"))
    assert np.array_equal(images.batch(np.array([0]))[0].permute(1, 2, 0), np.asarray(Image.open(first)))


@real("faces")
def test_real_faces_stream_like_their_packed_file(tmp_path):
    files = sorted((REAL / "faces").glob("*.jpg"))[:1000]
    root = tmp_path / "some"
    root.mkdir()
    for file in files:
        (root / file.name).symlink_to(file)
    packed, stream = (data.load("folder", root=root, image_size=48, cache=cache) for cache in (True, False))
    assert torch.equal(everything(packed), everything(stream))


@pytest.mark.slow
@real("faces")
def test_all_real_faces():
    images = data.load("folder", root=REAL / "faces")
    assert len(images) == len(list((REAL / "faces").glob("*.jpg")))
    assert sum(len(batch) for batch in itertools.islice(data.Batches(images, 128), 103)) == 103 * 128


@pytest.mark.parametrize("flip", [False, True])
def test_batches_gathered_where_all_images_are_equal_those_made_on_the_host(tmp_path, flip):
    images = data.load("fake", image_size=(6, 10), cache_dir=tmp_path)
    batches = data.Batches(images, 7, seed=3, flip=flip, start=len(images) // 7 - 2)  # over the end of an epoch
    gathered = batches._gathered(torch.device("cpu"))
    for batch, expected in itertools.islice(zip(gathered, batches, strict=False), 5):
        assert torch.equal(batch, expected)
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_flip_mirrors_half_of_the_images_left_to_right(tmp_path, channels):
    images = data.load("fake", image_size=(6, 10), channels=channels, cache_dir=tmp_path)
    plain, flipped = (next(iter(data.Batches(images, 200, flip=flip))) for flip in (False, True))
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(plain, flipped, strict=True)]
    same = [torch.equal(b, a) for a, b in zip(plain, flipped, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_on_a_gpu_equal_those_on_the_host(tmp_path, monkeypatch, fits, flip):
    images = data.load("fake", image_size=(6, 10), cache_dir=tmp_path)
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    there = data.Batches(images, 7, seed=3, flip=flip, device="cuda")
    for batch, expected in itertools.islice(zip(there, data.Batches(images, 7, seed=3, flip=flip), strict=False), 300):
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), expected)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Forty pictures, which count as many, and one that is none."""
    monkeypatch.setattr(packing, "_MANY", 10)
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "20.jpg").write_bytes(b"no picture")
    return folder


def children():
    """Return the processes that decode."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            if b"dcgan.data._pool" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_processes_decode_what_threads_do(many, tmp_path):
    alone = data.load("folder", root=many, image_size=8, cache_dir=tmp_path / "a", workers=1, skip_bad=True)
    helped = data.load("folder", root=many, image_size=8, cache_dir=tmp_path / "b", workers=2, skip_bad=True)
    assert helped.path.read_bytes() == alone.path.read_bytes()
    assert (
        helped.skipped
        == alone.skipped
        == [(str(many / "20.jpg"), "is not of a known format (JPEG, PNG, WEBP, BMP, TIFF)")]
    )
    assert not children()


def test_arrays_are_decoded_by_processes_too(tmp_path, monkeypatch):
    alone = data.load("digits", image_size=16, cache_dir=tmp_path / "a", workers=1)
    monkeypatch.setattr(packing, "_MANY", 10)
    helped = data.load("digits", image_size=16, cache_dir=tmp_path / "b", workers=2)
    assert helped.path.read_bytes() == alone.path.read_bytes()


def test_processes_heed_what_the_program_has_set_in_pillow(many, tmp_path, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(Image, "MAX_IMAGE_PIXELS", 60)
        with pytest.raises(data.BadImages, match="has 12x9 pixels, more than Image.MAX_IMAGE_PIXELS = 60"):
            data.load("folder", root=many, image_size=8, cache_dir=tmp_path, workers=2)
    assert not children()


def test_a_process_that_is_killed_is_done_without(many, tmp_path, monkeypatch, caplog):
    def kill(done, total):
        for child in children():
            os.kill(child, signal.SIGKILL)

    monkeypatch.setattr(packing, "_CHUNK_BYTES", 2 * 8 * 8 * 3)
    options = {"root": many, "image_size": 8, "skip_bad": True}
    killed = data.load("folder", cache_dir=tmp_path / "a", workers=2, progress=kill, **options)
    alone = data.load("folder", root=many, image_size=8, cache_dir=tmp_path / "b", workers=1, skip_bad=True)
    assert killed.path.read_bytes() == alone.path.read_bytes()
    assert "a process that decodes images has ended, and is done without" in caplog.text


def test_a_script_needs_no_guard_and_a_killed_one_leaves_no_process(many, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from dcgan import data\nfrom dcgan.data import _packing as packing\n"
        "packing._MANY = 10\n"
        f"images = data.load('folder', root={str(many)!r}, image_size=8, cache_dir={str(tmp_path / 'a')!r}, workers=2, "
        "skip_bad=True)\n"
        "print(len(images))\n"
        "def die(done, total): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"data.load('folder', root={str(many)!r}, image_size=6, cache_dir={str(tmp_path / 'b')!r}, workers=2, "
        "skip_bad=True, progress=die)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "40\n", "")
    for _ in range(100):
        if not children():
            break
        time.sleep(0.05)
    assert not children()
