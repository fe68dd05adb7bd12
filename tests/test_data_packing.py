"""Packed files: complete or absent, made once."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import signal
import tempfile
import threading
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import everything, folder_of, noise, python, unprivileged
from PIL import Image

from dcgan import data
from dcgan.data import _integrity, _packing
from dcgan.data._decoding import Decoder

pytestmark = pytest.mark.usefixtures("offline")


def test_bad_files_can_be_skipped_and_are_recorded(spoiled):
    root, bad = spoiled
    images = data.load("folder", root=root, image_size=16, skip_bad=True)
    assert len(images) == 3
    for index in range(3):
        assert np.array_equal(images.batch(np.array([index]))[0].permute(1, 2, 0), noise(16, 16, seed=index))
    assert sorted(Path(file).name for file, _ in images.skipped) == bad
    record = json.loads(images.path.with_suffix(".json").read_text())
    assert record["count"] == 3
    assert [tuple(pair) for pair in record["skipped"]] == images.skipped
    assert np.load(images.path, mmap_mode="r").shape == (3, 16, 16, 3)
    with pytest.raises(data.BadImages):
        data.load("folder", root=root, image_size=16)


def test_a_packed_file_is_a_plain_array_with_a_record(tmp_path, caplog):
    calls = []
    root = folder_of(tmp_path / "a", 150)
    with caplog.at_level(logging.DEBUG):
        images = data.load(
            "folder",
            root=root,
            image_size=(8, 12),
            progress=lambda *call: calls.append(call),
            cache_dir=tmp_path / "c",
        )
    assert images.path.parent == tmp_path / "c"
    array = np.load(images.path, mmap_mode="r")
    assert (array.shape, array.dtype) == ((150, 8, 12, 3), np.uint8)
    assert (len(images), images.name, images.image_size, images.channels) == (150, "folder", (8, 12), 3)
    assert images.nbytes == 150 * 8 * 12 * 3
    assert images.skipped == []
    assert str(images.path) in caplog.text
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (150, 150)
    record = json.loads(images.path.with_suffix(".json").read_text())
    assert (record["source"], record["root"], record["count"]) == ("folder", str(root), 150)

    batch = images.batch(np.array([3, 1]))
    assert (batch.shape, batch.dtype) == ((2, 3, 8, 12), torch.uint8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.permute(0, 2, 3, 1), array[[3, 1]])
    batch.zero_()
    assert np.array_equal(images.batch(np.array([3]))[0].permute(1, 2, 0), array[3]), "a batch is the caller's own"


def test_a_packed_file_is_reused_until_its_source_changes(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root, image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(_packing, "_write_packed", None)  # any build fails now
        assert data.load("folder", root=root, image_size=16).path == first.path
        for change in [{"image_size": 8}, {"channels": 1}, {"resize": "squash"}]:
            with pytest.raises(TypeError):
                data.load("folder", root=root, **{"image_size": 16, **change})
    Image.fromarray(noise(16, 16, seed=99)).save(root / "0002.png")
    os.utime(root / "0002.png", ns=(1, 1))
    second = data.load("folder", root=root, image_size=16)
    assert second.path != first.path
    assert np.array_equal(second.batch(np.array([2]))[0].permute(1, 2, 0), noise(16, 16, seed=99))
    shutil.copy(root / "0000.png", root / "0004.png")
    assert len(data.load("folder", root=root, image_size=16)) == 5


@pytest.mark.parametrize(
    ("name", "arguments", "file", "digest"),
    [
        ("digits", {"image_size": 32, "channels": 1}, "digits-32x32x1-crop-6ede61cef67e5c1e.npy", "607022c73d5d7a12"),
        ("fake", {"image_size": 16}, "fake-16x16x3-crop-14935c7490570e47.npy", "c3ef7756cbc44e40"),
    ],
)
def test_names_and_bytes_are_those_of_version_0_1(name, arguments, file, digest):
    path = data.load(name, **arguments).path
    assert path.name == file
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == digest


def test_a_folder_packed_by_version_0_1_is_reused(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "a", 2)
    digest = hashlib.sha256(b"folder\0")
    for file in [root / "0000.png", root / "0001.png"]:
        status = file.stat()
        digest.update(os.fsencode(f"{file}\0{status.st_size} {status.st_mtime_ns}\0"))
    key = repr((1, digest.hexdigest(), (8, 8, 3), "crop"))
    packed = tmp_path / "cache" / f"folder-8x8x3-crop-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    packed.parent.mkdir()
    np.save(packed, np.full((2, 8, 8, 3), 7, np.uint8))
    packed.with_suffix(".json").write_text('{"count": 2, "skipped": []}')
    assert (everything(data.load("folder", root=root, image_size=8)) == 7).all()


def test_packing_starts_on_systems_without_posix_fadvise(monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert len(data.load("digits", image_size=8)) == 1797


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no record", "half a record"])
def test_a_damaged_packed_file_is_made_anew(tmp_path, damage):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root)
    expected, path = everything(first), first.path
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "no record":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text('{"count"')
    assert torch.equal(everything(data.load("folder", root=root)), expected)


def test_a_disk_too_small_is_noticed_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(
        OSError, match=r"4 packed images take 0.0 MB, but the disk of .*cache cannot .*\(0.0 MB are free\)"
    ) as e:
        data.load("folder", root=folder_of(tmp_path / "a", 4))
    assert e.value.errno == errno.ENOSPC
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="Unix only")
    root = folder_of(tmp_path / "a", 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OSError, match="^10 packed images take 0.1 MB, but the disk of .*File too large.*cache_dir$"
        ):
            data.load("folder", root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))


def test_only_a_few_chunks_are_in_memory_at_once(tmp_path, monkeypatch):
    alive, most = 0, 0
    call = Decoder.__call__

    def counted(self, indices):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return call(self, indices)

    def progress(*_):
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(Decoder, "__call__", counted)
    monkeypatch.setattr(_packing, "_MAX_CHUNK_BYTES", 1)
    data.load("folder", root=folder_of(tmp_path / "a", 60), image_size=8, workers=2, progress=progress)
    assert most <= 6


def test_one_of_two_processes_builds_and_both_read(tmp_path):
    script = """
        import sys, time
        import numpy as np
        from dcgan import data
        calls = []
        slow = lambda *call: (calls.append(call), time.sleep(0.2))
        images = data.load("folder", root=sys.argv[1], progress=slow)
        print(len(calls), int(np.load(images.path).astype(int).sum()))
    """
    root = folder_of(tmp_path / "a", 300)
    both = [python(script, root) for _ in range(2)]
    calls, sums = zip(*(process.communicate(timeout=60)[0].split() for process in both), strict=True)
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(int, calls)) == [0, 5]
    assert sums[0] == sums[1]


def test_a_killed_build_leaves_no_file_and_the_next_one_cleans_up(tmp_path):
    script = """
        import os, signal, sys
        from dcgan import data
        kill = lambda done, total: done > total / 2 and os.kill(os.getpid(), signal.SIGKILL)
        data.load("folder", root=sys.argv[1], progress=kill)
    """
    root = folder_of(tmp_path / "a", 300)
    process = python(script, root)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (leftover,) = (tmp_path / "cache").glob("*.npy.tmp")
    assert not list((tmp_path / "cache").glob("*.npy"))

    data.load("digits")  # even a build of something else
    assert not leftover.exists()
    assert torch.equal(
        everything(data.load("folder", root=root)), everything(data.load("folder", root=root, cache=False))
    )


def test_a_live_build_keeps_its_temporary_file(tmp_path):
    def progress(_done, _total):
        data.load("digits", cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").glob("folder*.npy.tmp"))

    data.load("folder", root=folder_of(tmp_path / "a", 2), cache_dir=tmp_path / "cache", progress=progress)


def test_any_number_of_threads_makes_the_same_file(spoiled, tmp_path):
    root, _ = spoiled
    one, four = (
        data.load("folder", root=root, image_size=8, cache_dir=tmp_path / str(workers), workers=workers, skip_bad=True)
        for workers in (1, 4)
    )
    assert one.path.read_bytes() == four.path.read_bytes()
    assert one.skipped == four.skipped


def test_the_checksum_is_the_crc_32_of_the_pixels_and_then_the_labels(tmp_path):
    images = data.load("folder", root=folder_of(tmp_path / "a", 150), image_size=8)
    crc = zlib.crc32(np.load(images.path).tobytes())
    assert (
        images.fingerprint == f"crc32:{crc:08x}" == json.loads(images.path.with_suffix(".json").read_text())["checksum"]
    )
    dataset = [(noise(8, 8, seed=index), index) for index in range(5)]
    images = data.from_dataset(dataset)
    crc = zlib.crc32(np.arange(5, dtype=np.int64).tobytes(), zlib.crc32(np.load(images.path).tobytes()))
    assert images.fingerprint == f"crc32:{crc:08x}"
    assert data.from_dataset([*dataset[:4], (dataset[4][0], 9)]).fingerprint != images.fingerprint


@pytest.mark.parametrize("cache", [True, False])
def test_a_fingerprint_follows_the_images_and_not_their_place(tmp_path, cache):
    def opened(folder, **arguments):
        return data.load("folder", root=folder, image_size=16, cache=cache, **arguments)

    root = folder_of(tmp_path / "a", 4)
    copy = shutil.copytree(root, tmp_path / "b" / "c")
    os.utime(copy / "0000.png", ns=(1, 1))
    first = opened(root).fingerprint
    assert first.partition(":")[0] == ("crc32" if cache else "files")
    assert opened(copy).fingerprint == first
    assert pickle.loads(pickle.dumps(opened(root))).fingerprint == first
    assert opened(root, channels=1).fingerprint != first
    Image.new("RGB", (16, 16)).save(copy / "0003.png")
    second = opened(copy).fingerprint
    assert second != first
    shutil.move(copy / "0003.png", copy / "000.png")  # now the first
    assert opened(copy).fingerprint not in (first, second)


def flip(path, byte, bit):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_any_flipped_bit_is_harmless_or_packed_anew(monkeypatch, caplog):
    """Whatever bit of whichever file: the images and labels are those that were packed, and a line names the file."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dataset = [(noise(8, 8, seed=index), index) for index in range(5)]
    packed = data.from_dataset(dataset)
    expected, path = everything(packed), packed.path
    files = [path, path.with_suffix(".json"), path.with_suffix(".labels.npy")]
    sound = {file: file.read_bytes() for file in files}
    rng, noticed = np.random.default_rng(0), Counter()
    for file in files:
        places = [*range(0, 128, 3), *rng.integers(128, len(sound[file]), 20)]  # much of the header, some of the rest
        for byte in places:
            for content, name in zip(sound.values(), files, strict=True):
                name.write_bytes(content)
            flip(file, byte, rng.integers(8))
            caplog.clear()
            images = data.from_dataset(dataset)
            assert torch.equal(everything(images), expected), (file, byte)
            assert images.labels.tolist() == [0, 1, 2, 3, 4], (file, byte)
            assert images.labels.dtype == np.int64
            lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert len(lines) <= 1
            assert all(f"{path} is damaged; packing again: " in line for line in lines)
            noticed[file, byte >= 128] += len(lines)
    assert noticed[path, True] == noticed[files[2], True] == 20, "every flip among the pixels and the labels"


