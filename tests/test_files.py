"""Files are written whole or not at all."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from dcgan import _files
from dcgan._files import atomic_write

WRITER = """
import sys
from pathlib import Path
from dcgan._files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"new" * 1000)
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout.readline() == "half\n"
        writer.kill()
    assert path.read_bytes() == b"old"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new")
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_an_error_without_a_name_gets_that_of_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as raised, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "file"):
        pass


@pytest.mark.parametrize("durable", [True, False])
def test_only_durable_files_wait_for_the_disk(tmp_path, durable, monkeypatch):
    synced = []
    monkeypatch.setattr(_files.os, "fsync", synced.append)
    with atomic_write(tmp_path / "file", durable=durable) as file:
        file.write(b"new")
    expected = 0 if not durable else 1 if _files._WINDOWS else 2  # the file and, but for Windows, its folder
    assert len(synced) == expected


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "path"
    try:
        {
            "pipe": getattr(os, "mkfifo", None),
            "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
            "folder": os.mkdir,
        }[kind](path)
    except (PermissionError, AttributeError, TypeError):
        pytest.skip(f"a {kind} cannot be made here")
    (tmp_path / "link").symlink_to(path)
    before = path.lstat()
    for name in ("path", "link"):
        with pytest.raises(FileExistsError, match=rf"no file: '.*{name}'"), atomic_write(tmp_path / name) as file:
            file.write(b"new")
    assert path.lstat() == before
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_of_a_link_the_file_that_it_leads_to_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(f"folder/{name}")
    (tmp_path / "folder/old").write_bytes(b"old")
    for name in ("old", "new"):
        with atomic_write(tmp_path / name) as file:
            file.write(b"written")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "folder" / name).read_bytes() == b"written"
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["new", "old"]
