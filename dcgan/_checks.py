"""Checks of the arguments and inputs of `Trainer`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from dcgan import _optim
from dcgan._choices import CompileMode, Distribution, LossName, Precision, Schedule
from dcgan._distributed import process_count
from dcgan._errors import InputError
from dcgan._numbers import whole_number
from dcgan.ema import BATCH_NORMS
from dcgan.images import VALUE_RANGES
from dcgan.latents import LatentSampler
from dcgan.losses import Loss

logger = logging.getLogger(__name__)

_NOT_NEGATIVE = ("lr", "g_lr", "d_lr", "gradient_penalty", "r1", "weight_decay", "seed")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_NOT_NEGATIVE, (lambda value: value >= 0, "not be negative")),
    "d_steps": (lambda value: value >= 1, "be at least 1"),
    "max_grad_norm": (lambda value: value > 0, "be above 0"),
    "ema_decay": (lambda value: 0 <= value < 1, "be in [0, 1)"),
    "label_smoothing": (lambda value: 0 <= value < 1, "be in [0, 1)"),
}
_CHOICES = {"precision": Precision, "compile": CompileMode, "schedule": Schedule}


def expect_options(options: Mapping[str, Any]) -> None:
    """Check the options of a trainer, by name.

    Raises:
        ValueError: If one is out of range.
    """
    for name, choices in _CHOICES.items():
        expect_choice(name, options[name], choices)
    _expect_optimisers(options)
    for name in ("seed", "d_steps"):
        whole_number(name, options[name])
    for name, (fits, expected) in _RANGES.items():
        if options[name] not in (None, "auto") and not fits(options[name]):
            raise InputError(f"{name} must {expected}, got {options[name]}")


def _expect_optimisers(options: Mapping[str, Any]) -> None:
    for name in ("lr", "g_lr", "d_lr"):
        is_needed = name == "lr" and not all(options[f"{net}_lr"] or options[f"{net}_optimizer"] for net in "gd")
        may_be = ("auto",) if is_needed else ("auto", None)
        if options[name] not in may_be and not _is_finite(options[name]):
            raise InputError(f"{name} must be a finite number or 'auto', got {options[name]!r}")
    for name in ("g_optimizer", "d_optimizer"):
        if isinstance(options[name], type):
            raise InputError(
                f"{name} must be an optimiser of the network's parameters, got the class {options[name]!r}"
            )
    betas = options["betas"]
    if not hasattr(betas, "__len__") or len(betas) != 2 or not all(map(_is_finite, betas)):
        raise InputError(f"betas must be two numbers, beta1 and beta2, got {betas}")


def _is_finite(value: object) -> bool:
    if isinstance(value, str):
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # numbers of NumPy and tensors, too
    except (TypeError, ValueError):
        return False


def expect_counts(state: Mapping[str, Any]) -> None:
    """Check the number of steps and the seed of a trainer's state, if it has them.

    Raises:
        ValueError: If one cannot be.
    """
    for name in ("steps", "seed"):
        if not isinstance(count := state.get(name, 0), int) or count < 0:
            raise InputError(f"the state's {name} must be a whole number from 0 on, got {count!r}")


def expect_choice(name: str, value: object, choices: Any) -> None:
    """Check that a value is one of the choices of a `Literal`.

    Raises:
        ValueError: If it is not.
    """
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def common_device(*networks: nn.Module) -> torch.device:
    """Return the device of all parameters.

    Raises:
        ValueError: If there are several, the weights are of half precision, or one network is given twice.
    """
    if len(set(networks)) < len(networks):
        raise InputError("the generator and the discriminator must be two networks, got one for both")
    parameters = [parameter for network in networks for parameter in network.parameters()]
    if half := {parameter.dtype for parameter in parameters} & {torch.float16, torch.bfloat16}:
        raise InputError(
            f"the networks' weights must be float32, got {half.pop()}: keep them so, and pass precision= to this "
            "Trainer to compute in half precision"
        )
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1:
        raise InputError(f"the networks must be on one device, got {sorted(map(str, devices))}")
    if devices == {torch.device("meta")}:
        raise InputError("the networks are on the meta device, which has no memory: build them on another one")
    return devices.pop()


def latents_and_range(
    generator: nn.Module, latent_dim: int | tuple[int, ...] | None, latent: Distribution | LatentSampler | None
) -> tuple[tuple[int, ...], Distribution | LatentSampler, tuple[float, float] | None]:
    """Return the shape of a generator's latents, their distribution, and the range of its images if known.

    Raises:
        TypeError: If `latent_dim` is None and the generator's configuration does not give it.
        ValueError: If there is no such distribution.
    """
    config = getattr(generator, "config", None)
    config = config if isinstance(config, Mapping) else {}
    latent_dim = config.get("latent_dim") if latent_dim is None else latent_dim
    if latent_dim is None:
        raise TypeError(
            "latent_dim is needed for a generator without config['latent_dim']: pass latent_dim=, the length of a "
            "latent or its shape"
        )
    latent = latent or config.get("latent", "normal")
    if not callable(latent):
        expect_choice("latent", latent, Distribution)
    shape = tuple(latent_dim) if isinstance(latent_dim, Sequence) else (whole_number("latent_dim", latent_dim),)
    if not all(side >= 1 for side in shape):
        raise InputError(f"latent_dim must be at least 1, got {latent_dim}")
    output = config.get("output", type(_last_layer(generator)).__name__.lower())
    return shape, latent, VALUE_RANGES.get(output)


def common_classes(generator: nn.Module, discriminator: nn.Module) -> int | None:
    """Return the number of classes that both networks are conditional on, as their `config["num_classes"]` tell.

    Raises:
        ValueError: If it is not the same.
    """
    configs = [getattr(network, "config", None) for network in (generator, discriminator)]
    own, other = (config.get("num_classes") if isinstance(config, Mapping) else None for config in configs)
    if own != other:
        raise InputError(f"both networks must have the same num_classes, got {own} and {other}")
    return own


def trained_parameters(name: str, network: nn.Module, optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of a network that its optimiser updates; warn if trainable ones are missing.

    Raises:
        ValueError: If there are none.
    """
    held = set(_optim.parameters_of(optimizer))
    trained = [parameter for parameter in network.parameters() if parameter in held]
    if not trained:
        raise InputError(
            f"{name[0]}_optimizer holds no parameter of the {name}: build it from the network's own, after any "
            "load_state_dict(assign=True)"
        )
    if not any(parameter.requires_grad for parameter in trained):
        logger.warning("no parameter of the %s that its optimiser holds requires a gradient", name)
    left_out = sum(parameter.requires_grad and parameter not in held for parameter in network.parameters())
    if left_out:
        logger.warning(
            "%d trainable parameters of the %s are not in its optimiser and will not be trained", left_out, name
        )
    return trained


