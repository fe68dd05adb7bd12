"""Which files are read as images: every ending, what is inside of it, and what is left out."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from image_files import everything, folder_of, noise
from PIL import Image, features

from dcgan import cli, data
from dcgan.data import _formats, _sources

pytestmark = pytest.mark.usefixtures("offline")

# The ending, the format that Pillow writes, its options, and the largest difference that it makes to a pixel.
WRITTEN = [
    *((ending, "JPEG", {"quality": 100, "subsampling": 0}, 6) for ending in (".jfif", ".jpe", ".jpeg", ".jpg")),
    (".mpo", "MPO", {"quality": 100, "subsampling": 0}, 6),
    *((ending, "PNG", {}, 0) for ending in (".apng", ".png")),
    (".webp", "WEBP", {"lossless": True}, 0),
    (".gif", "GIF", {}, 0),
    (".bmp", "BMP", {}, 0),
    (".dib", "DIB", {}, 0),
    (".dib", "BMP", {}, 0),
    *((ending, "TIFF", {}, 0) for ending in (".tif", ".tiff")),
    *((ending, "PPM", {}, 0) for ending in (".pbm", ".pfm", ".pgm", ".pnm", ".ppm")),
    *((ending, "JPEG2000", {}, 0) for ending in (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx")),
    *((ending, "AVIF", {"quality": 100, "subsampling": "4:4:4"}, 6) for ending in (".avif", ".avifs")),
    *((ending, "HEIF", {"quality": -1, "chroma": 444}, 6) for ending in (".heic", ".heics", ".heif", ".heifs", ".hif")),
    (".dds", "DDS", {}, 0),
    (".ico", "ICO", {"sizes": [(16, 16)]}, 0),
    (".psd", "PSD", {}, 0),
    (".qoi", "QOI", {}, 0),
    *((ending, "SGI", {}, 0) for ending in (".rgb", ".rgba", ".sgi")),
    (".ras", "SUN", {}, 0),
    (".pcx", "PCX", {}, 0),
    *((ending, "TGA", {}, 0) for ending in (".icb", ".tga", ".vda", ".vst")),
]
# Blocks of few colours, which palettes hold and which encoders keep.
PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def skip_unless_written(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")


def encode(pixels, kind, options):
    if kind == "PSD":  # Pillow reads these two, and writes neither
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()
        header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, *pixels.shape[:2], 8, 3)
        return header + struct.pack(">IIIH", 0, 0, 0, 0) + planes
    if kind == "SUN":
        height, width = pixels.shape[:2]
        return struct.pack(">8I", 0x59A66A95, width, height, 24, pixels.size, 1, 0, 0) + pixels[..., ::-1].tobytes()
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra 'heic'").register_heif_opener()
    skip_unless_written(kind)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(folder, size=16):
    (image,) = everything(data.load("folder", root=folder, image_size=size, workers=0))
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("ending", "kind", "options", "tolerance"), WRITTEN)
@pytest.mark.parametrize("upper", [False, True])
def test_every_ending_is_read(tmp_path, ending, kind, options, tolerance, upper):
    (tmp_path / f"a{ending.upper() if upper else ending}").write_bytes(encode(PIXELS, kind, options))
    assert abs(decoded(tmp_path).astype(int) - PIXELS).max() <= tolerance


def test_no_ending_is_left_out_above():
    assert {ending for ending, *_ in WRITTEN} >= _formats.image_endings()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"])
def test_the_content_decides_and_not_the_ending(tmp_path, kind):
    _, _, options, tolerance = next(written for written in WRITTEN if written[1] == kind)
    (tmp_path / "a.jpg").write_bytes(encode(PIXELS, kind, options))
    assert abs(decoded(tmp_path).astype(int) - PIXELS).max() <= tolerance


@pytest.mark.parametrize("kind", ["ICO", "PSD"])
def test_a_damaged_header_names_its_format(tmp_path, kind):
    _, _, options, _ = next(written for written in WRITTEN if written[1] == kind)
    (tmp_path / "a.jpg").write_bytes(encode(PIXELS, kind, options)[:13])
    with pytest.raises(data.BadImages, match=rf"a\.jpg: is not a whole {kind} file$"):
        decoded(tmp_path)


@pytest.mark.parametrize("kind", ["DIB", "PCX", "TGA"])
def test_formats_without_a_signature_are_read_by_their_ending_alone(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(encode(PIXELS, kind, {}))
    with pytest.raises(data.BadImages, match=r"a\.jpg: is not in a supported format: it begins with b'"):
        decoded(tmp_path)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".gif", "GIF"), (".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF"), (".avif", "AVIF")],
)
def test_of_moving_images_the_first_frame_is_read(tmp_path, ending, kind):
    skip_unless_written(kind)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a{ending}", kind, save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / f"a{ending}") as image:
        assert image.n_frames == 3
    assert abs(decoded(tmp_path).astype(int) - (255, 0, 0)).max() <= 4


def test_twelve_bits_of_pgm_fill_the_range(tmp_path):
    values = np.arange(4096, dtype=">u2").reshape(64, 64)
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 4095\n" + values.tobytes())
    assert abs(decoded(tmp_path, 64)[..., 0].ravel() - np.arange(4096) * 255 / 4095).max() <= 0.51


@pytest.mark.parametrize("name", ["a.eps", "a.ps", "a.pdf", "a.wmf", "a.emf", "a.svg", "a.fits", "a.icns", "a.iim"])
def test_what_runs_programs_or_is_no_picture_is_left_out(tmp_path, name):
    folder_of(tmp_path, 1)
    (tmp_path / name).touch()
    assert data.load("folder", root=tmp_path, image_size=8).left_out == {name[1:]: 1}


def test_no_program_runs_for_postscript_that_is_called_an_image(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "EPS")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())

    def refuse(*_args, **_kwargs):
        raise AssertionError("a program was started")

    for function in ("Popen", "check_call", "call", "run"):
        monkeypatch.setattr(subprocess, function, refuse)
    with pytest.raises(data.BadImages, match="is not in a supported format: it begins with b'%!PS-Adobe-3.0 E'"):
        decoded(tmp_path)


@pytest.fixture
def without_heif(monkeypatch):
    """A system on which Pillow's plugin for HEIC is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _formats._signed_formats.cache_clear()
    yield
    _formats._signed_formats.cache_clear()


