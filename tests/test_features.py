"""Pooled features against the authors' networks written out, the probe against scikit-learn, and near-duplicates."""

import errno
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import said
from image_files import folder_of, noise
from networks import randomize_batchnorms
from original_networks import AuthorsDiscriminator, batchnorm, estimate_statistics, theano_conv
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional

from dcgan import Discriminator, Generator
from dcgan._dedup import hash_folder, near_duplicates, redundant
from dcgan._labelled import load_labelled
from dcgan.cli import main
from dcgan.features import (
    REGULARIZATIONS,
    _LinearSVM,
    classify_by_neighbor,
    linear_probe,
    nearest_neighbors,
    pooled_features,
)


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (lambda: Discriminator.from_architecture("imagenet32"), 28672),
        (lambda: Discriminator.from_architecture("svhn"), 7168),
        (lambda: Discriminator.from_architecture("paper", image_size=32), 14336),
        (lambda: Discriminator(image_size=(48, 32), base_channels=4, channels=1), (4 + 8 + 16) * 16),
        (lambda: Discriminator(image_size=28, base_channels=4), (4 + 8) * 16),
        (lambda: Discriminator(image_size=16, base_channels=4, stages=4), (4 + 8) * 16 + 16 * 4 + 32),
    ],
)
def test_features_are_as_many_as_published(network, count):
    network = network()
    height, width = torch.Size(np.broadcast_to(network.config["image_size"], 2).tolist())
    images = torch.rand(2, network.config["channels"], height, width)
    assert pooled_features(network, images).shape == (2, count)


def authors_features(network, images, statistics):
    """`features` of `svhn_semisup_analysis.py`, as its text says: maxima of 4×4, 2×2 and 1×1 windows."""
    w, w2, g2, b2, w3, g3, b3, _ = network.params
    statistics = list(statistics)
    h = functional.leaky_relu(theano_conv(images, w, 2, 2), 0.2)
    h2 = functional.leaky_relu(batchnorm(theano_conv(h, w2, 2, 2), g2, b2, statistics), 0.2)
    h3 = functional.leaky_relu(batchnorm(theano_conv(h2, w3, 2, 2), g3, b3, statistics), 0.2)
    pooled = [functional.max_pool2d(m, size).flatten(1) for m, size in ((h, 4), (h2, 2), (h3, 1))]
    return torch.cat(pooled, 1)


def svhn_networks():
    theirs = AuthorsDiscriminator(c=2)
    ours = Discriminator.from_architecture("svhn", base_channels=2)
    for own, array in zip(ours.parameters(), theirs.params, strict=True):
        own.data.copy_(array.flip(2, 3) if array.dim() == 4 else array.t())
    return theirs, ours


def test_features_are_those_of_the_authors_with_their_frozen_statistics():
    theirs, ours = svhn_networks()
    train, images = torch.rand(300, 3, 32, 32) * 2 - 1, torch.rand(5, 3, 32, 32) * 2 - 1
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    # Two whole batches of 128: the rest of 44 would count as much as one of them.
    expected = authors_features(theirs, images, estimate_statistics(theirs, train[:256].split(128)))
    ours.train()
    features = pooled_features(ours, images, batchnorm_images=train, batch_size=2)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert (pooled_features(ours, images) - expected).abs().max() > 0.1  # the running ones are others
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert all(module.training for module in ours.modules())

    few = authors_features(theirs, images, estimate_statistics(theirs, [train[:50]]))
    torch.testing.assert_close(pooled_features(ours, images, batchnorm_images=train[:50]), few, rtol=1e-4, atol=1e-4)


def test_every_precision_and_kind_of_image_gives_the_same_features():
    network = randomize_batchnorms(Discriminator(image_size=32, base_channels=4)).float()
    pixels = torch.from_numpy(np.stack([noise(32, 32, seed=seed) for seed in range(7)])).permute(0, 3, 1, 2)
    expected = pooled_features(network, pixels.double() / 127.5 - 1)
    torch.testing.assert_close(pooled_features(network, pixels, batch_size=3), expected, rtol=1e-4, atol=1e-5)
    half = pooled_features(network, pixels, precision="bf16")
    assert half.dtype == torch.float32
    assert 1e-4 < (half - expected).abs().max() < 0.05 * expected.abs().max()
    other = pooled_features(network, pixels / 255)
    torch.testing.assert_close(pooled_features(network, pixels, value_range=(0, 1)), other, rtol=1e-4, atol=1e-5)
    double = pooled_features(network.double(), pixels, grid=2)
    maxima = functional.max_pool2d(expected.view(7, -1, 4, 4), 2).flatten(1)
    torch.testing.assert_close(double, maxima, rtol=1e-4, atol=1e-5)


