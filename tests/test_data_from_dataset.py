"""`from_dataset`: any map-style dataset becomes the images that `load` gives, with their labels."""

import io
import json
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, everything, folder_of, noise, python
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from dcgan import Discriminator, Generator, Trainer, data
from dcgan.data import _integrity, _packing

pytestmark = pytest.mark.usefixtures("offline")


class Pictures(Dataset):
    """Images and labels in memory; counts the items that are read."""

    def __init__(self, images, labels=None):
        self.images = images
        self.labels = [index % 7 for index in range(len(images))] if labels is None else labels
        self.reads = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads.append(index)
        if isinstance(self.images[index], BaseException):
            raise self.images[index]
        return self.images[index], self.labels[index]


def pictures(count, side=8):
    return Pictures([Image.fromarray(noise(side, side, seed=index)) for index in range(count)])


def pixels(images):
    """Everything as `(N, H, W, K)`."""
    return everything(images).permute(0, 2, 3, 1).numpy()


PIXELS = np.stack([noise(6, 9, seed=index) for index in range(5)])  # (N, H, W, K)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("items", "labels"),
    [
        ([Image.fromarray(image) for image in PIXELS], None),
        (PIXELS, None),
        (list(CHANNELS_FIRST), None),
        (CHANNELS_FIRST.float() / 255, None),
        ((CHANNELS_FIRST / 255 - 0.5) / 0.5, None),
        (CHANNELS_FIRST.double() / 255, None),
        (CHANNELS_FIRST.half() / 255, None),
        (PIXELS.astype(np.float32) / 255, None),
        (TensorDataset(CHANNELS_FIRST), None),
        (TensorDataset(CHANNELS_FIRST, torch.arange(5)), range(5)),
        (TensorDataset(CHANNELS_FIRST, torch.rand(5), torch.arange(5)), None),  # no integer follows the image
        ([(image, 3, "three") for image in CHANNELS_FIRST], [3] * 5),
        ([[image, np.int32(4)] for image in PIXELS], [4] * 5),
        ([(image, True) for image in PIXELS], None),
        ([(image, {"boxes": []}) for image in PIXELS], None),
        ([{"pixel_values": image} for image in CHANNELS_FIRST], None),
        ([{"id": 9, "image": image, "labels": torch.tensor(2)} for image in CHANNELS_FIRST], [2] * 5),
        ([{"image": image, "width": 9} for image in CHANNELS_FIRST], None),  # an integer, but hardly a class
    ],
)
def test_every_kind_of_item_gives_its_pixels_and_label(items, labels):
    for images in (data.from_dataset(items), data.from_dataset(items, cache=False)):
        assert (len(images), images.image_size, images.channels) == (5, (6, 9), 3)
        assert np.array_equal(pixels(images), PIXELS)
        if labels is None:
            assert images.labels is None
        else:
            assert images.labels.dtype == np.int64
            assert images.labels.tolist() == list(labels)


@pytest.mark.parametrize("scale", [255, 1, -1])
def test_grey_and_rgba_keep_their_channels(scale):
    for channels in (1, 4):
        wanted = np.stack([noise(6, 9, 4, seed=index)[..., :channels] for index in range(3)])
        tensors = torch.from_numpy(wanted).permute(0, 3, 1, 2)
        if scale != 255:
            tensors = tensors / 255 if scale == 1 else tensors / 127.5 - 1
        images = data.from_dataset(tensors)
        assert images.channels == channels
        assert np.array_equal(pixels(images), wanted)
    plain = torch.from_numpy(wanted[..., 0])  # (N, H, W)
    assert np.array_equal(pixels(data.from_dataset(plain))[..., 0], plain)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("F", 1), ("P", 3), ("RGB", 3), ("CMYK", 3), ("HSV", 3), ("RGBA", 4)],
)
def test_images_of_pillow_are_converted_as_files_are(tmp_path, mode, channels):
    image = Image.fromarray(noise(8, 12, 4)).convert("RGBA")
    image = image.convert(mode) if mode != "I;16" else Image.fromarray(noise(8, 12, 1).astype(np.uint16) * 257)
    images = data.from_dataset([image])
    assert (images.image_size, images.channels) == ((8, 12), channels)
    if mode != "HSV":  # which no file holds
        tmp_path.joinpath("a").mkdir()
        image.save(tmp_path / f"a/a.{'tif' if mode in {'CMYK', 'F'} else 'png'}")
        expected = data.load("folder", root=tmp_path / "a", image_size=(8, 12), channels=channels, cache=False)
        assert torch.equal(everything(images), everything(expected))


