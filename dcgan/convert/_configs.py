"""Inferring the arguments of a network from the shapes of its weights."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dcgan._config import pyramid, sides
from dcgan._errors import InputError
from dcgan.convert._chains import Chain, Layer
from dcgan.models import Generator

_LARGEST = 4096  # pixels a side


def infer_config(chain: Chain, image_size: int | Sequence[int] | None, *, authors: bool) -> dict[str, Any]:
    """Infer a network's arguments from the shapes of its weights.

    Args:
        chain: Its layers.
        image_size: Side, or (height, width), to expect.
        authors: Whether it is the paper authors': a stage may have two convolutions then, of which one keeps the
            resolution, and a discriminator halves exactly.

    Raises:
        ValueError: If our networks cannot express it, naming the first layer that does not fit, or if its weights
            leave the size of the images open.
    """
    is_generator = chain.network_class is Generator
    # In both networks the convolutions are, from the image on, (C, K, k, k), (2C, C, k, k), ...
    stem, convs = (chain.layers[0], chain.layers[:0:-1]) if is_generator else (chain.layers[-1], chain.layers[:-1])
    kernel = Counter(conv.shape[2:] for conv in convs).most_common(1)[0][0]
    if odd := [layer for layer in chain.layers if layer in convs and layer.shape[2:] != kernel]:
        raise InputError(f"{odd[0]} would need a kernel of {kernel[0]}x{kernel[1]}, as most of its layers have")
    paired = authors and len(convs) % 2 == 0 and all(conv.shape[0] == conv.shape[1] for conv in convs[1::2])
    convs = convs[:: 1 + paired]
    widths = [conv.shape[0] for conv in convs]
    cap = max(widths)
    expected = [min(widths[0] << stage, cap) for stage in range(len(widths))]
    if widths != expected:
        wrong = next(i for i in range(len(widths)) if widths[i] != expected[i])
        raise InputError(
            f"from the image on, its widths must double from stage to stage, up to a cap, got {widths}: "
            f"{convs[wrong]} would need {expected[wrong]} channels instead of {widths[wrong]}"
        )
    config = {
        "image_size": _infer_image_size(chain, kernel, widths, image_size, certain=authors),
        "channels": convs[0].shape[1],
        "base_channels": widths[0],
        "max_channels": None if cap == widths[0] << (len(widths) - 1) else cap,
        "kernel_size": kernel[0],
        "stages": None,
        "convs_per_stage": 1 + paired,
        "stem": "conv" if len(stem.shape) == 4 else "linear",
        "bias": any("bias" in layer.tensors for layer in chain.layers),
        "norm": "batch" if any(chain.norms) else "none",
    }
    if is_generator:
        norm = chain.norms[0]
        unit = norm is not None and len(stem.shape) == 2 and norm.shape[0] == stem.shape[0] != widths[-1]
        config |= {"latent_dim": stem.shape[1 if len(stem.shape) == 2 else 0]}
        config |= {"stem_norm": "unit" if unit else "channel"}
    try:
        default_stages = len(pyramid(config)[1])
    except ValueError:  # the image size needs an explicit number of stages
        default_stages = 0
    if default_stages != len(widths):
        config["stages"] = len(widths)
    return config


def _infer_image_size(
    chain: Chain,
    kernel: tuple[int, ...],
    widths: list[int],
    image_size: int | Sequence[int] | None,
    *,
    certain: bool,
) -> int | list[int]:
    """Scale the smallest feature map up by the stages; a linear stem shows only its units, so a square is assumed."""
    is_generator, scale = chain.network_class is Generator, 2 ** len(widths)
    stem = chain.layers[0 if is_generator else -1]
    expected = None if image_size is None else sides({"image_size": image_size})
    map_size, units = stem.shape[2:], stem.shape[0 if is_generator else 1]
    height, width = (side * scale for side in map_size or 2 * [round((units / widths[-1]) ** 0.5)])
    if not map_size and expected and expected[0] * expected[1] * widths[-1] == units * scale**2:
        height, width = expected
    elif not map_size and height * width * widths[-1] != units * scale**2:
        raise InputError(
            f"{units} units of width {widths[-1]} do not make a square feature map: pass image_size as (height, width)"
        )
    if max(height, width) > _LARGEST:
        raise InputError(f"its {len(widths)} stages imply images of {height}x{width}")
    padded = not is_generator and map_size == kernel and (kernel[0] % 2 == 1 or (height, width) == (32, 32))
    if not is_generator and expected is None and not certain:
        _expect_unambiguous(stem, kernel[0], len(widths), (height, width), padded=padded)
    if expected not in (None, (height, width)):
        remark = f": for that, {stem} would be padded, which cannot be expressed" if padded else ""
        raise InputError(f"its weights imply image_size {height}x{width}, not {expected[0]}x{expected[1]}{remark}")
    return height if height == width else [height, width]


def _expect_unambiguous(stem: Layer, kernel: int, stages: int, size: tuple[int, int], *, padded: bool) -> None:
    """Check that the size of a discriminator's images follows from its weights.

    Raises:
        ValueError: If images of another usual size make the same smallest map, or the last layer may be padded.
    """
    side = 28  # of MNIST, which halves to 14, 7, and then to 3 or 4
    for _ in range(stages):
        side = (side + kernel % 2) // 2
    rounded = (side, side) == (size[0] >> stages, size[1] >> stages) and size != (28, 28)
    if rounded:
        raise InputError(f"its images are {size[0]}x{size[1]}, or 28x28 if its layers round: pass image_size")
    if padded:
        other = "28x28" if kernel == 4 else "of another size"
        raise InputError(
            f"its images are {size[0]}x{size[1]} if {stem} covers the last map, and {other} if it is padded: "
            "pass image_size"
        )
