"""The moving average of a generator's weights, and the BatchNorm statistics that belong to it.

Works on any module whose parameters and buffers stay in place.
"""

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from dcgan._compat import lerp_all
from dcgan._errors import InputError
from dcgan._modules import eval_mode

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def ema_weight(step: Tensor, decay: float) -> Tensor:
    """Return the weight of the network in its average at `step` (a scalar, counted from 0): eventually 1 - `decay`.

    A young average follows closely, with a weight of 9 / (10 + step), since the first weights are random.
    """
    return (9 / (10 + step)).clamp(min=1 - decay)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, weight: Tensor) -> None:
    """Move the parameters of `average` towards those of `network` by `weight` in [0, 1], and copy its buffers."""
    lerp_all(list(average.parameters()), list(network.parameters()), weight)
    for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
        copied.copy_(buffer)


def estimate_generator_statistics(
    generator: nn.Module, z: Tensor, *, num_classes: int | None = None, frozen: Container[str] = ()
) -> None:
    """Set the running statistics of a generator's BatchNorms as `estimate_batchnorm_statistics`, in eight batches.

    Args:
        generator: Any module that maps latents to images, or latents and labels `(N,)`.
        z: Latents `(8N, Z)`, or of another shape that the generator takes; on any device.
        num_classes: Number of classes of a conditional generator, which come in turn.
        frozen: As for `estimate_batchnorm_statistics`.
    """
    inputs = [z.to(next(generator.parameters()).device)]
    if num_classes is not None:
        inputs.append(torch.arange(len(z), device=inputs[0].device).remainder(num_classes))
    batches = zip(*(tensor.chunk(8) for tensor in inputs), strict=True)
    estimate_batchnorm_statistics(generator, batches, frozen=frozen)


def estimate_batchnorm_statistics(
    network: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    unbiased: bool = True,
    frozen: Container[str] = (),
) -> None:
    """Set the running statistics of every BatchNorm to the means of the batches' own means and variances.

    The statistics of the raw weights do not fit averaged ones, which need their own before they are sampled or
    published. Each batch is normalised with its own statistics; everything else, such as dropout, is in evaluation
    mode.

    Args:
        network: Any module; it keeps its mode, and one without BatchNorm is left as it is.
        batches: At least one batch of inputs, on the network's device; a tuple for a network of several, such as
            `(z, labels)`.
        unbiased: Average the unbiased variances, as PyTorch's running statistics and `update_bn` do; the paper's
            authors freeze the mean of the biased ones (`infer_bnorm_stats` in their code).
        frozen: Names of those modules of the network that keep the statistics they have.

    Raises:
        ValueError: If there is no batch.
    """
    norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS) and module.track_running_stats and name not in frozen
    ]
    sums: dict[nn.Module, Tensor] = {}
    calls: dict[nn.Module, int] = dict.fromkeys(norms, 0)

    def add_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        var, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=int(unbiased))
        batch = torch.stack([mean, var]).cpu().double()  # on the CPU, since MPS has no float64
        sums[norm] = sums[norm] + batch if norm in sums else batch
        calls[norm] += 1

    hooks = [norm.register_forward_pre_hook(add_statistics) for norm in norms]
    synchronized = [norm for norm in norms if isinstance(norm, nn.SyncBatchNorm)]
    statistics = [(norm.running_mean, norm.running_var) for norm in synchronized]
    count = 0
    try:
        with eval_mode(network), torch.no_grad():
            for norm in norms:
                norm.train()
            for norm in synchronized:  # this would wait for other processes; without statistics, it takes the batch's
                norm.eval()
                norm.running_mean = norm.running_var = None
            for batch in batches:
                network(*batch) if isinstance(batch, tuple) else network(batch)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (mean, var) in zip(synchronized, statistics, strict=True):
            norm.running_mean, norm.running_var = mean, var
    if not count:
        raise InputError("batches must hold at least one batch to estimate statistics from")
    for module, total in sums.items():
        mean, var = total / calls[module]  # a layer may be called several times for a batch
        estimated = {"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(count, device="cpu")}
        module.load_state_dict({**module.state_dict(), **estimated})
