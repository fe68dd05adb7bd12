"""What the filters of a network respond to (Section 6.2), and what a generator draws without some of them (6.3.1).

Networks are any modules. A *stage* is one that maps images to feature maps: `Stage` makes it of a discriminator, and
`nn.Sequential(*layers[:n])` of other networks.

Shapes: N images, K channels, H×W pixels; F features, each with a map of h×w positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from einops import rearrange
from torch import Tensor, nn

from dcgan._errors import InputError
from dcgan._modules import Module, copy_module, eval_mode
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.latents import derive_seed
from dcgan.models import weights_init


class Stage(nn.Module):
    """The maps of one stage of a network that returns all of them by name, as `Discriminator.features` does.

    Args:
        network: Module with a method `features` that maps images to a dictionary of feature maps.
        name: Key of the dictionary, such as "8x8".
    """

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self.network, self.name = network, name

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, K, H, W)` to feature maps `(N, F, h, w)`.

        Raises:
            ValueError: If the network has no stage of this name.
        """
        network: Any = self.network
        maps: dict[str, Tensor] = network.features(images)
        if self.name not in maps:
            raise InputError(f"stage must be one of {', '.join(maps)}, got {self.name!r}")
        return maps[self.name]


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that influence each position of a feature map: one rectangle, moved from position to position.

    Attributes:
        size: Its height and width in pixels.
        stride: Distance in pixels between those of neighbouring rows, and of neighbouring columns.
        offset: Top and left edge of that of position (0, 0), which begin in the padding and so are rarely positive.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the top and the left edge of the rectangle of a position; it may extend beyond the image."""
        return row * self.stride[0] + self.offset[0], column * self.stride[1] + self.offset[1]


def receptive_field(stage: nn.Module, images: Tensor) -> ReceptiveField:
    """Return the receptive field of a stage whose convolutions and pools are applied one after the other.

    Normalisation is taken to be that of evaluation mode, or to not mix positions.

    Args:
        stage: Module that maps images to feature maps.
        images: Images `(N, K, H, W)` that it takes.

    Raises:
        ValueError: If the layers do not form a chain, as where a shortcut has another resolution.
    """
    calls: list[tuple[Any, torch.Size, Tensor]] = []
    layers = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: calls.append((layer, inputs[0].shape[2:], output)))
        for layer in layers
    ]
    try:
        with eval_mode(stage), torch.enable_grad():
            maps = stage(images[:1].detach().clone().requires_grad_())
            # A network may compute later stages, too, on which the maps do not depend.
            outputs = [output for *_, output in calls]
            gradients: Sequence[Tensor | None] = torch.autograd.grad(maps.sum(), outputs, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()

    size, stride, offset = [1, 1], [1, 1], [0, 0]
    current = images.shape[2:]
    for (layer, before, output), gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        _expect_chain(before, current)
        current = output.shape[2:]
        for side in (0, 1):
            kernel, step, dilation = (_pair(getattr(layer, name, 1))[side] for name in _GEOMETRY)
            padding = _pair(layer.padding)[side]
            if isinstance(padding, str):
                padding = dilation * (kernel - 1) // 2 if padding == "same" else 0
            size[side] += dilation * (kernel - 1) * stride[side]
            offset[side] -= padding * stride[side]
            stride[side] *= step
    _expect_chain(maps.shape[2:], current)
    return ReceptiveField((size[0], size[1]), (stride[0], stride[1]), (offset[0], offset[1]))


_GEOMETRY = ("kernel_size", "stride", "dilation")


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


def _expect_chain(got: torch.Size, expected: torch.Size) -> None:
    if got != expected:
        raise InputError(
            "stage must apply its convolutions and pools one after the other, but a map of "
            f"{got[0]}x{got[1]} follows one of {expected[0]}x{expected[1]}"
        )


@dataclass(frozen=True)
class Responses:
    """The strongest responses of every feature to a set of images, strongest first, at most one from each image.

    Attributes:
        values: Activations `(F, k)`.
        images: Indices `(F, k)` of the images.
        rows: Rows `(F, k)` of the positions in the feature maps.
        columns: Columns `(F, k)` of the positions.
    """

    values: Tensor
    images: Tensor
    rows: Tensor
    columns: Tensor


@torch.no_grad()
def strongest_responses(stage: nn.Module, batches: Iterable[Tensor], k: int) -> Responses:
    """Find the `k` images of a set that each feature responds to most, and where in them.

    Args:
        stage: Module that maps images to feature maps; it is in evaluation mode meanwhile.
        batches: The images, in batches `(N, K, H, W)` on the module's device.
        k: Number of images for each feature.

    Raises:
        ValueError: If there are fewer than `k` images, or `k` is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    values = images = positions = torch.empty(0)
    count, width = 0, 1
    with eval_mode(stage):
        for batch in batches:
            maps = stage(batch)
            peaks, where = maps.flatten(2).max(2)  # (N, F)
            index = torch.arange(count, count + len(batch), device=maps.device)[:, None].expand_as(where)
            if count:
                peaks, where = torch.cat([values, peaks]), torch.cat([positions, where])
                index = torch.cat([images, index])
            values, chosen = peaks.topk(min(k, len(peaks)), 0)
            images, positions = index.gather(0, chosen), where.gather(0, chosen)
            count, width = count + len(batch), maps.shape[3]
    if count < k:
        raise InputError(f"there must be at least k = {k} images, got {count}")
    return Responses(values.T, images.T, positions.T // width, positions.T % width)


def guided_backprop(stage: nn.Module, images: Tensor, features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return how pixels raise single responses, by guided backpropagation (Figure 5).

    Each ReLU or LeakyReLU passes only positive gradients back, multiplied by its own slope
    (Springenberg et al., 2015, https://arxiv.org/abs/1412.6806).

    Args:
        stage: Module that maps images to feature maps, with activations that are modules; it is in evaluation mode
            meanwhile.
        images: Images `(N, K, H, W)`, on the module's device.
        features: Feature `(N,)` whose response is traced back, one for each image.
        rows: Row `(N,)` of its position.
        columns: Column `(N,)` of its position.

    Returns:
        Gradients `(N, K, H, W)`; `normalize` makes pictures of them.

    Raises:
        ValueError: If `stage` has no ReLU or LeakyReLU among its modules.
    """
    activations = [module for module in stage.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)]
    if not activations:
        raise InputError(
            f"guided backpropagation needs nn.ReLU or nn.LeakyReLU modules, {type(stage).__name__} has none"
        )
    hooks = [module.register_forward_hook(_pass_positive_gradients) for module in activations]
    try:
        with eval_mode(stage), torch.enable_grad():
            pixels = images.detach().clone().requires_grad_()
            maps = stage(pixels)
            index = torch.arange(len(pixels), device=maps.device)
            responses = maps[index, features.to(index), rows.to(index), columns.to(index)]
            (gradients,) = torch.autograd.grad(responses.sum(), pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return gradients


def _pass_positive_gradients(_: nn.Module, __: tuple[Tensor, ...], output: Any) -> None:
    # A hook of the tensor, since backward hooks of modules refuse activations that work in place.
    output.register_hook(lambda gradient: gradient.clamp(min=0))


def crop(images: Tensor, rows: Tensor, columns: Tensor, field: ReceptiveField) -> Tensor:
    """Cut out what the positions of a feature map see, all of one size.

    A receptive field that extends beyond the image is moved into it, and one that is larger is as large as the image.

    Args:
        images: Images `(N, K, H, W)`.
        rows: Row `(N,)` of the position, one for each image.
        columns: Column `(N,)` of the position.
        field: Receptive field of the positions.

    Returns:
        Patches `(N, K, min(field.size, (H, W)))`.
    """
    height, width = (min(sides) for sides in zip(field.size, images.shape[2:], strict=True))
    patches = []
    for image, row, column in zip(images, rows.tolist(), columns.tolist(), strict=True):
        top, left = field.corner(row, column)
        top = min(max(top, 0), image.shape[1] - height)
        left = min(max(left, 0), image.shape[2] - width)
        patches.append(image[:, top : top + height, left : left + width])
    return torch.stack(patches)


def normalize(images: Tensor) -> Tensor:
    """Scale each of `(N, K, H, W)` so that its largest absolute value is 1: zero becomes mid-grey in a picture."""
    return images / images.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)


def first_layer_filters(network: nn.Module) -> Tensor:
    """Return the weights of a network's first convolution as pictures `(F, K, h, w)` in [-1, 1], each by `normalize`.

    Raises:
        ValueError: If the network has no convolution.
    """
    convolution = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"network must have an nn.Conv2d among its modules, {type(network).__name__} has none")
    return normalize(convolution.weight.detach())


def randomize(network: Module, batches: Iterable[Tensor], *, seed: int = 0) -> Module:
    """Return a copy of a network with new weights, as a baseline (Figure 5, left).

    Args:
        network: Any module.
        batches: Batches of its inputs, from which the BatchNorm statistics of the copy are estimated.
        seed: Seed of the weights, which are drawn by `weights_init`.
    """
    copy = copy_module(network)
    device = next(copy.parameters()).device
    rng = torch.Generator(device).manual_seed(derive_seed(seed))
    with torch.no_grad():
        copy.apply(lambda module: weights_init(module, generator=rng))
    estimate_batchnorm_statistics(copy, batches)
    return copy


@torch.no_grad()
def layer_output(network: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer of a network returns when the network, in evaluation mode, is given `inputs`.

    Raises:
        ValueError: If the network does not call the layer.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output.detach().clone()))
    try:
        with eval_mode(network):
            network(inputs)
    finally:
        hook.remove()
    if not outputs:
        raise InputError(f"layer must be a part of the network that it calls; {type(layer).__name__} was not called")
    return outputs[-1]


def box_masks(boxes: Sequence[tuple[int, int, int, int, int]], n: int, image_size: tuple[int, int]) -> Tensor:
    """Return masks `(n, H, W)` that are true inside of boxes.

    Args:
        boxes: (index of the image, left, top, right, bottom) each, in pixels, without the right column and the bottom
            row; an image may have several, or none.
        n: Number of images.
        image_size: `(H, W)`.

    Raises:
        ValueError: If a box is empty, or extends beyond its image.
    """
    masks = torch.zeros(n, *image_size, dtype=torch.bool)
    for index, left, top, right, bottom in boxes:
        if not (0 <= index < n and 0 <= left < right <= image_size[1] and 0 <= top < bottom <= image_size[0]):
            raise InputError(
                f"each box must be (index, left, top, right, bottom) within {n} images of "
                f"{image_size[0]}x{image_size[1]}, got {(index, left, top, right, bottom)}"
            )
        masks[index, top:bottom, left:right] = True
    return masks


def feature_weights(maps: Tensor, masks: Tensor, *, seed: int = 0) -> Tensor:
    """Return how much each feature speaks for a marked object: the weights of a logistic regression (Section 6.3.1).

    It tells positions inside of the marks from as many random positions outside of them, in the same images, by their
    activations. A position is inside if at least half of its pixels are marked.

    Args:
        maps: Feature maps `(N, F, h, w)` of some images.
        masks: Booleans `(N, H, W)`, true where the object is in these images.
        seed: Seed of the random positions.

    Returns:
        Weights `(F,)`, float32 on the CPU; `drop_features(layer, weights > 0)` drops what draws the object.

    Raises:
        ValueError: If the numbers of images differ, or if no position, or every one, is inside.
    """
    from sklearn.linear_model import LogisticRegression

    if maps.dim() != 4 or masks.dim() != 3 or len(maps) != len(masks):
        raise InputError(
            "maps (N, F, h, w) and masks (N, H, W) must be of the same images, "
            f"got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    inside = F.interpolate(masks[:, None].cpu().float(), maps.shape[2:], mode="area").flatten() >= 0.5
    positives, negatives = inside.nonzero().flatten(), (~inside).nonzero().flatten()
    if not len(positives) or not len(negatives):
        raise InputError(
            f"masks must mark some of the {inside.numel()} positions of the maps, but not all, got {len(positives)}: "
            "mark larger regions, or take a stage of higher resolution"
        )
    rng = torch.Generator("cpu").manual_seed(derive_seed(seed))
    negatives = negatives[torch.randperm(len(negatives), generator=rng)[: len(positives)]]
    activations = rearrange(maps.cpu().float(), "n f h w -> (n h w) f")[torch.cat([positives, negatives])]
    targets = inside[torch.cat([positives, negatives])]
    regression = LogisticRegression(max_iter=1000).fit(activations.numpy(), targets.numpy())
    return torch.from_numpy(regression.coef_[0]).float()


@contextmanager
def drop_features(layer: nn.Module, dropped: Tensor) -> Iterator[None]:
    """Set some feature maps of a layer to zero, at every position, while the block runs (Section 6.3.1).

    Args:
        layer: Layer that returns feature maps `(N, F, h, w)`, such as `generator.blocks["16x16"]`.
        dropped: Booleans `(F,)`, true for the features to drop.
    """

    def zero(_: nn.Module, __: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        if dropped.shape != maps.shape[1:2]:
            raise InputError(f"dropped must have shape ({maps.shape[1]},), got {tuple(dropped.shape)}")
        return maps.masked_fill(dropped.to(maps.device)[:, None, None], 0)

    hook = layer.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()
