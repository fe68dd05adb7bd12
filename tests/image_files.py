"""Image files for tests: what to write, and what to read back."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(os.environ.get("DCGAN_TEST_DATA", "~/.cache/dcgan-data")).expanduser()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8).squeeze()


def folder_of(path, count, side=16):
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(noise(side, side, seed=index)).save(path / f"{index:04}.png")
    return path


def bomb():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)  # between Pillow's warning and its error
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix), **options)
    return buffer.getvalue()


def everything(images):
    return images.batch(np.arange(len(images)))


def python(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


@contextlib.contextmanager
def unprivileged():
    """Give up the rights of root for a while, which no permission of a file would stop."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Unix only")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def real(path):
    return pytest.mark.skipif(not (REAL / path).is_dir(), reason=f"needs {path} in DCGAN_TEST_DATA")
