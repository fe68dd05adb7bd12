"""Which formats of image files are read, and by which endings their files are found."""

from __future__ import annotations

import os
from functools import cache

# Formats whose files tell by their first bytes what they are, whatever they are called. Pillow decodes all of them by
# itself. It opens more that are not safe with files from anywhere, or are not pictures: those for which it runs another
# program (EPS) or the system's renderer (WMF), a container of which it opens whatever is inside (IPTC), those that it
# recognises without decoding them (BUFR, GRIB, HDF5, MPEG), measurements without a white (FITS), and rare ones, each of
# which would be one more decoder within reach of a hostile file.
_SIGNED = {
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "PNG": (".apng", ".png"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
}
# Formats that Pillow takes a damaged file of another one for: only files of these endings are read as such.
_UNSIGNED = {"DIB": (".dib",), "PCX": (".pcx",), "TGA": (".icb", ".tga", ".vda", ".vst")}

HEIF_REMEDY = 'pip install "dcgan[heic]"'
HEIF_ENDINGS = _SIGNED["HEIF"]


def image_endings() -> frozenset[str]:
    """Return the endings of the files that this installation reads, in lower case, with their dot."""
    available = {name: endings for name, endings in _SIGNED.items() if name in _signed_formats()} | _UNSIGNED
    return frozenset(ending for endings in available.values() for ending in endings)


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; "" if it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million files: a Path for each takes longer)


def formats_of(name: str | None) -> tuple[str, ...]:
    """Return the formats, as Pillow calls them, that a file of this name, or one without, may have."""
    ending = "" if name is None else ending_of(name)
    return (*_signed_formats(), *(unsigned for unsigned, endings in _UNSIGNED.items() if ending in endings))


@cache
def _signed_formats() -> tuple[str, ...]:
    """Return those that Pillow was built with or has a plugin for."""
    from PIL import features

    missing = {"HEIF"} if not _register_heif() else set()
    for name, feature in {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.items():
        known = feature in features.modules or feature in features.codecs  # Pillow before 11.3 does not know AVIF
        if not known or not features.check(feature):
            missing.add(name)
    return tuple(name for name in _SIGNED if name not in missing)


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
