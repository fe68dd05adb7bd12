"""Decoding: image files of every format, mode and orientation in, exact pixels out."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import noise
from PIL import Image

from dcgan import data
from dcgan._labelled import ClassFolders
from dcgan.data import _sources
from dcgan.data._decoding import Decoder

pytestmark = pytest.mark.usefixtures("offline")


def decoded(path, size, channels=3, resize="crop"):
    """The one image of a folder, `(H, W, K)`."""
    root = path if path.is_dir() else path.parent
    images = data.load("folder", root=root, image_size=size, channels=channels, resize=resize, cache=False, workers=0)
    assert len(images) == 1
    return images.batch(np.array([0]))[0].permute(1, 2, 0).numpy()


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
        (Image.new("LAB", (8, 8), (128, 128, 128)), "tif", (119, 119, 119)),
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
    decode = Decoder(_sources.open_source("digits", Path()), (tall, wide), 1, resize)._decode
    assert np.array_equal(decode(item), np.full((tall, wide, 1), 77))


def test_an_image_above_the_limit_is_refused_until_the_limit_is_raised(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    Image.fromarray(noise(16, 16)).save(root / "a.png")
    expected = decoded(root, 16)
    for cache in (True, False):
        images = data.load("folder", root=root, image_size=16, max_pixels=256, cache=cache)
        assert np.array_equal(images.batch(np.array([0]))[0].permute(1, 2, 0), expected)
        with pytest.raises(data.BadImages) as caught:
            data.load("folder", root=root, image_size=16, max_pixels=255, cache=cache).batch(np.array([0]))
        assert caught.value.failures[0][1] == (
            "has 256 pixels (16x16), more than 255, the limit against files that fill the memory: to read it "
            "nevertheless, set max_pixels to 256"
        )


def test_the_default_limit_is_that_of_pillow(tmp_path, monkeypatch):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of which Pillow itself opens twice as many
        with pytest.raises(data.BadImages, match=r"has 256 pixels \(16x16\), more than 100, .* set max_pixels to 256"):
            decoded(tmp_path, 8)
        images = data.load("folder", root=tmp_path, image_size=8, max_pixels=256, cache=False, workers=2)
        assert images.batch(np.array([0, 0, 0, 0])).shape == (4, 3, 8, 8)
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert decoded(tmp_path, 8).shape == (8, 8, 3)


def test_what_cannot_be_skipped_is_not_advised(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        data.BadImages,
        match=r"1 unreadable image\(s\), which skip_bad leaves out of a packed set, not with cache=False:",
    ):
        data.load("folder", root=tmp_path, cache=False).batch(np.arange(1))


def test_of_a_jpeg_the_size_in_memory_counts(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg")
    arguments = {"name": "folder", "root": tmp_path, "image_size": 4, "cache": False}  # 8x8 is enough for that
    assert data.load(**arguments, max_pixels=64).batch(np.array([0])).shape == (1, 3, 4, 4)
    with pytest.raises(data.BadImages, match=r"has 4096 pixels \(64x64\), more than 63, .* set max_pixels to 4096"):
        data.load(**arguments, max_pixels=63).batch(np.array([0]))
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg", progressive=True)  # kept in memory whole
    with pytest.raises(data.BadImages, match="has 4096 pixels"):
        data.load(**arguments, max_pixels=4095).batch(np.array([0]))
    assert data.load(**arguments, max_pixels=4096).batch(np.array([0])).shape == (1, 3, 4, 4)


def test_a_photograph_of_108_megapixels_can_be_read(tmp_path):
    Image.new("1", (12000, 9000), 1).save(tmp_path / "a.png")
    Image.new("L", (12000, 9000), 255).save(tmp_path / "b.jpg")
    arguments = {"name": "folder", "root": tmp_path, "image_size": 8, "channels": 1, "cache_dir": tmp_path / "cache"}
    with pytest.raises(data.BadImages, match=r"^1 .*\n.*a.png: has 108000000 pixels .* set max_pixels to 108000000$"):
        data.load(**arguments)
    images = data.load(**arguments, max_pixels=108_000_000)
    assert (images.batch(np.arange(2)) == 255).all()


def test_the_limit_applies_to_images_of_pillow_too():
    with pytest.raises(data.BadImages, match=r"list\[0\]: has 64 pixels"):
        data.from_dataset([Image.new("RGB", (8, 8))], max_pixels=63)
    assert len(data.from_dataset([Image.new("RGB", (8, 8))], max_pixels=64)) == 1


def test_files_too_large_for_an_image_are_not_read(tmp_path):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 2**30 + 1)  # the rest of zeros, which take no space
    with pytest.raises(data.BadImages, match=r"a\.png: has 1,073,741,825 bytes, more than 1,073,741,824"):
        decoded(tmp_path, 8)
    for name in ("classes/0", "classes/1"):
        (tmp_path / name).mkdir(parents=True)
    Image.fromarray(noise(16, 16)).save(tmp_path / "classes/0/a.png")
    (tmp_path / "a.png").rename(tmp_path / "classes/1/a.png")
    with pytest.raises(data.BadImages, match=r"1/a\.png: has 1,073,741,825 bytes"):
        data.from_dataset(ClassFolders(tmp_path / "classes"), cache=False).batch(np.arange(2))


def test_faults_of_the_machine_name_the_file(tmp_path, monkeypatch):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*a\.png'"):
        decoded(tmp_path, 8)