def test_features_come_from_any_module_and_any_function():
    images = torch.rand(5, 3, 20, 12)

    class Foreign(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.body, self.kind = nn.Conv2d(3, 2, 3), kind

        def features(self, image):
            maps = [self.body(image), self.body(image).relu()]
            return maps[0] if self.kind == "tensor" else dict(enumerate(maps)) if self.kind == "dict" else maps

    one = Foreign("tensor")
    first = functional.adaptive_max_pool2d(one.body(images), 4).flatten(1)
    torch.testing.assert_close(pooled_features(one, images), first)
    for kind in ("dict", "list"):
        network = Foreign(kind)
        network.load_state_dict(one.state_dict())
        torch.testing.assert_close(pooled_features(network, images), torch.cat([first, first.relu()], 1))
    torch.testing.assert_close(pooled_features(one.features, images), first)
    sequence = nn.Module()  # as torchvision's networks have it
    sequence.features = nn.Sequential(one.body)
    torch.testing.assert_close(pooled_features(sequence, images), first)


@pytest.mark.gpu
def test_features_are_computed_where_the_network_is_and_returned_where_the_images_are():
    network, images = Discriminator(image_size=32, base_channels=8), torch.rand(300, 3, 32, 32) * 2 - 1
    expected = pooled_features(network, images, batchnorm_images=images)
    network.cuda()
    torch.testing.assert_close(
        pooled_features(network, images, batchnorm_images=images), expected, rtol=1e-2, atol=1e-2
    )
    half = pooled_features(network, images.cuda(), batchnorm_images=images.cuda(), precision="bf16")
    assert half.is_cuda
    torch.testing.assert_close(half.cpu(), expected, rtol=0.1, atol=0.1)
    distances, indices = nearest_neighbors(half, half)
    assert indices[:, 0].tolist() == list(range(300))
    assert distances.max() == 0


def test_progress_counts_images():
    calls = []
    network = Discriminator(image_size=16, base_channels=2)
    pooled_features(network, torch.rand(5, 3, 16, 16), batch_size=2, progress=lambda *x: calls.append(x))
    assert calls == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("network", "options", "error", "message"),
    [
        (nn.Sequential(), {}, TypeError, "network must have features"),
        (lambda x: x.flatten(1), {}, ValueError, r"must be maps \(N, C, h, w\), got \(2, 768\)"),
        (lambda x: [], {}, ValueError, "got none"),
        (lambda x: x, {"batchnorm_images": torch.rand(2, 3, 16, 16)}, TypeError, "need a module, got a function"),
        (lambda x: x, {"grid": 0}, ValueError, "grid and batch_size must be at least 1, got 0 and 256"),
        (lambda x: x, {"images": torch.rand(3, 16, 16)}, ValueError, r"got \(3, 16, 16\) of torch.float32"),
        (lambda x: x, {"images": torch.zeros(2, 3, 16, 16).long()}, ValueError, "of torch.int64"),
        (lambda x: x, {"images": torch.zeros(0, 3, 16, 16)}, ValueError, "at least one"),
        (Discriminator(image_size=32), {}, ValueError, r"must have shape \(N, 3, 32, 32\)"),
    ],
)
def test_what_gives_no_features_is_refused(network, options, error, message):
    options = {"images": torch.rand(2, 3, 16, 16)} | options
    with pytest.raises(error, match=message):
        pooled_features(network, options.pop("images"), **options)


