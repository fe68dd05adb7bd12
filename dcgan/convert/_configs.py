"""Inferring the arguments of a network from the shapes of its weights."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dcgan._config import pyramid, sides
from dcgan.convert._chains import Chain
from dcgan.models import Generator


def infer_config(chain: Chain, image_size: int | Sequence[int] | None, *, paired: bool) -> dict[str, Any]:
    """Infer a network's arguments from the shapes of its weights.

    Args:
        chain: Its layers.
        image_size: Side, or (height, width), to expect.
        paired: Whether a stage may have two convolutions, of which one keeps the resolution.

    Raises:
        ValueError: If our networks cannot express it, naming the first layer that does not fit, or if its weights
            leave the size of the images open.
    """
    is_generator = chain.network_class is Generator
    # In both networks the convolutions are, from the image on, (C, K, k, k), (2C, C, k, k), ...
    stem, convs = (chain.layers[0], chain.layers[:0:-1]) if is_generator else (chain.layers[-1], chain.layers[:-1])
    kernel = Counter(conv.shape[2:] for conv in convs).most_common(1)[0][0]
    if odd := [layer for layer in chain.layers if layer in convs and layer.shape[2:] != kernel]:
        raise ValueError(f"{odd[0]} would need a kernel of {kernel[0]}x{kernel[1]}, as most of its layers have")
    paired = paired and len(convs) % 2 == 0 and all(conv.shape[0] == conv.shape[1] for conv in convs[1::2])
    convs = convs[:: 1 + paired]
    widths = [conv.shape[0] for conv in convs]
    cap = max(widths)
    expected = [min(widths[0] << stage, cap) for stage in range(len(widths))]
    if widths != expected:
        wrong = next(i for i in range(len(widths)) if widths[i] != expected[i])
        raise ValueError(
            f"from the image on, its widths must double from stage to stage, up to a cap, got {widths}: "
            f"{convs[wrong]} would need {expected[wrong]} channels instead of {widths[wrong]}"
        )
    config = {
        "image_size": _infer_image_size(chain, kernel, widths, image_size),
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
    chain: Chain, kernel: tuple[int, ...], widths: list[int], image_size: int | Sequence[int] | None
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
        raise ValueError(
            f"{units} units of width {widths[-1]} do not make a square feature map: pass image_size as (height, width)"
        )
    # The last convolution of a discriminator may also be one like the others, padded, of a map of 3x3: 28 halves to it.
    padded = not is_generator and map_size == kernel == (4, 4) and (height, width) == (32, 32)
    if padded and expected is None:
        raise ValueError(f"its images are 32x32 if {stem} covers a 4x4 map, and 28x28 if it is padded: pass image_size")
    if expected not in (None, (height, width)):
        remark = f": for that, {stem} would be padded, which cannot be expressed" if padded else ""
        raise ValueError(f"its weights imply image_size {height}x{width}, not {expected[0]}x{expected[1]}{remark}")
    return height if height == width else [height, width]