def test_heic_without_its_plugin_is_counted_and_named(tmp_path, without_heif):
    heic = b"\x00\x00\x00\x1cftypheic" + bytes(100)
    root = tmp_path / "a"
    root.mkdir()
    (root / "a.HEIC").write_bytes(heic)
    with pytest.raises(FileNotFoundError, match=r"holds 1 \.heic \(to read HEIC: pip install \"dcgan\[heic\]\"\)"):
        data.load("folder", root=root)
    folder_of(root, 1)
    images = data.load("folder", root=root, image_size=8)
    assert (len(images), images.left_out) == (1, {".heic": 1})
    (root / "b.jpg").write_bytes(heic)
    with pytest.raises(
        data.BadImages, match=r"b\.jpg: is HEIC, which needs a plugin of Pillow: pip install \"dcgan\[he"
    ):
        data.load("folder", root=root, image_size=8)


@pytest.mark.parametrize(("feature", "ending"), [("avif", ".avif"), ("webp", ".webp"), ("jpg_2000", ".jp2")])
def test_what_pillow_was_built_without_is_left_out(monkeypatch, feature, ending):
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != feature and check(name))
    _formats._signed_formats.cache_clear()
    try:
        assert ending not in _formats.image_endings()
        assert {".jpg", ".png", ".gif"} <= _formats.image_endings()
    finally:
        _formats._signed_formats.cache_clear()


def test_a_pillow_that_has_not_heard_of_avif_is_not_asked_about_it(monkeypatch):
    monkeypatch.delitem(features.modules, "avif", raising=False)
    _formats._signed_formats.cache_clear()
    try:
        assert ".avif" not in _formats.image_endings()  # without the warning that Pillow would give
    finally:
        _formats._signed_formats.cache_clear()


