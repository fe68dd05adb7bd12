"""Non-finite numbers, collapse and value ranges, recorded on the device by every step and checked now and then.

A step never waits for the device: it leaves a few scalars there, which are read every hundred steps or so.
"""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from dcgan._distributed import average
from dcgan._errors import InputError

logger = logging.getLogger(__name__)

# What may turn non-finite, in the order of blame: each explains the ones after it.
_SOURCES = ("real images", "generator", "discriminator")
_MIN_IMAGES_TO_WARN = 16
# A collapse is a state that lasts: MNIST at 32×32 and 64×64 that trained well was never in it for twenty steps.
_STEPS_TO_WARN = 100
_SATURATED = 0.98, 0.02  # D(x) above, D(G(z)) below
_ALIKE = 0.1  # spread of the generated images over a batch, of that of the real ones
# Squared distance of a batch's mean generated image from where it has been of late, of the variance of the real images,
# averaged over the last hundred steps or so. With beta1=0.9, MNIST and the digits at 32×32 reached 0.42 to 0.54; at 0.5
# all that trained well stayed below 0.21 from step 200 on, and below 0.31 at ten and thirty times the automatic rate.
_SWINGING = 0.4
_LARGEST_NORMALISED = 16.0  # standardised images reach about 3; images in 0 ... 255 are far beyond


