import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep packed files of tests out of the user's cache, in this process and in those it starts."""
    os.environ["DCGAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of MNIST, CIFAR-10 and faces as their users have them."""
    folder = Path(os.environ.get("DCGAN_TEST_DATA", "~/.cache/dcgan-data")).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; DCGAN_TEST_DATA names another folder")
    return folder