def test_transparency_is_composited_over_white_unless_the_result_is_rgba():
    image = Image.fromarray(np.full((4, 4, 4), (255, 0, 0, 0), np.uint8))
    assert (pixels(data.from_dataset([image], channels=3)) == 255).all()
    assert (pixels(data.from_dataset([image])) == (255, 0, 0, 0)).all()
    assert (pixels(data.from_dataset([image.convert("LA")])) == 255).all()


def test_an_image_is_turned_upright_and_the_dataset_keeps_its_own():
    upright = Image.fromarray(noise(8, 12))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(buffer, "png", exif=exif)
    held = Image.open(buffer)
    images = data.from_dataset([held])
    assert images.image_size == (8, 12)
    assert np.array_equal(pixels(images)[0], upright)
    assert held.size == (8, 12)
    assert held.getexif()[0x0112] == 6


def test_images_of_other_sizes_become_those_of_the_first():
    items = [noise(8, 8), noise(20, 30), noise(5, 7)]
    images = data.from_dataset(items)
    assert pixels(images).shape == (3, 8, 8, 3)
    assert np.array_equal(pixels(images)[0], items[0])
    resized = data.from_dataset(items, image_size=(4, 6), channels=1, resize="squash")
    assert pixels(resized).shape == (3, 4, 6, 1)


def test_floats_are_rounded_in_the_range_of_the_sample():
    values = torch.tensor([0, 0.0019, 0.0020, 0.5, 0.9981, 1.0]).reshape(1, 1, 1, 6)
    assert pixels(data.from_dataset(values))[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert pixels(data.from_dataset(values * 2 - 1))[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert pixels(data.from_dataset(values, value_range=(-1, 1)))[0, 0, :, 0].tolist() == [128, 128, 128, 191, 255, 255]
    assert pixels(data.from_dataset(values * 255, value_range=(0, 255)))[0, 0, 2:, 0].tolist() == [1, 128, 255, 255]
    noisy = values.clone()
    noisy[0, 0, 0, 0] = -1e-7  # of rounding: this is no reason for (-1, 1)
    assert pixels(data.from_dataset(noisy))[0, 0, 0, 0] == 0


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.2, r"Tensor\[7\] has values from 0.* to 1\.2, outside of 0 to 1: pass value_range="),
        (-0.9, r"Tensor\[7\] has values from -0\.9 to .*, outside of 0 to 1: pass value_range="),
        (float("inf"), r"Tensor\[7\] has values from .* to inf"),
        (float("nan"), r"Tensor\[7\] holds NaN"),
    ],
)
def test_values_outside_of_the_range_are_refused_and_never_clipped(cache, value, message):
    images = torch.rand(1000, 1, 2, 2)
    images[7, 0, 0, 0] = value  # not in the sample
    with pytest.raises(ValueError, match=message) as caught:
        everything(data.from_dataset(images, cache=cache))
    assert not isinstance(caught.value, data.BadImages)
    if cache:
        with pytest.raises(ValueError, match=message):  # not a bad image, which could be skipped
            data.from_dataset(images, skip_bad=True)