def blobs(count, classes, features, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    centres = np.random.default_rng(7).normal(size=(classes, features))
    points = rng.normal(size=(count, features)) * spread + centres[labels]
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("shape", [(90, 3, 150), (90, 2, 150), (200, 3, 20)])
def test_the_fit_in_the_span_of_the_images_is_that_of_scikit_learn(shape):
    x, y = (tensor.numpy() for tensor in blobs(*shape, seed=0, spread=4.0))
    x[1] = x[0]  # a singular matrix of inner products
    test = blobs(400, *shape[1:], seed=1, spread=4.0)[0].numpy()
    svm = _LinearSVM(x, y)
    for c in REGULARIZATIONS:
        theirs = LinearSVC(C=c, dual=False).fit(x.astype(np.float64), y).predict(test)
        assert (svm.fit(c, test) == theirs).mean() > 0.99


def test_all_labels_are_used_as_the_protocol_says():
    (x, y), (test, test_y) = blobs(300, 4, 12, 0, spread=2.0), blobs(150, 4, 12, 1, spread=2.0)
    order = np.random.default_rng((3, 0)).permutation(300)
    held, rest = order[:60], order[60:]
    expected = {
        c: np.mean(LinearSVC(C=c, dual=False).fit(x[rest], y[rest]).predict(x[held]) != y[held].numpy())
        for c in REGULARIZATIONS
    }
    found = linear_probe(x, y, test, test_y, seed=3)
    assert found.validation_errors == pytest.approx(expected, abs=1 / 60)
    assert found.validation_errors[found.c] == min(found.validation_errors.values())
    theirs = LinearSVC(C=found.c, dual=False).fit(x, y)  # to all of them, those for validation included
    assert found.test_errors == pytest.approx([np.mean(theirs.predict(test) != test_y.numpy())], abs=1 / 150)
    assert found.spread is None
    assert found.test_error == found.test_errors[0] > 0


def test_few_labels_are_drawn_as_often_as_the_protocol_says():
    (x, y), (test, test_y) = blobs(400, 4, 12, 0, spread=2.0), blobs(150, 4, 12, 1, spread=2.0)
    calls = []
    options = {"per_class": 5, "validation": 100, "validation_draws": 3}
    found = linear_probe(x, y, test, test_y, draws=8, progress=lambda *call: calls.append(call), **options)
    assert calls == [(done, 7 * 3 + 8) for done in range(1, 30)]
    assert len(found.test_errors) == 8
    assert len(set(found.test_errors)) > 1
    assert found.test_error == pytest.approx(sum(found.test_errors) / 8)
    mean = found.test_error
    assert found.spread == pytest.approx(1.96 * (sum((e - mean) ** 2 for e in found.test_errors) / 8) ** 0.5)
    fewer = linear_probe(x, y, test, test_y, draws=3, **options)
    assert fewer.test_errors == found.test_errors[:3]  # a draw depends on its number alone
    assert linear_probe(x, y, test, test_y, draws=3, seed=1, **options).test_errors != fewer.test_errors
    more = linear_probe(x, y, test, test_y, draws=3, per_class=60, validation=100)
    assert more.test_error < fewer.test_error


def test_what_can_be_separated_is_separated_and_noise_is_not():
    x, y = blobs(200, 4, 30, 0, spread=0.1)
    test, test_y = blobs(100, 4, 30, 1, spread=0.1)
    assert linear_probe(x, y, test, test_y).test_error == 0
    assert linear_probe(x, y, test, test_y, per_class=2, validation_draws=1, draws=3).test_error < 0.05
    noise_y = torch.from_numpy(np.random.default_rng(3).integers(0, 4, 100))
    assert 0.5 < linear_probe(x, y, test, noise_y).test_error < 1
    names = linear_probe(x, y * 10 + 7, test, test_y * 10 + 7)  # labels need not count from 0
    assert names.test_error == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(20)}, TypeError, "labels must be integers, got torch.float32"),
        ({"labels": torch.zeros(19).long()}, ValueError, r"labels must have shape \(20,\), as there are features"),
        ({"test_features": torch.rand(5, 4)}, ValueError, "must be as many, got 3 and 4"),
        ({"features": torch.rand(20, 3, 1)}, ValueError, r"features must have shape \(N, F\), got \(20, 3, 1\)"),
        ({"features": torch.full((20, 3), torch.nan)}, ValueError, "some of features are not finite"),
        ({"regularizations": (0.1, -1)}, ValueError, r"must be positive numbers, at least one, got \(0.1, -1\)"),
        ({"regularizations": ()}, ValueError, "at least one"),
        ({"validation": 20}, ValueError, "validation must leave some of the 20 training images, got 20"),
        ({"per_class": 0}, ValueError, "must be at least 1, got 0, 10 and 100"),
        ({"per_class": 30}, ValueError, "per_class must be at most [0-9]+, the training images of class 0"),
    ],
)
def test_bad_input_of_the_probe_is_refused(change, error, message):
    x, y = torch.rand(20, 3), torch.arange(20) % 2
    arguments = {"features": x, "labels": y, "test_features": x[:5], "test_labels": y[:5]} | change
    with pytest.raises(error, match=message):
        linear_probe(**arguments)


