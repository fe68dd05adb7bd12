"""Pictures and tables of networks, made from their layers.

A picture has a box for each map, in the manner of Figure 1 of the paper (https://arxiv.org/abs/1511.06434): as high and
as deep as the map, as long as it has channels; and between two boxes the kernel, on the side where it has more than one
pixel. Areas and lengths grow with the square root, so that a 4×4 map is still seen beside a 64×64 one.

Shapes: C channels, H×W size of a map, Y num_classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn

from dcgan._errors import InputError
from dcgan._files import atomic_write
from dcgan.ema import BATCH_NORMS

if TYPE_CHECKING:
    from dcgan.models import Discriminator, Generator

HEADINGS = ("stage", "layer", "kernel", "then", "size", "channels", "parameters", "multiplications")
"""What the columns of `table` hold."""

# Layers that keep the shape, as they are called.
_NORMS: dict[type[nn.Module], str] = dict.fromkeys(BATCH_NORMS, "BatchNorm") | {
    nn.InstanceNorm2d: "InstanceNorm",
    nn.GroupNorm: "LayerNorm",
}
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "ReLU",
    nn.LeakyReLU: "LeakyReLU",
    nn.Tanh: "Tanh",
    nn.Sigmoid: "Sigmoid",
}

_HIGHEST, _PER_CHANNEL = 88.0, 1.4  # pixels of the longest side, and of the square root of the channels
_OVER, _UP = 0.45, 0.3  # where a pixel of the width goes, of those of the height
_GAP, _NARROWEST, _CHARACTER = 24.0, 40.0, 7.0
_COLOURS = {"generator": "#D55E00", "discriminator": "#0072B2", "ends": "#808080", "labels": "#00805D"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
# Of a file, which cannot take the colour of the page that shows it.
_STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e6e6e6}}</style>"


@dataclass(frozen=True)
class Stage:
    """A map of a network, and the layer that computes it.

    Attributes:
        name: Its name in the network's `blocks`; "latent", "image" and "logit" at the ends.
        layer: What computes it; empty for the input.
        kernel: Height and width of the kernel, if it has one.
        stride: Stride of the layer, if it has a kernel.
        scale: Factor of the enlargement before the layer, or 1.
        then: The normalisation and the activation that follow.
        shape: Channels C, height H and width W; 1×1 of a latent and of a logit.
        labels: Channels Y of the labels that are appended to it for the next layer, or 0.
        parameters: Number of parameters of the layer and of its normalisation.
        multiplications: Multiply-accumulate operations for one image, of convolutions and linear layers.
    """

    name: str
    layer: str
    kernel: tuple[int, int] | None
    stride: int | None
    scale: int
    then: tuple[str, ...]
    shape: tuple[int, int, int]
    labels: int
    parameters: int
    multiplications: int


def stages(network: "Generator | Discriminator") -> list[Stage]:
    """Return the maps of a network from its input to its output; nothing is computed.

    Raises:
        ValueError: If a layer is of another type than those that our networks are built of, such as an adapter.
    """
    config, labels = network.config, network.config["num_classes"] or 0
    is_generator = "latent_dim" in config
    size = config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    shape: tuple[int, ...] = (config["latent_dim"],) if is_generator else (config["channels"], height, width)
    ends = ("latent", "image") if is_generator else ("image", "logit")
    found = [Stage(ends[0], "", None, None, 1, (), _map(shape), labels, 0, 0)]
    for name, block in [*network.blocks.items(), (ends[1], network.head)]:
        shape = (shape[0] + labels, *shape[1:])
        layer, kernel, stride, scale, then, multiplications = "", None, None, 1, [], 0
        for part in block if isinstance(block, nn.Sequential) else [block]:
            before, shape = shape, _shape_after(part, shape)
            if isinstance(part, nn.Upsample):
                scale = _scale(part)
            elif isinstance(part, nn.Linear):
                layer, multiplications = "linear", part.in_features * part.out_features
            elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                transposed = isinstance(part, nn.ConvTranspose2d)
                layer = "transposed conv" if transposed else "conv"
                kernel, stride = _pair(part.kernel_size), part.stride[0]
                # The whole kernel meets each pixel that a convolution makes, or that a transposed one is made from.
                positions = math.prod((before if transposed else shape)[1:])
                multiplications = part.in_channels * part.out_channels * math.prod(kernel) * positions // part.groups
            elif known := _name_of(part):
                then.append(known)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        more = 0 if name == ends[1] else labels
        found.append(
            Stage(name, layer, kernel, stride, scale, tuple(then), _map(shape), more, parameters, multiplications)
        )
    return found


def _shape_after(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one image behind a layer, from that before it."""
    match layer:
        case nn.Linear():
            return (layer.out_features,)
        case nn.Flatten():
            return (math.prod(shape),)
        case nn.Unflatten():
            return tuple(layer.unflattened_size)
        case nn.Upsample():
            return (shape[0], *(side * _scale(layer) for side in shape[1:]))
        case nn.ConvTranspose2d():
            sides = zip(shape[1:], layer.kernel_size, layer.stride, _pair(layer.padding), strict=True)
            extra = layer.output_padding[0]
            return (layer.out_channels, *((side - 1) * s - 2 * p + k + extra for side, k, s, p in sides))
        case nn.Conv2d():
            sides = zip(shape[1:], layer.kernel_size, layer.stride, _pair(layer.padding), strict=True)
            return (layer.out_channels, *((side + 2 * p - k) // s + 1 for side, k, s, p in sides))
    if _name_of(layer) is None:
        raise InputError(f"the layers of the network must be plain ones, got a {type(layer).__name__}")
    return shape


def _name_of(layer: nn.Module) -> str | None:
    """Return how a layer is called that keeps the shape; None for another."""
    return next((name for kind, name in (_NORMS | _ACTIVATIONS).items() if isinstance(layer, kind)), None)


def table(network: "Generator | Discriminator") -> list[tuple[str, ...]]:
    """Return the stages of a network as rows of text: `HEADINGS`, the stages, their sum; it raises as `stages` does."""
    found = stages(network)
    total = sum(stage.parameters for stage in found), sum(stage.multiplications for stage in found)
    return [HEADINGS, *map(_row, found), ("total", *[""] * 5, f"{total[0]:,}", f"{total[1]:,}")]


def _row(stage: Stage) -> tuple[str, ...]:
    channels, height, width = stage.shape
    is_map = height * width > 1 or stage.name not in ("latent", "logit")
    layer = f"enlargement {stage.scale}x, {stage.layer}" if stage.scale > 1 else stage.layer
    return (
        stage.name,
        layer,
        f"{stage.kernel[0]}x{stage.kernel[1]}, stride {stage.stride}" if stage.kernel else "",
        ", ".join(stage.then),
        f"{height}x{width}" if is_map else "",
        f"{channels} + {stage.labels}" if stage.labels else str(channels),
        f"{stage.parameters:,}" if stage.layer else "",
        f"{stage.multiplications:,}" if stage.layer else "",
    )


def to_html(network: "Generator | Discriminator") -> str:
    """Return the picture of a network and its table as HTML, as a notebook shows it; it raises as `stages` does."""
    headings, *rows = table(network)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div style="overflow-x:auto">{draw(network)}<table style="white-space:nowrap"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def save_svg(path: str | PathLike[str], *networks: "Generator | Discriminator") -> None:
    """Write the picture that `draw` returns to a file, atomically; there it fits light and dark pages."""
    with atomic_write(path) as file:
        file.write(_svg(networks, _STYLE).encode())


def draw(*networks: "Generator | Discriminator") -> str:
    """Draw networks below each other, as SVG for a page of HTML, in whose colour of text it writes.

    Raises:
        ValueError: As `stages` does, or if there is no network.
    """
    return _svg(networks, "")


def _svg(networks: Sequence["Generator | Discriminator"], style: str) -> str:
    if not networks:
        raise InputError("a picture needs at least one network")
    rows = [_Row(network) for network in networks]
    width, height, parts = max(row.width for row in rows), 0.0, []
    for row in rows:
        parts.append(f'<g transform="translate(0 {_number(height)})">{row.content}</g>')
        height += row.height
    described = " ".join(row.description for row in rows)
    title = " and ".join(type(network).__name__ for network in networks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)} {_number(height)}" '
        f'width="{_number(width)}" height="{_number(height)}" style="max-width:100%;height:auto" role="img" '
        f'font-family="{_FONT}" font-size="12" fill="currentColor" text-anchor="middle">'
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc>{style}{''.join(parts)}</svg>\n"
    )