@pytest.mark.parametrize(
    "header", [b"{'descr': '|u1', 'fortran_order': True, ", b"{'descr': '|i1', 'fortran_order': False, "]
)
def test_a_header_of_another_layout_is_damage(tmp_path, caplog, header):
    first = data.load("folder", root=folder_of(tmp_path / "a", 4), image_size=8)
    expected = everything(first)
    content = first.path.read_bytes()
    shape = b"'shape': (4, 8, 8, 3), }"
    first.path.write_bytes(content[:10] + (header + shape).ljust(117) + b"\n" + content[128:])
    assert torch.equal(everything(data.load("folder", root=tmp_path / "a", image_size=8)), expected)
    assert "is damaged; packing again: its header must say (4, 8, 8, 3) of uint8, got (4, 8, 8, 3) of " in caplog.text


def without_checksum(path):
    metadata = json.loads(path.with_suffix(".json").read_text())
    del metadata["checksum"]
    path.with_suffix(".json").write_text(json.dumps(metadata))


def test_a_packed_file_of_an_earlier_version_gets_a_checksum(tmp_path, caplog):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root, image_size=8)
    metadata = json.loads(first.path.with_suffix(".json").read_text())
    without_checksum(first.path)
    assert data.load("folder", root=root, image_size=8).fingerprint == first.fingerprint
    assert json.loads(first.path.with_suffix(".json").read_text()) == metadata
    flip(first.path, 200, 3)
    assert torch.equal(
        everything(data.load("folder", root=root, image_size=8)),
        everything(data.load("folder", root=root, image_size=8, cache=False)),
    )
    assert f"{first.path} is damaged; packing again: its checksum is crc32:" in caplog.text


