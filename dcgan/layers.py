"""The convolutions at both ends of a network, computed in the form that is fastest for their odd shapes.

Each is the plain convolution it derives from: the same weights, and the same results up to rounding.

Shapes: N batch, K channels of the image, C of the map next to it, h×w the smallest map, whose channels are M.
"""

import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from einops import rearrange
from torch import Tensor, nn


class LatentProjection(nn.ConvTranspose2d):
    """Transposed convolution of 1×1 maps `(N, Z, 1, 1)` to `(N, M, h, w)`, as the one matrix product it is."""

    def forward(self, pixel: Tensor) -> Tensor:  # type: ignore[override]
        """Return the map."""
        _, width, height, _ = self.weight.shape
        # In this order the weights are a view where they are channels-last, as is the result.
        weight = rearrange(self.weight, "z m h w -> z (h w m)")
        flat = rearrange(pixel, "n z 1 1 -> n z") @ weight
        result: Tensor = rearrange(flat, "n (h w m) -> n m h w", m=width, h=height)
        return result if self.bias is None else result + self.bias[:, None, None]


class FullMapConv2d(nn.Conv2d):
    """Convolution of maps with a kernel of their size: `(N, M, h, w)` to `(N, 1, 1, 1)`, as a matrix product."""

    def forward(self, map: Tensor) -> Tensor:  # noqa: A002
        """Return the pixel."""
        weight = rearrange(self.weight, "o m h w -> o (h w m)")
        flat = F.linear(rearrange(map, "n m h w -> n (h w m)"), weight, self.bias)
        return flat[:, :, None, None]


class SpaceToDepthConv2d(nn.Conv2d):
    """4×4 convolution of stride 2 and padding 1 of an image `(N, K, 2h, 2w)` to `(N, C, h, w)`.

    Every 2×2 pixels become one of 4K channels, on which it is a 2×2 convolution of stride 1: the gradient of an image,
    which the generator learns from, then does not run over a handful of channels.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool):
        super().__init__(c_in, c_out, 4, 2, 1, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the map."""
        weight = rearrange(self.weight, "c k (h i) (w j) -> c (k i j) h w", i=2, j=2)
        return F.conv2d(F.pixel_unshuffle(F.pad(image, (1, 1, 1, 1)), 2), weight, self.bias)


class SubPixelConvTranspose2d(nn.ConvTranspose2d):
    """Transposed 4×4 convolution of stride 2 and padding 1 of maps `(N, C, h, w)` to images `(N, K, 2h, 2w)`.

    Computed as a 2×2 convolution to 4K channels, one for each of the 2×2 pixels that see the same 2×2 inputs
    (Shi et al., 2016, https://arxiv.org/abs/1609.07009).
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool):
        super().__init__(c_in, c_out, 4, 2, 1, bias=bias)

    def forward(self, map: Tensor) -> Tensor:  # type: ignore[override]  # noqa: A002
        """Return the image."""
        weight = rearrange(self.weight, "c k (h i) (w j) -> (k i j) c h w", i=2, j=2).flip(2, 3)
        images = F.pixel_shuffle(F.conv2d(map, weight, padding=1), 2)[:, :, 1:-1, 1:-1]
        return images if self.bias is None else images + self.bias[:, None, None]
