import os
from pathlib import Path

# Tests run in parallel, each with one thread, and so do the processes that they start. Torch reads this on import.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


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
