"""The figure of quality: distances against closed forms, and what the classifier's features tell apart."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import sqrtm

import dcgan.metrics
from dcgan.data import load
from dcgan.metrics import frechet_distance, image_features, moments
from dcgan.metrics._classifier import load_classifier

CLASSIFIER = Path(dcgan.metrics.__file__).with_name("classifier.safetensors")


@pytest.fixture(scope="module")
def digits():
    images = load("digits", image_size=32, channels=1)
    return images.batch(np.random.default_rng(0).permutation(len(images))[:800])


def correlated(count, seed, shift=0.0, scale=1.0, dims=12):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dims, dims))
    return torch.from_numpy(rng.normal(size=(count, dims)) @ mixing * scale + shift)


def test_the_distance_is_that_of_its_definition():
    a, b = correlated(300, 1), correlated(200, 2, shift=0.5, scale=1.7)
    m, n, cov_a, cov_b = a.numpy().mean(0), b.numpy().mean(0), np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = np.sum((m - n) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_moments_are_all_that_a_distance_needs():
    a, b = correlated(300, 1), correlated(200, 2, shift=0.5)
    expected = frechet_distance(a, b)
    assert frechet_distance(moments(a), b) == frechet_distance(a, moments(b)) == expected


def test_a_shift_counts_by_its_square_and_a_scale_by_its_standard_deviations():
    a = correlated(500, 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(12 * 4, rel=1e-9)
    assert frechet_distance(a - a.mean(0), 3 * (a - a.mean(0))) == pytest.approx(4 * a.var(0).sum().item(), rel=1e-9)


def test_fewer_images_than_features_give_a_finite_distance():
    a, b = torch.randn(5, 64), torch.randn(9, 64)
    assert frechet_distance(a, b) > 0
    assert frechet_distance(torch.ones(3, 64), torch.ones(2, 64)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), r"N at least 2, got \(1, 3\)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "same number of features, got 3 and 2"),
        (torch.zeros(4), torch.zeros(4), r"got \(4,\)"),
        (torch.zeros(4, 3), torch.full((4, 3), torch.nan), "some of the features are not finite"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_noise_a_single_image_and_inverted_images_are_far_from_digits_and_other_digits_are_near(digits):
    real, others = image_features(digits[:400]), image_features(digits[400:])
    near = frechet_distance(real, others)
    noise = torch.randint(0, 256, (400, 1, 32, 32), dtype=torch.uint8)
    for fake in (noise, digits[:1].expand(400, -1, -1, -1), digits[:4].repeat(100, 1, 1, 1), 255 - digits[400:]):
        assert frechet_distance(real, image_features(fake)) > 10 * near


def test_features_depend_on_the_picture_alone(digits):
    features = image_features(digits[:9])
    assert features.shape == (9, 128)
    assert features.dtype == torch.float32
    colour = digits[:9].expand(-1, 3, -1, -1)
    torch.testing.assert_close(image_features(colour), features)
    torch.testing.assert_close(image_features(torch.cat([colour, digits[:9]], 1)), features)
    torch.testing.assert_close(image_features(digits[:9].float() / 127.5 - 1), features)
    torch.testing.assert_close(image_features(digits[:9], batch_size=2), features, rtol=1e-4, atol=1e-4)
    large = digits[:9].repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(image_features(large), features, rtol=1e-4, atol=1e-4)


def test_features_neither_change_nor_depend_on_the_state_of_the_process(digits):
    expected = image_features(digits[:4])
    load_classifier.cache_clear()
    torch.set_default_dtype(torch.float64)
    before = torch.get_rng_state()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            features = image_features(digits[:4], device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


@pytest.mark.slow
def test_the_example_trains_a_network_of_the_same_arrays(tmp_path, monkeypatch, real_data):
    path = Path(__file__).parents[1] / "examples/image_classifier.py"
    spec = importlib.util.spec_from_file_location("image_classifier", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "STEPS", 2)
    cifar10 = real_data / "cifar10-images"
    example.main(real_data, cifar10 / "train", cifar10 / "test", tmp_path / "out.safetensors")
    made, ours = load_file(tmp_path / "out.safetensors"), load_file(CLASSIFIER)
    assert {name: (value.dtype, value.shape) for name, value in made.items()} == {
        name: (value.dtype, value.shape) for name, value in ours.items()
    }


@pytest.mark.parametrize("shape", [(4, 2, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="K 1, 3 or 4, got"):
        image_features(torch.zeros(shape))
