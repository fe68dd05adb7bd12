from typing import get_args

import pytest

from dcgan import _choices, list_architectures
from dcgan._precision import DTYPES
from dcgan.architectures import ARCHITECTURES
from dcgan.augment import AUGMENTATIONS
from dcgan.bench import WORKLOADS
from dcgan.data import DATASETS
from dcgan.losses import LOSSES


@pytest.mark.parametrize(
    ("names", "implementations"),
    [
        (_choices.ArchitectureName, ARCHITECTURES),
        (_choices.ArchitectureName, list_architectures()),
        (_choices.AugmentationName, AUGMENTATIONS),
        (_choices.DatasetName, DATASETS),
        (_choices.LossName, LOSSES),
        (_choices.Precision, DTYPES),
        (_choices.Workload, WORKLOADS),
    ],
    ids=["architectures", "list_architectures", "augmentations", "datasets", "losses", "precisions", "workloads"],
)
def test_every_name_has_something_behind_it_in_the_same_order(names, implementations):
    assert list(get_args(names)) == list(implementations)
