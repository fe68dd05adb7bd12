"""The allocator's setting does what it is for, and only where it is asked for."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import dcgan._allocator, torch
if {keep}: assert dcgan._allocator.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_pages_are_faulted_in_once():
    def faults(*, keep):
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    assert faults(keep=True) < 100 < faults(keep=False)


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    from dcgan import _allocator as allocator

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    assert not allocator.keep_memory()
