"""Figures of quality: against closed forms and torch-fidelity, and what the classifier's features tell apart."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from torch import nn

import dcgan.metrics
from dcgan.data import load
from dcgan.metrics import (
    FeatureExtractor,
    diversity,
    frechet_distance,
    image_features,
    kernel_distance,
    moments,
    pixel_shares,
    precision_recall,
)
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


def test_features_of_floats_in_another_range_are_refused_or_warned_of(caplog):
    pixels = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8)
    assert torch.allclose(image_features(pixels / 127.5 - 1), image_features(pixels), atol=1e-4)
    assert not caplog.messages
    with pytest.raises(ValueError, match=r"taken to be in \[-1, 1\], but these lie in \[0, 255\]: pass uint8"):
        image_features(pixels.float())
    for images, span in ((pixels / 255, "0, 1"), (pixels / 100 - 1.5, "-1.5, 1.05")):
        caplog.clear()
        image_features(images)
        assert f"but these lie in [{span}]" in caplog.text


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


def test_the_kernel_distance_is_that_of_torch_fidelity():
    library = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    a, b = correlated(90, 1), correlated(90, 2, shift=0.5, scale=1.7)
    expected = library(a, b, kid_subsets=1, kid_subset_size=90, verbose=False)["kernel_inception_distance_mean"]
    value, spread = kernel_distance(a, b, subset_size=90, subsets=3)
    assert value == pytest.approx(expected, rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9 * expected)
    drawn = library(a, b, kid_subsets=200, kid_subset_size=40, verbose=False)
    value, spread = kernel_distance(a, b, subset_size=40, subsets=200)
    # The draws differ: means of 200 agree to about a tenth of the deviation of one, and so do the deviations.
    assert value == pytest.approx(drawn["kernel_inception_distance_mean"], abs=0.5 * spread)
    assert spread == pytest.approx(drawn["kernel_inception_distance_std"], rel=0.3)
    assert kernel_distance(a, b, subset_size=40, seed=1) == kernel_distance(a, b, subset_size=40, seed=1)
    assert kernel_distance(a, b, subset_size=40, seed=1) != kernel_distance(a, b, subset_size=40, seed=2)


def test_the_kernel_distance_of_points_is_that_of_its_kernel():
    x, y = torch.full((4, 5), 2.0), torch.full((7, 5), -1.0)
    assert kernel_distance(x, y)[0] == pytest.approx((4 + 1) ** 3 + (1 + 1) ** 3 - 2 * (-2 + 1) ** 3)
    # Of two images each, no image is compared with itself.
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    across = ((0 + 1) ** 3 + (3 + 1) ** 3 + (0 + 1) ** 3 + (6 + 1) ** 3) / 4
    assert kernel_distance(a, b)[0] == pytest.approx((2 + 1) ** 3 + (0 + 1) ** 3 - 2 * across)


def test_the_kernel_distance_of_one_kind_is_zero_on_average_whatever_the_number_of_images():
    for count in (10, 40):
        values = [kernel_distance(*torch.randn(2, count, 6), subsets=1)[0] for _ in range(400)]
        assert abs(np.mean(values)) < 4 * np.std(values) / 20
        assert min(values) < 0


def test_precision_and_recall_are_those_of_torch_fidelity():
    library = pytest.importorskip("torch_fidelity.metric_prc").prc_features_to_metric
    real, fake = correlated(150, 1), correlated(120, 2, shift=1.0, scale=0.8)
    for neighbors in (1, 3):
        expected = library(fake, real, prc_neighborhood=neighbors, verbose=False)
        found = precision_recall(real, fake, neighbors=neighbors)
        assert found == pytest.approx((expected["precision"], expected["recall"]))
        assert 0.05 < found[0] != found[1] < 0.95


def test_copies_are_precise_and_a_collapse_covers_little():
    real = torch.arange(20.0)[:, None]  # on a line: the third nearest is 2 away, at the ends 3
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    assert precision_recall(real, real[:5].repeat(4, 1)) == (1, 5 / 20)  # the third nearest of a copy is at 0
    assert precision_recall(real, torch.arange(10.0, 20)[:, None]) == (1, 13 / 20)  # 7 is 3 from 10, an end
    fake = torch.tensor([[25.0], [22.0], [21.9], [-3.5], [3.5]])
    assert precision_recall(real, fake)[0] == 3 / 5  # 19 reaches 3


def test_diversity_is_relative_to_the_real_images():
    real = correlated(1100, 1)
    assert diversity(real, real) == pytest.approx(1)
    assert diversity(real, real / 4 + 3) == pytest.approx(1 / 4)
    assert diversity(real, torch.ones(9, 12)) == 0
    # Of six points at 0 and four at 1, 24 of 45 pairs differ; of three points at 0, 3 and 4, by 8/3 in the mean.
    fake = torch.tensor([0.0] * 6 + [1.0] * 4)[:, None]
    assert diversity(torch.tensor([[0.0], [3.0], [4.0]]), fake) == pytest.approx(24 / 45 / (8 / 3))


def test_dead_and_saturated_pixels_are_counted():
    images = torch.randint(3, 253, (64, 3, 4, 5), dtype=torch.uint8)
    assert pixel_shares(images) == (0, 0)
    images[:, 0, :2] = 100 + torch.randint(0, 3, (64, 2, 5), dtype=torch.uint8)  # 10 of 60
    images[:, 1, 0, :3] = 1
    images[0, 1, 0, :3] = 4  # not dead, by a hair
    images[:, 2, 3, 4] = 253
    dead, saturated = pixel_shares(images)
    assert dead == pytest.approx(11 / 60)
    assert saturated == pytest.approx((63 * 3 + 64) / (64 * 60))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: kernel_distance(torch.zeros(4, 3), torch.zeros(4, 2)), "same number of features, got 3 and 2"),
        (lambda: kernel_distance(torch.zeros(4, 3), torch.full((4, 3), torch.inf)), "not finite"),
        (lambda: kernel_distance(torch.zeros(4, 3), torch.zeros(4, 3), subset_size=1), "at least 2, got 100 and 1"),
        (lambda: precision_recall(torch.zeros(4, 3), torch.zeros(3, 3)), "got 3 and 4 real and 3 generated"),
        (lambda: diversity(torch.zeros(4, 3), torch.rand(3, 3)), "real images are all alike"),
        (lambda: diversity(torch.rand(4, 3), torch.rand(1, 3)), r"N at least 2, got \(1, 3\)"),
        (lambda: pixel_shares(torch.zeros(2, 1, 4, 4)), r"uint8 \(N, K, H, W\) .* got torch.float32 \(2, 1, 4, 4\)"),
        (lambda: FeatureExtractor("classifier")(torch.zeros(2, 1, 4, 4)), "images must be uint8"),
        (lambda: FeatureExtractor("classifier", weights="w.pth"), "network of torch-fidelity, such as inception"),
        (lambda: FeatureExtractor("json:JSONDecoder"), "must be a module of torch, or a function, of images"),
        (lambda: FeatureExtractor("json:nothing"), "the module json has no 'nothing'"),
        (lambda: FeatureExtractor("no_such_module:f"), "no_such_module, which cannot be imported: No module named"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, message):
    with pytest.raises((ValueError, TypeError, ImportError), match=message):
        measure()


def test_the_classifier_is_found_by_name(digits):
    extractor = FeatureExtractor("classifier")
    torch.testing.assert_close(extractor(digits[:9], batch_size=4), image_features(digits[:9]), rtol=1e-4, atol=1e-4)
    assert extractor.extract(digits[:2])[1] is None
    assert len(extractor.identity) == 16


def test_any_module_or_function_takes_its_place(tmp_path, monkeypatch, digits):
    (tmp_path / "my_networks.py").write_text(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Dropout())\n"
        "network.train()\n"
        "def means(images): return images.mean((2, 3))\n"
        "def maps(images): return images\n"
        "def pairs(images, others): return images\n"
    )
    monkeypatch.chdir(tmp_path)
    images = digits[:5]
    expected = nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, 2).flatten(1)
    extractor = FeatureExtractor("my_networks:network")
    torch.testing.assert_close(extractor(images, batch_size=2), expected)  # in evaluation mode
    assert extractor.identity
    assert not FeatureExtractor("my_networks:means").identity
    torch.testing.assert_close(FeatureExtractor("my_networks:means")(images), expected.mean(1, keepdim=True))
    with pytest.raises(ValueError, match=r"maps must return features \(5, F\) .* got \(5, 1, 32, 32\)"):
        FeatureExtractor("my_networks:maps")(images)
    for name in ("my_networks:pairs", "os:system", "math:floor"):
        with pytest.raises(ValueError, match=rf"{name} does not take images \(N, K, H, W\) as its only argument: "):
            FeatureExtractor(name)(images)
    for name in (":", "os:", ":network", ".my_networks:network", "os..path:join"):
        with pytest.raises(ValueError, match=rf"features of your own are MODULE:NAME, .* got '{re.escape(name)}'"):
            FeatureExtractor(name)


class Payload:
    def __reduce__(self):
        return (print, ("this file ran code",))


def test_weights_come_from_a_file_that_holds_nothing_else(tmp_path, offline, capsys):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(
        OSError, match=r"inception could not be downloaded .*no network.*, from https://.*\.pth, .*--weights FILE"
    ):
        FeatureExtractor("inception")
    torch.save({"a": Payload()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth is not a file of weights alone"):
        FeatureExtractor("inception", weights=tmp_path / "code.pth")
    assert "ran code" not in capsys.readouterr().out
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth is not a file of weights alone"):
        FeatureExtractor("inception", weights=tmp_path / "text.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of inception"):
        FeatureExtractor("inception", weights=tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"missing.pth"):
        FeatureExtractor("inception", weights=tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="must be classifier, inception, clip.*vgg16, or MODULE:NAME.* got 'resnet'"):
        FeatureExtractor("resnet")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.registry", None)
    with pytest.raises(ImportError, match=r"'inception' need torch-fidelity: pip install \"dcgan\[evaluate\]\""):
        FeatureExtractor("inception")


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity(tmp_path, monkeypatch, digits):
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "inception.pth"
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *_, **__: (_ for _ in ()).throw(OSError))
    monkeypatch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.save(None, path)
    network = library.FeatureExtractorInceptionV3("n", ["2048", "logits_unbiased"], str(path))
    monkeypatch.undo()
    torch.save(network.state_dict(), path)
    extractor = FeatureExtractor("inception", weights=path)
    features, logits = extractor.extract(digits[:3], batch_size=2)
    expected = network(digits[:3].expand(-1, 3, -1, -1))
    for found, of_library in zip((features, logits), expected, strict=True):
        torch.testing.assert_close(found, of_library, rtol=1e-3, atol=1e-9)
