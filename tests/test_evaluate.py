"""`dcgan evaluate`: the figures that it prints, against torch-fidelity on the same images, and what it keeps."""

import json

import numpy as np
import pytest
import torch
from commands import said
from image_files import folder_of
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dcgan import Generator, data
from dcgan.cli import _real_images
from dcgan.generate import sample_uint8
from dcgan.metrics import frechet_distance, image_features, pixel_shares


def figures_of(path):
    return {key: figure["value"] for key, figure in json.loads(path.read_text())["figures"].items()}


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    generator = Generator(image_size=16, base_channels=4, channels=1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)  # so that its images differ
    generator.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_figures_are_of_the_images_that_are_named(model, tmp_path, capsys):
    cache, out = tmp_path / "cache", tmp_path / "a.json"
    options = ("--data", "digits", "-n", 1200, "--real-number", 300, "--seed", 3, "--cache-dir", cache)
    text = said(capsys, "evaluate", model, *options, "--out", out)
    images = data.load("digits", image_size=16, channels=1)
    real = images.batch(np.sort(np.random.default_rng(0).permutation(1797)[:300]))
    fake = sample_uint8(Generator.from_pretrained(model), 1200, seed=3)
    figures = figures_of(out)
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(image_features(real), image_features(fake)))
    assert "digits, train: 300 images, of 1,797, at 16x16x1 by crop" in text
    assert "1,200 images of seed 3, by running BatchNorm statistics" in text
    assert f"{figures['frechet_distance']:.4g}" in text
    assert "100 subsets of 300 of 300 images" in text
    assert "among 300 images of either kind" in text
    assert "± 1 standard deviation" in text
    record = json.loads(out.read_text())
    assert (record["number"], record["real_number"], record["resize"], record["features"]) == (
        1200,
        300,
        "crop",
        "classifier",
    )

    [kept] = cache.glob("reference-digits-train-16x16x1-crop-300-classifier-*.npz")
    time = kept.stat().st_mtime_ns
    assert said(capsys, "evaluate", model, *options, "--out", tmp_path / "b.json").replace("b.json", "a.json") == text
    assert kept.stat().st_mtime_ns == time
    assert (tmp_path / "b.json").read_bytes() == out.read_bytes()


def test_kept_statistics_are_of_one_set_size_count_and_network(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import torch\nnetwork = torch.nn.Flatten()\ndef means(x): return x.mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "images", 9)
    monkeypatch.setenv("DCGAN_CACHE", str(tmp_path / "cache"))

    def kept(*options):
        said(capsys, "evaluate", model, "-n", 8, "--force", *options)
        return len(list((tmp_path / "cache").glob("reference-*.npz")))

    assert kept("--root", "images") == 1
    assert kept("--root", "images", "--seed", 5) == 1
    assert kept("--root", "images", "--real-number", 6) == 2
    assert kept("--root", "images", "--resize", "squash") == 3
    assert kept("--root", "images", "--features", "own:network") == 4
    assert kept("--root", "images", "--features", "own:means") == 4  # a function, whose code is not known
    assert kept("--root", "images", "--no-cache") == 4
    Image.new("RGB", (20, 20), "red").save(next((tmp_path / "images").glob("*.png")))
    assert kept("--root", "images") == 5


def test_a_run_is_measured_on_its_own_data(model, tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / "images", 6)
    (model / "recipe.yaml").write_text(f"data: folder\nroot: {tmp_path / 'images'}\nresize: squash\n")
    options = ("-n", 5, "--cache-dir", tmp_path / "cache", "--out", tmp_path / "out.json", "--force")
    assert "folder, train: 6 images, all, at 16x16x1 by squash" in said(capsys, "evaluate", model, *options)
    assert "by crop" in said(capsys, "evaluate", model, *options, "--resize", "crop")
    folder_of(tmp_path / "others", 7)
    assert "folder, train: 7 images" in said(capsys, "evaluate", model, *options, "--root", tmp_path / "others")
    assert "digits, train: 4 images" in said(
        capsys, "evaluate", model, *options, "--data", "digits", "--real-number", 4
    )


