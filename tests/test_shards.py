"""Shards and datasets of Hugging Face: the same images as the files, in the same order; and `dcgan pack`."""

import errno
import io
import itertools
import os
import pickle
import random
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import said
from image_files import REAL, encoded, everything, folder_of, noise, real
from PIL import Image
from small_runs import TINY, command, computed, start_and_stop

from dcgan import _labelled, data
from dcgan.data import _images, _shards
from dcgan.data._sharding import write_shards
from dcgan.run import Run

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def classes(tmp_path):
    """Two folders of 20 images each."""
    root = tmp_path / "classes"
    folder_of(root / "cat", 20)
    folder_of(root / "dog", 20, side=20)
    return root


@pytest.fixture
def shards(classes, tmp_path):
    """Three shards of them."""
    return write_shards(classes, tmp_path / "shards", shard_size=15, workers=1).pattern


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 16, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def load(root, name="wds", **options):
    return data.load(name, root=root, image_size=16, **options)


def refused(root, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        load(root)


# Reading


@pytest.mark.parametrize("cache", [True, False])
def test_shards_hold_the_images_of_the_folder_and_their_labels(classes, shards, cache):
    images, files = load(shards, cache=cache), load(classes, "folder", cache=cache)
    assert torch.equal(everything(images), everything(files))
    assert images.labels.tolist() == [0] * 20 + [1] * 20
    assert (images.name, len(images)) == ("wds", 40)
    assert files.fingerprint.split(":")[0] == images.fingerprint.split(":")[0]


@pytest.mark.parametrize("name", ["folder", "wds"])
def test_batches_of_shards_are_those_of_the_folder(classes, shards, name):
    images = load(classes if name == "folder" else shards, name, cache=False)
    batches = data.Batches(images, 16, seed=3, start=5)
    expected = data.Batches(load(classes, "folder"), 16, seed=3, start=5)
    for batch, other in itertools.islice(zip(batches, expected, strict=False), 4):
        assert torch.equal(batch, other)


def test_every_format_is_read_as_from_its_file(tmp_path):
    root = tmp_path / "formats"
    root.mkdir()
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "tga"):
        (root / f"{suffix}.{suffix}").write_bytes(encoded(suffix))
    Image.fromarray(noise(9, 9, 4)).save(root / "alpha.png")
    shard = tar(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in sorted(root.iterdir())])
    for channels in (1, 3, 4):
        files = data.load("folder", root=root, image_size=8, channels=channels)
        images = data.load("wds", root=shard, image_size=8, channels=channels)
        assert torch.equal(everything(images), everything(files))


def test_samples_are_grouped_by_what_precedes_the_first_dot(tmp_path):
    members = [
        ("./b/000.seg.png", png(1)),
        ("./a.b/000.json", b"{}"),
        ("./b/000.cls", b"7\n"),
        ("__meta__/__x__.jpg", b""),
        ("__x.jpg", png(3)),
        ("./b/._000.png", b"resource fork"),
        ("./a.b/000.PNG", png(2)),
        ("./a.b/000.cls", b"3"),
        ("./c/000.npy", b"no image"),
    ]
    images = load(tar(tmp_path / "a.tar", members))
    for image, seed in zip(everything(images), (1, 2, 3), strict=True):
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(noise(16, 16, seed=seed)))
    assert images.left_out == {".npy": 1}