def test_one_of_several_images_and_labels_is_chosen_by_its_key():
    items = [{"image": image, "mask": image[..., 0], "fine": 5, "coarse": 2} for image in PIXELS]
    with pytest.raises(TypeError, match=r"list\[0\] holds 2 images: choose one with image_key, from 'image', 'mask'"):
        data.from_dataset(items)
    images = data.from_dataset(items, image_key="image")
    assert (images.channels, images.labels) == (3, None)
    images = data.from_dataset(items, image_key="mask", label_key="coarse")
    assert np.array_equal(pixels(images), PIXELS[..., :1])
    assert images.labels.tolist() == [2] * 5

    pairs = [(4, image, image[..., 0]) for image in PIXELS]
    with pytest.raises(TypeError, match="choose one with image_key, from 1, 2"):
        data.from_dataset(pairs)
    images = data.from_dataset(pairs, image_key=1, label_key=0)
    assert (images.channels, images.labels.tolist()) == (3, [4] * 5)


class Stream(IterableDataset):
    def __iter__(self):
        yield from PIXELS

    def __len__(self):
        return len(PIXELS)


@pytest.mark.parametrize(
    ("dataset", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "dataset must not be empty, got a list of length 0"),
        (Stream(), {}, TypeError, "map-style, with a length and items by index, got Stream: load it without streaming"),
        (iter([1]), {}, TypeError, "dataset must be map-style, .* got list_iterator"),
        (DataLoader(PIXELS), {}, TypeError, "got a DataLoader: pass its dataset"),
        ({"train": PIXELS, "test": PIXELS}, {}, TypeError, "got a dict of 'train', 'test': pass one of these"),
        (["a.png"], {}, TypeError, r"list\[0\] must be or hold an image, .*; got str"),
        ([("a.png", 3)], {}, TypeError, r"list\[0\] must hold an image, .*; got tuple of 0: str, 1: int"),
        ([{"x": torch.zeros(4, 4, dtype=int)}], {}, TypeError, r"got dict of 'x': Tensor \(4, 4\) of torch.int64"),
        ([PIXELS[0], None], {}, TypeError, r"list\[1\] must hold an image as the first item does, got NoneType"),
        ([(PIXELS[0], 1), PIXELS[1]], {}, TypeError, r"list\[1\] must hold 1, as the first item does, got ndarray"),
        ([(PIXELS[0], 1), (PIXELS[1], None)], {}, TypeError, r"list\[1\]\[1\] must be an integer label, as in"),
        ([torch.zeros(2, 4, 4)], {}, ValueError, r"must be \(h, w\) or \(K, h, w\) of 1, 3 or 4 channels K, got Te"),
        ([np.zeros((3, 9, 9), np.uint8)], {}, ValueError, r"\(h, w, K\), \(K, h, w\) as a tensor, of .* \(3, 9, 9\)"),
        ([np.zeros((0, 9), np.uint8)], {}, ValueError, r"got ndarray \(0, 9\) of uint8"),
        ([PIXELS[0], PIXELS[0] / 255], {}, ValueError, r"list\[1\] is floating-point, but the first image is not"),
        (PIXELS, {"value_range": (0, 1)}, ValueError, "value_range is for floating-point images, but ndarray"),
        (PIXELS / 255, {"value_range": (1, 0)}, ValueError, r"value_range must be two finite numbers, .*got \(1, 0\)"),
        (PIXELS, {"image_key": "image"}, ValueError, "image_key is for items that are mappings or tuples"),
        (PIXELS, {"label_key": 1}, ValueError, "label_key is for items that are mappings or tuples"),
        ([{"image": PIXELS[0]}], {"image_key": "img"}, ValueError, "image_key must be one of 'image', .* got 'img'"),
        ([{"image": PIXELS[0]}], {"label_key": "image"}, TypeError, r"\['image'\] must be an integer label, got nda"),
        ([(3, PIXELS[0])], {"image_key": 0}, TypeError, r"list\[0\]\[0\] must be an image, .*; got int"),
        (PIXELS, {"image_size": 0}, ValueError, "image_size must be positive, .* got 0"),
        (PIXELS, {"channels": 2}, ValueError, "channels must be 1 .* got 2"),
        (PIXELS, {"resize": "pad"}, ValueError, "resize must be one of crop, squash, got 'pad'"),
        (PIXELS, {"workers": -1}, ValueError, "workers must be at least 0, got -1"),
        (PIXELS, {"cache": False, "skip_bad": True}, ValueError, "skip_bad needs cache=True"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused_with_what_came(dataset, arguments, error, message):
    with pytest.raises(error, match=message):
        data.from_dataset(dataset, **arguments)


def test_datasets_and_loaders_are_not_images():
    class Rows(list):
        """As Hugging Face's datasets, which have a method `batch` of another purpose."""

        column_names = ("image",)

        def batch(self, batch_size):
            raise NotImplementedError

    for wrong in (TensorDataset(CHANNELS_FIRST), DataLoader(PIXELS), PIXELS, Rows(PIXELS)):
        with pytest.raises(TypeError, match=rf"got {type(wrong).__name__}: pass dcgan.data.from_dataset\(dataset\)"):
            data.Batches(wrong, 2)


def test_bad_images_are_listed_or_left_out_with_their_labels():
    dataset = pictures(40)
    cut = encoded("jpg")[:700]
    dataset.images[3] = FileNotFoundError(2, "No such file or directory", "lost.png")
    dataset.images[0] = Image.UnidentifiedImageError("cannot identify image file")
    dataset.images[11] = Image.open(io.BytesIO(cut))  # fails when it is decoded, after its label was read
    with pytest.raises(data.BadImages) as caught:
        data.from_dataset(dataset)
    assert [file for file, _ in caught.value.failures] == ["Pictures[0]", "Pictures[3]", "Pictures[11]"]
    assert "lost.png" in str(caught.value)
    assert "truncated" in str(caught.value)

    images = data.from_dataset(dataset, skip_bad=True)
    good = [index for index in range(40) if index not in {0, 3, 11}]
    assert images.skipped == caught.value.failures
    assert images.labels.tolist() == [index % 7 for index in good]
    assert np.array_equal(pixels(images), [np.asarray(dataset.images[index]) for index in good])
    assert data.from_dataset(dataset, skip_bad=True).labels.tolist() == images.labels.tolist()
    with pytest.raises(data.BadImages):
        _ = data.from_dataset(dataset, cache=False).labels
    with pytest.raises(data.BadImages, match="and no readable one"):
        data.from_dataset(Pictures([OSError("gone")] * 3), skip_bad=True)


@pytest.mark.parametrize(
    "error",
    [KeyError("img"), ValueError("bug"), RuntimeError("stack expects"), MemoryError(), ConnectionResetError("by peer"),
     OSError(24, "Too many open files"), KeyboardInterrupt()],
)  # fmt: skip
def test_faults_of_the_code_and_the_machine_are_no_bad_images(error, tmp_path):
    dataset = pictures(200)
    dataset.images[7] = error
    with pytest.raises(type(error)) as caught:
        data.from_dataset(dataset, skip_bad=True)
    assert caught.value is error
    if not isinstance(error, KeyboardInterrupt):
        assert "raised by the dataset, while Pictures[7] was read" in error.__notes__
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))


