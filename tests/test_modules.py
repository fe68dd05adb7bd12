"""Copies of modules and their modes."""

import pytest
import torch
from torch import nn

from dcgan import Generator
from dcgan._modules import copy_module, eval_mode


class Cached(nn.Module):
    """A module that keeps activations, a list of its own layers and a method of itself as attributes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layers, self.activations, self.function = [self.layer], {}, self.scale

    def scale(self, x):
        return x * (2 if self.training else 1)

    def forward(self, x):
        for layer in self.layers:
            x = self.activations["last"] = self.function(layer(x))
        return x


@pytest.mark.parametrize("share", [True, False])
def test_a_copy_has_its_own_structure_whatever_a_module_keeps(share):
    module = Cached()
    module(torch.randn(3, 2))
    copied = copy_module(module, share=share)
    copied.eval()
    assert module.training
    assert copied.layers[0] is copied.layer is not module.layer
    assert (copied.layer.weight is module.layer.weight) == share
    assert torch.equal(copied(torch.ones(1, 2)) * 2, module(torch.ones(1, 2)))
    assert torch.equal(copied.layer.weight, module.layer.weight)


def test_modes_are_restored_after_an_error():
    network = Generator(image_size=16, base_channels=2)
    network.head.eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(network):
        assert not any(module.training for module in network.modules())
        _ = 1 / 0
    assert [module.training for module in network.modules()] == modes