def test_braces_are_written_out_as_by_a_shell():
    assert list(_shards._expand_braces("a-{08..11}-{x,y}.tar"))[:3] == ["a-08-x.tar", "a-08-y.tar", "a-09-x.tar"]
    assert list(_shards._expand_braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(_shards._expand_braces("{0..10}")) == [*map(str, range(11))]
    assert list(_shards._expand_braces("{8..010}")) == ["008", "009", "010"]
    assert list(_shards._expand_braces("plain.tar")) == ["plain.tar"]


def test_a_shard_is_packed_again_when_more_formats_can_be_read(tmp_path, monkeypatch):
    shard = tar(tmp_path / "a.tar", [("a.png", png(1)), ("b.bmp", encoded("bmp"))])
    with monkeypatch.context() as patch:
        patch.setattr(_shards, "image_endings", lambda: {".png"})
        assert len(load(shard)) == 1
    images = load(shard)
    assert (len(images), images.left_out) == (2, {})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("t_{0..99999999999}.tar", "root must stand for at most 100,000 shards, got .*t_{0..99999999999}"),
        ("{0..999}/{0..999}/{a,b}.tar", "at most 100,000 shards"),
        ("{0..99999}.tar", "100000 of the 100000 shards .* are missing"),
        (f"{{0..{'9' * 200}}}.tar", "at most 100,000 shards"),
    ],
)
def test_patterns_of_very_many_shards_are_refused_before_they_are_written_out(pattern, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _shards.expand_pattern(Path(pattern))


def test_names_that_are_not_utf8_are_kept_and_long_ones_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, content in (("\xe4.png", png()), ("\xf6.png", b"no image"), ("\xfc.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = load(path, skip_bad=True)
    assert len(images) == 1
    assert [file for file, _ in images.skipped] == [str(path / os.fsdecode(b"\xf6.png"))]
    with pytest.raises(data.BadImages, match="1 unreadable"):
        load(path)
    refused(
        tar(tmp_path / "b.tar", [("0.png", png()), ("x" * 10_000 + ".png", png())]),
        r"names in a shard must have at most 1,024 bytes, but one in .*b\.tar has 10,004: xxx",
    )


def test_images_without_labels_have_none_and_a_gap_is_reported(tmp_path, caplog):
    assert load(tar(tmp_path / "a.tar", [("0.png", png())])).labels is None
    assert not caplog.records
    gap = tar(tmp_path / "b.tar", [("0.png", png()), ("1.png", png(1)), ("1.cls", b"0")])
    assert load(gap).labels is None
    assert "1 of 2 images have no label, such as" in caplog.text
    assert "b.tar/0.png" in caplog.text
    with pytest.raises(ValueError, match="have no labels: each image needs a .cls"):
        _labelled.count_classes("wds", root=gap)


def test_a_missing_shard_is_named(shards):
    (shards.parent / "shard-000001.tar").unlink()
    refused(shards, r"1 of the 3 shards .* are missing: .*shard-000001\.tar", FileNotFoundError)
    refused(shards.parent / "nothing.tar", "there is no shard", FileNotFoundError)


def test_patterns_that_name_no_shard_are_refused(tmp_path, shards):
    assert len(load(shards.parent)) == 40  # a folder of shards
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"without any \*.tar", FileNotFoundError)
    refused(tmp_path / "{0}.tar", r"braces must hold a rising range, .*; got \{0\}")
    refused(tmp_path / "{3..1}.tar", "rising range")
    refused(tmp_path / "{{00..03},07}.tar", "braces must not hold others")
    refused(tmp_path / "{a,{b,c}}.tar", "braces must not hold others")
    refused(tmp_path / "{1,{0..2}", "braces must not hold others")
    refused(tmp_path / "{a,b,a}.tar", r"root must name each shard once, .*, which names .*a\.tar again")
    for url in ("https://example.org/{0..1}.tar", "s3://bucket/x.tar", "pipe:cat x.tar"):
        refused(url, "URLs are not read, since .*; download the shards first")
        refused(Path(url), "URLs are not read")
    refused(
        tar(tmp_path / "text.tar", [("0.txt", b"")]),
        r"shards with images, got .*, which hold 1 \.txt",
        FileNotFoundError,
    )
    with pytest.raises(ValueError, match="'wds' needs root, the shards"):
        data.load("wds")


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1000, 4000, 10240])
def test_a_truncated_shard_is_refused(tmp_path, keep):
    whole = tar(tmp_path / "whole.tar", [(f"{i}.png", png(i)) for i in range(20)])
    assert len(load(whole)) == 20
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:keep])
    refused(cut, r"cut\.tar is not a whole tar archive \(.+\): download or pack it again")


