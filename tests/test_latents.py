import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dcgan import Generator, cli
from dcgan.latents import (
    combine_means,
    derive_seed,
    direction,
    jitter,
    lerp,
    pick_latents,
    project,
    sample_latents,
    seeded_latents,
    shift,
    slerp,
    walk,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 2**40), st.sampled_from(["normal", "uniform"]))
def test_a_latent_depends_on_seed_and_index_alone(start, n, seed, distribution):
    whole = seeded_latents(1400, 3, seed=seed, distribution=distribution)
    assert torch.equal(
        seeded_latents(n, 3, seed=seed, start=start, distribution=distribution), whole[start : start + n]
    )


@pytest.mark.parametrize(("distribution", "bound", "deviation"), [("normal", 7, 1.0), ("uniform", 1, 3**-0.5)])
def test_latents_follow_their_distribution(distribution, bound, deviation):
    z = seeded_latents(20_000, 5, seed=0, distribution=distribution)
    assert z.abs().max() <= bound
    assert z.mean().abs() < 0.01
    assert abs(z.std() - deviation) < 0.01


def test_seeds_of_nearby_words_are_unrelated_in_the_bits_the_cpu_keeps():
    seeds = {derive_seed(a, b) % 2**32 for a in range(60) for b in range(60)}
    assert len(seeds) >= 3598  # of 3600: two would collide by chance once in 600 such sets
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(0, 5) == 1917503096803325388


def test_latents_of_a_seed_are_frozen():
    """A change here changes every image that anyone has published by its seed."""
    expected = torch.randn(256, 4, generator=torch.Generator().manual_seed(derive_seed(11, 0)))
    assert torch.equal(seeded_latents(256, 4, seed=11), expected)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        seeded_latents(-1, 4, seed=0)
    with pytest.raises(ValueError, match="distribution must be 'normal', 'uniform' or a function, got 'gauss'"):
        sample_latents((2, 3), "gauss", torch.Generator())
    with pytest.raises(ValueError, match="seeds must be non-negative integers of at most 64 bits"):
        derive_seed(-1)
    for name in ("seed", "start"):
        with pytest.raises(ValueError, match=rf"{name} must be below 2\*\*64, got 18446744073709551616"):
            seeded_latents(1, 4, **{"seed": 0, name: 2**64})


def test_latents_are_picked_by_seed_and_index():
    expected = torch.cat([seeded_latents(1, 6, seed=2, start=300), seeded_latents(3, 6, seed=0)[[1, 1]]])
    assert torch.equal(pick_latents([(2, 300), (0, 1), (0, 1)], 6), expected)
    uniform = seeded_latents(4, 6, seed=0, distribution="uniform")[3:]
    assert torch.equal(pick_latents([(0, 3)], 6, distribution="uniform"), uniform)
    with pytest.raises(ValueError, match="picks must name at least one latent"):
        pick_latents([], 6)
    with pytest.raises(ValueError, match="start must not be negative, got -1"):
        pick_latents([(0, -1)], 6)


def angle_between(a, b):
    return torch.arccos((torch.dot(a, b) / (a.norm() * b.norm())).clamp(-1, 1)).item()


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 200), st.floats(0, 1), st.integers(0, 1000))
def test_slerp_turns_and_lengthens_at_constant_speed(z, t, seed):
    a, b = seeded_latents(2, z, seed=seed).double() * torch.tensor([[1.0], [3.0]])
    point = slerp(a, b, t)
    assert point.norm().item() == pytest.approx((1 - t) * a.norm().item() + t * b.norm().item())
    whole = angle_between(a, b)
    assert angle_between(a, point) == pytest.approx(t * whole, abs=1e-6)
    assert angle_between(point, b) == pytest.approx((1 - t) * whole, abs=1e-6)


def test_slerp_of_axes_is_a_quarter_of_a_circle():
    a, b = torch.eye(2)
    t = torch.linspace(0, 1, 7)
    expected = torch.stack([torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)], 1)
    torch.testing.assert_close(slerp(a, b, t), expected)


@pytest.mark.parametrize("scale", [1.0, 2.5, -1.5, 0.0])
def test_slerp_is_straight_where_there_is_no_arc(scale):
    a = seeded_latents(1, 5, seed=0)[0]
    for ends in ((a, scale * a), (scale * a, a)):
        torch.testing.assert_close(slerp(*ends, 0.25), lerp(*ends, 0.25))
        a_end, b_end = (end.clone().requires_grad_() for end in ends)
        point = slerp(a_end, b_end, 0.25)
        assert point.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(point.sum(), (a_end, b_end)))