def expect_in_place(name: str, network: nn.Module, trained: list[nn.Parameter]) -> None:
    """Check that a network still has the parameters that are trained.

    Raises:
        RuntimeError: If they were replaced.
    """
    own = set(network.parameters())
    if not all(parameter in own for parameter in trained):
        raise RuntimeError(
            f"parameters of the {name} were replaced after the trainer was built, as load_state_dict(assign=True) "
            "does, and would not be trained: build another Trainer, or load without assign"
        )


def warn_about_discriminator(
    discriminator: nn.Module, loss: LossName | Loss, *, gradient_penalty: bool, penalised: bool
) -> None:
    """Warn of a sigmoid or a critic without bounds under one of our losses, and of the gradient penalty with BatchNorm.

    R1 is defined per image as well, but helps BatchNorm nevertheless (docs/training.md, "A long run on CIFAR-10").
    """
    if isinstance(loss, str) and isinstance(_last_layer(_only_layers(discriminator)), nn.Sigmoid):
        logger.warning("the discriminator ends in a sigmoid, but the loss takes its logits: remove the sigmoid")
    if loss == "wasserstein" and not penalised and not any(map(is_parametrized, discriminator.modules())):
        logger.warning(
            'nothing bounds the slope of the critic, as loss="wasserstein" needs: use gradient_penalty=10 '
            "(--gradient-penalty 10), or clip its weights after each step"
        )
    mixes = any(isinstance(module, BATCH_NORMS) and module.training for module in discriminator.modules())
    if gradient_penalty and mixes:
        logger.warning(
            "gradient_penalty is defined per image, but BatchNorm in the discriminator mixes the images of a batch: "
            'use norm="layer" or norm="none" for it (--d-norm)'
        )