@pytest.mark.filterwarnings("ignore:.*torchcodec:DeprecationWarning")
def test_files_that_torchvision_cannot_decode_are_bad_images(tmp_path):
    decode_image = pytest.importorskip("torchvision.io").decode_image
    root = folder_of(tmp_path / "a", 4)
    (root / "0002.png").write_bytes(encoded("png")[:700])

    class Files(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return decode_image(str(root / f"{index:04}.png"))

    images = data.from_dataset(Files(), skip_bad=True)
    assert [file for file, _ in images.skipped] == ["Files[2]"]
    assert np.array_equal(pixels(images), [noise(16, 16, seed=index) for index in (0, 1, 3)])


def test_a_second_call_reads_the_sample_only():
    dataset = pictures(500)
    first = data.from_dataset(dataset)
    assert set(dataset.reads) == set(range(500))
    dataset.reads.clear()
    second = data.from_dataset(dataset)
    assert second.path == first.path
    assert len(set(dataset.reads)) == 32
    assert len(dataset.reads) == 65  # the first item, and the sample twice
    assert {0, 499} <= set(dataset.reads)
    assert second.labels.tolist() == first.labels.tolist() == dataset.labels


def test_a_changed_dataset_is_packed_again():
    dataset = pictures(100)
    paths = [data.from_dataset(dataset).path]
    dataset.images[0] = Image.fromarray(noise(8, 8, seed=1000))
    paths.append(data.from_dataset(dataset).path)
    dataset.labels[99] += 1
    paths.append(data.from_dataset(dataset).path)
    paths.append(data.from_dataset(Subset(dataset, range(100))).path)
    paths.append(data.from_dataset(Subset(dataset, range(99))).path)
    paths.append(data.from_dataset(dataset, image_size=4).path)
    paths.append(data.from_dataset(dataset, channels=1).path)
    paths.append(data.from_dataset(dataset, resize="squash").path)
    assert len(set(paths)) == len(paths)

    dataset.images[1] = dataset.images[0]  # not in the sample, as documented
    stale = data.from_dataset(dataset)
    assert stale.path == paths[2]
    assert not np.array_equal(pixels(stale)[1], dataset.images[1])
    stale.path.unlink()
    assert np.array_equal(pixels(data.from_dataset(dataset))[1], dataset.images[1])


@pytest.mark.parametrize(
    "hold",
    [
        lambda images, labels: list(zip(images, labels, strict=True)),
        lambda images, labels: tuple(zip(map(Image.fromarray, images), labels, strict=True)),
        lambda images, labels: TensorDataset(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())),
        lambda images, _: images.copy(),
        lambda images, _: torch.from_numpy(images / 255),
    ],
    ids=["list", "tuple", "TensorDataset", "ndarray", "Tensor"],
)
def test_a_change_to_any_item_in_memory_is_packed_again(hold):
    images, labels = np.random.default_rng(0).integers(0, 256, (200, 4, 4), np.uint8), np.arange(200)
    first = data.from_dataset(hold(images, labels))
    images[5, 0, 0] ^= 1  # neither item is in the sample of other datasets
    changed = data.from_dataset(hold(images, labels))
    assert np.array_equal(pixels(changed)[..., 0], images)
    labels[9] = 3
    corrected = data.from_dataset(hold(images, labels))
    if corrected.labels is not None:
        assert corrected.labels.tolist() == labels.tolist()
    images[5, 0, 0] ^= 1
    labels[9] = 9
    assert data.from_dataset(hold(images, labels)).path == first.path