def test_a_small_angle_is_precise_in_single_precision():
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([math.cos(1e-3), math.sin(1e-3)])
    assert slerp(a, b, 0.3)[1].item() == pytest.approx(3e-4, rel=1e-4)


def test_lerp_shrinks_normal_latents_and_slerp_does_not():
    a, b = seeded_latents(1000, 100, seed=0).split(500)
    norm = torch.cat([a, b]).norm(dim=1).mean()
    assert (lerp(a, b, 0.5).norm(dim=1).mean() / norm).item() == pytest.approx(0.5**0.5, abs=0.01)
    assert (slerp(a, b, 0.5).norm(dim=1).mean() / norm).item() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("way", [lerp, slerp])
def test_both_ways_take_batches_and_shares_that_broadcast(way):
    a, b = seeded_latents(6, 4, seed=0).split(3)
    t = torch.tensor([[0.0], [0.3], [1.0]])
    points = way(a, b, t)
    assert points.shape == (3, 3, 4)
    for index, share in enumerate(t.flatten().tolist()):
        torch.testing.assert_close(points[index], torch.stack([way(x, y, share) for x, y in zip(a, b, strict=True)]))
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[2], b)


def test_a_walk_passes_through_its_points_in_equal_steps():
    points = seeded_latents(4, 3, seed=0)
    path = walk(points, 5)
    assert path.shape == (16, 3)
    torch.testing.assert_close(path[::5], points)
    torch.testing.assert_close(path[7], slerp(points[1], points[2], 0.4))
    torch.testing.assert_close(walk(points, 5, interpolate=lerp)[7], 0.6 * points[1] + 0.4 * points[2])
    with pytest.raises(ValueError, match=r"points must have shape \(P, Z\) with P at least 2, got \(1, 3\)"):
        walk(points[:1], 5)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        walk(points, 0)


def test_arithmetic_is_that_of_means():
    a, b, c = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 6.0], [0.0, 0.0]])
    assert combine_means([a, c], [b]).tolist() == [1.0, 3.0]
    assert direction(b, a).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"each group must be latents .* got \[\(2, 2\), \(0, 2\)\]"):
        combine_means([a], [a[:0]])
    with pytest.raises(ValueError, match="there must be a group"):
        combine_means([])


def test_three_means_of_three_are_as_long_as_a_latent():
    groups = seeded_latents(9 * 400, 100, seed=0).view(400, 3, 3, 100)
    sums = torch.stack([combine_means([a, c], [b]) for a, b, c in groups])
    assert sums.norm(dim=1).mean().item() == pytest.approx(100**0.5, rel=0.02)


def test_jitter_is_uniform_around_a_latent():
    z = seeded_latents(1, 50, seed=0)[0]
    noise = jitter(z, 400) - z
    assert noise.shape == (400, 50)
    assert 0.249 < noise.abs().max() <= 0.2501
    assert noise.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    assert (jitter(z, 4, scale=2.0) - z).abs().max() > 1.5
    assert torch.equal(jitter(z, 4), jitter(z, 4))
    assert not torch.equal(jitter(z, 4), jitter(z, 4, seed=1))


def test_latents_are_shifted_by_multiples_of_a_direction():
    z, turn = torch.tensor([[1.0, 1.0], [5.0, 0.0]]), torch.tensor([0.0, 2.0])
    assert shift(z, turn, torch.tensor([-1.0, 0.0, 0.5])).tolist() == [
        [[1.0, -1.0], [1.0, 1.0], [1.0, 2.0]],
        [[5.0, -2.0], [5.0, 0.0], [5.0, 1.0]],
    ]


class Linear(nn.Module):
    """A generator whose projection has a closed form: least squares."""

    def __init__(self, z=3, side=4):
        super().__init__()
        self.linear, self.side = nn.Linear(z, side * side), side

    def forward(self, z):
        return self.linear(z).view(-1, 1, self.side, self.side)


def test_a_projection_is_the_least_squares_solution_of_a_linear_generator():
    generator = Linear().double()
    targets = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    result = project(generator, targets, torch.zeros(1, 3, dtype=torch.float64), steps=250, lr=0.3)
    bias, weight = generator.linear.bias.detach(), generator.linear.weight.detach()
    expected = torch.linalg.lstsq(weight, (targets.flatten(1) - bias).T).solution.T
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(result.errors[-1], (result.images - targets).square().mean((1, 2, 3)))
    start = generator(torch.zeros(5, 3, dtype=torch.float64))
    torch.testing.assert_close(result.errors[0], (start - targets).square().mean((1, 2, 3)).detach())
    assert result.errors.shape == (251, 5)