@dataclass(frozen=True)
class _Box:
    """A map as a box: its lower left front corner and its sides in pixels, of which `more` are labels."""

    stage: Stage
    left: float
    bottom: float
    length: float
    more: float
    high: float
    deep: float

    @property
    def right(self) -> float:
        return self.left + self.length + self.more

    def at(self, x: float, across: float, down: float) -> tuple[float, float]:
        """Return where a point of the map is, in shares of its width and height, in the plane that begins at x."""
        return x + across * _OVER * self.deep, self.bottom - (1 - down) * self.high - across * _UP * self.deep

    def patch(self, x: float, share: tuple[float, float]) -> list[tuple[float, float]]:
        """Return the corners of a rectangle in the middle of the map: its shares of the height and the width."""
        (down, across) = (min(1.0, each) / 2 for each in share)
        corners = ((-across, -down), (across, -down), (across, down), (-across, down))
        return [self.at(x, 0.5 + u, 0.5 + v) for u, v in corners]


class _Row:
    """The picture of one network: its SVG and its size in pixels."""

    def __init__(self, network: "Generator | Discriminator"):
        found = stages(network)
        kind = "generator" if "latent_dim" in network.config else "discriminator"
        total = sum(stage.parameters for stage in found), sum(stage.multiplications for stage in found)
        facts = f"{_rounded(total[0])} parameters, {_rounded(total[1])} multiplications per image"
        top = 68.0  # of the boxes, below the heading and what is said of the kernels
        self._middle = top + (1 + _UP) * _HIGHEST / 2
        boxes = self._place(found)
        self.width = max(boxes[-1].right + _OVER * boxes[-1].deep + 16, 2 * 8 + 6.3 * len(facts))
        self.height = top + (1 + _UP) * _HIGHEST + 48
        self.description = f"{type(network).__name__}, {facts}: {'; '.join(map(_describe, found))}."
        heading = f'<text x="8" y="16" text-anchor="start" font-size="14" font-weight="600">{kind.capitalize()}</text>'
        parts = [heading, f'<text x="8" y="33" text-anchor="start">{facts}</text>']
        for index, box in enumerate(boxes):
            colour = _COLOURS["ends" if index in (0, len(boxes) - 1) else kind]
            parts.append(_faces(box, box.left, box.left + box.length, colour))
            if box.more:
                parts.append(_faces(box, box.left + box.length, box.right, _COLOURS["labels"]))
            x = (box.left + box.right + _OVER * box.deep) / 2
            weights = ("600", "400")
            for line, (text, weight) in enumerate(zip(_captions(box.stage), weights, strict=False)):
                y = self.height - 32 + 16 * line
                parts.append(f'<text x="{_number(x)}" y="{_number(y)}" font-weight="{weight}">{escape(text)}</text>')
        for before, after in pairwise(boxes):
            parts.append(_kernel(before, after))
            x = (before.right + _OVER * before.deep + after.left) / 2
            for line, text in enumerate(_actions(after.stage)):
                y = 52 + 13 * line
                parts.append(f'<text x="{_number(x)}" y="{_number(y)}" font-size="11">{escape(text)}</text>')
        self.content = "".join(parts)

    def _place(self, found: list[Stage]) -> list[_Box]:
        longest = max(max(stage.shape[1:]) for stage in found)
        boxes, left = [], 8.0
        for stage in found:
            channels, height, width = stage.shape
            length = max(2.0, _PER_CHANNEL * math.sqrt(channels))
            more = _PER_CHANNEL * math.sqrt(stage.labels)
            high, deep = (_HIGHEST * math.sqrt(side / longest) for side in (height, width))
            wide = length + more + _OVER * deep
            column = max(wide, _NARROWEST, _CHARACTER * max(map(len, _captions(stage))))
            bottom = self._middle + (high + _UP * deep) / 2
            boxes.append(_Box(stage, left + (column - wide) / 2, bottom, length, more, high, deep))
            left += column + _GAP
        return boxes


