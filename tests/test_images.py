"""Tensors to pictures: rounding, grids, PNG and GIF files."""

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
    images.save_png(tmp_path / "a.png", image)
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