def test_a_packed_file_of_an_earlier_version_opens_where_nothing_can_be_written(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "a", 4)
    first = data.load("folder", root=root, image_size=8)
    without_checksum(first.path)

    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(_integrity, "atomic_write", refuse)
    images = data.load("folder", root=root, image_size=8)
    assert (len(images), images.fingerprint) == (4, first.fingerprint)


@pytest.mark.parametrize("found", ["checksum", "sector"])
def test_damage_that_is_found_during_training_stops_it_and_is_packed_anew(tmp_path, monkeypatch, caplog, found):
    root = folder_of(tmp_path / "a", 8)
    first = data.load("folder", root=root, image_size=8)
    expected = everything(first)
    flip(first.path, 200, 3)
    may_read, compute = threading.Event(), _integrity.IntegrityCheck._compute

    def slow(self):
        may_read.wait()
        if found == "sector":
            raise OSError(errno.EIO, "Input/output error")
        return compute(self)

    with monkeypatch.context() as patch:
        patch.setattr(_packing, "_MAX_WAIT", 0)
        patch.setattr(_integrity.IntegrityCheck, "_compute", slow)
        images = data.load("folder", root=root, image_size=8)
        batches = iter(data.Batches(images, 4))
        next(batches)
        sent = pickle.dumps(images)
        may_read.set()
        message = rf"the packed file {re.escape(str(images.path))} is damaged: it.* Start again: it is then packed anew"
        with pytest.raises(OSError, match=message):
            images.finish_check()
        with pytest.raises(OSError, match=message):
            list(itertools.islice(batches, 9))
        with pytest.raises(OSError, match=message):
            next(data.Batches(images, 4)._gather_on_device(torch.device("cpu")))
    assert pickle.loads(sent).fingerprint == first.fingerprint
    assert torch.equal(everything(data.load("folder", root=root, image_size=8)), expected)
    assert caplog.text.count(f"{first.path} is damaged; packing again: it") == 1


