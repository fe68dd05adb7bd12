"""The training algorithm of GANs as one embeddable step.

Shapes: N batch, Z latent length, K channels, H×W image size, Y classes.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dcgan import _checks, _distributed, _optim
from dcgan._choices import (
    AugmentationName,
    CompileMode,
    Distribution,
    LearningRate,
    LossName,
    Precision,
    Schedule,
)
from dcgan._cuda_graphs import CudaGraphStep, WeakCall, can_compile, first_line
from dcgan._devices import device_defaults, to_memory_format
from dcgan._errors import InputError
from dcgan._modules import copy_module, expect_to_be_followed, stop_training
from dcgan._monitor import StepMonitor
from dcgan._precision import autocast, grad_scaler
from dcgan._random import global_seed
from dcgan.augment import Augmentation, augment, get_augmentations
from dcgan.ema import ema_weight, estimate_generator_statistics, update_average
from dcgan.images import from_uint8
from dcgan.latents import LatentSampler, derive_seed, sample_latents, seeded_latents
from dcgan.layers import expect_labels
from dcgan.losses import PENALTIES, Loss, Penalty, get_loss, probability
from dcgan.models import Discriminator, Generator

logger = logging.getLogger(__name__)

G = TypeVar("G", bound=nn.Module)
D = TypeVar("D", bound=nn.Module)

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor of images, or what a loader yields that holds one, such as `[images, labels]` or `{"image": ...}`.

Conditional networks are trained with the labels; others leave them aside.
"""

_MIN_STEPS_TO_COMPILE = 20_000  # from about here compiling pays off
_CHECK_EVERY = 100  # steps
# Streams of random numbers, other than that of the latents that are sampled from the same seed.
_TRAINER_STREAM, _NETWORK_STREAM = 1, 2


def statistics_latents(shape: tuple[int, ...], latent: Distribution | LatentSampler, seed: int) -> Tensor:
    """Return the latents `(1024, *shape)` over which a training's average gets BatchNorm statistics of its own."""
    return seeded_latents(1024, shape, seed=seed + 1, distribution=latent)