def _faces(box: _Box, left: float, right: float, colour: str) -> str:
    """Draw the front, the top and the side of a part of a box, through which one sees."""
    front = [box.at(left, 0, 0), box.at(right, 0, 0), box.at(right, 0, 1), box.at(left, 0, 1)]
    above = [box.at(left, 0, 0), box.at(left, 1, 0), box.at(right, 1, 0), box.at(right, 0, 0)]
    side = [box.at(right, 0, 0), box.at(right, 1, 0), box.at(right, 1, 1), box.at(right, 0, 1)]
    faces = "".join(
        f'<polygon points="{_points(face)}" fill-opacity="{opacity}"/>'
        for face, opacity in ((front, 0.45), (above, 0.25), (side, 0.3))
    )
    return f'<g fill="{colour}" stroke="{colour}" stroke-linejoin="round">{faces}</g>'


def _kernel(before: _Box, after: _Box) -> str:
    """Draw the pixels that one pixel is computed from, or, of a transposed convolution, those that one goes into."""
    stage = after.stage
    spreads = stage.layer == "transposed conv" or before.stage.shape[1:] == (1, 1)
    many, one = (after, before) if spreads else (before, after)
    sides = many.stage.shape[1:]
    size = stage.kernel or sides
    patch = many.patch(many.left if spreads else many.right, (size[0] / sides[0], size[1] / sides[1]))
    x, y = one.at(one.right if spreads else one.left, 0.5, 0.5)
    lines = "".join(f"M{_number(px)} {_number(py)}L{_number(x)} {_number(y)}" for px, py in patch)
    return (
        f'<g stroke="currentColor" stroke-width="0.8" fill="none"><polygon points="{_points(patch)}"/>'
        f'<path d="{lines}" stroke-opacity="0.5"/></g>'
    )