def test_only_batches_that_come_before_the_check_ends_are_given_on_a_device(tmp_path, monkeypatch):
    images = data.load("folder", root=folder_of(tmp_path / "a", 8), image_size=8)
    waited = []
    monkeypatch.setattr(_integrity.IntegrityCheck, "wait", lambda *arguments: waited.append(arguments))
    next(data.Batches(images, 4)._gather_on_device(torch.device("cpu")))
    assert len(waited) == 1


def refuse(folder, match, **arguments):
    """Load under the rights of nobody, and return the error."""
    data.load("digits", image_size=8, cache_dir=folder / "warm")  # what is imported late may be unreadable too
    with unprivileged(), pytest.raises(OSError, match=match) as caught:
        data.load(**{"name": "digits", "image_size": 8} | arguments)
    return caught.value


@pytest.fixture
def public(tmp_path):
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def locked(path):
    path.mkdir(parents=True)
    path.chmod(0)
    return path


CACHE = (
    "where packed images are kept, cannot be used .Permission denied: .* Name another folder with cache_dir, or in the"
)


def test_a_cache_that_cannot_be_read_or_written_is_one_line(public, monkeypatch):
    secret = locked(public / "secret")
    message = rf"^{secret}/cache, {CACHE} environment variable DCGAN_CACHE$"
    assert refuse(public, message, cache_dir=secret / "cache").errno == errno.EACCES
    monkeypatch.setenv("DCGAN_CACHE", str(secret / "cache"))
    refuse(public, message)
    monkeypatch.delenv("DCGAN_CACHE")
    monkeypatch.setenv("HOME", str(secret))
    refuse(public, rf"^{secret}/.cache/dcgan, {CACHE}")
    monkeypatch.setenv("HOME", "/nonexistent")
    refuse(public, rf"^/nonexistent/.cache/dcgan, {CACHE}")
    secret.chmod(0o755)
    secret.joinpath("cache").mkdir()
    refuse(public, rf"^{secret}/cache, {CACHE}", cache_dir=secret / "cache")
    secret.joinpath("file").touch()
    with pytest.raises(NotADirectoryError, match=f"{secret}/file, where packed images are kept, cannot be used"):
        data.load("digits", image_size=8, cache_dir=secret / "file")


