"""Named datasets and folders: what is read, what is downloaded, and what is said when neither works."""

import io
import itertools
import os
import pickle
import re
import struct
import sys
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from image_files import everything, folder_of, noise
from PIL import Image

from dcgan import _choices, data
from dcgan.data import _sources

pytestmark = pytest.mark.usefixtures("offline")


def test_folders_are_walked_in_order_whatever_their_shape(tmp_path):
    for name in ["b/z.png", "b/deep/er/y.JPG", "a.png", "c/x.webp", ".hidden/n.png", "b/.n.png", "notes.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(noise(8, 8)).save(path)
    found = [os.path.relpath(file, tmp_path) for file in _sources.list_images(tmp_path)]
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
    found = [os.path.relpath(file, root) for file in _sources.list_images(root)]
    assert found == ["0000.png", "link.png", "linked/0000.png", "linked/0001.png"]
    assert found == [os.path.relpath(file, root) for file in _sources.list_images(root)]


def test_every_dataset_name_has_a_reader():
    assert get_args(_choices.DatasetName) == data.DATASETS
    assert {*_sources._READERS, "lsun", "wds", "hf"} == set(data.DATASETS)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images = data.load("digits", image_size=8, channels=1)
    assert np.array_equal(everything(images)[:, 0], np.rint(load_digits().images / 16 * 255))
    large = everything(data.load("digits", image_size=32, channels=1))
    assert large.shape == (1797, 1, 32, 32)
    assert (large.min(), large.max()) == (0, 255)


def test_fake_has_the_pixels_of_torchvision_in_any_torch_context():
    from torchvision.datasets import FakeData

    expected = [np.asarray(FakeData(size=1000, image_size=(3, 64, 64))[index][0]) for index in (0, 999)]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            images = data.load("fake", cache=False)
            batch = images.batch(np.array([0, 999]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(batch.permute(0, 2, 3, 1), expected)


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
    stream = data.load(name, root=tmp_path, image_size=28, channels=1, cache=False)
    assert np.array_equal(everything(pickle.loads(pickle.dumps(stream)))[:, 0], train)


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


def test_stl10_is_its_unlabelled_split(tmp_path, monkeypatch):
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
def test_datasets_of_unpacked_files_are_read_from_root(tmp_path, name, folder):
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
    sent = pickle.dumps(stream)
    del stream  # a database is opened once in a process
    assert torch.equal(everything(pickle.loads(sent)), everything(packed))


def test_lsun_without_lmdb_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r'reading lsun needs lmdb: pip install "dcgan\[lsun\]"$'):
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
        ("lfw", "original host is gone.*{root}/lfw-py/lfw_funneled"),
        ("imagenet", "registered users.*{root}"),
        ("lsun", "dl.yf.io/lsun/scenes/tower_train_lmdb.zip.*{root}/tower_train_lmdb"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_a_dataset_that_cannot_be_downloaded_says_how_to_get_it(tmp_path, monkeypatch, name, remedy, cache):
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


def test_a_dataset_that_is_a_level_away_is_found_and_nothing_is_left_in_the_folder(tmp_path, monkeypatch):
    def download(self):
        Path(self.raw_folder).mkdir(parents=True, exist_ok=True)
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    expected = f"root must be the folder that holds MNIST/raw/train-images-idx3-ubyte, {tmp_path / 'data'}, got "
    for below in (raw, raw.parent):
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(f'{expected}{below}')}$"):
            data.load("mnist", root=below)
    with pytest.raises(
        FileNotFoundError, match=rf"\(no network\): {re.escape(expected)}{tmp_path}\. Download the four"
    ):
        data.load("mnist", root=tmp_path)
    for nowhere in (tmp_path / "new/deep", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=r"\(no network\): Download the four"):
            data.load("mnist", root=nowhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_no_other_folder_is_taken_for_imagenet_or_asked_without_permission(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"imagenet is not readable in .*: ImageNet is for registered users"):
        data.load("imagenet", root=tmp_path / "imagenet")
    (tmp_path / "locked").mkdir()
    exists = Path.exists

    def exists_where_it_may_be_read(self):
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self)

    monkeypatch.setattr(Path, "exists", exists_where_it_may_be_read)
    monkeypatch.setattr("torchvision.datasets.MNIST.download", Mock(side_effect=RuntimeError("no network")))
    with pytest.raises(FileNotFoundError, match=r"mnist is not readable in .*no network.*: Download the four"):
        data.load("mnist", root=tmp_path)


def test_a_folder_for_training_and_one_for_testing_are_told(tmp_path, caplog):
    folder_of(tmp_path / "train", 2)
    assert len(data.load("folder", root=tmp_path, cache=False)) == 2
    assert not caplog.messages
    folder_of(tmp_path / "val", 1)
    assert len(data.load("folder", root=tmp_path, cache=False)) == 3
    assert caplog.messages == [f"{tmp_path} has folders for training and for testing, and the images of both are taken"]


def test_a_folder_of_images_that_is_taken_for_a_dataset_is_told_so(tmp_path):
    hint = "use the dataset 'folder'"
    with pytest.raises(FileNotFoundError, match="svhn is not readable in .* could not be downloaded") as error:
        data.load("svhn", root=tmp_path)
    assert hint not in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"To train on the images that are in .*, {hint}"):
        data.load("svhn", root=folder_of(tmp_path / "pictures", 1))
