"""Packed files: complete or absent, made once."""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import everything, folder_of, noise, python
from PIL import Image

from dcgan import data
from dcgan.data import _packing
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
