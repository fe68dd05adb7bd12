"""Networks as tests need them."""

from torch import nn


def randomize_batchnorms(network):
    """Give BatchNorms statistics, gains and shifts unlike those of a new network; return it in double precision."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
    return network.double().eval()
