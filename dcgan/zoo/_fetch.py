"""Fetching somebody else's model: download, compare the hash, convert without executing anything, keep."""

import errno
import hashlib
import logging
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants

from dcgan._errors import InputError
from dcgan.convert import convert
from dcgan.data import cache_folder
from dcgan.hub._pretrained import CONFIG, WEIGHTS
from dcgan.zoo import Model, RemoteFile

_CONVERSION = 2  # part of the name in the cache: raise it when the same files are to give another network
_SECONDS_OF_SILENCE = 30.0
_SECONDS_OF_A_DAY = 86400.0
_TEMPORARY = ".fetching-"
_OF_DISKS = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES

logger = logging.getLogger(__name__)


def fetch(
    model: Model,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the folder of a model, which is not on the Hub: on board, or in the cache, where the first call puts it.

    The variable DCGAN_ZOO_MIRROR replaces `https://` in front of every address, such as by
    `https://mirror.example.org/`.

    Args:
        model: Its record.
        cache_dir: Folder to keep it in; by default `zoo` in the cache of this package.
        local_files_only: Whether downloading is forbidden.
        force_download: Whether to download what the cache holds.

    Raises:
        FileNotFoundError: If it is not in the cache, and downloading is forbidden.
        OSError: If the download fails or is cut short, or the disk is full.
        ValueError: If a file has another hash than the record, or is not the network that it was.
    """
    if model.on_board:
        return model.folder
    parent = Path(cache_dir) if cache_dir is not None else cache_folder() / "zoo"
    folder = parent / f"{model.name}-{model.files[0].sha256[:12]}-{_CONVERSION}"
    whole = (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
    if whole and not force_download:
        return folder
    if local_files_only or constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{model.name} is not in {parent}, and downloading it is forbidden")
    logger.warning(
        "%s is by %s, under the licence %s; it was trained on %s, %s. %s",
        *(model.name, model.source, model.licence, model.data, model.terms, model.notice),
    )
    parent.mkdir(parents=True, exist_ok=True)
    _remove_what_kills_left(parent)
    with _locate_full_disk(parent), tempfile.TemporaryDirectory(dir=parent, prefix=_TEMPORARY) as temporary:
        paths = [_download(file, Path(temporary)) for file in model.files]
        converted = convert([paths[0].parent] if paths[0].suffix == ".npy" else paths)
        new = Path(temporary) / "converted"
        converted.save(new)
        if folder.exists() and (force_download or not whole):
            folder.rename(Path(temporary) / "old")
        with suppress(OSError):  # another process was faster, and has put the same there
            new.rename(folder)
    if not (folder / CONFIG).is_file():
        raise OSError(f"{folder} could not be made")
    return folder


def _remove_what_kills_left(parent: Path) -> None:
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # another process was faster
            if time.time() - folder.stat().st_mtime > _SECONDS_OF_A_DAY:
                shutil.rmtree(folder)


@contextmanager
def _locate_full_disk(parent: Path) -> Iterator[None]:
    """Name the folder and a remedy in errors of writing, which name neither."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or not _is_of_disk(error):
            raise
        raise OSError(error.errno, f"{error.strerror}; DCGAN_CACHE names another folder", str(parent)) from error


def _is_of_disk(error: BaseException) -> bool:
    """Tell errors of writing from those of the network, whose numbers are of another kind under TLS."""
    return isinstance(error, OSError) and not isinstance(error, URLError | ssl.SSLError) and error.errno in _OF_DISKS


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Let sockets that are opened in the block give up, for torch's download waits for ever on a silent server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(file: RemoteFile, folder: Path) -> Path:
    parts = urlsplit(file.url)
    mirror = os.environ.get("DCGAN_ZOO_MIRROR")
    if mirror and urlsplit(mirror).scheme not in ("http", "https"):
        raise InputError(f"DCGAN_ZOO_MIRROR must begin with http:// or https://, got {mirror!r}")
    url = f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}" if mirror else file.url
    path = folder / Path(parts.path).name
    try:
        with _timeout(_SECONDS_OF_SILENCE):
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr is not None and sys.stderr.isatty())
    except (OSError, HTTPException) as error:
        if _is_of_disk(error):
            raise
        remedy = "check DCGAN_ZOO_MIRROR" if mirror else "set DCGAN_ZOO_MIRROR to a mirror"
        remedy += ", or download it elsewhere and use `dcgan convert`"
        raise OSError(f"{url} could not be downloaded: {error}; {remedy}") from error
    size = path.stat().st_size
    if file.size is not None and size < file.size:
        raise OSError(f"{url} gave {size:,} of {file.size:,} bytes: it ended early, or the server sent something else")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(file.sha256):
        raise InputError(
            f"{url} is not the file that it was, or was damaged on the way: its {size:,} bytes have the hash {digest}, "
            f"not {file.sha256}; if trying again does not help, the record is outdated"
        )
    return path