class StepMonitor:
    """Records the first step that was not finite, signs of collapse, and the ranges of real images and of logits.

    Args:
        device: Where the steps are computed.
        value_range: Range of the generator's images; None if unknown, and real images may then have any.
        expects_logits: Whether the loss applies a sigmoid: a discriminator whose outputs all lie in [0, 1] then
            seems to end in one that should be removed.
        target: What D(x) is trained to be, 1 without label smoothing.
    """

    def __init__(
        self,
        device: torch.device,
        value_range: tuple[float, float] | None,
        *,
        expects_logits: bool,
        target: float = 1.0,
    ):
        self._target = target
        self._value_range, self._expects_logits = value_range, expects_logits
        self._scaled_range = torch.tensor(value_range or (-1.0, 1.0), dtype=torch.float32, device=device)
        self._first_nonfinite = torch.empty(len(_SOURCES), dtype=torch.int64, device=device)
        self._real_range = torch.empty(2, dtype=torch.float32, device=device)  # lowest, highest
        self._fake_range = torch.empty(2, dtype=torch.float32, device=device)
        self._logit_range = torch.empty(2, dtype=torch.float32, device=device)
        # For how many steps now the discriminator was saturated, and the generated images were alike.
        self._saturated, self._alike = torch.empty(2, dtype=torch.int64, device=device).unbind()
        # Of steps with several images: their number, the mean generated image `(K, H, W)` of late, and both sides of
        # `_SWINGING`.
        self._recorded = torch.empty((), dtype=torch.float32, device=device)
        self._centre: Tensor | None = None
        self._swing = torch.empty(2, dtype=torch.float32, device=device)
        self._warned: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Discard all records."""
        self._first_nonfinite.fill_(-1)
        for values in (self._saturated, self._alike, self._recorded, self._swing, self._centre):
            if values is not None:
                values.zero_()
        for value_range in (self._real_range, self._fake_range, self._logit_range):
            value_range[0].fill_(math.inf)
            value_range[1].fill_(-math.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a later collapse is found by; ranges and the like are recorded anew."""
        state = {"saturated": self._saturated, "alike": self._alike, "recorded": self._recorded, "swing": self._swing}
        return state if self._centre is None else {**state, "centre": self._centre}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Discard all records, and go on with those of a state."""
        state = {name: values.clone() for name, values in state.items()}  # which may be this monitor's own tensors
        self.reset()
        self._saturated.copy_(state["saturated"])
        self._alike.copy_(state["alike"])
        if "centre" in state:  # without it, the mean image has to be found anew
            self._recorded.copy_(state["recorded"])
            self._swing.copy_(state["swing"])
            self._centre = state["centre"].to(self._swing.device)

    @torch.no_grad()
    def record(
        self, step: Tensor, real: Tensor, fake: Tensor, metrics: Mapping[str, Tensor], *, scaled: bool = False
    ) -> None:
        """Record a step; its number `step` is a scalar on the device.

        In several processes, metrics and what is recorded become means over all of them, so that each comes to the same
        findings without asking the others.

        Real images that were `scaled` from uint8 to the generator's range need no look: they are finite and within it.
        """
        losses = [value for name, value in metrics.items() if name.endswith("_loss")]
        # The minimum and the maximum are finite only if all elements are, and take a quarter of the time of isfinite.
        fake_range = torch.stack(fake.aminmax()).float()
        real_range = self._scaled_range if scaled else torch.stack(real.aminmax()).float()
        finite = torch.stack([values.isfinite().all() for values in (real_range, fake_range, torch.stack(losses))])
        _widen(self._real_range, real_range)
        _widen(self._fake_range, fake_range)
        share_finite, variety = finite.float(), self._measure_variety(real.float(), fake.float())
        # The mean image too, so that the state of any process is that of all.
        average([share_finite, variety, *metrics.values(), *([] if self._centre is None else [self._centre])])
        nonfinite = share_finite < 1
        self._first_nonfinite.copy_(torch.where((self._first_nonfinite < 0) & nonfinite, step, self._first_nonfinite))
        if len(variety):
            self._record_variety(*variety)
        if self._expects_logits and "d_real" in metrics:
            saturated = (metrics["d_real"] > _SATURATED[0] * self._target) & (metrics["d_fake"] < _SATURATED[1])
            self._saturated.copy_((self._saturated + 1) * saturated)

    def _measure_variety(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return how images `(N, K, H, W)` differ within the batch, real and generated, as variances `(2,)`.

        The third value, with generated images of the shape of those before, is how far their mean has moved. For one
        image there is none.
        """
        if len(real) == 1:
            return self._swing[:0]
        variance, mean = torch.var_mean(fake, 0)  # (K, H, W)
        spreads = [real.var(0).mean(), variance.mean()]
        if self._centre is None:
            self._centre = torch.zeros_like(mean)
        if self._centre.shape != mean.shape:  # a generator that has grown
            return torch.stack(spreads)
        # Without what the mean of N images differs from that of all by chance.
        distance = mse_loss(mean, self._centre) - spreads[1] / len(fake)
        self._recorded.add_(1)
        self._centre.lerp_(mean, self._weight())
        return torch.stack([*spreads, distance])

    def _record_variety(self, real_spread: Tensor, fake_spread: Tensor, distance: Tensor | None = None) -> None:
        self._alike.copy_((self._alike + 1) * (fake_spread < _ALIKE**2 * real_spread))
        if distance is not None:
            self._swing.lerp_(torch.stack([distance, real_spread]), self._weight())

    def _weight(self) -> Tensor:
        """Return the weight of this step in averages over the last ones."""
        return 1 / self._recorded.clamp(max=_STEPS_TO_WARN)

    @torch.no_grad()
    def record_logits(self, logits: Tensor) -> None:
        """Record a batch of the discriminator's outputs `(N,)`."""
        if self._expects_logits:
            _widen(self._logit_range, torch.stack(logits.aminmax()).float())

    def expect_finite(self) -> None:
        """Wait for the device and check the records.

        Raises:
            FloatingPointError: If a step was not finite, naming the first one, and the network or the real images.
        """
        first: list[int] = self._first_nonfinite.tolist()
        if steps := [step for step in first if step >= 0]:
            source = _SOURCES[first.index(min(steps))]
            raise FloatingPointError(f"step {min(steps)}: the {source} turned non-finite (NaN or infinity)")

    def find_collapse(self) -> str | None:
        """Wait for the device and describe the collapse that training is in, if any."""
        saturated, alike, recorded = int(self._saturated), int(self._alike), int(self._recorded)
        distance, spread = self._swing.tolist()
        if alike >= _STEPS_TO_WARN:
            return f"for {alike} steps, the images that were generated for a batch have been almost the same"
        if saturated >= _STEPS_TO_WARN:
            above = f"{_SATURATED[0] * self._target:.3g}"
            return f"for {saturated} steps, D(x) has been above {above} and D(G(z)) below {_SATURATED[1]}"
        if recorded >= 2 * _STEPS_TO_WARN and distance > _SWINGING * spread > 0:
            return (
                f"over {_STEPS_TO_WARN} steps, the generated images have swung from one kind to another: their mean by "
                f"{math.sqrt(distance / spread):.2f} times the spread of the real ones"
            )
        return None

    def warn_about_ranges(self, *, outputs_too: bool) -> None:
        """Wait for the device and warn, once, of ranges that look wrong.

        Args:
            outputs_too: Whether enough steps were done to judge the networks by their outputs.
        """
        low, high = self._real_range.tolist()
        if warning := range_mismatch(low, high, self._value_range):
            self._warn(warning)
        if not outputs_too:
            return
        fake_low, fake_high = self._fake_range.tolist()
        narrow = 4 * (fake_high - fake_low) < high - low < math.inf
        one_sided = (low >= 0) != (fake_low >= 0) and 4 * abs(low - fake_low) > high - low  # as of tanh and sigmoid
        if self._value_range is None and (narrow or one_sided):
            self._warn(
                f"real images lie in [{low:.4g}, {high:.4g}], but the generated ones in [{fake_low:.4g}, "
                f"{fake_high:.4g}]: scale the real ones to the generator's range"
            )
        low, high = self._logit_range.tolist()
        if 0 <= low < 0.5 < high <= 1:
            self._warn(
                f"the discriminator's outputs lie in [{low:.2f}, {high:.2f}]: the loss takes logits, so remove any "
                "sigmoid at its end"
            )

    def expect_range(self, real: Tensor) -> None:
        """Check images on the host before the first step trains on them.

        Raises:
            ValueError: If they seem to be pixels in 0 ... 255; other ranges that do not fit are logged.
        """
        if real.is_floating_point() and real.numel():
            low, high = (value.item() for value in real.aminmax())
            warning = range_mismatch(low, high, self._value_range)
            if warning and high > _LARGEST_NORMALISED:
                raise InputError(warning)
            if warning and (low < 0 or len(real) >= _MIN_IMAGES_TO_WARN):  # one image may well be bright all over
                self._warn(warning)

    def _warn(self, warning: str) -> None:
        subject = warning.partition(" lie ")[0]
        if subject not in self._warned:
            self._warned.add(subject)
            logger.warning(warning)


def range_mismatch(low: float, high: float, value_range: tuple[float, float] | None) -> str | None:
    """Describe how images in [low, high] do not fit a generator's range; None if they seem to.

    Slightly outside is allowed: interpolation overshoots.
    """
    if value_range is None or not math.isfinite(high - low):
        return None
    expected_low, expected_high = value_range
    span = expected_high - expected_low
    if low < expected_low - span / 20 or high > expected_high + span / 20:
        remedy = "pass uint8 images, or scale them"
    elif expected_low < 0 <= low and high > 0:
        remedy = "pass uint8 images, or Normalize(0.5, 0.5) after ToTensor"
    else:
        return None
    return (
        f"real images lie in [{low:.4g}, {high:.4g}], but the generator's in [{expected_low:g}, {expected_high:g}]: "
        f"{remedy}"
    )


def _widen(value_range: Tensor, other: Tensor) -> None:
    value_range.copy_(torch.stack([torch.minimum(value_range[0], other[0]), torch.maximum(value_range[1], other[1])]))
