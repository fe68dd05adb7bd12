"""The allocator's setting avoids page faults, and is a no-op without glibc."""

import subprocess
import sys

import pytest

from dcgan import _allocator

FAULTS = """
import resource
import dcgan._allocator, torch
if {keep}: assert dcgan._allocator.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))  # a kernel may reclaim memory meanwhile
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_kept_memory_is_faulted_in_once():
    def faults(*, keep):
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    assert faults(keep=True) < 100 < faults(keep=False)


@pytest.mark.parametrize("error", [FileNotFoundError, OSError], ids=["Windows", "macOS"])
def test_nothing_happens_where_there_is_no_glibc(error, monkeypatch):
    def load_library(name):
        raise error(name)

    monkeypatch.setattr(_allocator.ctypes, "CDLL", load_library)
    assert not _allocator.keep_memory()


def test_nothing_happens_where_the_c_library_has_no_mallopt(monkeypatch):
    monkeypatch.setattr(_allocator.ctypes, "CDLL", lambda name: object())
    assert not _allocator.keep_memory()