def test_a_generated_image_is_recovered_and_the_generator_stays_as_it_was():
    generator = Generator.from_pretrained("digits").train()
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    targets = generator.sample(1, seed=5)
    with torch.no_grad():
        result = project(generator, targets, seeded_latents(2, 100, seed=0), steps=100)
    assert result.errors[0] > 0.2
    assert result.errors[-1] < 0.01
    torch.testing.assert_close(generator.sample(z=result.z), result.images, atol=1e-4, rtol=0)
    assert generator.training
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in generator.parameters())


def test_the_best_start_of_each_image_is_kept():
    """With the sine of z as image, the nearest valley is not the deepest."""

    class Wave(nn.Module):
        def forward(self, z):
            return (0.1 * z + torch.sin(3 * z))[:, :, None, None]

    targets = torch.tensor([[[[1.5]]], [[[-1.5]]]])
    starts = torch.tensor([[-6.0], [6.0], [0.0]])
    alone = [project(Wave(), targets, start[None], steps=100, lr=0.02) for start in starts]
    together = project(Wave(), targets, starts, steps=100, lr=0.02)
    finals = torch.stack([each.errors[-1] for each in alone])
    assert finals.max() > 0.1
    torch.testing.assert_close(together.errors[-1], finals.min(0).values)
    assert together.z.flatten().sign().tolist() == [1.0, -1.0]


def test_another_error_can_be_minimised_and_progress_is_told():
    told = []
    targets = torch.full((1, 1, 4, 4), 0.5)

    def brightness(images, targets):
        return (images.mean((1, 2, 3)) - targets.mean((1, 2, 3))).abs()

    result = project(
        Linear(), targets, torch.zeros(1, 3), steps=200, error=brightness, progress=lambda *now: told.append(now)
    )
    assert result.images.mean().item() == pytest.approx(0.5, abs=0.01)
    assert result.errors[-1] < 0.01 < (result.images - targets).square().mean()
    assert told == [(step, 200) for step in range(1, 201)]


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"targets must have the shape \(N, 1, 4, 4\), got \(2, 3, 4, 4\)"):
        project(Linear(), torch.zeros(2, 3, 4, 4), torch.zeros(1, 3))
    for targets, starts, steps in [((0, 1, 4, 4), (1, 3), 1), ((1, 1, 4, 4), (0, 3), 1), ((1, 1, 4, 4), (1, 3), 0)]:
        with pytest.raises(ValueError, match="must be at least one each"):
            project(Linear(), torch.zeros(targets), torch.zeros(starts), steps=steps)


# The commands


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network of 16×24 pixels, which is enlarged four times for its captions."""
    folder = tmp_path_factory.mktemp("model")
    Generator(image_size=(16, 24), channels=3, base_channels=4, latent_dim=8).save_pretrained(folder)
    return folder


def dcgan(capsys, *arguments, code=0):
    """Run a command; return what it said."""
    assert cli.main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    return " ".join((err if code else out).split())


def shape(path):
    with Image.open(path) as picture:
        return picture.height, picture.width


def cells(path, rows, columns, height=64, width=96, gap=2):
    """The pictures of a grid: `(rows, columns, height, width, 3)`."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    tops, lefts = (gap + np.arange(n) * (side + gap) for n, side in ((rows, height), (columns, width)))
    return np.array([[pixels[top : top + height, left : left + width] for left in lefts] for top in tops])


def expected_pixels(model, z):
    """The images of latents, enlarged as the commands do, `(N, 64, 96, 3)`."""
    images = Generator.from_pretrained(model).sample(z=z)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    return pixels.repeat(4, 1).repeat(4, 2)


def assert_same_picture(got, expected):
    assert np.abs(got - expected).max() <= 1  # sums of another batch size may round otherwise


def test_a_walk_is_drawn_a_row_for_each_stretch_or_as_a_strip(small, capsys):
    dcgan(capsys, "walk", small, "--points", 3, "--steps", 4)
    path = walk(seeded_latents(3, 8, seed=0), 4)
    rows = cells("walk.png", 2, 5)
    assert shape("walk.png") == (2 * 66 + 2, 5 * 98 + 2)
    assert_same_picture(rows[0], expected_pixels(small, path[:5]))
    assert_same_picture(rows[1], expected_pixels(small, path[4:]))
    assert "strip.png: 9 images, through 3" in dcgan(
        capsys, "walk", small, "--points", 3, "--steps", 4, "--strip", "--out", "deep/strip.png"
    )
    assert_same_picture(cells("deep/strip.png", 1, 9)[0], expected_pixels(small, path))