def warn_about_modes(generator: nn.Module, discriminator: nn.Module, warned: set[str]) -> None:
    """Warn, once, of a network that was put into evaluation mode as a whole and left there."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        if not network.training and name not in warned:
            warned.add(name)
            logger.warning("training the %s in evaluation mode: call its train() after eval()", name)


def expect_unwrapped(g_optimizer: Optimizer, d_optimizer: Optimizer, precision: Precision) -> None:
    """Check that with "fp16" neither optimiser is a framework's wrapper.

    A gradient scaler leaves its scale on the optimiser that it is given, where the one inside would not find it.

    Raises:
        ValueError: If one is.
    """
    for name, optimizer in (("g_optimizer", g_optimizer), ("d_optimizer", d_optimizer)):
        wraps = any(isinstance(value, Optimizer) for value in vars(optimizer).values())
        if precision == "fp16" and (wraps or not isinstance(optimizer, Optimizer)):
            raise InputError(
                f'{name} must be the optimiser itself with precision="fp16", got the wrapper '
                f"{type(optimizer).__name__}: pass the optimiser that it wraps"
            )


def expect_processes(count: int) -> None:
    """Check that there are as many processes as when the trainer was built.

    Raises:
        RuntimeError: If there are not.
    """
    if process_count() != count:
        raise RuntimeError(
            f"the trainer was built for {count} process(es), but now there are {process_count()}, whose networks would "
            "drift apart: build the trainer after torch.distributed.init_process_group, in each process that trains"
        )


def warn_about_moments(name: str, optimizer: Optimizer, state: Mapping[str, Any], *, steps: int) -> None:
    """Warn of a state without the moments of an optimiser that has trained."""
    without_moments = isinstance(optimizer, torch.optim.SGD) and not any(g["momentum"] for g in optimizer.param_groups)
    if not state.get("state") and not without_moments:
        logger.warning(
            "the loaded state is of step %d, but has no moments of the %s, which starts anew: where "
            "torch.distributed.checkpoint loaded it, train each network once before, since it fills only tensors that "
            "exist",
            steps,
            name,
        )


def expect_images(batch: object) -> Tensor:
    """Return the images of a batch: the batch itself, or the one tensor of images among its values.

    Raises:
        TypeError: If there is no such tensor, or more than one.
        ValueError: If a tensor alone has another shape or type.
    """
    if isinstance(batch, Tensor):
        if not _are_images(batch):
            raise InputError(
                "the batch must be images (N, K, H, W), floating-point or uint8, got "
                f"{tuple(batch.shape)} of {batch.dtype}"
            )
        if not len(batch):
            raise InputError(f"the batch must hold at least one image, got {tuple(batch.shape)}")
        return batch
    if isinstance(batch, Mapping):
        items = {f"{key!r}": value for key, value in batch.items()}
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        items = {f"item {index}": value for index, value in enumerate(batch)}
    else:
        raise TypeError(
            f"the batch must be a tensor of images (N, K, H, W), got a {type(batch).__name__}: pass one batch as a "
            "tensor, such as torch.from_numpy(images), and a whole loader to fit"
        )
    images = [name for name, value in items.items() if isinstance(value, Tensor) and _may_be_images(value)]
    if len(images) != 1:
        found = ", ".join(f"{name} ({_describe(value)})" for name, value in list(items.items())[:8])
        several = f", in {' and '.join(images)}" if images else ""
        raise TypeError(
            "the batch must hold one tensor of images (N, K, H, W), floating-point or uint8, got a "
            f"{type(batch).__name__} with {len(images)} of them{several}; it has {found or 'no items'}: pass "
            "the images alone, as one tensor"
        )
    return expect_images(items[images[0]])


def expect_alike(real: Tensor, fake: object) -> None:
    """Check that a generator made images of the batch's shape.

    Raises:
        ValueError: If it did not.
    """
    if not isinstance(fake, Tensor) or fake.shape != real.shape:
        raise InputError(
            f"the generator must make images like the batch's, {tuple(real.shape)}, got {_describe(fake)}: give it the "
            "size and channels of the images, or resize them"
        )


def one_logit_each(output: object, count: int) -> Tensor:
    """Return the output of a discriminator for so many images as logits `(N,)`.

    Raises:
        ValueError: If it is not one number for each image.
    """
    if not isinstance(output, Tensor) or output.numel() != count:
        raise InputError(
            f"the discriminator must return one logit for each of {count} images, ({count},) or ({count}, 1), got "
            f"{_describe(output)}"
        )
    return output.flatten()


def expect_batch_labels(batch: object, count: int) -> Tensor:
    """Return the labels of a batch `(count,)` as int64: the one tensor of whole numbers of that shape among its values.

    Raises:
        TypeError: If there is no such tensor, or more than one.
    """
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    found = [value for value in values if isinstance(value, Tensor) and _may_be_labels(value, count)]
    if len(found) != 1:
        items = ", ".join(map(_describe, values)) or "images alone"
        raise TypeError(
            f"the networks are conditional: a batch must be (images, labels), with one tensor of labels ({count},), "
            f"whole numbers, got {len(found)} of them, in a {type(batch).__name__} of {items}"
        )
    return found[0].long()


def _may_be_labels(tensor: Tensor, count: int) -> bool:
    return tensor.shape == (count,) and not (tensor.is_floating_point() or tensor.dtype == torch.bool)


def _may_be_images(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.dtype != torch.bool  # of whole numbers, too: a mask is not to be taken instead


def _are_images(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and (tensor.is_floating_point() or tensor.dtype == torch.uint8)


def _describe(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _last_layer(network: nn.Module) -> nn.Module:
    """Return the layer that computes a network's output, or the network itself if only its code shows it."""
    while type(network) is nn.Sequential and len(network):
        network = network[-1]
    return network


def _only_layers(network: nn.Module) -> nn.Module:
    """Return the one Sequential of a class that holds nothing else, as in PyTorch's tutorial, or the network itself."""
    held = [*network.children(), *network.parameters(recurse=False), *network.buffers(recurse=False)]
    return held[0] if len(held) == 1 and isinstance(held[0], nn.Sequential) else network
