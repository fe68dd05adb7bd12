"""The training algorithm of GANs as one embeddable step.

Shapes: N batch, Z latent length, K channels, H×W image size.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dcgan import _optim
from dcgan._cuda_graphs import can_compile, on_cuda
from dcgan.augment import AUGMENTATIONS, augment
from dcgan.images import from_uint8
from dcgan.latents import Distribution, derive_seed, sample_latents
from dcgan.losses import (
    LOSSES,
    cross_entropy_discriminator,
    gradient_penalty,
    least_squares_discriminator,
    r1_penalty,
)

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["together", "alternate"]
Compile = Literal["auto", "off", "graph", "full"]

logger = logging.getLogger(__name__)

G = TypeVar("G", bound=nn.Module)
D = TypeVar("D", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each precision computes in."""
_EARNS_COMPILING = 20_000  # steps: about as long as it takes to get back what compiling costs
_STEP = 1  # keeps the latents of training apart from those that samples of the same seed show
# What may turn non-finite, in the order in which it is blamed: each explains the ones after it.
_NONFINITE_SOURCES = ("real images", "generator", "discriminator")


class Trainer(Generic[G, D]):
    """Alternate updates of a discriminator and a generator (Goodfellow et al., 2014, Algorithm 1).

    `step` is the whole algorithm. It knows no loader, logger or file, so any loop or framework can drive it, and it is
    a function of the trainer's state and the batch: its randomness comes from `(seed, steps)`, so that a resumed run
    repeats the unbroken one bit for bit on the same machine.

    The networks are any two modules, on one device: latents to images, and images to one logit each (not
    probabilities). They are trained in place, in channels-last memory format.

    Args:
        generator: Maps latents to images.
        discriminator: Maps images to logits of any shape, one an image.
        loss: "non-saturating", "minimax", "hinge", "least-squares" or "wasserstein".
        lr: Learning rate of both Adams.
        betas: Their decay rates.
        weight_decay: L2 added to the gradients of all parameters, as in the authors' code.
        g_optimizer: Optimiser of the generator's parameters, instead of Adam, whose settings are then ignored. With
            "fp16" on a GPU it should be a fused one: the scaler waits for the device before any other.
        d_optimizer: Optimiser of the discriminator's parameters, likewise.
        d_steps: Updates of the discriminator for each of the generator.
        schedule: "together" trains the discriminator on every batch and the generator after every `d_steps`-th;
            "alternate" gives one batch to the generator, then `d_steps` to the discriminator (the authors' way).
        label_smoothing: How far below 1 the discriminator's target for real images lies.
        gradient_penalty: Weight of the gradient penalty; 10 is usual with the Wasserstein loss.
        r1: Weight γ of the R1 penalty.
        augmentations: Names of differentiable augmentations: "color", "translation", "cutout".
        ema_decay: Decay of the generator's moving average, `ema`, reached gradually; None keeps no average.
        precision: "bf16" and "fp16" compute under autocast; weights, losses and averages stay as they are.
        latent_dim: Length of a latent, or its shape without N, for a generator without `config["latent_dim"]`.
        latent: Distribution of the latents, for a generator without `config["latent"]`; otherwise N(0, 1).
        compile: What is done on a CUDA device to be faster, with the same results up to rounding. "off": nothing;
            "graph": after three steps as usual, the whole step is one CUDA graph; "full": the networks are compiled
            besides, which takes a minute; "auto": "graph", and "full" in a `fit` of 20,000 steps or more. A graph
            repeats what was captured: with a loop that changes the networks themselves between steps, take "off".
        seed: Seed of all randomness in `step`.

    Raises:
        TypeError: If `latent_dim` is needed.
        ValueError: If an argument is out of range, the networks lie on different devices, or their weights are of
            half precision.
    """

    def __init__(
        self,
        generator: G,
        discriminator: D,
        *,
        loss: str = "non-saturating",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 0.0,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
        d_steps: int = 1,
        schedule: Schedule = "together",
        label_smoothing: float = 0.0,
        gradient_penalty: float = 0.0,
        r1: float = 0.0,
        augmentations: Iterable[str] = (),
        ema_decay: float | None = 0.999,
        precision: Precision = "fp32",
        latent_dim: int | tuple[int, ...] | None = None,
        latent: Distribution | None = None,
        compile: Compile = "auto",  # noqa: A002 - as torch.compile and Module.compile
        seed: int = 0,
    ):
        config = getattr(generator, "config", {})
        latent_dim = config.get("latent_dim") if latent_dim is None else latent_dim
        if latent_dim is None:
            raise TypeError("latent_dim is needed for a generator without config['latent_dim']")
        self._latent_shape = (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)
        distribution = latent or config.get("latent", "normal")
        self._latent: Distribution = _lookup("latent", distribution, {name: name for name in ("normal", "uniform")})
        self._value_range = (0.0, 1.0) if config.get("output") == "sigmoid" else (-1.0, 1.0)
        self.device = _device_of(generator, discriminator)

        self.loss = _lookup("loss", loss, LOSSES)
        self._autocast = _lookup("precision", precision, DTYPES)
        self._compile = _lookup("compile", compile, {name: name for name in ("auto", "off", "graph", "full")})
        self._schedule = _lookup("schedule", schedule, {name: name for name in ("together", "alternate")})
        self._augmentations = [name for name in augmentations if _lookup("augmentations", name, AUGMENTATIONS)]
        weights = {"label_smoothing": label_smoothing, "gradient_penalty": gradient_penalty, "r1": r1}
        for name, value in {**weights, "weight_decay": weight_decay, "seed": seed}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if d_steps < 1:
            raise ValueError(f"d_steps must be at least 1, got {d_steps}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1) or None, got {ema_decay}")
        if label_smoothing >= 1:
            raise ValueError(f"label_smoothing must be below 1, got {label_smoothing}")
        if label_smoothing and loss not in _SMOOTHABLE:
            raise ValueError(f"label_smoothing needs a loss with targets ({', '.join(_SMOOTHABLE)}), got {loss!r}")
        self._d_steps, self._ema_decay, self.seed, self.steps = d_steps, ema_decay, seed, 0
        self._gradient_penalty, self._r1, self._label_smoothing = gradient_penalty, r1, label_smoothing

        for network in (generator, discriminator):
            network.train().to(memory_format=torch.channels_last)
        self.generator, self.discriminator = generator, discriminator
        self.ema = None if ema_decay is None else copy.deepcopy(generator).eval().requires_grad_(requires_grad=False)
        cuda = self.device.type == "cuda"
        adam: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        adam |= {"fused": True, "capturable": cuda}
        self.g_optimizer = g_optimizer or Adam(generator.parameters(), **adam)
        self.d_optimizer = d_optimizer or Adam(discriminator.parameters(), **adam)
        _optim.match_memory_format(self.g_optimizer, self.d_optimizer)
        # Each network has its own scale: an overflow of one must not hold back the other.
        scaled = precision == "fp16"
        self.g_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.d_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self._rng = torch.Generator(self.device)
        # What changes from step to step lies on the device, where a replayed step finds it.
        self._step_count = torch.zeros((), dtype=torch.int64, device=self.device)
        self._first_bad = torch.full((len(_NONFINITE_SOURCES),), -1, device=self.device)
        self._generate: Callable[[Tensor], Tensor] = generator
        self._discriminate: Callable[[Tensor], Tensor] = discriminator
        self._captured = on_cuda(self._update, self.device, self._rng) if cuda and compile != "off" else None
        if compile == "full":
            self._compile_networks()

    def step(self, real: Tensor) -> dict[str, Tensor]:
        """Update the networks whose turn it is on one batch.

        Args:
            real: Images `(N, K, H, W)`, floating-point in the generator's output range, or uint8.

        Returns:
            Detached scalars, left on the device: `d_loss`, `d_real` and `d_fake` (the mean D(x) and D(G(z)), in
            [0, 1] where the loss has probabilities) where the discriminator was trained, `g_loss` where the
            generator was.

        Raises:
            ValueError: If `real` has another shape or type.
        """
        real = self._prepare(real)
        self._rng.manual_seed(derive_seed(self.seed, self.steps, _STEP))
        self._step_count.fill_(self.steps)
        z = self._draw(len(real))
        if self._captured is None:
            metrics = self._update(self._turns(), real, z)
        else:
            metrics = self._captured(
                (*self._turns(), *_optim.hyperparameters(self.g_optimizer, self.d_optimizer)), real, z
            )
        self.steps += 1
        return metrics

    def fit(self, batches: Iterable[Tensor], steps: int) -> Iterator[dict[str, Tensor]]:
        """Yield each step's metrics until `steps` are done in total; logging and saving are your loop's body.

        After a resumption, `batches` has to go on where the unbroken run would have.

        Raises:
            FloatingPointError: As `check`, which is called every hundred steps.
        """
        if self._compile == "auto" and self._captured and steps - self.steps >= _EARNS_COMPILING:
            self._compile = "full"
            self._compile_networks()
        for real in islice(batches, max(0, steps - self.steps)):
            yield self.step(real)
            if self.steps % 100 == 0:
                self.check()

    def check(self) -> None:
        """Look whether training is still finite; waits for the device.

        Every step takes note, on the device, of a loss or an image that is not; this reads the note, and the weights.

        Raises:
            FloatingPointError: If not, naming the first step and the network, or the real images, that went wrong.
        """
        bad = self._first_bad.tolist()
        if steps := [step for step in bad if step >= 0]:
            culprit = _NONFINITE_SOURCES[bad.index(min(steps))]
            raise FloatingPointError(f"step {min(steps)}: the {culprit} turned non-finite (NaN or infinity)")
        for name in ("generator", "discriminator"):
            finite = [parameter.isfinite().all() for parameter in getattr(self, name).parameters()]
            if not torch.stack(finite).all():
                when = f"step {self.steps - 1}" if self.steps else "before the first step"
                raise FloatingPointError(f"{when}: the {name}'s weights turned non-finite")

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next `step` depends on, as tensors and plain values, loadable weights-only."""
        return {
            "steps": self.steps,
            "seed": self.seed,
            **{k: v.state_dict() for k, v in self._stateful().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, by a trainer with the same arguments.

        Raises:
            ValueError: If the state has other parts than this trainer, or one of them does not fit; the trainer is
                then what it was.
        """
        parts, before = self._stateful(), copy.deepcopy(self.state_dict())
        if state.keys() != parts.keys() | {"steps", "seed"}:
            odd = sorted(state.keys() ^ (parts.keys() | {"steps", "seed"}))
            raise ValueError(f"the state is not of a trainer like this one: {', '.join(odd)} on one side only")
        if self._captured is not None:
            self._captured.forget()
        for name, part in parts.items():
            try:
                _load(part, state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                for whole, kept in parts.items():
                    _load(kept, before[whole])
                raise ValueError(f"the state does not fit the {name}: {error}") from error
        self.steps, self.seed = state["steps"], state["seed"]
        self._first_bad.fill_(-1)

    def _stateful(self) -> dict[str, Any]:
        names = ["generator", "discriminator", "g_optimizer", "d_optimizer"]
        names += ["ema"] if self.ema is not None else []
        names += ["g_scaler", "d_scaler"] if self.g_scaler.is_enabled() else []
        return {name: getattr(self, name) for name in names}

    def _turns(self) -> tuple[bool, bool]:
        """Say whether this step trains the discriminator and whether it trains the generator."""
        if self._schedule == "alternate":
            generators_turn = self.steps % (self._d_steps + 1) == 0
            return not generators_turn, generators_turn
        return True, (self.steps + 1) % self._d_steps == 0

    def _compile_networks(self) -> None:
        if self._captured is None:
            logger.warning("compile='full' is for CUDA devices: on %s, steps run as they are", self.device)
            return
        if not can_compile(self.device):
            return
        # As functions beside the networks, which stay what they are to all others.
        self._generate = torch.compile(self.generator, dynamic=False)
        self._discriminate = torch.compile(self.discriminator, dynamic=False)
        self._captured.forget()
        logger.info("compiling the networks: the first steps take about a minute, unless it was done before")

    def _update(self, kind: tuple[Any, ...], real: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Do all of a step that is computed on the device; `kind` begins with whose turn it is."""
        train_d, train_g, *_ = kind
        real = self._scaled(real)
        metrics: dict[str, Tensor] = {}
        with torch.set_grad_enabled(mode=train_g), self._mixed():
            fake = self._generate(z)  # (N, K, H, W)
        if train_d:
            metrics |= self._update_discriminator(real, fake.detach())
        if train_g:
            metrics |= self._update_generator(fake)
            self._update_ema()
        self._record_nonfinite(real, fake, metrics)
        return {name: value.detach() for name, value in metrics.items()}

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        with self._mixed():
            # Real and fake pass apart: one BatchNorm batch would tell the discriminator which is which.
            d_real, d_fake = self._logits(real), self._logits(fake)  # (N,), (N,)
        smoothing = {"real_target": 1 - self._label_smoothing} if self._label_smoothing else {}
        d_loss = self.loss.discriminator(d_real, d_fake, **smoothing)
        # Penalties differentiate twice, which half precision does not survive.
        judge = partial(self._logits, differentiated_twice=True)
        with torch.autocast(self.device.type, enabled=False):
            if self._gradient_penalty:
                epsilon = torch.rand(len(real), 1, 1, 1, generator=self._rng, device=self.device, dtype=real.dtype)
                penalty = gradient_penalty(judge, real, fake.to(real.dtype), epsilon)
                d_loss = d_loss + self._gradient_penalty * penalty
            if self._r1:
                d_loss = d_loss + self._r1 * r1_penalty(judge, real)
        _optim.backward_and_step(self.d_optimizer, self.d_scaler, d_loss)
        score = self.loss.score
        return {"d_loss": d_loss, "d_real": score(d_real).mean(), "d_fake": score(d_fake).mean()}

    def _update_generator(self, fake: Tensor) -> dict[str, Tensor]:
        # The discriminator is fixed here: gradients of its weights would be computed only to be thrown away.
        with _optim.frozen(self.discriminator):
            with self._mixed():
                d_fake = self._logits(fake)  # (N,)
            g_loss = self.loss.generator(d_fake)
            _optim.backward_and_step(self.g_optimizer, self.g_scaler, g_loss)
        return {"g_loss": g_loss}

    def _logits(self, images: Tensor, *, differentiated_twice: bool = False) -> Tensor:
        # Compiled networks can be differentiated only once.
        discriminate = self.discriminator if differentiated_twice else self._discriminate
        logits: Tensor = discriminate(augment(images, self._augmentations, self._rng))
        return logits.flatten()  # (N,)

    @torch.no_grad()
    def _update_ema(self) -> None:
        if self.ema is None or self._ema_decay is None:
            return
        # A young average follows the young generator, whose first weights say nothing.
        weight = (9 / (10 + self._step_count)).clamp(min=1 - self._ema_decay)
        for kept, parameter in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(parameter, weight.to(kept.dtype))
        for statistic, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            statistic.copy_(buffer)

    @torch.no_grad()
    def _record_nonfinite(self, real: Tensor, fake: Tensor, metrics: dict[str, Tensor]) -> None:
        losses = [metrics[name] for name in ("d_loss", "g_loss") if name in metrics]
        finite = torch.stack([tensor.isfinite().all() for tensor in (real, fake, torch.stack(losses))])
        self._first_bad.copy_(torch.where((self._first_bad < 0) & ~finite, self._step_count, self._first_bad))

    def _prepare(self, real: Tensor) -> Tensor:
        if real.dim() != 4 or not (real.is_floating_point() or real.dtype == torch.uint8):
            raise ValueError(
                f"real must be images (N, K, H, W), floating-point or uint8, got {tuple(real.shape)} of {real.dtype}"
            )
        return real.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)

    def _scaled(self, real: Tensor) -> Tensor:
        dtype = next(self.generator.parameters()).dtype
        return from_uint8(real, self._value_range, dtype) if real.dtype == torch.uint8 else real.to(dtype)

    def _draw(self, n: int) -> Tensor:
        like = next(self.generator.parameters())
        return sample_latents((n, *self._latent_shape), self._latent, self._rng, dtype=like.dtype)

    def _mixed(self) -> torch.autocast:
        enabled = self._autocast != torch.float32
        return torch.autocast(self.device.type, self._autocast if enabled else None, enabled=enabled)


_SMOOTHABLE = [
    name
    for name, loss in LOSSES.items()
    if loss.discriminator in (cross_entropy_discriminator, least_squares_discriminator)
]


def _load(part: Any, state: dict[str, Any]) -> None:
    if isinstance(part, Optimizer):
        _optim.load(part, state)
    else:
        part.load_state_dict(state)


def _lookup(name: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def _device_of(*networks: nn.Module) -> torch.device:
    parameters = [parameter for network in networks for parameter in network.parameters()]
    if half := {parameter.dtype for parameter in parameters} & {torch.float16, torch.bfloat16}:
        raise ValueError(f"the networks' weights must be float32, got {half.pop()}: half precision is for precision=")
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1:
        raise ValueError(f"the networks must lie on one device, got {sorted(map(str, devices))}")
    return devices.pop()
