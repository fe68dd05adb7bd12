"""`dcgan.data`: opening datasets, streaming them, and batches in a seeded order."""

import errno
import itertools
import multiprocessing
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import REAL, everything, folder_of, noise, python, real
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from dcgan import data

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mnits"}, ValueError, "name must be one of digits, mnist, .* got 'mnits': did you mean 'mnist'"),
        ({"name": "folder"}, ValueError, "the dataset 'folder' needs root, the folder of images"),
        ({"name": "fake", "root": "empty"}, ValueError, "the dataset 'fake' takes no root, got empty"),
        (
            {"name": "folder", "root": "missing"},
            FileNotFoundError,
            "missing must be a folder of images, but does not exist",
        ),
        (
            {"name": "folder", "root": "empty"},
            FileNotFoundError,
            r"empty must hold images at any depth, but holds no file; images end in .apng, ",
        ),
        ({"name": "folder", "root": "file"}, NotADirectoryError, "expected a folder, got the file file"),
        ({"name": "mnist", "root": "file"}, NotADirectoryError, "expected a folder, got the file file"),
        ({"name": "digits", "image_size": 0}, ValueError, "image_size must be positive, .* got 0"),
        ({"name": "digits", "channels": 2}, ValueError, "channels must be 1 .* got 2"),
        ({"name": "digits", "resize": "pad"}, ValueError, "resize must be one of crop, squash, got 'pad'"),
        ({"name": "digits", "workers": -1}, ValueError, "workers must be at least 0, got -1"),
        ({"name": "digits", "max_pixels": 0}, ValueError, "max_pixels must be at least 1, got 0"),
        (
            {"name": "digits", "classes": ["one"]},
            ValueError,
            r"classes apply to lsun only, got \['one'\] for digits",
        ),
        ({"name": "lsun"}, ValueError, r"classes must be a list of names from bedroom_train, .* got \(\)"),
        (
            {"name": "lsun", "classes": "tower_val"},
            ValueError,
            "classes must be a list of names from .* got 'tower_val'",
        ),
        (
            {"name": "lsun", "classes": ["bedrom_train"]},
            ValueError,
            "'bedrom_train': did you mean 'bedroom_train'",
        ),
        (
            {"name": "digits", "skip_bad": True, "cache": False},
            ValueError,
            "skip_bad needs cache=True",
        ),
        (
            {"name": "digits", "cache_dir": "packed", "cache": False},
            ValueError,
            "cache_dir packed is for packed files, which cache=False leaves out: omit one of the two",
        ),
    ],
)
def test_invalid_arguments_are_named(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    with pytest.raises(error, match=message):
        data.load(**arguments)


def test_every_bad_file_is_listed_with_its_reason(spoiled, tmp_path):
    root, bad = spoiled
    with pytest.raises(data.BadImages) as caught:
        data.load("folder", root=root, image_size=16)
    failures = {Path(file).name: reason for file, reason in caught.value.failures}
    assert sorted(failures) == bad
    assert all(failures.values())
    assert "has 100000000 pixels (10000x10000), more than 89478485" in failures["bomb.png"]
    assert failures["text.jpg"] == "is not in a supported format: it begins with b'these are words,'"
    assert failures["empty.png"] == "is empty"
    assert "truncated" in failures["cut.jpg"]
    assert "not a file" in failures["directory.png"]
    assert all(f"{root / name}: {failures[name]}" in str(caught.value) for name in bad)
    assert not list((tmp_path / "cache").glob("*.npy*[!k]")), "nothing is left but a lock"
    assert pickle.loads(pickle.dumps(caught.value)).failures == caught.value.failures


def test_a_stream_raises_at_the_bad_file(spoiled):
    root, _ = spoiled
    images = data.load("folder", root=root, image_size=16, cache=False, workers=2)
    assert images.batch(np.arange(3)).shape == (3, 3, 16, 16)
    with pytest.raises(data.BadImages, match=r"1 unreadable image.*\n.*bomb\.png: .*pixels"):
        images.batch(np.array([0, 1, 3]))  # the third name in order


def test_long_lists_are_capped_in_the_message_only(tmp_path):
    for index in range(25):
        (tmp_path / f"{index:02}.png").touch()
    with pytest.raises(data.BadImages, match="and 5 more") as caught:
        data.load("folder", root=tmp_path, skip_bad=True)  # nothing is left when all are bad
    assert len(caught.value.failures) == 25
    assert len(str(caught.value).splitlines()) == 22


def test_unreadable_permissions_are_a_reason(tmp_path, monkeypatch):
    folder_of(tmp_path / "a", 2)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(data.BadImages, match=r"0000\.png: Permission denied"):
        data.load("folder", root=tmp_path / "a")


def test_the_cache_folder_comes_from_the_environment(monkeypatch):
    assert data.cache_folder() == Path(os.environ["DCGAN_CACHE"])
    monkeypatch.delenv("DCGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert data.cache_folder() == Path("/x/dcgan")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache/dcgan"


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize(
    "arguments", [{}, {"channels": 1, "image_size": (20, 12)}, {"resize": "squash", "channels": 4}]
)
def test_a_stream_gives_the_bytes_of_the_packed_file(tmp_path, workers, arguments):
    root = folder_of(tmp_path / "a", 10)
    Image.fromarray(noise(300, 200)).save(root / "b.jpg")
    Image.fromarray(noise(30, 50, 4)).save(root / "c.webp")
    packed = data.load("folder", root=root, **arguments)
    stream = data.load("folder", root=root, cache=False, workers=workers, **arguments)
    assert (len(stream), stream.image_size, stream.channels, stream.nbytes) == (
        len(packed), packed.image_size, packed.channels, packed.nbytes,
    )  # fmt: skip
    assert stream.path is None
    indices = np.random.default_rng(0).permutation(len(packed))
    assert torch.equal(stream.batch(indices), packed.batch(indices))
    assert stream.batch(indices).is_contiguous(memory_format=torch.channels_last)
    for a, b, _ in zip(data.Batches(stream, 5, flip=True), data.Batches(packed, 5, flip=True), range(7), strict=False):
        assert torch.equal(a, b)


class Numbered:
    """Images whose pixels are their number and column."""

    name, image_size, channels, path, skipped = "numbered", (1, 4), 2, None, []

    def __init__(self, count):
        self.count, self.nbytes = count, 8 * count

    def __len__(self):
        return self.count

    def batch(self, indices):
        pixels = np.empty((len(indices), 1, 4, 2), np.uint8)
        pixels[..., 0], pixels[..., 1] = np.asarray(indices)[:, None, None], np.arange(4)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_order_is_the_documented_function_of_seed_and_epoch():
    batches = data.Batches(Numbered(23), 5, seed=7)
    assert batches.steps_per_epoch == 4
    drawn = [batch[:, 0, 0, 0] for batch in itertools.islice(batches, 9)]
    for step, batch in enumerate(drawn):
        order = np.random.default_rng((7, step // 4)).permutation(23)
        assert np.array_equal(batch, order[step % 4 * 5 : step % 4 * 5 + 5])
    assert len({int(i) for batch in drawn[:4] for i in batch}) == 20, "no image twice in an epoch"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(0, 2**40), st.booleans())
def test_a_resumed_order_is_the_unbroken_one(count, batch_size, start, seed, flip):
    batch_size = min(batch_size, count)
    unbroken = data.Batches(Numbered(count), batch_size, seed=seed, flip=flip)
    resumed = data.Batches(Numbered(count), batch_size, seed=seed, flip=flip, start=start)
    for a, b in zip(itertools.islice(unbroken, start, start + 4), resumed, strict=False):
        assert torch.equal(a, b)


def test_flips_mirror_whole_images_about_half_the_time():
    plain, flipped = data.Batches(Numbered(100), 100), data.Batches(Numbered(100), 100, flip=True)
    mirrored = []
    for a, b in itertools.islice(zip(plain, flipped, strict=True), 20):
        for x, y in zip(a, b, strict=True):
            mirrored.append(torch.equal(x.flip(2), y))
            assert mirrored[-1] or torch.equal(x, y)
    assert 900 < sum(mirrored) < 1100
    assert mirrored[:100] != mirrored[100:200]


def test_seeds_differ():
    orders = {tuple(next(iter(data.Batches(Numbered(50), 50, seed=seed)))[:, 0, 0, 0].tolist()) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 11}, "batch_size must be at most the number of images, 10, got 11"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2, "seed": -1}, "seed=-1"),
        ({"batch_size": 2, "start": -1}, "start=-1"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(Numbered(10), **arguments)


def test_an_error_while_prefetching_reaches_the_loop(spoiled):
    root, _ = spoiled
    with pytest.raises(data.BadImages):
        list(itertools.islice(data.Batches(data.load("folder", root=root, cache=False), 4), 10))


def test_import_is_light():
    script = "import sys, {}; print(*{{'torch', 'torchvision', 'PIL', 'sklearn', 'lmdb'}} & set(sys.modules))"
    for module, loaded in [
        ("dcgan.data", []),
        ("dcgan.data, PIL", ["PIL"]),
    ]:  # the second: that this can fail
        process = python(script.format(module))
        assert process.communicate(timeout=60)[0].split() == loaded
        assert process.returncode == 0


def test_breaking_out_of_a_loop_lets_the_program_end(tmp_path):
    script = """
        import sys
        import torch  # or modules are taken apart in another order
        from dcgan import data
        batches = iter(data.Batches(data.load("folder", root=sys.argv[1], cache=False), 4))
        print(next(batches).shape[0])
    """
    process = python(script, folder_of(tmp_path / "a", 8), stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (out.split(), err) == (["4"], "")  # nor does it complain
    assert process.returncode == 0


@real("MNIST/raw")
def test_real_mnist():
    images = data.load("mnist", root=REAL, image_size=28, channels=1)
    raw = np.fromfile(REAL / "MNIST/raw/train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    assert len(images) == 60_000
    assert np.array_equal(images.batch(np.arange(1000))[:, 0], raw[:1000])


@real("cifar10-images/train")
def test_real_cifar10_images_in_class_folders():
    images = data.load("folder", root=REAL / "cifar10-images/train", image_size=32, cache=False)
    first = min((REAL / "cifar10-images/train").glob("*/*.jpg"))
    assert np.array_equal(images.batch(np.array([0]))[0].permute(1, 2, 0), np.asarray(Image.open(first)))


@real("faces")
def test_real_faces_stream_like_their_packed_file(tmp_path):
    files = sorted((REAL / "faces").glob("*.jpg"))[:1000]
    root = tmp_path / "some"
    root.mkdir()
    for file in files:
        (root / file.name).symlink_to(file)
    packed, stream = (data.load("folder", root=root, image_size=48, cache=cache) for cache in (True, False))
    assert torch.equal(everything(packed), everything(stream))


@pytest.mark.slow
@real("faces")
def test_all_real_faces():
    images = data.load("folder", root=REAL / "faces")
    assert len(images) == len(list((REAL / "faces").glob("*.jpg")))
    assert sum(len(batch) for batch in itertools.islice(data.Batches(images, 128), 103)) == 103 * 128


@pytest.mark.parametrize("flip", [False, True])
def test_batches_gathered_on_the_device_equal_those_from_the_host(tmp_path, flip):
    images = data.load("fake", image_size=(6, 10), cache_dir=tmp_path)
    batches = data.Batches(images, 7, seed=3, flip=flip, start=len(images) // 7 - 2)  # over the end of an epoch
    gathered = batches._gather_on_device(torch.device("cpu"))
    for batch, expected in itertools.islice(zip(gathered, batches, strict=False), 5):
        assert torch.equal(batch, expected)
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_batches_are_on_the_cpu_inside_other_torch_contexts(name):
    with torch.device("meta"):
        images = data.load(name, image_size=16)
        batch = next(iter(data.Batches(images, 8, flip=True)))
    assert torch.equal(batch, next(iter(data.Batches(images, 8, flip=True))))
    assert batch.device.type == "cpu"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_flip_mirrors_half_of_the_images_left_to_right(tmp_path, channels):
    images = data.load("fake", image_size=(6, 10), channels=channels, cache_dir=tmp_path)
    plain, flipped = (next(iter(data.Batches(images, 200, flip=flip))) for flip in (False, True))
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(plain, flipped, strict=True)]
    same = [torch.equal(b, a) for a, b in zip(plain, flipped, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_on_a_gpu_equal_those_on_the_host(tmp_path, monkeypatch, fits, flip):
    images = data.load("fake", image_size=(6, 10), cache_dir=tmp_path)
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    there = data.Batches(images, 7, seed=3, flip=flip, device="cuda")
    for batch, expected in itertools.islice(zip(there, data.Batches(images, 7, seed=3, flip=flip), strict=False), 300):
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), expected)


@pytest.mark.parametrize("cache", [True, False])
def test_images_are_a_dataset_of_torch(cache, tmp_path):
    images = data.load("digits", image_size=16, channels=1, cache=cache, cache_dir=tmp_path if cache else None)
    whole = images.batch(np.arange(len(images)))
    assert torch.equal(images[3], whole[3])
    assert torch.equal(images[-1], whole[-1])
    for index in (len(images), -len(images) - 1):
        with pytest.raises(IndexError, match=f"index must be below 1797, the number of images, got {index}"):
            _ = images[index]
    served = list(DataLoader(images, batch_size=64))
    assert torch.equal(torch.cat(served), whole)


START_METHODS = [
    pytest.param(
        "fork",
        marks=[
            pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"),
            pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
        ],
    ),
    pytest.param("spawn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", START_METHODS)
def test_images_are_a_dataset_of_torch_in_worker_processes(method, tmp_path):
    root, arrays = folder_of(tmp_path / "a", 6), [noise(16, 16, seed=index) for index in range(6)]
    kinds = [
        *(data.load("folder", root=root, image_size=16, cache=cache, workers=2) for cache in (True, False)),
        *(data.from_dataset(arrays, cache=cache, workers=2) for cache in (True, False)),
    ]
    expected = torch.cat([everything(images) for images in kinds])  # the streams have threads now
    loader = DataLoader(ConcatDataset(kinds), 4, num_workers=2, multiprocessing_context=method, timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_bad_file_in_a_worker_process_is_named(method, spoiled):
    images = data.load("folder", root=spoiled[0], image_size=16, cache=False)
    with pytest.raises(RuntimeError, match=r"1 unreadable image[^\n]*\n[^\n]*bomb\.png: .*pixels"):
        list(DataLoader(images, num_workers=1, multiprocessing_context=method, timeout=60))


def test_packed_images_are_sent_as_their_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = data.from_dataset([(noise(32, 32, seed=index), index) for index in range(20)], cache_dir="packed")
    sent = pickle.dumps(images)
    assert len(sent) < 2000 < images.nbytes
    monkeypatch.chdir(tmp_path.parent)
    copy = pickle.loads(sent)
    assert torch.equal(everything(copy), everything(images))
    assert copy.labels.tolist() == list(range(20))
    assert (copy.path, copy.name, copy.nbytes) == (images.path, images.name, images.nbytes)


def test_streamed_images_are_sent_with_their_options(tmp_path):
    images = data.load("folder", root=folder_of(tmp_path / "a", 5), image_size=(6, 9), cache=False, workers=2)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(everything(copy), everything(images))
    assert (copy.image_size, copy.name, copy._workers) == ((6, 9), "folder", 2)