def test_the_key_is_the_same_in_another_process_and_hugging_face_is_not_imported():
    script = """
        import sys
        import numpy as np
        from dcgan import data

        class Own:
            transform = staticmethod(lambda x: x)
            def __len__(self): return 50
            def __getitem__(self, i): return np.full((4, 4), i, np.uint8), i
            def __repr__(self): return f"Own({self.transform})"  # holds an address

        print(data.from_dataset(Own()).path, "datasets" in sys.modules)
    """
    both = [python(script) for _ in range(2)]
    first, second = (process.communicate(timeout=60)[0].split() for process in both)
    assert first == second
    assert "Own-4x4x1-crop-" in first[0]
    assert first[1] == "False"


def test_a_packed_dataset_says_where_it_comes_from():
    class Own(Pictures):
        def __repr__(self):
            return "Own(split='train')"

    images = data.from_dataset(Own(pictures(3).images))
    record = json.loads(images.path.with_suffix(".json").read_text())
    assert (record["source"], record["description"], record["root"]) == ("Own", "Own(split='train')", None)
    assert (record["count"], record["labels"], images.name) == (3, True, "Own")
    assert np.load(images.path.with_suffix(".labels.npy")).tolist() == [0, 1, 2]


def test_random_transforms_are_refused_unless_nothing_is_kept(tmp_path):
    from torchvision import transforms

    class Augmented(Pictures):
        transform = staticmethod(transforms.RandomHorizontalFlip())

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return self.transform(image), label

    dataset = Augmented(pictures(100).images)
    with pytest.raises(
        ValueError, match=r"Augmented gives other images each time .* Batches\(flip=True\).*cache=False"
    ):
        data.from_dataset(dataset)
    assert not (tmp_path / "cache").exists()
    images = data.from_dataset(dataset, cache=False)
    assert not torch.equal(everything(images), everything(images))
    assert images.labels.tolist() == dataset.labels