def _captions(stage: Stage) -> tuple[str, ...]:
    """Return what stands below a box."""
    channels, height, width = stage.shape
    if stage.name == "latent":
        return (f"{channels} + {stage.labels}" if stage.labels else str(channels), "z")
    if stage.name == "logit":
        return (str(channels), "logit")
    return (f"{height}×{width}", f"× {channels} + {stage.labels}" if stage.labels else f"× {channels}")


def _actions(stage: Stage) -> tuple[str, ...]:
    """Return what stands between a box and the one before it."""
    kernel = "linear" if stage.kernel is None else f"{stage.kernel[0]}×{stage.kernel[1]}"
    if stage.scale > 1:
        return (f"{stage.scale}× larger", kernel)
    return (kernel,) if stage.stride is None else (kernel, f"stride {stage.stride}")


def _describe(stage: Stage) -> str:
    name, layer, kernel, then, size, channels, *_ = _row(stage)
    words = [word for word in (layer, kernel, then) if word]
    what = f"{channels} channels of {size}" if size else f"{channels} numbers" if name == "latent" else name
    return f"{', '.join(words)}: {what}" if words else what


def _map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width


def _scale(layer: nn.Upsample) -> int:
    factor: Any = layer.scale_factor
    if not isinstance(factor, int | float) or factor != int(factor):
        raise InputError(f"an enlargement must be by a whole number for both sides, got {layer}")
    return int(factor)


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"sizes in a layer must be two whole numbers, got {value!r}")
    height, width = value
    return height, width


def _rounded(count: int) -> str:
    """Return a number with three digits, in words."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in corners)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
