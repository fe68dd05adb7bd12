"""Networks whose features images are compared in: the classifier of this package, torch-fidelity's, or any other.

N images, F features, K channels, H×W image size.
"""

import hashlib
import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcgan._errors import InputError, MissingPackageError
from dcgan.images import from_uint8
from dcgan.metrics._classifier import image_features, load_classifier

_INCEPTION = "inception-v3-compat"  # as torch-fidelity names the network of published figures
_LOGITS = "logits_unbiased"  # of which the Inception Score is taken

Network = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


class FeatureExtractor:
    """A network that returns features of images, found by its name.

    Args:
        name: "classifier" is `image_features`. "inception" is the network of FID, KID and Inception Score; it is one of
            torch-fidelity's, as are "vgg16", "clip-vit-b-32" and others that are registered there. "MODULE:NAME" is an
            object in a Python module, also one in the working directory: an `nn.Module`, or a function, of images
            `(N, K, H, W)` in [-1, 1], that returns `(N, F)`.
        weights: File of the weights of one of torch-fidelity's networks, which otherwise downloads them.
        device: Where to compute.

    Attributes:
        name: The name.
        identity: What tells it from other networks of its name, a hash of its weights; "" for a function, whose code is
            not known.

    Raises:
        ImportError: If torch-fidelity is missing.
        ValueError: If there is no such network, it is neither a module nor a function, the weights do not fit it, or
            they are not weights alone.
        FileNotFoundError: If there is no such file.
        OSError: If the weights cannot be downloaded.
    """

    def __init__(self, name: str, *, weights: str | Path | None = None, device: torch.device | str = "cpu"):
        self.name = name
        self._device = torch.device(device)
        self._is_rgb = ":" not in name and name != "classifier"
        if weights is not None and not self._is_rgb:
            raise InputError(f"weights are of a network of torch-fidelity, such as inception, and not of {name!r}")
        if name == "classifier":
            self._network: Network = image_features
            self.identity = _hash(load_classifier(torch.device("cpu")))
            return
        network = _import(name) if ":" in name else _of_torch_fidelity(name, weights)
        self.identity = ""
        if isinstance(network, nn.Module):
            network = network.to(self._device).eval()
            self.identity = _hash(network)
        self._network = network

    def __call__(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Return the features `(N, F)` of uint8 images `(N, K, H, W)`, in float32, on the CPU.

        Raises:
            ValueError: If the images are of another type, or the network does not take them, or returns another shape.
        """
        return self.extract(images, batch_size=batch_size)[0]

    @torch.no_grad()
    def extract(self, images: Tensor, *, batch_size: int = 64) -> tuple[Tensor, Tensor | None]:
        """Return the features of images, and the logits `(N, classes)` of "inception"; None of other networks.

        Arguments and errors are those of a call.
        """
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise InputError(f"images must be uint8 (N, K, H, W), got {images.dtype} {tuple(images.shape)}")
        outputs = [self._compute(batch) for batch in torch.split(images, batch_size)]
        features, *logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return features, logits[0] if logits else None

    def _compute(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(self._device)
        if self._is_rgb:
            images = images[:, :3].expand(-1, 3, -1, -1)
        try:
            found = self._network(images if self._is_rgb else from_uint8(images))
        except (TypeError, ValueError) as error:
            if ":" not in self.name:
                raise
            raise InputError(f"{self.name} does not take images (N, K, H, W) as its only argument: {error}") from error
        outputs = found if isinstance(found, tuple) else (found,)
        for output in outputs:
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise InputError(f"{self.name} must return features ({len(images)}, F) of as many images, got {got}")
        return tuple(output.float().cpu() for output in outputs)


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if "" in (*module_name.split("."), attribute):
        raise InputError(f"features of your own are MODULE:NAME, such as package.module:function, got {name!r}")
    sys.path.insert(0, "")  # the working directory, which an installed command does not search
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"features name the Python module {module_name}, which cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        raise InputError(f"the module {module_name} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found) or isinstance(found, type):
        raise InputError(f"{name} must be a module of torch, or a function, of images, got {found!r}")
    return found


def _of_torch_fidelity(name: str, weights: str | Path | None) -> nn.Module:
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    except ImportError as error:
        raise MissingPackageError(
            f'the features {name!r} need torch-fidelity: pip install "dcgan[evaluate]"'
        ) from error
    registered = _INCEPTION if name == "inception" else name
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(["classifier", "inception", *sorted(set(FEATURE_EXTRACTORS_REGISTRY) - {_INCEPTION})])
        raise InputError(f"features must be {known}, or MODULE:NAME of your own, got {name!r}")
    if weights is not None:
        _expect_weights(Path(weights))
    kind = FEATURE_EXTRACTORS_REGISTRY[registered]
    layers = [kind.get_default_feature_layer_for_metric("fid"), *([_LOGITS] if registered == _INCEPTION else [])]
    path = None if weights is None else str(weights)
    try:
        network: nn.Module = kind(registered, layers, feature_extractor_weights_path=path)
    except OSError as error:
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}): fetch them where there is a network"
            f"{_source(kind)}, and name the file: weights=FILE, or --weights FILE"
        ) from error
    except RuntimeError as error:  # of load_state_dict, which lists every array
        if weights is None:
            raise
        raise InputError(f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
    return network


def _expect_weights(path: Path) -> None:
    """Refuse files with anything but arrays in them, since torch-fidelity would run what a pickle holds."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise InputError(f"{path} is not a file of weights alone: {str(error).splitlines()[0]}") from error


def _source(kind: type) -> str:
    found = vars(sys.modules[kind.__module__]).get("URL_INCEPTION_V3")
    return f", from {found}" if found else ""


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