def test_a_walk_goes_through_chosen_images_in_a_line_if_asked(small, capsys):
    dcgan(capsys, "walk", small, "--through", "5,1:2", "--steps", 2, "--interpolation", "lerp", "--seed", 3)
    a, b = pick_latents([(3, 5), (1, 2)], 8)
    assert_same_picture(cells("walk.png", 1, 3)[0], expected_pixels(small, torch.stack([a, (a + b) / 2, b])))


def test_uniform_latents_are_walked_in_a_line(tmp_path, capsys):
    Generator(image_size=16, base_channels=2, latent_dim=8, latent="uniform").save_pretrained(tmp_path / "uniform")
    dcgan(capsys, "walk", tmp_path / "uniform", "--points", 2, "--steps", 2)
    z = seeded_latents(2, 8, seed=0, distribution="uniform")
    expected = expected_pixels(tmp_path / "uniform", z.mean(0, keepdim=True))
    assert_same_picture(cells("walk.png", 1, 3, 64, 64)[0, 1:2], expected)


def test_a_direction_is_applied_to_each_image_from_its_opposite_on(small, capsys):
    dcgan(capsys, "walk", small, "--from", "0,1", "--to", "2", "--through", "3,4", "--steps", 2)
    z = seeded_latents(5, 8, seed=0)
    turn = z[2] - z[:2].mean(0)
    rows = cells("walk.png", 2, 3)
    for row, start in zip(rows, z[3:], strict=True):
        assert_same_picture(row, expected_pixels(small, torch.stack([start - turn, start, start + turn])))


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_an_animation_goes_there_and_back(small, capsys, suffix):
    if suffix == "mp4":
        pytest.importorskip("av")
    dcgan(capsys, "walk", small, "--points", 2, "--steps", 3, "--out", f"deep/walk.{suffix}")
    if suffix == "gif":
        with Image.open("deep/walk.gif") as animation:
            frames = []
            for index in range(animation.n_frames):
                animation.seek(index)
                frames.append(np.asarray(animation.convert("RGB")).astype(int))
    else:
        import av

        with av.open("deep/walk.mp4") as video:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    path = walk(seeded_latents(2, 8, seed=0), 3)
    expected = expected_pixels(small, path[[0, 1, 2, 3, 2, 1]])
    assert np.abs(np.array(frames) - expected).mean() < 12  # a palette, or a lossy codec
    nearest = [int(np.abs(frame - expected[:4]).mean((1, 2, 3)).argmin()) for frame in frames]
    assert nearest == [0, 1, 2, 3, 2, 1]