def test_neighbours_are_those_of_scikit_learn():
    queries, references = blobs(50, 3, 8, 0)[0], blobs(70, 3, 8, 1)[0]
    distances, indices = nearest_neighbors(queries, references, k=5, batch_size=16)
    expected, order = NearestNeighbors(n_neighbors=5).fit(references.numpy()).kneighbors(queries.numpy())
    assert np.array_equal(indices, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    labels = blobs(70, 3, 8, 1)[1]
    theirs = KNeighborsClassifier(1).fit(references.numpy(), labels.numpy()).predict(queries.numpy())
    assert np.array_equal(classify_by_neighbor(queries, references, labels), theirs)


def test_a_copy_among_bright_images_is_at_distance_0():
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    distances, indices = nearest_neighbors(images[[4, 17]], images, k=2)
    assert indices[:, 0].tolist() == [4, 17]
    assert distances[:, 0].tolist() == [0, 0]
    off_by_one = images[4:5].clone()
    off_by_one[0, 0, 0, 0] ^= 1
    assert nearest_neighbors(off_by_one, images)[0].item() == 1


def test_the_nearest_of_near_copies_is_found():
    torch.manual_seed(0)
    originals = torch.rand(200, 7168) * 20
    references = torch.cat([originals + scale * torch.randn_like(originals) for scale in (5e-3, 0)])
    _, indices = nearest_neighbors(originals + 1e-3 * torch.randn_like(originals), references)
    assert indices[:, 0].tolist() == list(range(200, 400))


def test_neighbours_that_cannot_be_are_refused():
    x = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"must have one shape, got \(4, 3\) and \(4, 2\)"):
        nearest_neighbors(x, x[:, :2])
    with pytest.raises(ValueError, match="k must be from 1 to 4, the number of references, got 5"):
        nearest_neighbors(x, x, k=5)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(3,\)"):
        classify_by_neighbor(x, x, torch.zeros(3).long())


def class_folders(path, counts, side=16):
    for number, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (side, side), (80 * number, index, 0)).save(path / name / f"{index:03}.png")
    return path


def test_folders_are_read_with_their_classes(tmp_path, caplog):
    root = class_folders(tmp_path / "one", {"a": 8, "b": 7})
    train, test = (load_labelled("folder", split, root=root, image_size=16) for split in ("train", "test"))
    assert (len(train.labels), len(test.labels)) == (12, 3)
    seen = torch.cat([train.images, test.images])[:, :2, 0, 0].tolist()
    assert sorted(seen) == [[80 * (i >= 8), i - 8 * (i >= 8)] for i in range(15)]
    for images, labels in (train, test):
        assert torch.equal(images[:, 0, 0, 0] // 80, labels)
    some = load_labelled("folder", "train", root=root, image_size=16, number=4, seed=1)
    assert some.images.shape == (4, 3, 16, 16)

    class_folders(tmp_path / "two/train", {"a": 3, "b": 4})
    class_folders(tmp_path / "two/val", {"a": 1, "b": 1})
    train, test = (load_labelled("folder", split, root=tmp_path / "two", image_size=16) for split in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0] * 3 + [1] * 4, [0, 1])
    Image.new("RGB", (16, 16), "white").save(tmp_path / "two/val/a/000.png")  # a change that must not go unnoticed
    changed = load_labelled("folder", "test", root=tmp_path / "two", image_size=16)
    assert changed.images[0].min() == 255
    assert not caplog.messages  # for those of one split are taken


