"""Arguments of the networks: their allowed values and the shapes that follow from them."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dcgan._errors import InputError
from dcgan._numbers import MAX_COUNT, brief, whole_number


def sides(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width)."""
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def pyramid(config: dict[str, Any]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the resolutions from the image down and the width at each but the first."""
    height, width = sides(config)
    stages = config["stages"]
    sizes = [(height, width)]
    while height % 2 == width % 2 == 0 and (min(height, width) > 7 if stages is None else len(sizes) <= stages):
        height, width = height // 2, width // 2
        sizes.append((height, width))
    done = len(sizes) - 1
    if stages is None and done < 4 and min(height, width) > 7:
        raise InputError(
            f"image_size must be a multiple of 16, or halve down to 7 or less, got {config['image_size']}, which "
            + (f"halves {done} times; stages={done} stops there" if done else "does not halve")
        )
    if done < (stages or 1):
        raise InputError(f"image_size must halve {stages or 1} times, got {config['image_size']}")
    if config["norm"] == "instance" and height * width == 1:
        raise InputError(f"norm 'instance' needs maps of more than one pixel, and {done} stages end in a 1x1 map")
    base, cap = config["base_channels"], config["max_channels"] or float("inf")
    return sizes, [int(min(base * 2**stage, cap)) for stage in range(done)]


def minimum_parameters(config: dict[str, Any]) -> int:
    """Return a lower bound on a network's number of parameters without building it, to check files."""
    sizes, widths = pyramid(config)
    labels, positions = config["num_classes"] or 0, sizes[-1][0] * sizes[-1][1]
    units = (config["latent_dim"] + labels) * widths[-1] if "latent_dim" in config else widths[-1] + labels
    # Labels are appended to the input of a layer, which is the wider side in one network and the other in the other.
    pairs = pairwise([config["channels"], *widths])
    return int(positions * units + sum(9 * (left * right + labels * min(left, right)) for left, right in pairs))


def validate_config(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments as JSON-serialisable values, each checked against its annotation."""
    hints = _annotations(cls)
    config = {name: arguments[name] for name in hints}
    for name, value in config.items():
        hint = hints[name]
        if name == "image_size":
            config[name] = _size(value)
        elif get_origin(hint) is Literal:
            if type(value) not in {type(choice) for choice in get_args(hint)} or value not in get_args(hint):
                choices = ", ".join(map(repr, get_args(hint)))
                raise InputError(f"{name} must be one of {choices}, got {value!r}")
        elif hint is bool:
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        elif hint is float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name} must be a number above 0, got {value!r}")
        elif value is not None or NoneType not in get_args(hint):
            config[name] = _count(name, value)
    return config


@cache  # resolving annotations takes longer than building a layer
def _annotations(cls: type) -> dict[str, Any]:
    return get_type_hints(vars(cls)["__init__"])


def _count(name: str, value: object) -> int:
    count = whole_number(name, value)
    if count < 1:
        raise InputError(f"{name} must be at least 1, got {count}")
    if count > MAX_COUNT:
        raise InputError(f"{name} must be at most {MAX_COUNT:,}, got {brief(count)}")
    return count


def _size(value: object) -> int | list[int]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _count("image_size", value)
    if len(value) != 2:
        raise InputError(f"image_size must be one side or (height, width), got {value!r}")
    height, width = (_count("image_size", side) for side in value)
    return height if height == width else [height, width]