def test_a_shard_is_refused_wherever_it_is_cut_or_damaged(tmp_path):
    whole = tar(tmp_path / "whole.tar", [(f"{i}.png", png(i)) for i in range(3)]).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        end = archive.getmembers()[-1].offset_data + 1024  # of the last image, up to its padding
    for position in range(0, end, 512):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:position])
        refused(cut, "not a whole tar archive")
    damaged = bytearray(whole)
    with tarfile.open(tmp_path / "whole.tar") as archive:
        damaged[archive.getmembers()[1].offset + 100] ^= 255  # in a header
    (tmp_path / "damaged.tar").write_bytes(damaged)
    refused(tmp_path / "damaged.tar", "not a whole tar archive")


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    refused(tmp_path / "a.tar", "compressed, so that no image can be found in it: gunzip it")


def test_two_members_of_one_sample_are_refused(tmp_path):
    refused(
        tar(tmp_path / "a.tar", [("0.png", png()), ("0.jpg", png())]), r"one image, but in .* 0\.png and 0\.jpg have"
    )
    refused(tar(tmp_path / "b.tar", [("0.png", png()), ("1.png", png()), ("0.png", png())]), "one image")
    refused(tar(tmp_path / "c.tar", [("0.cls", b"1"), ("0.cls", b"1")]), r"one label, but .*c\.tar has two 0\.cls")
    for text in (b"", b"cat", b"-1", b"1.5", b"9" * 40):
        refused(tar(tmp_path / "d.tar", [("0.cls", text)]), r"a label must be a decimal number from 0, got .*/0\.cls")


def test_the_index_is_made_once_and_anew_when_a_shard_changes(shards, tmp_path, monkeypatch):
    load(shards)
    with monkeypatch.context() as patch:
        patch.setattr(_shards, "_index", None)  # any indexing fails now
        load(shards, cache=False)
    assert len(list((tmp_path / "cache").glob("wds-index-*.npz"))) == 1
    load(shards, cache=False, cache_dir=tmp_path / "other")
    assert [path.suffix for path in (tmp_path / "other").iterdir()] == [".npz"]
    tar(shards.parent / "shard-000002.tar", [("0.png", png(99))])
    changed = load(shards)
    assert len(changed) == 31
    assert torch.equal(everything(changed)[30].permute(1, 2, 0), torch.from_numpy(noise(16, 16, seed=99)))
    for index in (tmp_path / "cache").glob("wds-index-*.npz"):
        index.write_bytes(index.read_bytes()[:50])
    assert len(load(shards)) == 31  # indexed anew


def test_a_shard_that_changes_while_it_is_read_stops_the_run(shards):
    images = load(shards, cache=False)
    last = shards.parent / "shard-000002.tar"
    os.utime(last, ns=(1, 1))
    assert len(images.batch(np.arange(30))) == 30  # of the other shards
    with pytest.raises(OSError, match=r"shard-000002\.tar has changed since it was opened"):
        images.batch(np.array([35]))
    last.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000002\.tar"):
        images.batch(np.array([35]))


