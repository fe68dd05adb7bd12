"""Fetching somebody else's model: download, compare the hash, convert without executing anything, keep."""

import logging
import os
import socket
import tempfile
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

logger = logging.getLogger(__name__)


def fetch(
    model: Model,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the folder of a model: that on board, or one in the cache, where it is put at the first call.

    The variable DCGAN_ZOO_MIRROR replaces `https://` in front of every address, such as by
    `https://mirror.example.org/`.

    Args:
        model: Its record.
        cache_dir: Folder to keep it in; by default `zoo` in the cache of this package.
        local_files_only: Whether downloading is forbidden.
        force_download: Whether to download what the cache holds.

    Raises:
        FileNotFoundError: If it is not in the cache, and downloading is forbidden.
        OSError: If the download fails, or the disk is full.
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
    with tempfile.TemporaryDirectory(dir=parent, prefix=".fetching-") as temporary:
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
            torch.hub.download_url_to_file(url, str(path), hash_prefix=file.sha256, progress=False)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        remedy = "check DCGAN_ZOO_MIRROR" if mirror else "set DCGAN_ZOO_MIRROR to a mirror"
        remedy += ", or download it elsewhere and use `dcgan convert`"
        raise OSError(f"{url} could not be downloaded: {error}; {remedy}") from error
    except RuntimeError as error:  # torch's, for another hash
        raise InputError(f"{url} is not the file that it was, or was damaged on the way: {error}") from error
    if file.size is not None and path.stat().st_size != file.size:
        raise InputError(f"{url} has {path.stat().st_size} bytes, not {file.size}")
    return path
