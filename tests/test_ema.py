import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from dcgan import Discriminator, Generator
from dcgan._compat import lerp_all
from dcgan.ema import ema_weight, estimate_batchnorm_statistics, update_average


def batches(count=3):
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=rng) for _ in range(count)]


def tiny():
    return Generator(image_size=16, channels=1, base_channels=4, latent_dim=6)


def test_statistics_are_those_of_torch_up_to_rounding():
    ours, theirs = tiny(), tiny()
    theirs.load_state_dict(ours.state_dict())
    modes = [module.training for module in ours.eval().modules()]
    estimate_batchnorm_statistics(ours, batches())
    update_bn(batches(), theirs)
    for (name, value), reference in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6, msg=name)
    assert [module.training for module in ours.modules()] == modes


def test_biased_variances_are_averaged_as_the_authors_do():
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False))
    estimate_batchnorm_statistics(network, batches(), unbiased=False)
    expected = torch.stack([batch.var(0, correction=0) for batch in batches()]).mean(0)
    torch.testing.assert_close(network[0].running_var, expected)
    torch.testing.assert_close(network[0].running_mean, torch.stack([batch.mean(0) for batch in batches()]).mean(0))
    hidden = [(batch - batch.mean(0)) / (batch.var(0, correction=0) + 1e-5).sqrt() for batch in batches()]
    means = torch.stack([network[1](h).mean(0) for h in hidden]).mean(0)
    torch.testing.assert_close(network[2].running_mean, means, rtol=1e-4, atol=1e-5)


def test_only_batchnorms_with_statistics_are_touched():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    before = copy.deepcopy(network.state_dict())
    estimate_batchnorm_statistics(network, batches())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        estimate_batchnorm_statistics(tiny(), [])


def test_a_young_average_follows_closely():
    steps = torch.tensor([0, 1, 10, 10_000])
    torch.testing.assert_close(ema_weight(steps, 0.999), torch.tensor([0.9, 9 / 11, 0.45, 0.001]))


def test_the_average_moves_by_the_weight_and_copies_buffers():
    average, network = tiny(), tiny()
    network(torch.randn(8, 6))
    before = [parameter.detach().clone() for parameter in average.parameters()]
    update_average(average, network, torch.tensor(0.25))
    for mean, was, parameter in zip(average.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * was + 0.25 * parameter)
    assert torch.equal(average.blocks["4x4"].norm.running_mean, network.blocks["4x4"].norm.running_mean)


@pytest.mark.parametrize("norm", ["batch", "none"])  # with buffers, and without
def test_every_tensor_is_averaged_or_copied(norm):
    average, network = (Discriminator(image_size=16, channels=1, base_channels=4, norm=norm) for _ in range(2))
    network(torch.randn(8, 1, 16, 16))
    before = [parameter.detach().clone() for parameter in average.parameters()]
    update_average(average, network, torch.tensor(0.25))
    for mean, was, parameter in zip(average.parameters(), before, network.parameters(), strict=True):
        assert torch.equal(mean, was.lerp(parameter, torch.tensor(0.25)))
    for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(copied, buffer)


class OnDevice(torch.Tensor):
    """A scalar that says it is on a GPU."""

    @property
    def is_cuda(self):
        return True


class Launches(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split(".")[0])
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_computed_for_all_tensors_at_once_is_the_same_up_to_rounding(dtype):
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=rng, dtype=dtype) for shape in ((), (3,), (4, 2, 3, 3))]
    means = [torch.randn(value.shape, generator=rng, dtype=dtype) for value in values]
    expected = [mean.lerp(value, torch.tensor(0.25, dtype=dtype)) for mean, value in zip(means, values, strict=True)]
    addresses = [mean.data_ptr() for mean in means]
    weight = torch.tensor(0.25).as_subclass(OnDevice)
    with Launches() as launches:
        lerp_all(means, values, weight)
    assert launches.names == ["_foreach_sub", "_foreach_mul_", "_foreach_add_"]
    torch.testing.assert_close(means, expected)
    assert [mean.data_ptr() for mean in means] == addresses


def test_a_layer_that_is_called_twice_has_the_mean_of_its_calls():
    norm = nn.BatchNorm1d(6)
    twice = nn.Sequential(norm, norm)
    estimate_batchnorm_statistics(twice, [batch + 5 for batch in batches()])
    means = torch.stack([(batch + 5).mean(0) for batch in batches()]).mean(0)
    torch.testing.assert_close(norm.running_mean, means / 2, rtol=1e-4, atol=1e-4)  # the second sees means of zero
