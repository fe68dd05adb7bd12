import os
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

# Tests run in parallel, each with one thread, and so do the processes that they start. Torch reads this on import.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from image_files import bomb, encoded, folder_of
from PIL import Image, ImageFile


@pytest.fixture(autouse=True, scope="session")
def _temporary_cache(tmp_path_factory):
    """Keep packed files out of the user's cache, in this process and in those it starts."""
    os.environ["DCGAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of MNIST, CIFAR-10 and faces in their usual layouts."""
    folder = Path(os.environ.get("DCGAN_TEST_DATA", "~/.cache/dcgan-data")).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set DCGAN_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, driven by Playwright."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Keep the default cache in tmp_path and refuse network access."""

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("DCGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    assert Image.MAX_IMAGE_PIXELS == 89478485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.fixture
def spoiled(tmp_path):
    """A folder with three good images among all kinds of bad ones, and the names of these."""
    root = folder_of(tmp_path / "spoiled", 3)
    bad = {
        "text.jpg": b"these are words, not pixels",
        "empty.png": b"",
        "bomb.png": bomb(),
        "eps.png": encoded("eps"),
        **{f"cut.{suffix}": encoded(suffix)[:700] for suffix in ["jpg", "png", "webp", "bmp", "tif"]},
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "directory.png").mkdir()
    (root / "dangling.png").symlink_to(root / "nothing")
    special = ["directory.png", "dangling.png"]
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo(root / "pipe.png")
        special.append("pipe.png")
    return root, sorted([*bad, *special])