def test_members_too_large_for_an_image_are_bad_images(tmp_path):
    header = tarfile.TarInfo("huge.png")
    header.size = 60 * 10**9
    shard = tar(tmp_path / "a.tar", [("0.png", png())])
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[0].offset_data + 1024  # of the image, up to its padding
    shard.write_bytes(shard.read_bytes()[:end] + header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(shard, end + header.size + 2048)  # the rest of zeros, which take no space
    images = load(shard, skip_bad=True)
    reason = "has 60,000,000,000 bytes, more than 1,073,741,824, the most that an image file may have"
    assert images.skipped == [(f"{shard}/huge.png", reason)]
    assert len(images) == 1


def test_bad_images_in_shards_are_named_or_skipped(tmp_path):
    shard = tar(tmp_path / "a.tar", [("0.png", png()), ("1.png", png(1)[:200]), ("0.cls", b"4"), ("1.cls", b"5")])
    with pytest.raises(data.BadImages, match=r"a\.tar/1\.png"):
        load(shard)
    images = load(shard, skip_bad=True)
    assert images.labels.tolist() == [4]
    assert [file for file, _ in images.skipped] == [f"{shard}/1.png"]


def test_unpacked_shards_can_be_sent_to_another_process(shards):
    sent = pickle.loads(pickle.dumps(load(shards, cache=False)))
    assert torch.equal(everything(sent), everything(load(shards)))


@pytest.mark.parametrize(("cache", "conditional"), [(True, True), (False, False)])
def test_a_run_stopped_in_mid_epoch_resumes_exactly_from_moved_shards(tmp_path, shards, cache, conditional):
    recipe = TINY.replace(
        data="wds",
        root=shards,
        batch_size=8,
        steps=9,
        save_every=20,
        eval_every=None,
        sample_every=9,
        cache=cache,
        conditional=conditional,
    )  # 5 steps an epoch
    whole = start_and_stop(recipe, tmp_path / "whole")
    part = start_and_stop(recipe, tmp_path / "part", stop=7)
    moved = shards.parent.rename(tmp_path / "moved") / shards.name
    run = Run.resume(part, recipe.replace(root=moved))
    for _ in run.train():
        pass
    run.close()
    expected, found = computed(whole), computed(part)
    assert found.keys() == expected.keys()
    for name in {*expected} - {"recipe.yaml"}:
        if isinstance(expected[name], dict):
            different = {key for key in expected[name] if found[name][key] != expected[name][key]}
            assert different <= {"recipe"}, name
        else:
            assert found[name] == expected[name], name
    members = [((f"{i}.png", png(50 + i)), (f"{i}.cls", b"1")) for i in range(10)]
    tar(moved.parent / "shard-000002.tar", itertools.chain(*members))
    with pytest.raises(ValueError, match="but other ones"):
        Run.resume(part, recipe.replace(root=moved, steps=10))


# Large packed files


def test_a_large_packed_file_gives_the_same_images(shards, monkeypatch):
    expected = everything(load(shards))
    monkeypatch.setattr(_images, "_ADVISED_BYTES", 0)
    images = load(shards)
    assert images._ahead is not None
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(images.batch(order), expected[order])
    sent = pickle.loads(pickle.dumps(images))
    assert sent._ahead is not None
    assert torch.equal(sent.batch(order), expected[order])


# Writing


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_usual_formats_keep_their_bytes_and_others_their_pixels(tmp_path, suffix):
    root = tmp_path / "mixed"
    root.mkdir()
    (root / f"0.{suffix}").write_bytes(encoded(suffix))
    (root / "1.tif").write_bytes(encoded("tif"))
    Image.fromarray(noise(9, 9, 4)).save(root / "2.tga")
    Image.fromarray(noise(9, 9, 3)).convert("CMYK").save(root / "3.tif")
    Image.fromarray(noise(9, 9, 1)).save(root / "4.bmp")
    Image.fromarray(noise(9, 9, 1).astype(np.uint16) * 257).save(root / "5.tif")
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.fromarray(noise(9, 12)).save(root / "6.tif", exif=upright)
    Image.fromarray(noise(9, 12)).quantize(16).save(root / "7.gif", transparency=3)
    shards = write_shards(root, tmp_path / "shards", shard_size=100, workers=2)
    with tarfile.open(shards.pattern) as archive:
        names = archive.getnames()
        assert archive.extractfile(names[0]).read() == encoded(suffix)
    assert names == [f"000000.{suffix}", *(f"{i:06d}.png" for i in range(1, 8))]
    for channels in (1, 3, 4):
        files = data.load("folder", root=root, image_size=8, channels=channels)
        images = data.load("wds", root=shards.pattern, image_size=8, channels=channels)
        assert torch.equal(everything(images), everything(files))
    assert images.labels is None


def test_shards_are_the_same_bytes_whenever_they_are_written(classes, tmp_path, shards):
    for file in classes.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    again = write_shards(classes, tmp_path / "again", shard_size=15, workers=3)
    assert (again.images, again.classes) == (40, ["cat", "dog"])
    names = sorted(path.name for path in shards.parent.iterdir())
    assert names == ["classes.txt", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    for name in names:
        assert (again.pattern.parent / name).read_bytes() == (shards.parent / name).read_bytes()
    assert (shards.parent / "classes.txt").read_text() == "cat\ndog\n"
    with tarfile.open(shards.parent / "shard-000001.tar") as archive:
        assert archive.getnames()[:3] == ["000015.cls", "000015.png", "000016.cls"]


def test_the_webdataset_library_reads_what_pack_writes(classes, shards):
    webdataset = pytest.importorskip("webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(str(shards), shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    files = sorted(classes.rglob("*.png"))
    assert [label for _, label in samples] == [0] * 20 + [1] * 20
    for (picture, _), file in zip(samples, files, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(file)))


def test_this_package_reads_what_the_webdataset_library_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
            for i in range(3):
                sink.write({"__key__": f"sample{i}", "png": png(i), "cls": 2 - i, "json": {"i": i}})
    images = load(tmp_path / "a.tar")
    assert images.labels.tolist() == [2, 1, 0]
    assert torch.equal(everything(images)[2].permute(1, 2, 0), torch.from_numpy(noise(16, 16, seed=2)))


def test_pack_refuses_bad_images_and_skips_them_if_asked(spoiled, tmp_path, capsys):
    root, bad = spoiled
    message = said(capsys, "pack", root, "--out", tmp_path / "shards", code=2)
    assert f"{len(bad)} unreadable image(s), which --skip-bad would leave out" in message
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled"]
    text = said(capsys, "pack", root, "--out", tmp_path / "shards", "--skip-bad")
    assert f"skipped {len(bad)} files" in text
    assert len(load(tmp_path / "shards")) == 3


def test_shards_can_be_written_into_this_folder_if_it_is_empty(classes, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert write_shards(classes, Path(), shard_size=40, workers=1).pattern == Path("shard-000000.tar")
    assert len(load(tmp_path / "here")) == 40


def test_pack_replaces_shards_only_if_asked(classes, tmp_path, capsys):
    out = tmp_path / "packed"
    text = said(capsys, "pack", classes, "--out", out, "--shard-size", 30)
    assert "40 images of 2 classes, cat, dog" in text
    assert f"dcgan train --data 'wds:{out}/shard-{{000000..000001}}.tar'" in text
    assert "exists: --force replaces the shards in it" in said(capsys, "pack", classes, "--out", out, code=2)
    said(capsys, "pack", classes / "cat", "--out", out, "--force")
    assert sorted(path.name for path in out.iterdir()) == ["shard-000000.tar"]
    (out / "notes.txt").touch()
    assert "notes.txt, which is not what pack writes" in said(capsys, "pack", classes, "--out", out, "--force", code=2)
    assert "is a file" in said(capsys, "pack", classes, "--out", out / "notes.txt", code=2)
    assert "does not exist" in said(capsys, "pack", tmp_path / "nothing", "--out", out, code=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    "names", [("train.tar",), ("classes.txt",), ("shard-000000.tar", "classes.txt"), ("shard-7.tar",)]
)
def test_pack_replaces_nothing_that_it_did_not_write(classes, tmp_path, capsys, names):
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_bytes(b"zebra, ape")
    message = said(capsys, "pack", classes, "--out", out, "--force", code=2)
    assert f"{out} holds {names[-1]}, which is not what pack writes" in message
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == [
        (name, b"zebra, ape") for name in sorted(names)
    ]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_pack_replaces_no_folder_or_link_of_a_name_of_its_own(classes, tmp_path, make):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/elsewhere").touch()
    make(tmp_path / "out/shard-000000.tar")
    (tmp_path / "out/elsewhere").rename(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match=r"holds shard-000000\.tar, which is not"):
        write_shards(classes, tmp_path / "out", shard_size=40, workers=1, force=True)
    assert (tmp_path / "out/shard-000000.tar").lstat()


def test_pack_leaves_hidden_neighbours_alone(classes, tmp_path):
    mine = [tmp_path / f".out.{ending}/notes" for ending in ("old", "tmp")]
    for path in mine:
        path.parent.mkdir()
        path.write_text("mine")
    for force in (False, True):
        write_shards(classes, tmp_path / "out", shard_size=40, workers=1, force=force)
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    workspace = tmp_path / ".out.dcgan-pack/new"
    workspace.mkdir(parents=True)
    (workspace / "notes").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        write_shards(classes, tmp_path / "out", shard_size=40, workers=1, force=True)
    assert (workspace / "notes").read_text() == "mine"
    assert len(load(tmp_path / "out")) == 40


def test_pack_puts_the_old_shards_back_if_it_cannot_replace_them(classes, tmp_path, monkeypatch):
    out = write_shards(classes, tmp_path / "out", shard_size=40, workers=1).pattern.parent
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = Path.rename

    def failing(path, target):
        if path.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_shards(classes / "cat", tmp_path / "out", shard_size=40, workers=1, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_classes_are_listed_in_the_bytes_of_their_folders(classes, tmp_path):
    try:
        (classes / "cat").rename(classes / os.fsdecode(b"c\xe2t"))
    except (OSError, UnicodeError):
        pytest.skip("names of files are Unicode here")
    for force in (False, True):
        write_shards(classes, tmp_path / "out", shard_size=40, workers=1, force=force)
    assert (tmp_path / "out/classes.txt").read_bytes() == b"c\xe2t\ndog\n"


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_pack_leaves_all_shards_or_none_and_can_be_repeated(classes, tmp_path):
    reference = write_shards(classes, tmp_path / "reference", shard_size=8, workers=1).pattern.parent
    whole = {path.name: path.read_bytes() for path in reference.iterdir()}
    killed = 0
    for number, left in enumerate(random.Random(0).sample(range(1, 45), 4)):
        out = tmp_path / f"out{number}" / "shards"
        arguments = ("pack", classes, "--out", out, "--shard-size", 8, "--workers", 1)
        code = command(tmp_path / "log", *arguments, kill_at=(str(out.parent), left))
        killed += code == -9
        assert code in (0, -9)
        assert not out.exists() or {path.name: path.read_bytes() for path in out.iterdir()} == whole
        assert command(tmp_path / "log", *arguments, "--force") == 0, (tmp_path / "log").read_text()
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
        assert [path.name for path in out.parent.iterdir()] == ["shards"]
    assert killed


# The command line


def test_the_place_of_data_can_be_part_of_its_name(shards, tmp_path, capsys):
    options = ["--image-size", 16, "--base-channels", 4, "--batch-size", 8, "--device", "cpu", "--print-recipe"]
    text = said(capsys, "train", "--data", f"wds:{shards}", *options)
    assert f"data: wds\nroot: {shards}\n" in text
    assert said(capsys, "train", f"--data=wds:{shards}", *options) == text
    assert said(capsys, "train", "--data", "wds", "--root", shards, *options) == text
    assert "data: hf\nroot: owner/name\n" in said(capsys, "train", "--data", "hf:owner/name", "--print-recipe")
    assert "omit --root" in said(capsys, "train", "--data", f"wds:{shards}", "--root", tmp_path, code=2)
    assert "quote it" in said(capsys, "train", "--data", "wds:a-0.tar", "wds:a-1.tar", code=2)
    assert "--data wds: names shards" in said(capsys, "train", "--data", "wds:", code=2)


def test_evaluation_and_features_take_shards(shards):
    labelled = _labelled.load_labelled("wds", "test", root=shards, image_size=16)
    assert len(labelled.images) == 8
    assert _labelled.count_classes("wds", root=shards) == 2


# Hugging Face


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """The library, whose caches are temporary."""
    library = pytest.importorskip("datasets")
    patch = pytest.MonkeyPatch()
    patch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    library.disable_progress_bars()
    yield library
    patch.undo()


@pytest.mark.parametrize("form", ["imagefolder", "saved", "splits", "parquet"])
def test_a_dataset_of_hugging_face_holds_the_images_of_the_folder(classes, tmp_path, hub, form):
    root = classes
    if form != "imagefolder":
        dataset = hub.load_dataset(str(classes), split="train")
        root = tmp_path / form
        if form == "saved":
            dataset.save_to_disk(root)
        elif form == "splits":
            hub.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(root)
        else:
            root.mkdir()
            dataset.to_parquet(root / "train.parquet")
    for cache in (True, False):
        images = load(root, "hf", cache=cache)
        assert torch.equal(everything(images), everything(load(classes, "folder")))
        assert images.labels.tolist() == [0] * 20 + [1] * 20
    assert _labelled.count_classes("hf", root=root) == 2


def test_a_dataset_that_changes_is_packed_again(classes, hub):
    first = load(classes, "hf")
    Image.fromarray(noise(16, 16, seed=99)).save(classes / "cat/0003.png")
    second = load(classes, "hf")
    assert second.path != first.path
    assert torch.equal(everything(second)[3].permute(1, 2, 0), torch.from_numpy(noise(16, 16, seed=99)))


def test_a_saved_format_hides_no_column(tmp_path, hub):
    rows = [{"bytes": png(), "path": None}]
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    dataset = hub.Dataset.from_dict({"image": rows, "label": [3]}, features=features)
    dataset.set_format("torch", columns=["label"])
    dataset.save_to_disk(tmp_path / "a")
    assert load(tmp_path / "a", "hf").labels.tolist() == [3]


def test_bad_rows_are_named_or_skipped(tmp_path, hub):
    rows = [{"bytes": png(), "path": None}, {"bytes": b"words", "path": None}, None]
    features = hub.Features({"image": hub.Image(decode=False), "label": hub.Value("int64")})
    hub.Dataset.from_dict({"image": rows, "label": [3, 4, 5]}, features=features).save_to_disk(tmp_path / "a")
    with pytest.raises(data.BadImages, match=r"row 1: is not in a supported format.*\n *row 2: is missing"):
        load(tmp_path / "a", "hf")
    assert load(tmp_path / "a", "hf", skip_bad=True).labels.tolist() == [3]


def test_datasets_that_are_not_there_or_hold_no_images_are_refused(tmp_path, hub, monkeypatch):
    def refused(root, message, kind=FileNotFoundError):
        with pytest.raises(kind, match=message):
            load(root, "hf")

    refused(tmp_path / "nothing", "there is no such folder")
    hub.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    refused(tmp_path / "text", r"one column of images, got 0 in text \(Value\)", ValueError)
    hub.DatasetDict({"test": hub.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "test")
    refused(tmp_path / "test", "must have the split 'train', got test", ValueError)
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("owner/name", "root must be a name on the Hugging Face Hub, .*; got owner/name: ")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused("owner/name", r'pip install "dcgan\[datasets\]"', ImportError)


def test_a_dataset_on_the_hub_keeps_its_name_in_a_published_recipe(tmp_path):
    assert TINY.replace(data="hf", root=Path("owner/name")).without_paths().root == Path("owner/name")
    assert TINY.replace(data="hf", root=tmp_path).without_paths().root == Path(tmp_path.name)
    assert TINY.replace(data="wds", root=tmp_path / "{0..1}.tar").without_paths().root == Path("{0..1}.tar")


# Real images


@real("cifar10")
def test_shards_of_cifar10_hold_its_images(tmp_path):
    root = tmp_path / "few"
    for name in ("bird", "cat", "ship"):
        (root / name).mkdir(parents=True)
        for file in sorted((REAL / "cifar10" / name).iterdir())[:50]:
            (root / name / file.name).write_bytes(file.read_bytes())
    shards = write_shards(root, tmp_path / "shards", shard_size=64, workers=2)
    images = data.load("wds", root=shards.pattern, image_size=32)
    assert torch.equal(everything(images), everything(data.load("folder", root=root, image_size=32)))
    assert images.labels.tolist() == [0] * 50 + [1] * 50 + [2] * 50