def test_folders_of_classes_hold_all_formats_that_training_reads(tmp_path):
    root = class_folders(tmp_path / "formats", {"a": 3, "b": 3})
    for name in ("gif", "ppm", "tga"):
        Image.new("RGB", (16, 16), "white").save(root / f"b/white.{name}")
    splits = [load_labelled("folder", split, root=root, image_size=16) for split in ("train", "test")]
    assert sum(int((part.images.amin((1, 2, 3)) == 255).sum()) for part in splits) == 3
    assert sum(len(part.labels) for part in splits) == 9


def test_folders_without_classes_and_damaged_images_are_reported(tmp_path):
    folder_of(tmp_path / "flat", 3)
    with pytest.raises(ValueError, match="root must hold a folder of images for each class, but .* holds the image"):
        load_labelled("folder", "train", root=tmp_path / "flat")
    class_folders(tmp_path / "single", {"a": 3})
    with pytest.raises(ValueError, match="at least two classes, got .*single with a"):
        load_labelled("folder", "train", root=tmp_path / "single")
    class_folders(tmp_path / "unlike/train", {"a": 2, "b": 2})
    class_folders(tmp_path / "unlike/test", {"a": 2, "c": 2})
    with pytest.raises(ValueError, match="only one of them has b, c"):
        load_labelled("folder", "train", root=tmp_path / "unlike")
    with pytest.raises(ValueError, match="one of the labelled sets digits, .*, got 'celeba'"):
        load_labelled("celeba", "train")
    damaged = class_folders(tmp_path / "damaged", {"a": 8, "b": 7})
    file = damaged / "a/003.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a/003.png: "):
        load_labelled("folder", "train", root=damaged, image_size=16)
    left = [load_labelled("folder", s, root=damaged, image_size=16, skip_bad=True) for s in ("train", "test")]
    assert sum(len(part.labels) for part in left) == 14


def test_missing_sets_say_what_to_download(tmp_path, offline):
    for name, what in {"mnist": "ubyte.gz", "cifar10": "cifar-10-python.tar.gz", "svhn": "train_32x32.mat"}.items():
        with pytest.raises(FileNotFoundError, match=f"{name} is not readable in .*{what}"):
            load_labelled(name, "test", root=tmp_path)


def test_mnist_is_read_with_its_labels(real_data):
    # The training split is six times as long to pack.
    images, labels = load_labelled("mnist", "test", root=real_data, image_size=32, channels=1, number=1200)
    assert images.shape == (1200, 1, 32, 32)
    wrong = classify_by_neighbor(images[:200], images[200:], labels[200:]) != labels[:200]
    assert wrong.float().mean() < 0.25  # labels that belong to other images are wrong in 9 of 10


