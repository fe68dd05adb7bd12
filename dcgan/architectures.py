"""The published networks as arguments of `Generator` and `Discriminator`."""

from typing import Any

from dcgan._choices import ArchitectureName

# A linear stem, normalised unit by unit, as the authors' released code has it.
_AUTHORS = {"stem": "linear", "stem_norm": "unit", "norm_eps": 1e-8}

ARCHITECTURES: dict[ArchitectureName, dict[str, Any]] = {
    # PyTorch's own example and tutorial.
    "tutorial": {},
    # Twice as wide, with a bias in every convolution.
    "biased": {"base_channels": 128, "bias": True},
    # 5×5 kernels, a linear stem without activation, biases, four stages at any size.
    "linear5": {
        "base_channels": 128,
        "kernel_size": 5,
        "stages": 4,
        "stem": "linear",
        "stem_activation": False,
        "bias": True,
    },
    # The authors' face model (Figure 1).
    "paper": {**_AUTHORS, "base_channels": 128, "kernel_size": 5, "latent": "uniform"},
    # The authors' SVHN model (Table 2).
    "svhn": {**_AUTHORS, "image_size": 32, "base_channels": 64, "kernel_size": 5},
    # The authors' ImageNet model (Table 1).
    "imagenet32": {
        **_AUTHORS,
        "image_size": 32,
        "latent_dim": 256,
        "base_channels": 128,
        "kernel_size": 3,
        "convs_per_stage": 2,
        "latent": "uniform",
    },
}
"""Arguments of the published networks by name, where they differ from the defaults."""


def list_architectures() -> list[ArchitectureName]:
    """Return the names that `Generator.from_architecture` and `Discriminator.from_architecture` take."""
    return list(ARCHITECTURES)