@pytest.mark.parametrize("fails", ["labels", "record", "pixels"])
@pytest.mark.parametrize("damage", [None, "pixels", "labels", "record"])
def test_labels_belong_to_their_pixels_wherever_a_build_breaks_off(monkeypatch, fails, damage):
    dataset = pictures(100)
    if damage:
        path = data.from_dataset(dataset).path
        if damage == "pixels":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.with_suffix({"labels": ".labels.npy", "record": ".json"}[damage]).unlink()
        dataset.images[1], dataset.labels[1] = Image.fromarray(noise(8, 8, seed=1000)), 77  # not in the sample

    class Killed(BaseException):
        pass

    atomic_write, replace = _packing.atomic_write, Path.replace

    def killed_write(path, **options):
        if path.name.endswith({"labels": ".labels.npy", "record": ".json"}.get(fails, "none")):
            raise Killed
        return atomic_write(path, **options)

    def killed_replace(self, target):
        if fails == "pixels" and self.name.endswith(".npy.tmp"):
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(_packing, "atomic_write", killed_write)
        patch.setattr(_integrity, "atomic_write", killed_write)
        patch.setattr(Path, "replace", killed_replace)
        with pytest.raises(Killed):
            data.from_dataset(dataset)
    images = data.from_dataset(dataset)
    assert images.labels.tolist() == dataset.labels
    assert np.array_equal(pixels(images), [np.asarray(image) for image in dataset.images])


def test_workers_read_with_threads_and_otherwise_the_caller_does():
    class Threads(Pictures):
        def __getitem__(self, index):
            names.add(threading.current_thread().name)
            time.sleep(0.001)
            return super().__getitem__(index)

    here = threading.current_thread().name
    names = set()
    alone = data.from_dataset(Threads(pictures(300).images), cache_dir=data.cache_folder() / "alone")
    assert names == {here}
    several = data.from_dataset(Threads(pictures(300).images), workers=3)
    assert len(names - {here}) > 1
    assert alone.path.read_bytes() == several.path.read_bytes()
    assert alone.labels.tolist() == several.labels.tolist()


def test_a_dataset_that_belongs_to_one_thread_is_packed():
    rows = sqlite3.connect(":memory:")  # refuses other threads
    rows.execute("create table images (pixels blob)")
    rows.executemany("insert into images values (?)", [(image.tobytes(),) for image in PIXELS])

    class Rows(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            (blob,) = rows.execute("select pixels from images where rowid = ?", (index + 1,)).fetchone()
            return np.frombuffer(blob, np.uint8).reshape(6, 9, 3)

    assert np.array_equal(pixels(data.from_dataset(Rows())), PIXELS)
    rows.close()


def test_batches_of_a_dataset_train(tmp_path):
    dataset = TensorDataset(torch.rand(20, 1, 16, 16), torch.arange(20))
    arguments = {"image_size": 16, "channels": 1, "base_channels": 4}
    trainer = Trainer(Generator(**arguments), Discriminator(**arguments))
    images = data.from_dataset(dataset)
    for batch, _ in zip(data.Batches(images, 5, flip=True), range(2), strict=False):
        assert np.isfinite(float(trainer.step(batch)["d_loss"]))


def test_a_subset_of_mnist_is_what_load_packs(real_data):
    from torchvision.datasets import MNIST

    mnist, indices = MNIST(real_data), np.arange(0, 60_000, 120)
    images = data.from_dataset(Subset(mnist, indices))
    expected = data.load("mnist", root=real_data, image_size=28, channels=1, cache=False)
    assert torch.equal(everything(images), expected.batch(indices))
    assert np.array_equal(images.labels, mnist.targets[indices])


@pytest.mark.slow
def test_all_of_mnist_is_what_load_packs(real_data):
    from torchvision import transforms
    from torchvision.datasets import MNIST

    expected = data.load("mnist", root=real_data, image_size=28, channels=1)
    for transform in (
        None,
        transforms.ToTensor(),
        transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]),
    ):
        mnist = MNIST(real_data, transform=transform)
        images = data.from_dataset(mnist)
        assert images.path.read_bytes() == expected.path.read_bytes()
        assert np.array_equal(images.labels, mnist.targets)