def test_other_files_are_counted_by_ending_packed_or_not(tmp_path):
    root = folder_of(tmp_path / "a", 2)
    (root / "sub").mkdir()
    for name in ["b.txt", "sub/c.TXT", "README", "sub/d.tar.gz", ".hidden.txt", ".hidden"]:
        (root / name).touch()
    expected = {".txt": 2, "": 1, ".gz": 1}
    for _ in range(2):
        assert data.load("folder", root=root, image_size=8).left_out == expected
    assert data.load("folder", root=root, image_size=8, cache=False).left_out == expected
    assert data.load("digits", image_size=8).left_out == {}


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, ""),
        ({".txt": 3, ".json": 1200}, "1,200 .json, 3 .txt"),
        ({"": 2, ".b": 1, ".a": 1}, "2 without ending, 1 .a, 1 .b"),
        ({f".{letter}": 9 - n for n, letter in enumerate("abcdefgh")}, "9 .a, 8 .b, 7 .c, 6 .d, 5 .e, 4 .f, 5 others"),
        ({".heif": 1}, '1 .heif (to read HEIC: pip install "dcgan[heic]")'),
    ],
)
def test_the_count_is_said_in_a_line(counts, text):
    assert _sources.describe_left_out(counts) == text


def test_the_command_line_names_the_option_and_announces_what_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = folder_of(tmp_path / "a", 3)
    (root / "notes.txt").touch()
    Image.new("L", (20, 20)).save(root / "large.png")
    line = (
        "train --root a --image-size 8 --base-channels 4 --batch-size 2 --steps 1 --samples 4 --device cpu --max-pixels"
    )
    assert cli.main([*line.split(), "399"]) == 2
    assert "large.png: has 400 pixels (20x20), more than 399, " in (error := capsys.readouterr().err)
    assert error.strip().endswith("to read it nevertheless, set --max-pixels to 400")
    assert cli.main([*line.split(), "400"]) == 0
    assert "          left out: 1 .txt\n" in capsys.readouterr().out


def test_loops_of_links_are_left_out_or_reported(tmp_path):
    root = folder_of(tmp_path / "a", 1)
    for name in ("loop", "loop.png"):
        (root / name).symlink_to(root / name)
    with pytest.raises(data.BadImages, match=r"1 unreadable .*\n.*loop\.png: is not a file"):
        data.load("folder", root=root, image_size=8)
    images = data.load("folder", root=root, image_size=8, skip_bad=True)
    assert (len(images), images.left_out) == (1, {"": 1})
    with pytest.raises(
        FileNotFoundError, match="loop must be a folder of images, but is none: Too many levels of symbolic links"
    ):
        data.load("folder", root=root / "loop")


def damage(encoded, rng):
    """Cut an encoded image, or change some bytes of it, most of them in the header."""
    if rng.random() < 0.3:
        return encoded[: rng.integers(len(encoded))]
    damaged = np.frombuffer(encoded, np.uint8).copy()
    reach = len(damaged) if rng.random() < 0.5 else min(64, len(damaged))
    damaged[rng.integers(0, reach, rng.integers(1, 5))] = rng.integers(0, 256)
    return damaged.tobytes()


@pytest.mark.parametrize(("ending", "kind", "options"), [written[:3] for written in WRITTEN if written[0] != ".mpo"])
def test_damaged_files_are_reported_and_never_crash(tmp_path, ending, kind, options):
    rng = np.random.default_rng(len(ending) + len(kind))
    encoded = encode(noise(16, 16), kind, options)
    for index in range(40):
        (tmp_path / f"{index:02}{ending}").write_bytes(damage(encoded, rng))
    Image.fromarray(PIXELS).save(tmp_path / "z.png")
    images = data.load("folder", root=tmp_path, image_size=8, skip_bad=True, workers=0)
    assert len(images) + len(images.skipped) == 41
    assert all(reason and "\n" not in reason for _, reason in images.skipped)
    assert images.skipped, "a file that is cut cannot be whole"