def test_a_packed_file_in_a_cache_that_cannot_be_written_is_used(public):
    cache = public / "cache"
    expected = data.load("digits", image_size=8, cache_dir=cache)
    cache.chmod(0o555)
    with unprivileged():
        assert torch.equal(everything(data.load("digits", image_size=8, cache_dir=cache)), everything(expected))


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch):
    for name in ("DCGAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is neither HOME nor an entry
    message = "there is no home folder for ~/.cache: name folders with root and cache_dir, or one for both in the env"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("digits", image_size=8)
    with pytest.raises(FileNotFoundError, match=message):
        data.load("mnist")
    assert len(data.load("digits", image_size=8, cache_dir=tmp_path)) == 1797
    assert len(data.load("digits", image_size=8, cache=False)) == 1797


def test_folders_of_another_user_are_one_line(public):
    root = folder_of(public / "pictures", 2)
    secret = locked(root / "secret")
    warm = {"name": "folder", "cache_dir": public / "cache"}
    data.load("folder", root=folder_of(public / "others", 2), image_size=8)
    refuse(public, rf"^the folder {secret} cannot be read: Permission denied$", root=root, **warm)
    refuse(public, rf"^the folder {secret} cannot be read: Permission denied$", root=secret, **warm)
    refuse(public, rf"^the folder {secret}/deeper cannot be read: Permission denied$", root=secret / "deeper", **warm)


def test_a_disk_that_is_full_at_the_last_write_keeps_nothing(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "a", 4)

    @contextlib.contextmanager
    def full(path, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
        yield

    with monkeypatch.context() as patch:
        patch.setattr(_integrity, "atomic_write", full)
        with pytest.raises(
            OSError, match=r"^4 packed images take 0\.0 MB, but the disk of .* \(No space left on device\)"
        ):
            data.load("folder", root=root)
    assert not list((tmp_path / "cache").glob("*.npy*[!k]"))
    assert len(data.load("folder", root=root)) == 4


def test_errors_of_the_dataset_are_not_those_of_the_cache(tmp_path):
    class Dataset:
        def __len__(self):
            return 100

        def __getitem__(self, index):
            if index == 50:  # not in the sample
                raise OSError(errno.EMFILE, "Too many open files", "picture.png")
            return noise(8, 8)

    with pytest.raises(OSError, match=r"^\[Errno 24\] Too many open files: 'picture.png'"):
        data.from_dataset(Dataset(), workers=2)