@pytest.fixture
def model(tmp_path):
    Generator(image_size=16, base_channels=4, channels=1).save_pretrained(tmp_path / "model")
    Discriminator(image_size=16, base_channels=4, channels=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_classifies_and_keeps_features(model, tmp_path, capsys):
    cache = tmp_path / "cache"
    few = ("--number", 200, "--test-number", 60, "--cache-dir", cache)
    out = said(capsys, "features", model, *few, "--out", tmp_path / "a")
    table = [line.split() for line in out.splitlines()[1:5]]
    assert [row[0] for row in table] == ["features", "pixels", "random", str(model)]
    assert table[1][1] == "256"
    assert table[3][1] == "192"
    assert "200 training and 60 test images 16x16x1, 10 classes" in out
    record = json.loads((tmp_path / "a/results.json").read_text())
    assert record["results"]["pixels"]["test_error"] < 0.3
    assert f"{record['results']['pixels']['test_error']:.2%}" in out
    assert record["training_images"] == 200
    assert set(record["distances"]) == {"pixels", "features"}
    with Image.open(tmp_path / "a/nearest.png") as picture:
        assert picture.size == (20 + 6 + 74 + 6 + 74, 146)

    kept = {path: path.stat().st_mtime_ns for path in cache.glob("features-*.npy")}
    assert len(kept) == 2  # a random network and the model
    again = said(capsys, "features", model, *few, "--out", tmp_path / "b")
    assert again.replace("/b", "/a") == out
    assert {path: path.stat().st_mtime_ns for path in cache.glob("features-*.npy")} == kept
    said(capsys, "features", model, *few, "--out", tmp_path / "c", "--batchnorm", "running", "--nearest", 0)
    assert len(list(cache.glob("features-*.npy"))) == 3
    assert not (tmp_path / "c/nearest.png").exists()


def test_the_command_draws_few_labels(model, tmp_path, capsys):
    options = ("--per-class", 3, "--draws", 4, "--nearest", 0, "--no-cache", "--out", tmp_path / "out")
    out = said(capsys, "features", model, "--number", 300, "--test-number", 50, *options)
    assert "mean ± 1.96 standard deviations of 4 draws of 3 images per class" in out
    assert out.count(" ± ") == 4
    assert "1-NN" not in out
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert all(len(result["test_errors"]) == 4 for result in record["results"].values())


def test_a_discriminator_alone_has_no_samples(tmp_path, capsys):
    Discriminator(image_size=16, base_channels=2, channels=1).save_pretrained(tmp_path / "d")
    arguments = ("features", tmp_path / "d", "--number", 60, "--test-number", 20, "--out", tmp_path / "out")
    assert main(list(map(str, arguments))) == 0
    assert "no samples: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_mistakes_of_the_command_are_reported(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dcgan.features.pooled_features", None)  # each is found before anything is computed
    (tmp_path / "results.json").write_text("{}")
    assert "results.json exists: --force" in said(capsys, "features", model, "--out", tmp_path, code=2)
    assert "must be a folder, but" in said(capsys, "features", "--out", tmp_path / "results.json", code=2)
    assert "does not exist" in said(capsys, "features", model, "--root", tmp_path / "nowhere", code=2)
    message = said(capsys, "features", model, "--per-class", 1000, "--out", tmp_path / "o", "--nearest", 0, code=2)
    assert "--per-class must be at most" in message
    assert "no model of that name" in said(capsys, "features", "nothing", code=2)


def hashes_with(distance_from_first):
    rng = np.random.default_rng(1)
    first = rng.integers(0, 2**63, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)) for count in distance_from_first]
    return np.array([first, *(first ^ np.uint64(flip) for flip in flips)])


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 16])
def test_pairs_are_all_those_within_the_distance(distance):
    rng = np.random.default_rng(0)
    hashes = np.concatenate([rng.integers(0, 2**63, 300, np.uint64), hashes_with([0, 1, 3, 4, 5, 7, 8, 16, 17])])
    hashes = rng.permutation(np.concatenate([hashes, hashes[:5]]))
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(int)
    differing = np.abs(bits[:, None] - bits[None]).sum(2)
    expected = {(i, j, differing[i, j]) for i, j in np.argwhere(np.triu(differing <= distance, 1))}
    pairs = near_duplicates(hashes, distance)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(pairs) == len(expected) > 5
    assert (np.diff(pairs[:, 2]) >= 0).all()

    gone = redundant(pairs, len(hashes))
    left = differing[~gone][:, ~gone]
    assert (left[np.triu_indices(len(left), 1)] > distance).all()
    assert all((differing[i][~gone] <= distance).any() for i in np.flatnonzero(gone))
    with pytest.raises(ValueError, match="distance must be from 0 to 16 bits, got 17"):
        near_duplicates(hashes, 17)


