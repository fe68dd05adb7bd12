"""The networks of DCGAN (Radford et al., 2016, https://arxiv.org/abs/1511.06434).

Shapes: N batch, Z latent_dim, C base_channels, K channels, H×W image_size (S if square), h×w the smallest stage,
Y num_classes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dcgan._choices import (
    Activation,
    ArchitectureName,
    ConvsPerStage,
    Distribution,
    KernelSize,
    Norm,
    Output,
    Stem,
    StemNorm,
    Upsample,
)
from dcgan._config import minimum_parameters, pyramid, sides, validate_config
from dcgan._devices import device_defaults
from dcgan._errors import InputError
from dcgan._modules import copy_module, stop_training
from dcgan.architectures import ARCHITECTURES
from dcgan.drawing import to_html
from dcgan.ema import BATCH_NORMS
from dcgan.hub._pretrained import Pretrained
from dcgan.latents import seeded_latents
from dcgan.layers import (
    FullMapConv2d,
    LatentProjection,
    SpaceToDepthConv2d,
    SubPixelConvTranspose2d,
    append_labels,
    expect_labels,
    fuse_batchnorm,
)
from dcgan.zoo import list_models, load_record

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

Labels = int | Sequence[int] | Tensor
"""The class of all images, or of each."""

MIN_IMAGES_TO_FUSE = 32  # a fused copy takes about as long to make as ten images to compute


class _Network(Pretrained):
    @classmethod
    def from_architecture(cls, name: ArchitectureName, **overrides: Any) -> Self:
        """Build a published network; `overrides` replace its arguments.

        Raises:
            ValueError: If `name` is not a key of `ARCHITECTURES`, or an argument is out of range.
        """
        if name not in ARCHITECTURES:
            raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
        accepted = signature(Generator if issubclass(cls, Generator) else Discriminator).parameters
        return cls(**{k: v for k, v in ARCHITECTURES[name].items() if k in accepted} | overrides)

    @classmethod
    def _minimum_parameters(cls, config: dict[str, Any]) -> int:
        network = Generator if issubclass(cls, Generator) else Discriminator
        defaults = {name: parameter.default for name, parameter in signature(network).parameters.items()}
        return minimum_parameters(validate_config(network, defaults | config))

    def _repr_html_(self) -> str | None:
        """Return a picture and a table for a notebook, which shows the text for None: with layers of other types."""
        try:
            return to_html(self)  # type: ignore[arg-type]  # one of the two below
        except InputError:
            return None

    def _one_hot(self, labels: Tensor | None, count: int) -> Tensor | None:
        """Return `count` labels as zeros and ones `(N, Y)`; None for a network without classes."""
        classes = self.config["num_classes"]
        if classes is None and labels is None:
            return None
        if classes is None:
            raise InputError(f"labels are for conditional networks, but this {type(self).__name__} has no num_classes")
        if labels is None:
            name = type(self).__name__
            raise InputError(f"labels ({count},) are needed: this {name} is conditional on {classes} classes")
        expect_labels(labels, classes, count)
        return labels[:, None] == torch.arange(classes, device=labels.device)


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
        convs_per_stage: 2 puts a stride-1 layer after each stride-2 one (the authors' ImageNet network).
        stem: Layer that makes the first h×w map from a latent. Both compute the same with weights of different shapes.
        stem_norm: Normalise the stem per "channel", or per "unit" (channel and position) as the authors do.
        stem_activation: Whether an activation follows the stem.
        bias: Whether convolutions and linear layers have biases.
        norm: Normalisation of every layer but the last; "layer" is over channels and positions together.
        norm_eps: Epsilon of the normalisation.
        activation: Activation of every layer but the last.
        slope: Slope of "leaky-relu" below zero; "relu" has none.
        upsample: "transpose" for transposed convolutions, "resize" for nearest-neighbour enlargement and convolution.
        output: "tanh" for images in [-1, 1], "sigmoid" for [0, 1].
        latent: Distribution the latents are drawn from: N(0, 1) or U(-1, 1).
        num_classes: Number Y of classes that the images are conditional on, or None. One-hot labels are appended to
            the latents, and as constant maps to the input of every other layer (the authors' conditional MNIST
            network).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or `stem_norm="unit"` is combined with another stem than
            "linear" or another norm than "batch".
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        latent_dim: int = 100,
        base_channels: int = 64,
        max_channels: int | None = None,
        kernel_size: KernelSize = 4,
        stages: int | None = None,
        convs_per_stage: ConvsPerStage = 1,
        stem: Stem = "conv",
        stem_norm: StemNorm = "channel",
        stem_activation: bool = True,
        bias: bool = False,
        norm: Norm = "batch",
        norm_eps: float = 1e-5,
        activation: Activation = "relu",
        slope: float = 0.2,
        upsample: Upsample = "transpose",
        output: Output = "tanh",
        latent: Distribution = "normal",
        num_classes: int | None = None,
    ):
        super().__init__()
        self.config = validate_config(Generator, locals())
        if stem_norm == "unit" and (stem, norm) != ("linear", "batch"):
            raise InputError(
                f"stem_norm 'unit' needs stem 'linear' and norm 'batch', got stem {stem!r} and norm {norm!r}"
            )
        sizes, widths = pyramid(self.config)
        sizes, widths = sizes[::-1], widths[::-1]  # S = 64: 4, 8, ..., 64 and 8C, 4C, 2C, C
        labels = num_classes or 0  # further channels of every input

        self.blocks = nn.ModuleDict({_name(sizes[0]): self._stem(sizes[0], widths[0])})
        layers: list[tuple[str, dict[str, nn.Module], int]] = []
        for size, c_in, c_out in zip(sizes[1:], widths, [*widths[1:], channels], strict=True):
            if convs_per_stage == 1:
                layers += [(_name(size), self._up(c_in + labels, c_out), c_out)]
            else:
                layers += [(_name(size), self._up(c_in + labels, c_in), c_in)]
                layers += [(f"{_name(size)}_conv", self._same(c_in + labels, c_out), c_out)]
        *hidden, (_, head, _) = layers
        for name, convolution, width in hidden:
            self.blocks[name] = _sequence(**convolution, norm=_norm(self.config, width), act=_activation(self.config))
        self.head = _sequence(**head, act=nn.Tanh() if output == "tanh" else nn.Sigmoid())
        self.apply(weights_init)

    def _stem(self, size: tuple[int, int], width: int) -> nn.Sequential:
        latent_dim, bias = self.config["latent_dim"] + (self.config["num_classes"] or 0), self.config["bias"]
        act = _activation(self.config) if self.config["stem_activation"] else None
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
            return {"conv": SubPixelConvTranspose2d(c_in, c_out, 4, 2, 1, bias=bias)}
        padding = (kernel - 1) // 2
        extra = 2 + 2 * padding - kernel  # what makes the output exactly twice the input: 0 for a 4×4 kernel, else 1
        return {"conv": nn.ConvTranspose2d(c_in, c_out, kernel, 2, padding, extra, bias=bias)}

    def _same(self, c_in: int, c_out: int) -> dict[str, nn.Module]:
        kernel = _odd(self.config["kernel_size"])
        convolution = nn.Conv2d if self.config["upsample"] == "resize" else nn.ConvTranspose2d
        return {"conv": convolution(c_in, c_out, kernel, padding=kernel // 2, bias=self.config["bias"])}

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents to images.

        Args:
            z: `(N, Z)` or `(N, Z, 1, 1)`, drawn from the distribution `latent`.
            labels: Classes int64 `(N,)` from 0 to Y - 1, for a network with `num_classes`.

        Returns:
            Images `(N, K, H, W)` in [-1, 1], or in [0, 1] with `output="sigmoid"`.

        Raises:
            TypeError: If `z` has another floating-point type than the weights, or `labels` are not int64.
            ValueError: If `z` or `labels` has another shape, a label on the CPU is out of range, or labels are missing,
                or given to a network without classes.
        """
        latent_dim = self.config["latent_dim"]
        h = _expect(z.flatten(1) if z.shape[2:] == (1, 1) else z, "z", (latent_dim,), self.head)  # (N, Z)
        one_hot = self._one_hot(labels, h.shape[0])  # (N, Y)
        for block in self.blocks.values():
            h = block(append_labels(h, one_hot))  # (N, 8C, 4, 4) -> (N, 4C, 8, 8) -> ... -> (N, C, S/2, S/2)
        image: Tensor = self.head(append_labels(h, one_hot))  # (N, K, S, S)
        return image

    def sample(
        self,
        n: int | None = None,
        *,
        z: Tensor | None = None,
        labels: Labels | None = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Generate images in evaluation mode, without gradients.

        A copy of the network computes them, so the network itself never changes, not even its mode, and other threads
        may sample it meanwhile. Below 32 images the copy shares its weights; `sample_batches` always has its own, and
        suits a network that another thread trains.

        Image i of a seed is the same whatever `n`, `start` and `batch_size`, up to rounding in the last digits.

        Args:
            n: Number of images.
            z: Latents `(N, Z)` or `(N, Z, 1, 1)` to make images of, instead of `n` latents of a seed.
            labels: Of a conditional network, the class of all images, or the class of each `(n,)`. By default classes
                come in turn: image i of a seed, or of `z`, has class i modulo Y.
            seed: Seed of the latents; by default drawn from torch's global generator, so give one when sampling in a
                thread while a `Trainer` steps: with dropout, the step draws from that generator as well.
            start: Index of the first image within the seed.
            batch_size: Images per forward pass; by default 64, and 256 on a GPU.
            dtype: Type to compute in, such as `torch.bfloat16`; by default that of the weights.

        Returns:
            Images `(n, K, H, W)`, in the range of `forward`, on the network's device and of its type.

        Raises:
            TypeError: If `labels` are no whole numbers.
            ValueError: If both or neither of `n` and `z` are given, `z` comes with `seed` or `start` or has another
                shape, `n`, `seed` or `start` is negative, `labels` are not one or `n` classes or the
                network has none, or `batch_size` is below 1.
        """
        batches = self._sample(n, z, labels, seed, start, batch_size, dtype, share=True)
        like, count = next(self.parameters()), len(z) if z is not None else n or 0
        images = torch.empty(count, self.config["channels"], *sides(self.config), dtype=like.dtype, device=like.device)
        done = 0
        for batch in batches:
            images[done : done + len(batch)] = batch
            done += len(batch)
        return images

    def sample_batches(
        self,
        n: int | None = None,
        *,
        z: Tensor | None = None,
        labels: Labels | None = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over the same images as `sample`, in batches, for more than fit in memory.

        The weights are those at the time of the call.
        """
        return self._sample(n, z, labels, seed, start, batch_size, dtype, share=False)

    def _sample(
        self,
        n: int | None,
        z: Tensor | None,
        labels: Labels | None,
        seed: int | None,
        start: int,
        batch_size: int | None,
        dtype: torch.dtype | None,
        *,
        share: bool,
    ) -> Iterator[Tensor]:
        like = next(self.parameters())
        if like.is_meta:
            raise InputError("the generator is on the meta device, which has no memory: build it on another one")
        dtype = dtype or like.dtype
        batch_size = (64 if like.device.type == "cpu" else 256) if batch_size is None else batch_size
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        count, latents = self._latents(n, z, seed, start)
        classes = self._classes(labels, count, start)
        if count >= MIN_IMAGES_TO_FUSE or dtype != like.dtype:
            network = fuse_batchnorm(self).to(dtype)
        else:
            network = copy_module(self, share=share)
            stop_training(network)

        non_blocking = device_defaults(like.device).non_blocking  # or the next latents would wait for these images

        @torch.no_grad()
        def images(first: int) -> Tensor:
            last = min(first + batch_size, count)
            inputs = [latents(first, last).to(like.device, non_blocking=non_blocking).to(dtype)]
            if classes is not None:
                inputs.append(classes[first:last].to(like.device, non_blocking=non_blocking))
            return network(*inputs).to(like.dtype)  # type: ignore[no-any-return]  # a Tensor

        return map(images, range(0, count, batch_size))

    def _latents(
        self, n: int | None, z: Tensor | None, seed: int | None, start: int
    ) -> tuple[int, Callable[[int, int], Tensor]]:
        """Return the number of latents that `sample` is asked for, and a function of their first and last index."""
        latent_dim, distribution = self.config["latent_dim"], self.config["latent"]
        if n is None and z is not None:
            if seed is not None or start:
                raise InputError("seed and start select latents, so they cannot be combined with z")
            flat = z.flatten(1) if z.shape[2:] == (1, 1) else z
            if flat.dim() != 2 or flat.shape[1] != latent_dim:
                raise InputError(f"z must have shape (N, {latent_dim}), got {tuple(z.shape)}")
            return len(flat), lambda first, last: flat[first:last]
        if n is None or z is not None:
            given = "neither" if n is None else "both"
            raise InputError(f"pass either n, the number of images, or z, their latents, got {given}")
        if n < 0:
            raise InputError(f"n must not be negative, got {n}")
        base = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        seeded_latents(0, latent_dim, seed=base, start=start)  # raises if they are negative
        return n, lambda first, last: seeded_latents(
            last - first, latent_dim, seed=base, start=start + first, distribution=distribution
        )

    def _classes(self, labels: Labels | None, count: int, start: int) -> Tensor | None:
        """Return the classes `(count,)` of the images that `sample` is asked for; None without classes."""
        classes = self.config["num_classes"]
        if classes is None:
            if labels is not None:
                raise InputError("labels are for conditional networks, but this Generator has no num_classes")
            return None
        if labels is None:
            return torch.arange(count, device="cpu").add(start % classes).remainder(classes)
        given: Tensor = torch.as_tensor(labels, device="cpu")
        given = given.expand(count) if given.dim() == 0 else given
        expect_labels(given, classes, count)
        return given


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
        stem: Layer that makes a logit from the last h×w map, the counterpart of the generator's stem: a "conv" as large
            as the map, or a "linear" layer.
        bias: Whether convolutions and linear layers have biases.
        norm: Normalisation of every layer but the first, as in `Generator`. Gradient penalties are defined per image,
            so "layer" or "none" suits them better than "batch".
        norm_eps: Epsilon of the normalisation.
        activation: Activation of every layer but the last.
        slope: Slope of "leaky-relu" below zero; "relu" has none.
        num_classes: Number Y of classes that the score is conditional on, or None. One-hot labels are appended to the
            input of every layer as constant maps, as in `Generator`.

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
        kernel_size: KernelSize = 4,
        stages: int | None = None,
        convs_per_stage: ConvsPerStage = 1,
        stem: Stem = "conv",
        bias: bool = False,
        norm: Norm = "batch",
        norm_eps: float = 1e-5,
        activation: Activation = "leaky-relu",
        slope: float = 0.2,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.config = validate_config(Discriminator, locals())
        sizes, widths = pyramid(self.config)  # S = 64: 64, 32, ..., 4 and C, 2C, 4C, 8C
        padding, odd = (kernel_size - 1) // 2, _odd(kernel_size)
        labels = num_classes or 0  # further channels of every input

        layers: list[tuple[str, nn.Module, int]] = []
        for before, after, c_in, c_out in zip(sizes, sizes[1:], [channels, *widths], widths, strict=False):
            if convs_per_stage == 2:
                same = nn.Conv2d(c_in + labels, c_out, odd, padding=odd // 2, bias=bias)
                layers += [(f"{_name(before)}_conv", same, c_out)]
            c_mid = c_in if convs_per_stage == 1 else c_out
            if kernel_size == 4 and c_mid == channels and not labels:  # with which the plain form is the faster one
                halving: nn.Module = SpaceToDepthConv2d(c_mid, c_out, 4, 2, 1, bias=bias)
            else:
                halving = nn.Conv2d(c_mid + labels, c_out, kernel_size, 2, padding, bias=bias)
            layers += [(_name(after), halving, c_out)]

        self.blocks = nn.ModuleDict()
        for name, conv, width in layers:
            # The paper leaves normalisation off the layer that sees pixels: it made samples oscillate.
            norm_layer = _norm(self.config, width) if self.blocks else None
            self.blocks[name] = _sequence(conv=conv, norm=norm_layer, act=_activation(self.config))
        if stem == "conv":
            self.head = _sequence(conv=FullMapConv2d(widths[-1] + labels, 1, sizes[-1], bias=bias))
        else:
            units = (widths[-1] + labels) * sizes[-1][0] * sizes[-1][1]
            self.head = _sequence(flat=nn.Flatten(), linear=nn.Linear(units, 1, bias=bias))
        self.apply(weights_init)

    def features(self, image: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the activations of every layer, by resolution.

        Args:
            image: `(N, K, H, W)` in the range of the images it was trained on, usually [-1, 1].
            labels: Classes int64 `(N,)` from 0 to Y - 1, for a network with `num_classes`.

        Returns:
            At S = 64 `{"32x32": (N, C, 32, 32), ..., "4x4": (N, 8C, 4, 4)}`; with two layers per stage also
            `"64x64_conv"` and so on.

        Raises:
            TypeError: If `image` has another floating-point type than the weights, or `labels` are not int64.
            ValueError: If `image` or `labels` has another shape, a label on the CPU is out of range, or labels are
                missing, or given to a network without classes.
        """
        h = _expect(image, "image", (self.config["channels"], *sides(self.config)), self.head)
        one_hot = self._one_hot(labels, h.shape[0])  # (N, Y)
        activations = {}
        for name, block in self.blocks.items():
            h = activations[name] = block(append_labels(h, one_hot))
        return activations

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score images `(N, K, H, W)`, as in `features`, with logits `(N,)`."""
        *_, last = self.features(*_inputs(image, labels)).values()
        one_hot = self._one_hot(labels, last.shape[0])  # (N, Y)
        logit: Tensor = self.head(append_labels(last, one_hot))  # (N, 8C, 4, 4) -> (N, 1, 1, 1)
        return logit.flatten()  # (N,)

    def probability(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the probability `(N,)` that each image is real, the sigmoid of its logit."""
        return self.forward(*_inputs(image, labels)).sigmoid()


def weights_init(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Initialise one layer as the paper does (Section 4): `network.apply(weights_init)`.

    Weights of convolutions and linear layers are drawn from N(0, 0.02²), gains of normalisations from N(1, 0.02²),
    from `generator` or torch's global one; biases and shifts are zero. Other modules are left alone.
    """
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02, generator=generator)
    elif isinstance(module, (*BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm)) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02, generator=generator)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def from_pretrained(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> tuple[Generator, Discriminator]:
    """Load a generator and its discriminator, for further training; arguments are as in `Generator.from_pretrained`."""
    options: dict[str, Any] = {
        "revision": revision,
        "subfolder": subfolder,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "device": device,
        "dtype": dtype,
        "verify": verify,
    }
    generator = Generator.from_pretrained(name_or_path, **options)
    if name_or_path in list_models() and load_record(str(name_or_path)).files:
        options["force_download"] = False  # somebody else's files hold both networks
    return generator, Discriminator.from_pretrained(name_or_path, **options)


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


def _activation(config: dict[str, Any]) -> nn.Module:
    return nn.ReLU(inplace=True) if config["activation"] == "relu" else nn.LeakyReLU(config["slope"], inplace=True)


def _inputs(x: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    return (x,) if labels is None else (x, labels)  # a subclass without classes may take one argument


def _odd(kernel: int) -> int:
    return kernel - 1 + kernel % 2


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _expect(x: Tensor, name: str, shape: tuple[int, ...], layer: nn.Module) -> Tensor:
    if tuple(x.shape[1:]) != shape or x.dim() != len(shape) + 1:
        raise InputError(f"{name} must have shape (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    dtype = next(layer.parameters()).dtype
    autocast = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    if x.dtype != dtype and not autocast:
        raise TypeError(f"{name} must be {dtype}, as the network is, got {x.dtype}")
    return x