def test_a_video_needs_its_encoder(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    err = dcgan(capsys, "walk", small, "--out", "walk.mp4", code=2)
    assert err == 'dcgan: writing a video needs av: pip install "dcgan[video]"'


def test_arithmetic_shows_each_group_its_mean_and_the_result_among_variations(small, capsys):
    assert "+ 2 - 1 + 1 images" in dcgan(capsys, "arithmetic", small, "0, 1 - 2 + 1:3")
    z = torch.cat([seeded_latents(3, 8, seed=0), pick_latents([(1, 3)], 8)])
    result = z[:2].mean(0) - z[2] + z[3]
    left = cells("arithmetic.png", 3, 3, 76)[:, :, :64]  # without the captions
    assert_same_picture(left[0], expected_pixels(small, torch.stack([z[0], z[1], z[:2].mean(0)])))
    assert_same_picture(left[1][[0, 2]], expected_pixels(small, z[[2, 2]]))
    assert (left[1, 1] == 0).all()
    with Image.open("arithmetic.png") as picture:
        picture.crop((3 * 98 + 2 + 16, 0, picture.width, picture.height)).save("right.png")
    nine = cells("right.png", 3, 3, 76)[:, :, :64].reshape(9, 64, 96, 3)
    around = jitter(result, 8)
    assert_same_picture(nine, expected_pixels(small, torch.cat([around[:4], result[None], around[4:]])))


def test_without_an_expression_there_is_a_numbered_sheet(small, capsys):
    assert "images 0 to 5 of seed 2" in dcgan(capsys, "arithmetic", small, "-n", 6, "--seed", 2)
    sheet = cells("arithmetic.png", 2, 3, 76).reshape(6, 76, 96, 3)
    assert_same_picture(sheet[:, :64], expected_pixels(small, seeded_latents(6, 8, seed=2)))
    assert all(caption.max() == 255 for caption in sheet[:, 64:])


def test_real_images_are_projected_and_walked_between(real_data, capsys):
    files = sorted((real_data / "faces").glob("*.jpg"))[:2]
    out = dcgan(capsys, "project", "faces", *files, "--steps", 12, "--starts", 1, "--out", "deep/found")
    assert re.findall(r"\S+\.jpg", out) == [file.name for file in files]
    first, last = zip(*(map(float, pair) for pair in re.findall(r"(0\.\d{4}) (0\.\d{4})", out)), strict=True)
    assert max(last) < 0.7 * min(first)
    pairs = cells("deep/found/pairs.png", 2, 2, 64, 64)
    latents = torch.from_numpy(np.load("deep/found/latents.npy"))
    generator = Generator.from_pretrained("faces")
    drawn = ((generator.sample(z=latents) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert_same_picture(pairs[1], drawn)
    error = np.square((pairs[0] - pairs[1]) / 127.5).mean((1, 2, 3))
    assert error == pytest.approx(np.array(last), abs=2e-3)
    assert shape("deep/found/errors.png") == (700, 1200)
    dcgan(capsys, "walk", "faces", "--through", "deep/found/latents.npy", "--steps", 2)
    assert_same_picture(cells("walk.png", 1, 3, 64, 64)[0, ::2], drawn)


def test_files_of_one_name_are_told_apart(small, tmp_path, capsys):
    for folder, level in (("a", 50), ("b", 200)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (24, 16), (level,) * 3).save(tmp_path / folder / "same.png")
    arguments = ["project", small, "a/same.png", "b/same.png", "--steps", 3, "--starts", 1]
    assert re.findall(r"\S+/same.png", dcgan(capsys, *arguments)) == ["a/same.png", "b/same.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("walk MODEL --out walk.jpg", "--out must end in .png, .gif or .mp4, got walk.jpg"),
        ("walk MODEL --points 1", "a walk needs at least two images, got one"),
        ("walk MODEL --from 1,2 --to 0:2,1", "--from and --to must differ, got 1,2 and 0:2,1, which are the same"),
        ("walk MODEL --from 1,2", "--from and --to are the two ends of a direction: give both"),
        ("walk MODEL --from 1 --to 2 --interpolation lerp", "omit it with --from and --to"),
        ("walk MODEL --through 1;2", "an image is an index or SEED:INDEX, and several are joined by commas; got '1;2'"),
        ("walk MODEL --through there.npy", "there.npy: No such file or directory"),
        ("walk MODEL --through wrong.npy", r"wrong.npy must hold latents \(N, 8\), got \(2, 5\)"),
        ("walk MODEL --through text.npy", "text.npy is not a whole .npy file of an array of numbers"),
        ("walk MODEL --through nan.npy", "nan.npy must hold finite numbers, got NaN or infinite ones"),
        ("walk MODEL --through huge.npy", "huge.npy must hold finite numbers, got NaN or infinite ones"),
        ("walk MODEL --through complex.npy", "complex.npy must hold real numbers, got complex ones"),
        ("walk MODEL --points 101 --steps 1000", "a walk has at most 100,000 images, got 101 with 1,000 steps each"),
        ("walk MODEL --through 99999999999999999999:1,2", r"seed must be below 2\*\*64, got 99999999999999999999"),
        (f"walk MODEL --through {'9' * 5000}", "an image is an index or SEED:INDEX, .* got '999"),
        (
            "project MODEL a.png b.png --starts 50001",
            "--starts times the number of files must be at most 100,000, got 50,001",
        ),
        ("walk MODEL --out folder.png", "folder.png is a folder"),
        ("walk MODEL --out old.png", "old.png exists: --force overwrites it"),
        ("arithmetic MODEL 1,2- --out new.png", "an image is an index or SEED:INDEX"),
        ("arithmetic MODEL --out new.gif", "--out must end in .png, got new.gif"),
        ("project MODEL", "project needs at least one image file after the model"),
        ("project MODEL there.jpg", "there.jpg is not a file"),
        ("project MODEL text.npy", "text.npy is not in a supported format"),
    ],
)
def test_mistakes_are_named(small, tmp_path, capsys, arguments, message):
    np.save("wrong.npy", np.zeros((2, 5)))
    np.save("nan.npy", np.full((2, 8), np.nan))
    np.save("huge.npy", np.full((2, 8), 1e300))
    np.save("complex.npy", np.ones((2, 8), complex))
    (tmp_path / "text.npy").write_text("these are words")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "old.png").touch()
    words = [str(small) if word == "MODEL" else word for word in arguments.split()]
    assert re.search(message, dcgan(capsys, *words, code=2))
    assert not list(tmp_path.glob("new.*"))


def test_an_expression_begins_with_a_group(small, capsys):
    err = dcgan(capsys, "arithmetic", small, "--expression=- 1", code=2)
    assert "an expression begins with a group that is added" in err