class Trainer(Generic[G, D]):
    """Alternate updates of a discriminator and a generator (Goodfellow et al., 2014, Algorithm 1).

    `step` is the whole algorithm. It knows no loader, logger or file, so any loop or framework can drive it, and it is
    a function of the trainer's state and the batch: its randomness, dropout and noise inside the networks included,
    comes from `(seed, steps)`, so that on a CPU a resumed run repeats the unbroken one bit for bit, with the same
    machine, number of threads and versions. On a GPU it does so up to rounding: some kernels add in no fixed order, and
    convolutions are computed by whichever algorithm was the fastest. `torch.use_deterministic_algorithms(True)` asks
    for neither.

    The networks are any two modules, on one device: latents to images, and images to one logit each (not
    probabilities). They are trained in place. A network that is in evaluation mode as a whole is put into training
    mode; single submodules in evaluation mode, such as a frozen BatchNorm, stay in it (call `train()` on a loaded
    network before you freeze parts of it). Networks and optimisers cannot be replaced: for others, build another
    trainer.

    Networks with `config["num_classes"]`, the same for both, are conditional: they are called with the labels of the
    batch as well, int64 `(N,)`, as `generator(z, labels)` and `discriminator(images, labels)`, and what is generated
    for a batch has its labels.

    In a process group (`torch.distributed`) of several processes, each with its own device and batches of one size,
    the trainers of all processes are one: the first gives its weights to the others, latents are those that one
    process would draw for the joint batch, and gradients and the running statistics of norms are means over all
    processes, so that the networks stay the same everywhere. Build the trainer after the process group, and load its
    state in every process. The networks need not be wrapped; from a `DistributedDataParallel` the one inside is taken.
    Steps are captured as CUDA graphs there only where `compile` is "graph" or "full".

    Args:
        generator: Maps latents to images.
        discriminator: Maps images to logits of any shape, one per image.
        loss: A key of `LOSSES`, or a `Loss`.
        lr: Learning rate of both Adams; "auto" is the rate that fits each network's width, `config["base_channels"]`.
        g_lr: Learning rate of the generator's Adam, if different.
        d_lr: Learning rate of the discriminator's Adam, if different.
        betas: Decay rates of both Adams.
        weight_decay: L2 added to the gradients of all parameters, as in the authors' code.
        g_optimizer: Optimiser of the generator's parameters, instead of Adam, whose settings are then ignored, or a
            framework's wrapper around one, except with "fp16". With "fp16" on a GPU it should be a fused one: with
            any other, the scaler waits for the device. Where steps are captured, it is made `capturable`.
        d_optimizer: Optimiser of the discriminator's parameters, likewise.
        max_grad_norm: Clip the gradients of each network to this norm.
        d_steps: Updates of the discriminator for each of the generator.
        schedule: "together" trains the discriminator on every batch and the generator after every `d_steps`-th;
            "alternate" gives one batch to the generator, then `d_steps` to the discriminator (the authors' way).
        label_smoothing: How far below 1 the discriminator's target for real images lies.
        gradient_penalty: Weight of the gradient penalty; 10 is usual with the Wasserstein loss.
        r1: Weight γ of the R1 penalty.
        penalties: Further functions whose results are added to the discriminator's loss.
        augmentations: Names of differentiable augmentations, keys of `AUGMENTATIONS`, or functions like those.
        ema_decay: Decay of the generator's moving average, `ema`, reached gradually; None keeps no average.
        precision: "bf16" and "fp16" compute under autocast; weights, losses and averages stay as they are.
        latent_dim: Length of a latent, or its shape without N, for a generator without `config["latent_dim"]`.
        latent: Distribution of the latents, or a function that draws them (`sample` draws `config["latent"]` all the
            same: pass it `z`); by default `config["latent"]`, or N(0, 1) without one.
        memory_format: Format of both networks and their images, such as `torch.channels_last`. By default our own
            networks are channels-last on CPUs and CUDA devices, where that is faster, and all others keep their layout.
            On MPS, BatchNorm's gradients are wrong for channels-last images in some versions of PyTorch.
        compile: How to speed up steps on a CUDA device, with the same results up to rounding. "off": not at all;
            "graph": after three eager steps, the whole step is one CUDA graph; "full": the networks are also compiled,
            which takes a minute; "auto": "graph", or "full" in a `fit` to step 20,000 or beyond. A graph repeats what
            was captured: if your loop modifies the networks themselves between steps, use "off".
        seed: Seed of all randomness in `step`.

    Attributes:
        device: Device of the networks.
        seed: The seed.
        steps: Number of steps done.
        collapse: How training has collapsed, as `check` last found it; None while it is healthy.

    Raises:
        TypeError: If `latent_dim` is needed.
        ValueError: If an argument is out of range, a rate is "auto" for a network of unknown width, the networks are on
            different devices or have different numbers of classes, their weights are of half precision, or an optimiser
            holds no parameter of its network, or is wrapped with "fp16".
    """

    def __init__(
        self,
        generator: G,
        discriminator: D,
        *,
        loss: LossName | Loss = "non-saturating",
        lr: LearningRate = 2e-4,
        g_lr: float | None = None,
        d_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 0.0,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
        max_grad_norm: float | None = None,
        d_steps: int = 1,
        schedule: Schedule = "together",
        label_smoothing: float = 0.0,
        gradient_penalty: float = 0.0,
        r1: float = 0.0,
        penalties: Iterable[Penalty] = (),
        augmentations: Iterable[AugmentationName | Augmentation] = (),
        ema_decay: float | None = 0.999,
        precision: Precision = "fp32",
        latent_dim: int | tuple[int, ...] | None = None,
        latent: Distribution | LatentSampler | None = None,
        memory_format: torch.memory_format | None = None,
        compile: CompileMode = "auto",  # noqa: A002 - as torch.compile and Module.compile
        seed: int = 0,
    ):
        _checks.expect_options(locals())
        generator = cast("G", _distributed.unwrap(generator))
        discriminator = cast("D", _distributed.unwrap(discriminator))
        self.device = _checks.common_device(generator, discriminator)
        self._defaults = device_defaults(self.device)
        self._processes = _distributed.process_count()
        _distributed.warn_if_alone()
        self.seed, self.steps = int(seed), 0
        self.collapse: str | None = None
        self._latent_shape, self._latent, value_range = _checks.latents_and_range(generator, latent_dim, latent)
        self._value_range = value_range or (-1.0, 1.0)
        self._num_classes = _checks.common_classes(generator, discriminator)
        self._precision, self._schedule, self._d_steps = precision, schedule, int(d_steps)
        self._max_grad_norm, self._ema_decay = max_grad_norm, ema_decay or 0.0

        self._loss = get_loss(loss, label_smoothing=label_smoothing)
        self._augmentations = get_augmentations(augmentations)
        weights = {"gradient_penalty": gradient_penalty, "r1": r1}
        self._penalties = [(weight, PENALTIES[name]) for name, weight in weights.items() if weight]
        self._penalties += [(1.0, penalty) for penalty in penalties]

        self._generator, self._discriminator = generator, discriminator
        _prepare_for_training(generator, memory_format, self._defaults.memory_format)
        self._image_format = _prepare_for_training(discriminator, memory_format, self._defaults.memory_format)
        _distributed.broadcast([generator, discriminator])
        _checks.warn_about_discriminator(
            discriminator, loss, gradient_penalty=bool(gradient_penalty), penalised=bool(self._penalties)
        )
        self._ema = None if ema_decay is None else _still_copy(generator)

        adam: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
        adam |= {"fused": self._defaults.fused_adam, "capturable": self._defaults.cuda_graphs}
        self._g_optimizer = g_optimizer or Adam(
            generator.parameters(), _optim.learning_rate(generator, lr if g_lr is None else g_lr), **adam
        )
        self._d_optimizer = d_optimizer or Adam(
            discriminator.parameters(), _optim.learning_rate(discriminator, lr if d_lr is None else d_lr), **adam
        )
        self._g_trained = _checks.trained_parameters("generator", generator, self._g_optimizer)
        self._d_trained = _checks.trained_parameters("discriminator", discriminator, self._d_optimizer)
        _checks.expect_unwrapped(self._g_optimizer, self._d_optimizer, precision)
        _optim.match_memory_format(self._g_optimizer)
        _optim.match_memory_format(self._d_optimizer)
        # Each network has its own scale: an overflow of one must not hold back the other.
        self.g_scaler, self.d_scaler = (grad_scaler(self.device, precision) for _ in range(2))

        self._rng = torch.Generator(self.device)
        # On the device, where a replayed CUDA graph reads it.
        self._step_count = torch.zeros((), dtype=torch.int64, device=self.device)
        self._batches_seen = 0  # since the trainer was built or loaded
        self._warned: set[str] = set()
        self._monitor = StepMonitor(
            self.device, value_range, expects_logits=self._loss.score is probability, target=1 - label_smoothing
        )
        self._g_forward: Callable[..., Tensor] = generator  # compiled, where that was asked for
        self._d_forward: Callable[..., Tensor] = discriminator
        self._compile, self._cuda_graphs = compile, None
        eager = {"off", "auto"} if self._processes > 1 else {"off"}  # messages in a graph have never been tried
        if self._defaults.cuda_graphs and compile not in eager:
            step, find_obstacle = WeakCall(self._train_on), WeakCall(self._find_host_state)
            self._cuda_graphs = CudaGraphStep(step, self.device, self._rng, find_obstacle)
        self._places: tuple[tuple[Any, Any], tuple[int, int]] | None = None  # of what a captured step reads
        if compile == "full":
            self._compile_networks()

    def __getstate__(self) -> dict[str, Any]:
        # `torch.save` cannot pickle a memory format.
        return vars(self) | {"_image_format": str(self._image_format), "_defaults": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        image_format = getattr(torch, state["_image_format"].removeprefix("torch."))
        self.__dict__.update(state, _image_format=image_format, _defaults=device_defaults(state["device"]))
        for optimizer in (self._g_optimizer, self._d_optimizer):
            _optim.restore_flags(optimizer)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the networks whose turn it is on one batch.

        Args:
            batch: Images `(N, K, H, W)`, floating-point in the generator's output range, or uint8; or what a loader
                yields that holds one such tensor, such as `[images, labels]` or `{"image": images}`. Conditional
                networks need `(images, labels)`, or another collection that holds both.

        Returns:
            Detached scalars, left on the device: `d_loss`, `d_real` and `d_fake` (the mean D(x) and D(G(z)), in
            [0, 1] where the loss has probabilities) where the discriminator was trained, `g_loss` where the
            generator was. In several processes they are means over all of them.

        Raises:
            TypeError: If `batch` does not hold one tensor of images, or, for conditional networks, one of labels.
            ValueError: If the images have another shape than the generator's or another type, the discriminator gives
                not one logit for each, or at the first step they must be pixels in 0 ... 255, or labels on the CPU are
                out of range.
            RuntimeError: If parameters of a network were replaced, or a process group began or ended, since the
                trainer was built.
        """
        real = self._prepare(batch)
        labels = self._prepare_labels(batch, len(real))  # ((N,),), or () where the networks take none
        z = self._draw_latents(len(real))  # (N, Z)
        # Backward passes and penalties are not computed under autocast, even if the caller is.
        no_autocast = torch.autocast(self.device.type, enabled=False)
        with torch.enable_grad(), no_autocast, global_seed(self._derive_seed(_NETWORK_STREAM), self.device):
            metrics = self._run(self._turns(self.steps), real, z, *labels)
        self.steps += 1
        return metrics

    def _train_on(self, turns: tuple[bool, bool], real: Tensor, z: Tensor, *labels: Tensor) -> dict[str, Tensor]:
        """Do what a step computes on the device, all that a CUDA graph holds."""
        torch.clear_autocast_cache()  # of casts by the caller, under whose autocast they would be kept
        train_d, train_g = turns
        pixels, real = real, self._as_float(real)
        metrics: dict[str, Tensor] = {}
        with torch.set_grad_enabled(mode=train_g), self._autocast():
            fake = self._g_forward(z, *labels)  # (N, K, H, W)
        _checks.expect_alike(real, fake)

        if train_d:
            # Real and fake pass apart: one BatchNorm batch would tell the discriminator which is which.
            with self._autocast():
                d_real, d_fake = self._logits(real, *labels), self._logits(fake.detach(), *labels)  # (N,), (N,)
            d_loss = self._loss.discriminator(d_real, d_fake) + self._penalty(real, fake.detach(), *labels)
            _optim.backward_and_step(self._d_optimizer, self.d_scaler, d_loss, max_grad_norm=self._max_grad_norm)
            score = self._loss.score
            metrics |= {"d_loss": d_loss, "d_real": score(d_real).mean(), "d_fake": score(d_fake).mean()}

        if train_g:
            # Against the updated discriminator, whose own gradients would be computed only to be thrown away.
            with _optim.freeze(self._discriminator):
                with self._autocast():
                    logits = self._logits(fake, *labels)  # (N,)
                g_loss = self._loss.generator(logits)
                _optim.backward_and_step(self._g_optimizer, self.g_scaler, g_loss, max_grad_norm=self._max_grad_norm)
            metrics |= {"g_loss": g_loss}

        _distributed.average_statistics([self._generator, self._discriminator])
        if train_g and self._ema is not None:
            update_average(self._ema, self._generator, ema_weight(self._step_count, self._ema_decay))

        self._monitor.record(self._step_count, real, fake, metrics, scaled=pixels.dtype == torch.uint8)
        return {name: value.detach() for name, value in metrics.items()}

    def _run(self, turns: tuple[bool, bool], *tensors: Tensor) -> dict[str, Tensor]:
        """Call `_train_on`, or replay what it launched, where steps are captured."""
        if self._cuda_graphs is None:
            return self._train_on(turns, *tensors)
        for optimizer in (self._g_optimizer, self._d_optimizer):  # whose settings a framework may have restored
            _optim.make_capturable(optimizer)
        self._follow_moves(self._cuda_graphs)
        run = partial(self._cuda_graphs, turns, *tensors, hyperparameters=self._hyperparameters())
        try:
            return run()
        except InputError:  # of the batch or the networks, whether compiled or not
            raise
        except Exception as error:
            if self._g_forward is self._generator:
                raise
            # Compilers raise anything, at the first step of each kind: an error of another origin is raised again.
            logger.warning("the networks are no longer compiled: %s", first_line(error))
            self._g_forward, self._d_forward = self._generator, self._discriminator
            self._cuda_graphs.reset()
            return run()

    def _follow_moves(self, graphs: CudaGraphStep) -> None:
        """Drop graphs when an optimiser has got another state, or the networks have been moved to other memory."""
        states = self._g_optimizer.state, self._d_optimizer.state
        addresses = self._g_trained[0].data_ptr(), self._d_trained[0].data_ptr()
        if self._places is not None:
            (g_state, d_state), known = self._places
            if states[0] is not g_state or states[1] is not d_state or addresses != known:
                graphs.reset()
        self._places = states, addresses

    def _draw_latents(self, count: int) -> Tensor:
        """Draw latents for `count` images: in several processes, this one's share of the draw for the joint batch."""
        self._rng.manual_seed(derive_seed(self.seed, self.steps, _TRAINER_STREAM))
        shape = (count * self._processes, *self._latent_shape)
        z = sample_latents(shape, self._latent, self._rng, dtype=self._dtype)
        if self._processes > 1:
            z = z[count * _distributed.process_rank() :][:count]
            self._rng.manual_seed(self._derive_seed(_TRAINER_STREAM))  # augmentations differ between processes
        return z

    def _derive_seed(self, stream: int) -> int:
        """Return the seed of one of this step's streams of random numbers, in several processes one for each."""
        process = (_distributed.process_rank(),) if self._processes > 1 else ()
        return derive_seed(self.seed, self.steps, stream, *process)

    def _turns(self, step: int) -> tuple[bool, bool]:
        """Return whether a step trains the discriminator, and whether it trains the generator."""
        if self._schedule == "alternate":
            train_g = step % (self._d_steps + 1) == 0
            return not train_g, train_g
        return True, (step + 1) % self._d_steps == 0

    def _logits(self, images: Tensor, *labels: Tensor) -> Tensor:
        logits = _checks.one_logit_each(self._d_forward(self._augment(images), *labels), len(images))  # (N,)
        self._monitor.record_logits(logits)
        return logits

    def _penalty(self, real: Tensor, fake: Tensor, *labels: Tensor) -> Tensor | float:
        def logits(images: Tensor) -> Tensor:
            # A compiled network can be differentiated only once.
            outputs: Tensor = self._discriminator(self._augment(images), *labels)
            return outputs.flatten()  # (N,)

        # Penalties are differentiated twice, which half precision does not survive: here, autocast is off.
        fake = fake.to(real.dtype)
        return sum(weight * penalty(logits, real, fake, self._rng) for weight, penalty in self._penalties)

    def _augment(self, images: Tensor) -> Tensor:
        if self._augmentations:  # real and generated images alike, in the precision of the weights
            images = augment(images.to(self._dtype), self._augmentations, self._rng)
        return to_memory_format(images, self._image_format)

    def fit(self, batches: Iterable[Batch], steps: int) -> None:
        """Train until `steps` are done in total, counted from the first one; `iterate` also yields the metrics.

        Args:
            batches: Batches for `step`: a loader, which is repeated as needed, or an endless iterator. After resuming,
                it has to continue where the uninterrupted run would have.
            steps: Number of steps in total.

        Raises:
            FloatingPointError: As `check`, which is called every hundred steps and at the end.
            RuntimeError: If an iterator ends before the last step; what was trained stays.
            ValueError: If `batches` is empty, or as `step`.
        """
        for _ in self.iterate(batches, steps):
            pass

    def iterate(self, batches: Iterable[Batch], steps: int) -> Iterator[dict[str, Tensor]]:
        """Train as `fit`, yielding each step's metrics: logging and saving are your loop's body."""
        if steps <= self.steps:
            logger.warning("nothing to train: %d of %d steps are done", self.steps, steps)
            return
        # By the total: a run that is resumed late computes as it did before.
        if self._compile == "auto" and self._cuda_graphs and steps >= _MIN_STEPS_TO_COMPILE:
            self._compile = "full"
            self._compile_networks()
        for batch in _cycle(batches):
            metrics = self.step(batch)
            if self.steps % _CHECK_EVERY == 0 or self.steps >= steps:
                self.check()  # before the loop's body, which may save
            yield metrics
            if self.steps >= steps:
                return
        raise RuntimeError(
            f"batches ended at step {self.steps} of {steps}: pass a loader, which can be iterated again, or an "
            "endless iterator"
        )

    def check(self) -> None:
        """Check that training is finite and has not collapsed, and that images and logits have the expected ranges.

        Every step records non-finite losses and images, signs of collapse and ranges on the device; this waits for the
        device and checks the records and the weights. Ranges that do not fit are logged once, and so is a collapse, a
        state that has lasted for a hundred steps; `collapse` then describes it.

        Raises:
            FloatingPointError: If not finite, naming the first step and the network, or the real images, that went
                wrong.
        """
        self._monitor.expect_finite()
        for name, network in (("generator", self._generator), ("discriminator", self._discriminator)):
            finite = [parameter.isfinite().all() for parameter in network.parameters()]
            if not torch.stack(finite).all():
                when = f"step {self.steps - 1}" if self.steps else "before the first step"
                raise FloatingPointError(f"{when}: the {name}'s weights turned non-finite")
        self._monitor.warn_about_ranges(outputs_too=self._batches_seen > _CHECK_EVERY)
        self.collapse = self._monitor.find_collapse()
        if self.collapse and "collapse" not in self._warned:
            self._warned.add("collapse")
            logger.warning(
                'step %d: training has collapsed: %s. It rarely recovers: start anew with lr="auto" and '
                "betas=(0.5, 0.999), or, if they were, with augmentations, a narrower discriminator or another seed",
                self.steps - 1,
                self.collapse,
            )

    def averaged(self) -> G:
        """Return a copy of the average, in evaluation mode, with BatchNorm statistics of its own weights.

        This is the network to score, sample and publish. The statistics are estimated over 1024 latents of a seed of
        their own, with classes in turn. Without an average, it is a copy of the generator as it is.
        """
        network = _still_copy(self._generator if self._ema is None else self._ema)
        if self._ema is not None:
            z = statistics_latents(self._latent_shape, self._latent, self.seed).to(self._dtype)
            # Single modules in evaluation mode have statistics that are not to be replaced.
            modules = self._generator.named_modules() if self._generator.training else ()
            frozen = {name for name, module in modules if not module.training}
            estimate_generator_statistics(network, z, num_classes=self._num_classes, frozen=frozen)
        return network

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next `step` depends on, as tensors and plain values, loadable weights-only."""
        parts = {name: part.state_dict() for name, part in self._stateful().items()}
        return {"steps": self.steps, "seed": self.seed, **parts}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Continue exactly where `state_dict` was called, on a trainer with the same arguments.

        The optimisers' settings, such as learning rates, are taken from the state; differences are logged.

        Args:
            state: From `state_dict`.
            strict: Whether the state must have all parts of this trainer. Otherwise those that it lacks stay as they
                are, for frameworks that save and restore networks and optimisers themselves.

        Raises:
            ValueError: If the state has other parts than this trainer, or one of them does not fit; the trainer is
                then unchanged.
        """
        parts, before = self._stateful(), copy.deepcopy(self.state_dict())
        unmatched = ((state.keys() ^ before.keys()) if strict else (state.keys() - before.keys())) - {"monitor"}
        if unmatched:
            names = ", ".join(sorted(unmatched))
            raise InputError(f"the state does not match this trainer: only one of them has {names}")
        parts = {name: part for name, part in parts.items() if name in state}
        _checks.expect_counts(state)
        hyperparameters = self._hyperparameters()
        if self._cuda_graphs is not None:
            self._cuda_graphs.reset()
        for name, part in parts.items():
            try:
                _load(part, state[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                for whole, kept in parts.items():
                    _load(kept, before[whole])
                raise InputError(f"the state does not fit the {name}: {error}") from error
        for name in {"g_optimizer", "d_optimizer"} - parts.keys():  # which a framework may have restored
            _optim.match_memory_format(getattr(self, name))
        self.steps, self.seed = state.get("steps", self.steps), state.get("seed", self.seed)
        if "monitor" not in parts:  # before 0.3
            self._monitor.reset()
        self.collapse = self._monitor.find_collapse()
        self._batches_seen = 0
        self._warn_about_moments(state)
        loaded = dict(self._hyperparameters())
        for name, was in hyperparameters:
            if (now := loaded.get(name, was)) != was:  # a scheduler may have added settings to either
                logger.warning("the loaded state sets %s to %s, which was %s", name, now, was)

    @property
    def generator(self) -> G:
        """The generator, as given."""
        return self._generator

    @property
    def discriminator(self) -> D:
        """The discriminator, as given."""
        return self._discriminator

    @property
    def ema(self) -> G | None:
        """The generator's moving average, in evaluation mode; None if none is kept.

        Its BatchNorm statistics are those of the generator: score and publish `averaged()`, which has its own.
        """
        return self._ema

    @property
    def g_optimizer(self) -> Optimizer:
        """The generator's optimiser."""
        return self._g_optimizer

    @property
    def d_optimizer(self) -> Optimizer:
        """The discriminator's optimiser."""
        return self._d_optimizer

    @property
    def loss(self) -> Loss:
        """The loss, with label smoothing applied."""
        return self._loss

    def _prepare(self, batch: object) -> Tensor:
        real = _checks.expect_images(batch)
        _checks.expect_processes(self._processes)
        _checks.expect_in_place("generator", self._generator, self._g_trained)
        _checks.expect_in_place("discriminator", self._discriminator, self._d_trained)
        _checks.warn_about_modes(self._generator, self._discriminator, self._warned)
        if self._batches_seen == 0 and real.device.type == "cpu":  # elsewhere, reading would wait for the device
            self._monitor.expect_range(real)
        elif self._batches_seen == _CHECK_EVERY and self.device.type == "cpu":
            self._monitor.warn_about_ranges(outputs_too=True)
        self._batches_seen += 1
        self._step_count.fill_(self.steps)
        real = real.to(self.device, non_blocking=self._defaults.non_blocking)
        return to_memory_format(real, self._image_format)

    def _prepare_labels(self, batch: object, count: int) -> tuple[Tensor, ...]:
        if self._num_classes is None:
            return ()
        labels = _checks.expect_batch_labels(batch, count)
        expect_labels(labels, self._num_classes, count)
        return (labels.to(self.device, non_blocking=self._defaults.non_blocking),)

    def _as_float(self, real: Tensor) -> Tensor:
        return from_uint8(real, self._value_range, self._dtype) if real.dtype == torch.uint8 else real.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._generator.parameters()).dtype

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self._precision)

    def _stateful(self) -> dict[str, Any]:
        names = ["generator", "discriminator", "g_optimizer", "d_optimizer"]
        names += ["ema"] if self._ema is not None else []
        names += ["g_scaler", "d_scaler"] if self.g_scaler.is_enabled() else []
        return {**{name: getattr(self, name) for name in names}, "monitor": self._monitor}

    def _warn_about_moments(self, state: Mapping[str, Any]) -> None:
        """Warn if a loaded state has no moments of an optimiser that has trained by its step."""
        turns = [self._turns(step) for step in range(min(self.steps, self._d_steps + 1))]
        if self.g_scaler.is_enabled() and self.steps < _CHECK_EVERY:
            return  # the first updates may have been skipped
        for turn, name in enumerate(("d_optimizer", "g_optimizer")):
            if name in state and any(trained[turn] for trained in turns):
                _checks.warn_about_moments(name, getattr(self, name), state[name], steps=self.steps)

    def _hyperparameters(self) -> tuple[tuple[str, str], ...]:
        return _optim.hyperparameters(g_optimizer=self._g_optimizer, d_optimizer=self._d_optimizer)

    def _find_host_state(self) -> str | None:
        return _optim.find_host_state(self._g_optimizer, self._d_optimizer)

    def _compile_networks(self) -> None:
        if self._cuda_graphs is None:
            logger.warning("compile='full' is for CUDA devices: on %s, steps run without it", self.device)
            return
        if not can_compile(self.device):
            return
        # As separate functions: the networks themselves stay uncompiled.
        self._g_forward = torch.compile(self._generator, dynamic=False)
        self._d_forward = torch.compile(self._discriminator, dynamic=False)
        self._cuda_graphs.reset()
        logger.info("compiling the networks: unless that was done before, the first steps take about a minute")


def _still_copy(network: G) -> G:
    """Return a copy with the same parameters, which no optimiser updates, in evaluation mode."""
    expect_to_be_followed(network)
    still = copy_module(network).requires_grad_(requires_grad=False)
    stop_training(still)
    return still


def _prepare_for_training(
    network: nn.Module, memory_format: torch.memory_format | None, own_format: torch.memory_format
) -> torch.memory_format:
    """Set a network's mode and memory format, by default `own_format` if it is ours; return that of its images."""
    if not network.training:
        network.train()
    if memory_format is None:
        if type(network) not in (Generator, Discriminator):
            return torch.contiguous_format  # other people's modules may use `view`
        memory_format = own_format
    network.to(memory_format=memory_format)
    return memory_format


def _cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield from a loader again and again, and from an iterator once."""
    while True:
        iterator, empty = iter(batches), True
        for batch in iterator:
            empty = False
            yield batch
        if iterator is batches:
            return
        if empty:
            raise InputError("batches must hold at least one batch")


def _load(part: Any, state: dict[str, Any]) -> None:
    if hasattr(part, "param_groups"):  # an optimiser, or a framework's wrapper around one
        _optim.load_state(part, state)
    else:
        part.load_state_dict(state)