def smooth(seed, side=64):
    coarse = Image.fromarray(noise(6, 6, seed=seed))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def test_near_duplicates_of_a_folder_are_found_and_moved(tmp_path, capsys):
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for seed in range(12):
        smooth(seed).save(root / f"{seed:02}.png")
    smooth(3).save(root / "deep/small.jpg", quality=70)
    smooth(5, side=90).save(root / "copy.png")
    (root / "broken.png").write_bytes(b"no image")
    out = tmp_path / "pairs.png"
    moved = tmp_path / "moved"
    assert main(["dedup", str(root), "--out", str(out), "--move-to", str(moved)]) == 0
    said_out, said_err = capsys.readouterr()
    assert "14 images, 2 pairs of near-duplicates, 2 images redundant" in said_out
    assert f"skipped {root / 'broken.png'}: " in said_err
    assert sorted(path.name for path in moved.rglob("*.*")) == ["copy.png", "small.jpg"]
    assert (moved / "deep/small.jpg").exists()
    with Image.open(out) as picture:
        assert picture.size == (2 * (192 + 8), 96 + 8)
        left, right = (np.asarray(picture.crop((4 + 96 * i, 4, 100 + 96 * i, 100)), float) for i in (0, 1))
    assert np.abs(left - right).mean() < 12
    assert "12 images, 0 pairs" in said(capsys, "dedup", root, "--out", tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_links_are_no_duplicates_and_what_they_lead_to_stays(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    root = tmp_path / "root"
    root.symlink_to("real")  # the folder itself may be a link
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("root/b.png", "root/c.png", "root/d.png", "elsewhere/q.png"):
        smooth(1).save(tmp_path / name)
    (root / "a.png").symlink_to("b.png")  # before it in the order of the paths
    (root / "e.png").symlink_to("d.png")
    (root / "m").symlink_to(elsewhere)
    before = {path: path.lstat().st_ino for path in (*root.iterdir(), *elsewhere.iterdir())}
    images = hash_folder(root, workers=1)
    assert images.files == [str(root / name) for name in ("b.png", "c.png", "d.png", "m/q.png")]
    assert (images.linked, images.left_out) == ({str(root / name) for name in ("b.png", "d.png", "m/q.png")}, 2)

    arguments = ["dedup", root, "--out", tmp_path / "pairs.png", "--move-to"]
    for inside in (root / "moved", tmp_path / "real/deep/moved", elsewhere / "../real/moved"):
        assert "--move-to must be outside of" in said(capsys, *arguments, inside, code=2)
    text = said(capsys, *arguments, tmp_path / "moved")
    assert "2 links to images that are found under another name as well, left out" in text
    assert "4 images, 6 pairs of near-duplicates, 3 images redundant" in text
    assert f"1 image moved to {tmp_path / 'moved'}\n2 redundant images not moved, since links lead there" in text
    assert [path.name for path in (tmp_path / "moved").rglob("*")] == ["c.png"]
    del before[root / "c.png"]
    assert {path: path.lstat().st_ino for path in (*root.iterdir(), *elsewhere.iterdir())} == before
    assert "3 images" in said(capsys, *arguments, tmp_path / "again", "--force")
    assert not (tmp_path / "again").exists()


def test_a_disk_that_fills_up_while_images_are_moved_keeps_them(tmp_path, capsys, monkeypatch):
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a.png", "b.png"):
        smooth(1).save(root / name)

    def other_disk(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(source, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", source)

    arguments = ["dedup", root, "--out", tmp_path / "pairs.png", "--move-to", tmp_path / "moved"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil.os, "rename", other_disk)
        patch.setattr(shutil, "copyfile", full)
        message = said(capsys, *arguments, code=1)
    assert f"{tmp_path / 'moved/b.png'}: No space left on device, so that {root / 'b.png'} stays" in message
    assert list((tmp_path / "moved").iterdir()) == []
    assert sorted(path.name for path in root.iterdir()) == ["a.png", "b.png"]


def test_hashes_are_those_of_the_library(tmp_path):
    imagehash = pytest.importorskip("imagehash")
    for seed in range(3):
        smooth(seed).convert("L").save(tmp_path / f"{seed}.png")
    hashed = hash_folder(tmp_path, workers=2)
    expected = [imagehash.phash(Image.open(file)).hash.flatten() for file in hashed.files]
    bits = np.unpackbits(hashed.hashes.view(np.uint8).reshape(-1, 8), axis=1)
    assert np.array_equal(bits, np.array(expected))


def test_mistakes_of_dedup_are_reported(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / "images", 2)
    (tmp_path / "old.png").write_bytes(b"")
    assert "--out must be a .png" in said(capsys, "dedup", tmp_path, "--out", tmp_path / "a.jpg", code=2)
    assert "old.png exists: --force" in said(capsys, "dedup", tmp_path, "--out", tmp_path / "old.png", code=2)
    assert "takes a new folder" in said(capsys, "dedup", tmp_path, "--move-to", tmp_path, code=2)
    assert "does not exist" in said(capsys, "dedup", tmp_path / "nowhere", code=2)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert 'pip install "dcgan[dedup]"' in said(capsys, "dedup", tmp_path / "images", code=2)
