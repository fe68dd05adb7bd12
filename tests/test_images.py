"""Tensors to pictures: rounding, grids, PNG and GIF files; the curves of a run."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan import images


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_to_uint8_rounds_as_numpy_does(value_range):
    low, high = value_range
    values = torch.linspace(low, high, 10_001, dtype=torch.float64)
    expected = np.clip(np.rint((values.numpy() - low) * 255 / (high - low)), 0, 255).astype(np.int64)
    got = images.to_uint8(values, value_range).numpy().astype(np.int64)
    assert np.abs(got - expected).max() <= 1  # single precision may round a tie the other way
    assert (got != expected).mean() < 1e-3


def test_to_uint8_clips_what_lies_outside():
    values = torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.999, 1.0, 9.0, float("inf"), -float("inf")])
    assert images.to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255, 255, 255, 0]


def test_to_uint8_is_the_inverse_of_scaling_pixels():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(images.to_uint8(pixels / 127.5 - 1), pixels)
    assert torch.equal(images.to_uint8(pixels / 255, (0.0, 1.0)), pixels)


@pytest.mark.parametrize(
    ("n", "columns", "gap"), [(1, None, 2), (4, None, 2), (5, 3, 1), (7, None, 0), (3, 9, 2), (6, 1, 3)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_equals_one_made_by_hand(n, columns, gap, channels):
    batch = noise(n, channels, 4, 6)
    across = min(n, columns or int(np.ceil(np.sqrt(n))))
    down = -(-n // across)
    expected = torch.zeros(channels, down * (4 + gap) + gap, across * (6 + gap) + gap, dtype=torch.uint8)
    for index, image in enumerate(batch):
        top, left = gap + index // across * (4 + gap), gap + index % across * (6 + gap)
        expected[:, top : top + 4, left : left + 6] = image
    assert torch.equal(images.grid(batch, columns=columns, gap=gap), expected)


def test_a_grid_needs_images_and_columns():
    with pytest.raises(ValueError, match="at least one image"):
        images.grid(noise(0, 1, 4, 4))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        images.grid(noise(2, 1, 4, 4), columns=0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_png_holds_the_pixels(tmp_path, channels, mode):
    image = noise(channels, 5, 7)
    images.save_png(str(tmp_path / "a.png"), image)
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (7, 5))
        pixels = np.asarray(picture).reshape(5, 7, channels)
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 4, 4), noise(2, 4, 4), noise(4, 4), noise(1, 3, 4, 4)], ids=["float", "2", "flat", "batch"]
)
def test_a_png_of_another_shape_or_type_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match=r"image must be uint8 \(1, 3 or 4, H, W\), got \("):
        images.save_png(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_gif_shows_each_frame_and_rests_on_the_last(tmp_path, channels):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path in paths:
        images.save_png(path, noise(channels, 8, 8))
    images.save_gif(tmp_path / "a.gif", paths, seconds=0.1, last=1.5)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.format, animation.size, animation.n_frames, animation.info["loop"]) == ("GIF", (8, 8), 4, 0)
        durations = []
        for index in range(4):
            animation.seek(index)
            durations.append(animation.info["duration"])
    assert durations == [100, 100, 100, 1500]


def test_a_gif_can_be_made_of_tensors(tmp_path):
    frames = (torch.arange(3).view(3, 1, 1, 1) * 100).expand(3, 1, 8, 6).to(torch.uint8)
    images.save_gif(tmp_path / "a.gif", frames, seconds=0.05, last=0.05)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.size, animation.n_frames) == ((6, 8), 3)
        for index in range(3):
            animation.seek(index)
            assert animation.info["duration"] == 50
            assert (np.asarray(animation.convert("L")) == index * 100).all()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 20), (3, 33, 41), (4, 32, 18)])
def test_a_video_shows_each_frame(tmp_path, channels, height, width):
    av = pytest.importorskip("av")
    levels = torch.tensor([20, 120, 220], dtype=torch.uint8)
    frames = levels.view(3, 1, 1, 1).expand(3, channels, height, width).clone()
    images.save_video(tmp_path / "a.mp4", frames, frames_per_second=10)
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.format.name, float(stream.average_rate)) == ("h264", "yuv420p", 10)
        decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(stream)]
    assert len(decoded) == 3
    for frame, level in zip(decoded, levels.tolist(), strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(frame - level).max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_needs_its_encoder_and_frames(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"frames must be uint8 \(N, 1, 3 or 4, H, W\), got \(0, 3, 4, 4\) of torch.uint8"
    ):
        images.save_gif(tmp_path / "a.gif", noise(0, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 4\) of torch.float32"):
        images.save_gif(tmp_path / "a.gif", torch.zeros(2, 3, 4, 4))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'writing a video needs av: pip install "dcgan\[video\]"'):
        images.save_video(tmp_path / "a.mp4", noise(2, 3, 4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("side", "factor"), [(1, 1), (4, 1), (5, 2), (8, 2), (64, 16)])
def test_images_are_enlarged_by_whole_factors(side, factor):
    batch = noise(2, 3, 4, 6)
    larger = images.enlarge(batch, side)
    assert larger.shape == (2, 3, 4 * factor, 6 * factor)
    assert all(torch.equal(larger[:, :, i::factor, j::factor], batch) for i in range(factor) for j in range(factor))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_caption_stands_in_the_middle_under_its_image(channels):
    batch = noise(3, channels, 20, 60)
    captioned = images.caption(batch, ["1:7", "", "1234567890123"])
    assert captioned.shape == (3, channels, 32, 60)
    assert torch.equal(captioned[:, :, :20], batch)
    lines = captioned[:, 0, 20:].float()
    columns = lines[0].amax(0).nonzero().flatten()
    assert columns.float().mean().item() == pytest.approx(29.5, abs=3)
    assert 12 <= columns.max() - columns.min() <= 18
    assert lines[1].max() == 0
    assert lines[2, :, :3].max() == 255  # one that is too wide begins on the left
    with pytest.raises(ValueError, match="there must be a text for each of 3 images, got 2"):
        images.caption(batch, ["a", "b"])


def test_errors_are_drawn_with_their_names(tmp_path):
    values = [10.0**-exponent for exponent in range(4)]
    images.save_errors(tmp_path / "a.png", {"a.jpg": values, "b.jpg": values[::-1]})
    images.save_errors(tmp_path / "same.png", {"a.jpg": values, "b.jpg": values[::-1]})
    images.save_errors(tmp_path / "b.png", {"a.jpg": values})
    pictures = [np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("a.png", "b.png")]
    assert pictures[0].shape == (700, 1200, 3)
    assert has_colour(pictures[0], "#1F77B4").sum() > 1000  # the first colour of matplotlib, and the second
    assert has_colour(pictures[0], "#FF7F0E").sum() > 1000
    assert not has_colour(pictures[1], "#FF7F0E").any()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    with pytest.raises(ValueError, match="there must be at least one curve"):
        images.save_errors(tmp_path / "none.png", {})


def records_of(count, every=10):
    """What a run logs: all keys, and a distance in every fourth record."""
    noise = np.random.default_rng(0).normal(size=(count, 5))
    records = []
    for index, (d_loss, d_real, d_fake, g_loss, speed) in enumerate(noise.tolist()):
        record = {"step": (index + 1) * every, "d_loss": 0.6 + 0.05 * d_loss, "d_real": 0.7 + 0.03 * d_real}
        record |= {"d_fake": 0.3 + 0.03 * d_fake, "g_loss": 1.5 + 0.1 * g_loss, "images_per_second": 300 + 9 * speed}
        records.append(record | ({"fd": 20 + 100 / (index + 1)} if index % 4 == 3 else {}))
    return records


def without(records, key):
    return [{name: value for name, value in record.items() if name != key} for record in records]


def drawn(tmp_path, records):
    """The pixels `(H, W, 3)` of the curves, as signed integers."""
    images.save_curves(tmp_path / "curves.png", records)
    with Image.open(tmp_path / "curves.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (1800, 1160))
        assert picture.info == {}  # nothing that changes, such as a date
        return np.asarray(picture).astype(int)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("eight"), records_of(8))


def has_colour(pixels, colour):
    """Where pixels have a colour, a text such as "#0072B2": booleans `(H, W)`."""
    return (pixels == [int(colour[start : start + 2], 16) for start in (1, 3, 5)]).all(2)


def test_the_same_curves_are_the_same_file_whatever_the_style_around(tmp_path):
    import matplotlib as mpl

    images.save_curves(tmp_path / "a.png", records_of(8))
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red", "savefig.dpi": 50}):
        around = dict(mpl.rcParams)
        images.save_curves(tmp_path / "b.png", records_of(8))
        assert dict(mpl.rcParams) == around
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("key", "row", "column"),
    [("d_loss", 0, 0), ("g_loss", 0, 0), ("d_real", 0, 1), ("d_fake", 0, 1), ("fd", 1, 0), ("images_per_second", 1, 1)],
)
def test_each_value_is_drawn_in_its_panel_only(tmp_path, eight, key, row, column):
    records = records_of(8)
    changed = [record | {key: record[key] * 1.1} if record["step"] == 40 else record for record in records]
    different = (eight != drawn(tmp_path, changed)).any(2)
    ys, xs = np.nonzero(different)
    assert ys.size
    assert set(ys // 580) == {row}
    assert set(xs // 890) == {column}


@pytest.mark.parametrize("distances", [[10.8, 3.1, 5.1], [90.0, 4.0, 0.3], [2.0]])
def test_the_logarithmic_axis_of_distances_is_marked_within_its_limits(distances):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    images._draw_quality(axes, [{"step": step, "fd": value} for step, value in enumerate(distances)])
    low, high = axes.get_ylim()
    ticks = axes.get_yticks()
    assert len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)


def test_a_curve_without_values_is_left_out(tmp_path, eight):
    losses = slice(0, 580), slice(0, 890)
    both = eight[losses]
    one = drawn(tmp_path, without(records_of(8), "d_loss"))[losses]
    none = drawn(tmp_path, [{"step": 10}])
    assert has_colour(both, "#0072B2").any()
    assert has_colour(both, "#D55E00").any()
    assert not has_colour(one, "#0072B2").any()
    assert has_colour(one, "#D55E00").any()
    assert has_colour(none, "#595959").any()  # it says so
    assert not any(has_colour(none, colour).any() for colour in ("#0072B2", "#D55E00", "#00805D"))


@pytest.mark.parametrize("count", [1, 150])
def test_what_is_not_finite_is_left_out(tmp_path, count):
    records = records_of(count)
    broken = {"d_loss": float("nan"), "g_loss": -float("inf"), "d_real": 1e300, "fd": float("inf")}
    images.save_curves(tmp_path / "a.png", [*records[:-1], records[-1] | broken])
    for key in broken:
        records[-1].pop(key, None)
    images.save_curves(tmp_path / "b.png", records)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_collapse_is_shaded_from_the_record_before(tmp_path):
    def shaded_columns(collapsed):
        records = [
            record | ({"collapse": "for 100 steps"} if record["step"] in collapsed else {}) for record in records_of(10)
        ]
        shaded = has_colour(drawn(tmp_path, records)[:540, :890], "#FBE8AE").sum(0) > 100  # not the letters of a legend
        return np.flatnonzero(shaded)

    assert not shaded_columns(set()).size
    everything = shaded_columns(set(range(10, 101, 10)))
    start, end = everything[0], everything[-1]
    part = shaded_columns({50, 60, 90})  # steps 40 to 60, and 80 to 90
    assert part[0] == pytest.approx(start + 0.4 * (end - start), abs=3)
    assert part[-1] == pytest.approx(start + 0.9 * (end - start), abs=3)
    between = start + 0.7 * (end - start)
    assert part[part < between].max() == pytest.approx(start + 0.6 * (end - start), abs=3)
    assert part[part > between].min() == pytest.approx(start + 0.8 * (end - start), abs=3)


def test_each_of_twenty_thousand_records_is_seen(tmp_path):
    records = records_of(20_000)
    before = drawn(tmp_path, records)
    records[12_345]["images_per_second"] = 100.0
    different = (drawn(tmp_path, records) != before).any(2)
    assert not different[:580].any()
    assert not different[:, :890].any()
    columns = np.flatnonzero(different.sum(0) > 100)
    assert 0 < len(columns) <= 4
    start, end = 945, 1750  # the panel's
    assert columns.mean() == pytest.approx(start + 12_345 / 20_000 / 1.02 * (end - start), abs=30)


def test_limits_hold_all_values_but_outliers():
    values = np.linspace(2, 3, 1000)
    assert images._limits(values) == pytest.approx((1.94, 3.06))
    assert images._limits(np.append(values, 3.5)) == pytest.approx((1.91, 3.59))
    low, high = images._limits(np.append(values, [1e29, -1e29]))
    assert (low, high) == pytest.approx((1, 4), abs=0.3)
    assert images._limits(np.array([5.0])) == (4.5, 5.5)
    assert images._limits(np.zeros(3)) == (-1, 1)


def test_the_lowest_distance_is_named():
    from matplotlib.figure import Figure

    values = {500: 40.125, 1000: 30.0, 1500: 12.5, 2000: 14.0, 2500: float("nan"), 3000: 0.0}
    axes = Figure().subplots()
    images._draw_quality(axes, [{"step": step, "fd": value} for step, value in values.items()])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["lowest: 12.5 at step 1,500"]
    curve, ring = axes.lines
    assert curve.get_xydata().tolist() == [[500, 40.125], [1000, 30], [1500, 12.5], [2000, 14]]
    assert ring.get_xydata().tolist() == [[1500, 12.5]]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 1.0, (0, 1)), (0.2, 0.3, (0, 1)), (-4.0, 4.0, (-4.48, 4.48))]
)
def test_probabilities_have_their_whole_axis_and_raw_outputs_their_own(low, high, expected):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    images._draw_outputs(axes, [{"step": 1, "d_real": high, "d_fake": low}, {"step": 2, "d_real": high}])
    assert axes.get_ylim() == pytest.approx(expected)


def test_no_records_draw_nothing(tmp_path):
    with pytest.raises(ValueError, match="curves need at least one record"):
        images.save_curves(tmp_path / "a.png", [])
    assert list(tmp_path.iterdir()) == []


def test_curves_leave_the_plots_of_the_program_alone(tmp_path):
    code = (
        "import pathlib, sys; from dcgan import images; assert 'matplotlib' not in sys.modules\n"
        f"images.save_curves(pathlib.Path({str(tmp_path / 'a.png')!r}), [{{'step': 1, 'd_loss': 1.0}}])\n"
        "assert 'matplotlib' in sys.modules; print('matplotlib.pyplot' in sys.modules)"
    )
    (tmp_path / "file").touch()
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file")}  # no folder: it has to build a cache elsewhere
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