def test_the_default_is_a_model_on_board_and_its_dataset(tmp_path, capsys, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_real_images, "_PART", 16)
    text = said(capsys, "evaluate", "-n", 40, "--real-number", 30)
    assert "digits: 40 images" in text
    assert "digits, train: 30 images" in text
    assert "written to evaluation.json" in text
    assert "evaluation.json exists: --force" in said(capsys, "evaluate", "-n", 40, code=2)


class Projection(nn.Module):
    """A stand-in for Inception: random projections of the image at 4x4."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(48, 30, generator=rng))

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        points = functional.adaptive_avg_pool2d(images.float() / 32 - 4, 4).flatten(1) @ self.weight
        return points[:, :20], points[:, 20:]


@pytest.fixture
def library(monkeypatch):
    """torch-fidelity, whose Inception is a stand-in."""
    library = pytest.importorskip("torch_fidelity")
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class StandIn(library.FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = Projection()

        def forward(self, images):
            features, logits = self.network(images)
            return tuple({"2048": features, "logits_unbiased": logits}[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return "2048", "logits_unbiased"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits_unbiased" if metric == "isc" else "2048"

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "inception-v3-compat", StandIn)
    return library


class Pixels(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images.expand(-1, 3, -1, -1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_figures_are_those_of_torch_fidelity(model, tmp_path, capsys, library):
    out = tmp_path / "out.json"
    options = ("--data", "digits", "-n", 260, "--real-number", 240, "--few", "--features", "inception")
    text = said(capsys, "evaluate", model, *options, "--out", out)
    rows = [line.split("  ")[0] for line in text.splitlines()[4:-1]]
    assert rows == [
        "FID",
        "KID",
        "Inception Score",
        "precision",
        "recall",
        "diversity",
        "dead pixels",
        "saturated pixels",
    ]
    images = data.load("digits", image_size=16, channels=1)
    real = images.batch(np.sort(np.random.default_rng(0).permutation(1797)[:240])).contiguous()
    fake = sample_uint8(Generator.from_pretrained(model), 260, seed=0)
    same = {
        "cuda": False,
        "save_cpu_ram": True,
        "cache": False,
        "verbose": False,
        "feature_extractor": "inception-v3-compat",
    }
    expected = library.calculate_metrics(input1=Pixels(fake), input2=Pixels(real), fid=True, isc=True, **same)
    expected |= library.calculate_metrics(input1=Pixels(fake[:240]), input2=Pixels(real), prc=True, **same)
    drawn = {"kid_subset_size": 240, "kid_subsets": 40}
    expected |= library.calculate_metrics(input1=Pixels(fake), input2=Pixels(real), kid=True, **drawn, **same)
    figures = figures_of(out)
    assert figures["frechet_distance"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert figures["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert figures["inception_score"] > 1.01
    assert figures["kernel_distance"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=0.05)
    assert figures["precision"] == pytest.approx(expected["precision"])
    assert figures["recall"] == pytest.approx(expected["recall"])


def test_a_fid_of_few_images_is_refused_unless_asked_for(model, tmp_path, capsys, library):
    options = ("--data", "digits", "--features", "inception", "--out", tmp_path / "out.json")
    message = said(capsys, "evaluate", model, *options, "-n", 9999, code=2)
    assert "a FID takes at least 10,000 images, got -n 9,999" in message
    assert "got real 1,797" in said(capsys, "evaluate", model, *options, code=2)
    assert not (tmp_path / "out.json").exists()
    assert "FID" in said(capsys, "evaluate", model, *options, "-n", 50, "--few")


def test_a_constant_generator_shows_in_every_figure(tmp_path, capsys):
    generator = Generator(image_size=16, base_channels=2, channels=1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    generator.save_pretrained(tmp_path / "grey")
    out = tmp_path / "out.json"
    text = said(capsys, "evaluate", tmp_path / "grey", "--data", "digits", "-n", 60, "--real-number", 60, "--out", out)
    figures = figures_of(out)
    assert [figures[key] for key in ("recall", "dead_pixels", "saturated_pixels")] == [0, 1, 0]
    assert figures["diversity"] == pytest.approx(0, abs=1e-6)
    assert "100.00%" in text
    assert figures["frechet_distance"] > 10


@pytest.mark.parametrize("number", [50, 400])
def test_pixels_of_as_many_real_images_are_counted(number, tmp_path, capsys):
    Generator(image_size=16, base_channels=2, channels=1).save_pretrained(tmp_path / "model")
    options = ("--data", "digits", "--real-number", 300, "--cache-dir", tmp_path / "cache", "-n", number, "--force")
    for _ in range(2):  # the second time from the cache
        text = said(capsys, "evaluate", tmp_path / "model", *options, "--out", tmp_path / "o.json")
    real = data.load("digits", image_size=16, channels=1)
    chosen = np.sort(np.random.default_rng(0).permutation(len(real))[:300])
    counted = chosen[np.sort(np.random.default_rng(1).permutation(300)[: min(number, 300)])]
    shares = pixel_shares(real.batch(counted).contiguous())
    assert f"alike in {min(number, 300)} images; of as many real ones {shares.dead:.2%}" in text
    assert f"of real images {shares.saturated:.2%}" in text


def test_a_conditional_generator_is_judged_by_what_its_classes_teach(tmp_path, capsys):
    torch.manual_seed(0)
    Generator(image_size=16, base_channels=4, channels=1, num_classes=10).save_pretrained(tmp_path / "model")
    options = ("--data", "digits", "-n", 605, "--seed", 3, "--cache-dir", tmp_path / "cache")
    text = said(capsys, "evaluate", tmp_path / "model", *options, "--out", tmp_path / "a.json")
    real, labels = data.load("digits", image_size=16, channels=1).batch(np.arange(1797)), load_digits().target
    fake = sample_uint8(Generator.from_pretrained(tmp_path / "model"), 605, seed=3, labels=np.arange(605) % 10)
    distances = torch.cdist(real.flatten(1).double(), fake.flatten(1).double())
    wrong = np.mean(distances.argmin(1).numpy() % 10 != labels)
    assert figures_of(tmp_path / "a.json")["neighbor_error"] == pytest.approx(wrong, abs=3 / len(labels))
    assert "of 1,797 real images, each by the nearest generated one, in pixels" in text
    assert (
        len(list((tmp_path / "cache").glob("*-16x16x1-crop-*.npy"))) == 2
    )  # the images, packed once, and their labels

    folder_of(tmp_path / "flat", 9)  # without classes
    out = ("--out", tmp_path / "b.json")
    text = said(capsys, "evaluate", tmp_path / "model", "--root", tmp_path / "flat", *options[2:], *out)
    assert "1-NN" not in text


def test_mistakes_are_reported(model, tmp_path, capsys):
    out = ("--out", tmp_path / "out.json")
    assert "--data names the images that" in said(capsys, "evaluate", model, *out, code=2)
    assert "--out must be a .json file" in said(capsys, "evaluate", model, "--out", tmp_path / "a.txt", code=2)
    digits = ("--data", "digits", *out)
    assert "--split test is of mnist, " in said(capsys, "evaluate", model, *digits, "--split", "test", code=2)
    squash = ("--data", "mnist", "--split", "test", "--resize", "squash")
    assert "--split test scales images by crop" in said(capsys, "evaluate", model, *squash, *out, code=2)
    assert "got 'resnet'" in said(capsys, "evaluate", model, *digits, "--features", "resnet", code=2)
    assert "nothing, which cannot be imported" in said(
        capsys, "evaluate", model, *digits, "--features", "nothing:here", code=2
    )
    assert "more than 3 images of either kind, got 3 generated and 1,797 real" in said(
        capsys, "evaluate", model, *digits, "-n", 3, code=2
    )
    assert "no model of that name" in said(capsys, "evaluate", "nothing", *digits, code=2)
    assert "does not exist" in said(capsys, "evaluate", model, "--root", tmp_path / "nowhere", *out, code=2)
    assert "is not the folder of a run" in said(capsys, "evaluate", model, *digits, "--step", "best", code=2)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_the_test_split_of_a_set_is_other_images(tmp_path, capsys, real_data):
    out = ("--cache-dir", tmp_path, "--out", tmp_path / "out.json")
    options = ("--root", real_data, "--split", "test", "-n", 1000, *out)
    text = said(capsys, "evaluate", "mnist", *options)
    assert "mnist, test: 10,000 images, all, at 32x32x1 by crop" in text
    assert 0 < figures_of(tmp_path / "out.json")["frechet_distance"] < 4
    assert len(list(tmp_path.glob("reference-mnist-test-32x32x1-crop-10000-classifier-*.npz"))) == 1
