"""The networks of DCGAN (Radford et al., 2016, https://arxiv.org/abs/1511.06434).

Shapes: N batch, Z latent_dim, C base_channels, K channels, H×W image_size (S if square), h×w the smallest stage.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from os import PathLike
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from dcgan._config import pyramid, sides, validate_config
from dcgan._fusion import fuse_batchnorm
from dcgan.architectures import ARCHITECTURES, Architecture
from dcgan.hub._pretrained import Pretrained
from dcgan.latents import seeded_latents
from dcgan.layers import FullMapConv2d, LatentProjection, SpaceToDepthConv2d, SubPixelConvTranspose2d

Norm = Literal["batch", "instance", "layer", "none"]

_WORTH_FOLDING = 32  # images: a folded copy takes about as long to make as ten images to compute


class _Network(Pretrained):
    @classmethod
    def from_architecture(cls, name: Architecture, **overrides: Any) -> Self:
        """Build a published network, any of its arguments overridden.

        Raises:
            ValueError: If `name` is not a key of `ARCHITECTURES`, or an argument is out of range.
        """
        if name not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
        arguments = {k: v for k, v in ARCHITECTURES[name].items() if k in signature(cls).parameters}
        return cls(**arguments | overrides)


class Generator(_Network):
    """Latents to images by repeated 2× up-convolution (Section 3, Figure 1).

    Args:
        image_size: Side of the images in pixels, or (height, width): multiples of 16, or sides that halve evenly.
        channels: Image channels K.
        latent_dim: Length Z of a latent.
        base_channels: Width C of the stage next to the image; each stage before it is twice as wide.
        max_channels: Cap on the width of a stage.
        kernel_size: Side of the kernels. Layers that keep the resolution need an odd one and take 3 for 4.
        stages: Number of doublings; by default as many as keep both sides whole and start above 3.
        convs_per_stage: 2 puts a stride-1 layer behind each stride-2 one (the authors' ImageNet network).
        stem: Layer that makes the first h×w map of a latent. Both compute the same, with weights of another shape.
        stem_norm: Normalise the stem per "channel", or per "unit" (channel and position) as the authors do.
        stem_activation: Whether a ReLU follows the stem.
        bias: Whether convolutions and linear layers have biases.
        norm: Normalisation of every layer but the last; "layer" is over channels and positions together.
        norm_eps: Its ε.
        upsample: "transpose" for transposed convolutions, "resize" for nearest-neighbour enlargement and convolution.
        output: "tanh" for images in [-1, 1], "sigmoid" for [0, 1].
        latent: Distribution the latents are drawn from: N(0, 1) or U(-1, 1).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or `stem_norm="unit"` meets another stem than "linear" or
            another norm than "batch".
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        latent_dim: int = 100,
        base_channels: int = 64,
        max_channels: int | None = None,
        kernel_size: Literal[3, 4, 5] = 4,
        stages: int | None = None,
        convs_per_stage: Literal[1, 2] = 1,
        stem: Literal["conv", "linear"] = "conv",
        stem_norm: Literal["channel", "unit"] = "channel",
        stem_activation: bool = True,
        bias: bool = False,
        norm: Norm = "batch",
        norm_eps: float = 1e-5,
        upsample: Literal["transpose", "resize"] = "transpose",
        output: Literal["tanh", "sigmoid"] = "tanh",
        latent: Literal["normal", "uniform"] = "normal",
    ):
        super().__init__()
        self.config = validate_config(Generator, locals())
        if stem_norm == "unit" and (stem, norm) != ("linear", "batch"):
            raise ValueError(
                f"stem_norm 'unit' needs stem 'linear' and norm 'batch', got stem {stem!r} and norm {norm!r}"
            )
        sizes, widths = pyramid(self.config)
        sizes, widths = sizes[::-1], widths[::-1]  # S = 64: 4, 8, ..., 64 and 8C, 4C, 2C, C

        self.blocks = nn.ModuleDict({_name(sizes[0]): self._stem(sizes[0], widths[0])})
        layers: list[tuple[str, dict[str, nn.Module], int]] = []
        for size, c_in, c_out in zip(sizes[1:], widths, [*widths[1:], channels], strict=True):
            if convs_per_stage == 1:
                layers += [(_name(size), self._up(c_in, c_out), c_out)]
            else:
                layers += [(_name(size), self._up(c_in, c_in), c_in)]
                layers += [(f"{_name(size)}_conv", self._same(c_in, c_out), c_out)]
        *hidden, (_, head, _) = layers
        for name, convolution, width in hidden:
            self.blocks[name] = _sequence(**convolution, norm=_norm(self.config, width), act=nn.ReLU(inplace=True))
        self.head = _sequence(**head, act=nn.Tanh() if output == "tanh" else nn.Sigmoid())
        self.apply(weights_init)

    def _stem(self, size: tuple[int, int], width: int) -> nn.Sequential:
        latent_dim, bias = self.config["latent_dim"], self.config["bias"]
        act = nn.ReLU(inplace=True) if self.config["stem_activation"] else None
        if self.config["stem"] == "conv":
            pixel = nn.Unflatten(1, (latent_dim, 1, 1))
            conv = LatentProjection(latent_dim, width, size, bias=bias)
            return _sequence(pixel=pixel, conv=conv, norm=_norm(self.config, width), act=act)
        units = width * size[0] * size[1]
        linear, to_map = nn.Linear(latent_dim, units, bias=bias), nn.Unflatten(1, (width, *size))
        if self.config["stem_norm"] == "unit":
            return _sequence(linear=linear, norm=nn.BatchNorm1d(units, self.config["norm_eps"]), act=act, map=to_map)
        return _sequence(linear=linear, map=to_map, norm=_norm(self.config, width), act=act)

    def _up(self, c_in: int, c_out: int) -> dict[str, nn.Module]:
        kernel, bias = self.config["kernel_size"], self.config["bias"]
        if self.config["upsample"] == "resize":
            return {"enlarge": nn.Upsample(scale_factor=2), **self._same(c_in, c_out)}
        if kernel == 4 and c_out == self.config["channels"]:
            return {"conv": SubPixelConvTranspose2d(c_in, c_out, bias=bias)}
        padding = (kernel - 1) // 2
        extra = 2 + 2 * padding - kernel  # what makes the output exactly twice the input: 0 for a 4×4 kernel, else 1
        return {"conv": nn.ConvTranspose2d(c_in, c_out, kernel, 2, padding, extra, bias=bias)}

    def _same(self, c_in: int, c_out: int) -> dict[str, nn.Module]:
        kernel = _odd(self.config["kernel_size"])
        convolution = nn.Conv2d if self.config["upsample"] == "resize" else nn.ConvTranspose2d
        return {"conv": convolution(c_in, c_out, kernel, padding=kernel // 2, bias=self.config["bias"])}

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to images.

        Args:
            z: `(N, Z)` or `(N, Z, 1, 1)`, drawn from the distribution `latent`.

        Returns:
            Images `(N, K, H, W)` in [-1, 1], or in [0, 1] with `output="sigmoid"`.

        Raises:
            TypeError: If `z` has another floating-point type than the weights.
            ValueError: If `z` has another shape.
        """
        latent_dim = self.config["latent_dim"]
        h = _expect(z.flatten(1) if z.shape[2:] == (1, 1) else z, "z", (latent_dim,), self.head)  # (N, Z)
        for block in self.blocks.values():
            h = block(h)  # (N, 8C, 4, 4) -> (N, 4C, 8, 8) -> ... -> (N, C, S/2, S/2)
        image: Tensor = self.head(h)  # (N, K, S, S)
        return image

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Generate images in evaluation mode, without gradients; the network itself is left as it was.

        Image i of a seed is the same whatever `n`, `start` and `batch_size`, up to rounding in the last digits.

        Args:
            n: Number of images.
            seed: Seed of the latents; by default drawn from torch's global generator.
            start: Index of the first image within the seed.
            batch_size: Images per forward pass; by default 64, and 256 on a GPU.
            dtype: What to compute in, such as `torch.bfloat16`; by default as the weights are.

        Returns:
            Images `(n, K, H, W)`, in the range of `forward`, on the network's device and of its type.

        Raises:
            ValueError: If `n`, `seed` or `start` is negative, or `batch_size` below 1.
        """
        like = next(self.parameters())
        batches = self.sample_batches(n, seed=seed, start=start, batch_size=batch_size, dtype=dtype)
        images = torch.empty(n, self.config["channels"], *sides(self.config), dtype=like.dtype, device=like.device)
        done = 0
        for batch in batches:
            images[done : done + len(batch)] = batch
            done += len(batch)
        return images

    def sample_batches(
        self,
        n: int,
        *,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over the same images as `sample`, in batches, for more than fit in memory.

        The weights are those of the moment of the call.
        """
        like = next(self.parameters())
        batch_size = (64 if like.device.type == "cpu" else 256) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        dtype = dtype or like.dtype
        seeded_latents(0, 0, seed=seed, start=start)  # raises where they are negative
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        network = self
        if n >= _WORTH_FOLDING or dtype != like.dtype:
            network = fuse_batchnorm(self).to(dtype)

        def images(first: int) -> Tensor:
            count = min(batch_size, start + n - first)
            z = seeded_latents(
                count, self.config["latent_dim"], seed=seed, start=first, distribution=self.config["latent"]
            )
            with eval_mode(network), torch.no_grad():
                return network(z.to(like.device, dtype)).to(like.dtype)  # type: ignore[no-any-return]  # a Tensor

        return map(images, range(start, start + n, batch_size))


class Discriminator(_Network):
    """Images to one realness logit each by repeated 2× down-convolution (Section 3).

    Args:
        image_size: Side of the images in pixels, or (height, width), as in `Generator`.
        channels: Image channels K.
        base_channels: Width C of the stage next to the image; each stage after it is twice as wide.
        max_channels: Cap on the width of a stage.
        kernel_size: Side of the kernels. Layers that keep the resolution need an odd one and take 3 for 4.
        stages: Number of halvings; by default as many as `Generator` has doublings.
        convs_per_stage: 2 puts a stride-1 layer before each stride-2 one (the authors' ImageNet network).
        stem: Layer that makes a logit of the last h×w map, the counterpart of the generator's stem: a "conv" as large
            as the map or a "linear" layer.
        bias: Whether convolutions and linear layers have biases.
        norm: Normalisation of every layer but the first, as in `Generator`. Gradient penalties are defined image by
            image, so "layer" or "none" suits them better than "batch".
        norm_eps: Its ε.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    subfolder: ClassVar[str] = "discriminator"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        base_channels: int = 64,
        max_channels: int | None = None,
        kernel_size: Literal[3, 4, 5] = 4,
        stages: int | None = None,
        convs_per_stage: Literal[1, 2] = 1,
        stem: Literal["conv", "linear"] = "conv",
        bias: bool = False,
        norm: Norm = "batch",
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.config = validate_config(Discriminator, locals())
        sizes, widths = pyramid(self.config)  # S = 64: 64, 32, ..., 4 and C, 2C, 4C, 8C
        padding, odd = (kernel_size - 1) // 2, _odd(kernel_size)

        layers: list[tuple[str, nn.Module, int]] = []
        for before, after, c_in, c_out in zip(sizes, sizes[1:], [channels, *widths], widths, strict=False):
            if convs_per_stage == 2:
                same = nn.Conv2d(c_in, c_out, odd, padding=odd // 2, bias=bias)
                layers += [(f"{_name(before)}_conv", same, c_out)]
            c_mid = c_in if convs_per_stage == 1 else c_out
            if kernel_size == 4 and c_mid == channels:
                halving: nn.Module = SpaceToDepthConv2d(c_mid, c_out, bias=bias)
            else:
                halving = nn.Conv2d(c_mid, c_out, kernel_size, 2, padding, bias=bias)
            layers += [(_name(after), halving, c_out)]

        self.blocks = nn.ModuleDict()
        for name, conv, width in layers:
            # The paper leaves normalisation off the layer that sees pixels: it made samples oscillate.
            norm_layer = _norm(self.config, width) if self.blocks else None
            self.blocks[name] = _sequence(conv=conv, norm=norm_layer, act=nn.LeakyReLU(0.2, inplace=True))
        if stem == "conv":
            self.head = _sequence(conv=FullMapConv2d(widths[-1], 1, sizes[-1], bias=bias))
        else:
            units = widths[-1] * sizes[-1][0] * sizes[-1][1]
            self.head = _sequence(flat=nn.Flatten(), linear=nn.Linear(units, 1, bias=bias))
        self.apply(weights_init)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Return the activations of every layer, by resolution.

        Args:
            image: `(N, K, H, W)` in the range of the images it was trained on, usually [-1, 1].

        Returns:
            At S = 64 `{"32x32": (N, C, 32, 32), ..., "4x4": (N, 8C, 4, 4)}`, and with two layers a stage also
            `"64x64_conv"` and so on.

        Raises:
            TypeError: If `image` has another floating-point type than the weights.
            ValueError: If `image` has another shape.
        """
        h = _expect(image, "image", (self.config["channels"], *sides(self.config)), self.head)
        activations = {}
        for name, block in self.blocks.items():
            h = activations[name] = block(h)
        return activations

    def forward(self, image: Tensor) -> Tensor:
        """Score images `(N, K, H, W)`, as in `features`, with logits `(N,)`."""
        *_, last = self.features(image).values()
        logit: Tensor = self.head(last)  # (N, 8C, 4, 4) -> (N, 1, 1, 1)
        return logit.flatten()  # (N,)

    def probability(self, image: Tensor) -> Tensor:
        """Return the probability `(N,)` that each image is real, the sigmoid of its logit."""
        return self.forward(image).sigmoid()


def weights_init(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Initialise one layer as the paper does (Section 4): `network.apply(weights_init)`.

    Weights of convolutions and linear layers are drawn from N(0, 0.02²), gains of normalisations from N(1, 0.02²),
    from `generator` or torch's global one; biases and shifts are zero. Other modules are left alone.
    """
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # noqa: SLF001 - the base of all convolutions
        nn.init.normal_(module.weight, 0.0, 0.02, generator=generator)
    elif isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) and module.affine:  # noqa: SLF001 - likewise
        nn.init.normal_(module.weight, 1.0, 0.02, generator=generator)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def from_pretrained(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Generator, Discriminator]:
    """Load a generator and its discriminator, to go on training; all else is as in `Generator.from_pretrained`."""
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "device": device,
        "dtype": dtype,
    }
    return Generator.from_pretrained(name_or_path, **options), Discriminator.from_pretrained(name_or_path, **options)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while, then every submodule back into its own."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sequence(**layers: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


def _norm(config: dict[str, Any], width: int) -> nn.Module | None:
    match config["norm"]:
        case "batch":
            return nn.BatchNorm2d(width, config["norm_eps"])
        case "instance":
            return nn.InstanceNorm2d(width, config["norm_eps"], affine=True)
        case "layer":
            return nn.GroupNorm(1, width, config["norm_eps"])
    return None


def _odd(kernel: int) -> int:
    return kernel - 1 + kernel % 2


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _expect(x: Tensor, name: str, shape: tuple[int, ...], layer: nn.Module) -> Tensor:
    if tuple(x.shape[1:]) != shape or x.dim() != len(shape) + 1:
        raise ValueError(f"{name} must have shape (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    dtype = next(layer.parameters()).dtype
    autocast = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    if x.dtype != dtype and not autocast:
        raise TypeError(f"{name} must be {dtype}, as the network is, got {x.dtype}")
    return x