def test_class_folders_of_jpegs_are_what_load_packs(real_data, tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("bird", "cat", "ship"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for file in sorted((real_data / "cifar10-images/test" / name).glob("*.jpg"))[:20]:
            (tmp_path / "classes" / name / file.name).symlink_to(file)
    folders = ImageFolder(tmp_path / "classes")
    for size in (32, 24):
        images = data.from_dataset(folders, image_size=size)
        expected = data.load("folder", root=tmp_path / "classes", image_size=size)
        assert images.path.read_bytes() == expected.path.read_bytes()
        assert images.labels.tolist() == folders.targets
    assert expected.labels is None


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """A dataset of Hugging Face."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    columns = {"image": [Image.fromarray(image) for image in PIXELS], "label": list(range(5))}
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize("style", [None, "torch", "numpy"])
def test_hugging_face_datasets_are_packed_in_every_format(rows, style):
    images = data.from_dataset(rows.with_format(style))
    assert np.array_equal(pixels(images), PIXELS)
    assert images.labels.tolist() == list(range(5))
    assert images.name == "Dataset"


def test_transforms_of_hugging_face_are_applied(rows):
    def transform(batch):
        return {"pixels": [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in batch["image"]]}

    assert np.array_equal(pixels(data.from_dataset(rows.with_transform(transform))), PIXELS)


def test_the_fingerprint_of_hugging_face_sees_every_row(rows):
    from datasets import Dataset

    def of(changed):
        return Dataset.from_dict(
            {"image": [Image.fromarray(np.full((4, 4), index % 256, np.uint8)) for index in range(300)],
             "label": [int(index == changed) for index in range(300)]}
        )  # fmt: skip

    first, same, other = (data.from_dataset(of(changed)) for changed in (7, 7, 8))
    assert first.path == same.path != other.path
    assert other.labels.nonzero()[0].tolist() == [8]


def test_what_is_no_dataset_of_hugging_face_is_named(rows):
    from datasets import DatasetDict

    with pytest.raises(TypeError, match="got a DatasetDict of 'train': pass one of these"):
        data.from_dataset(DatasetDict(train=rows))
    with pytest.raises(TypeError, match="got IterableDataset: load it without streaming"):
        data.from_dataset(rows.to_iterable_dataset())
    with pytest.raises(TypeError, match=r"got Dataset: pass dcgan.data.from_dataset\(dataset\)"):
        data.Batches(rows, 2)


def test_damaged_images_of_hugging_face_are_skipped(rows):
    from datasets import Dataset, Features
    from datasets import Image as ImageColumn

    encoded_images = [encoded("png"), b"words", encoded("png")[:700]]
    damaged = Dataset.from_dict(
        {"image": [{"bytes": image, "path": None} for image in encoded_images]},
        features=Features({"image": ImageColumn()}),
    )
    images = data.from_dataset(damaged, skip_bad=True)
    assert [file for file, _ in images.skipped] == ["Dataset[1]", "Dataset[2]"]
    assert np.array_equal(pixels(images)[0], noise(64, 64))
