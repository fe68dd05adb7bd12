"""Deep convolutional GANs: networks, training and checkpoints (Radford et al., 2016)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcgan.architectures import list_architectures
    from dcgan.models import Discriminator, Generator, from_pretrained, weights_init
    from dcgan.trainer import Trainer
    from dcgan.zoo import list_models

__version__ = "0.3.0"

_MODULES = {
    "Discriminator": "dcgan.models",
    "Generator": "dcgan.models",
    "Trainer": "dcgan.trainer",
    "from_pretrained": "dcgan.models",
    "list_architectures": "dcgan.architectures",
    "list_models": "dcgan.zoo",
    "weights_init": "dcgan.models",
}

__all__ = [
    "Discriminator",
    "Generator",
    "Trainer",
    "from_pretrained",
    "list_architectures",
    "list_models",
    "weights_init",
]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: the command line answers --help and reports mistakes without it.
    if name not in _MODULES:
        raise AttributeError(f"module 'dcgan' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
