"""The networks that `convert` reads, written out with the attribute names their keys come from.

PyTorch's networks compute with PyTorch; the authors' are written from the definition of Theano's operations, without
PyTorch's convolutions.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu, pad

from dcgan import Discriminator, Generator


class TutorialGenerator(nn.Module):
    """PyTorch's example, with as many stages as there are widths; the blog's version calls it `features`."""

    def __init__(self, c=4, k=3, z=6, stages=4, bias=False, name="main", size=4):
        super().__init__()
        widths = [c * 2**i for i in range(stages)][::-1]
        layers = [nn.ConvTranspose2d(z, widths[0], size, 1, 0, bias=bias), nn.BatchNorm2d(widths[0]), nn.ReLU(True)]
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=bias), nn.BatchNorm2d(narrow), nn.ReLU(True)]
        self.name = name
        self.add_module(name, nn.Sequential(*layers, nn.ConvTranspose2d(c, k, 4, 2, 1, bias=bias), nn.Tanh()))

    def forward(self, z):
        return getattr(self, self.name)(z[:, :, None, None])


class TutorialDiscriminator(nn.Module):
    def __init__(self, c=4, k=3, stages=4, bias=False, name="main", size=4):
        super().__init__()
        widths = [c * 2**i for i in range(stages)]
        layers = [nn.Conv2d(k, c, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2, inplace=True)]
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=bias), nn.BatchNorm2d(wide)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.name = name
        self.add_module(name, nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, size, 1, 0, bias=bias), nn.Sigmoid()))

    def forward(self, image):
        return getattr(self, self.name)(image).view(-1)


class Linear5Generator(nn.Module):
    def __init__(self, c=4, k=3, z=6, size=64):
        super().__init__()
        self.side = size // 16
        self.fc = nn.Linear(z, 8 * c * self.side**2)
        layers = [nn.BatchNorm2d(8 * c)]
        for wide, narrow in ((8, 4), (4, 2), (2, 1)):
            layers += [nn.ConvTranspose2d(wide * c, narrow * c, 5, 2, 2, output_padding=1), nn.BatchNorm2d(narrow * c)]
            layers += [nn.ReLU()]
        self.convs = nn.Sequential(*layers, nn.ConvTranspose2d(c, k, 5, 2, 2, output_padding=1), nn.Tanh())

    def forward(self, z):
        h = self.fc(z)
        return self.convs(h.view(len(h), -1, self.side, self.side))


class Linear5Discriminator(nn.Module):
    def __init__(self, c=4, k=3, size=64):
        super().__init__()
        layers = [nn.Conv2d(k, c, 5, 2, 2), nn.LeakyReLU(0.2)]
        for narrow, wide in ((1, 2), (2, 4), (4, 8)):
            layers += [nn.Conv2d(narrow * c, wide * c, 5, 2, 2), nn.BatchNorm2d(wide * c), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * c * (size // 16) ** 2, 1), nn.Sigmoid())

    def forward(self, image):
        return self.model(image).view(-1)


def randomize_batchnorm(network):
    """Weights and statistics as a trained network might have them, in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            module.num_batches_tracked += 7
    return network.eval()


def save_state(network, path, wrap=lambda state: state):
    torch.save(wrap(network.state_dict()), path)
    return path


@torch.no_grad()
def assert_same_outputs(converted, folder, theirs_g, theirs_d):
    """Both networks, saved and loaded, give the images and the logits of the originals."""
    converted.save(folder)
    if theirs_g is not None:
        ours = Generator.from_pretrained(folder)
        z = torch.randn(3, ours.config["latent_dim"])
        torch.testing.assert_close(ours(z), theirs_g(z), rtol=0, atol=1e-6)
    if theirs_d is not None:
        ours = Discriminator.from_pretrained(folder)
        image = torch.rand(3, *theirs_d.shape) * 2 - 1
        torch.testing.assert_close(ours.probability(image), theirs_d(image), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours(image), theirs_d(image).logit(), rtol=1e-4, atol=1e-5)


def original_pair(layout, **arguments):
    shared = {name: value for name, value in arguments.items() if name != "z"}
    if layout == "linear5":
        g, d = Linear5Generator(**arguments), Linear5Discriminator(**shared)
        size = arguments.get("size", 64)
    else:
        if layout == "biased":
            arguments, shared = (
                arguments | {"bias": True, "name": "features"},
                shared | {"bias": True, "name": "features"},
            )
        g, d = TutorialGenerator(**arguments), TutorialDiscriminator(**shared)
        size = arguments.get("size", 4) * 2 ** arguments.get("stages", 4)
    d.shape = (arguments.get("k", 3), size, size)
    return randomize_batchnorm(g), randomize_batchnorm(d)


def add_prefix(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def theano_conv(x, w, stride, padding):
    """Convolution proper: out[o, y, x] sums w[o, c, u, v] of what lies u up and v left of the window's far corner."""
    k = w.shape[-1]
    x = pad(x, [padding] * 4)
    rows, columns = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    out = 0
    for u in range(k):
        for v in range(k):
            window = x[:, :, k - 1 - u :, k - 1 - v :][:, :, ::stride, ::stride][:, :, :rows, :columns]
            out = out + torch.einsum("nchw,oc->nohw", window, w[:, :, u, v])
    return out


def theano_deconv(x, w, stride, padding):
    """The gradient of a convolution towards its input, as the authors' `deconv` is defined."""
    image = torch.zeros(len(x), w.shape[1], x.shape[2] * stride, x.shape[3] * stride, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(theano_conv(image, w, stride, padding), image, x)[0]


def batchnorm(x, g, b, statistics):
    """With the batch's own mean and biased variance, or with those of `statistics`, which it takes off the front."""
    dims = [0, 2, 3][: x.dim() - 1]
    shape = [1, -1, 1, 1][: x.dim()]
    if isinstance(statistics, list) and statistics:
        mean, var = (value.view(shape) for value in statistics.pop(0))
    else:
        mean = x.mean(dims, keepdim=True)
        var = ((x - mean) ** 2).mean(dims, keepdim=True)
    RECORDED.append((mean.flatten(), var.flatten()))
    return (x - mean) / torch.sqrt(var + 1e-8) * g.view(shape) + b.view(shape)


RECORDED = []  # statistics of every `batchnorm` since it was last cleared


class AuthorsGenerator:
    def __init__(self, c=2, k=3, z=5, stages=3, kernel=5, per_stage=1):
        widths = [c * 2**i for i in range(stages)][::-1]
        layers = [(widths[0], widths[0], 2)] if per_stage == 2 else []
        for wide, narrow in pairwise([*widths, k]):
            layers += [(wide, narrow, 2)] if per_stage == 1 else [(wide, narrow, 1), (narrow, narrow, 2)]
        layers = layers[:-1] if per_stage == 2 else layers
        self.c, self.pad, self.strides = widths[0], kernel // 2, [stride for *_, stride in layers]
        units = widths[0] * 16
        self.params = [torch.randn(z, units), *random_gain_and_shift(units)]
        for c_in, c_out, _ in layers:
            self.params += [torch.randn(c_in, c_out, kernel, kernel) * 0.3, *random_gain_and_shift(c_out)]
        self.params = self.params[:-2]

    def __call__(self, z, statistics=None):
        params = iter(self.params)
        h = batchnorm(z @ next(params), next(params), next(params), statistics).relu().view(len(z), self.c, 4, 4)
        for stride in self.strides[:-1]:
            h = theano_deconv(h, next(params), stride, self.pad)
            h = batchnorm(h, next(params), next(params), statistics).relu()
        return theano_deconv(h, next(params), self.strides[-1], self.pad).tanh()


class AuthorsDiscriminator:
    def __init__(self, c=2, k=3, stages=3, kernel=5, per_stage=1):
        widths = [c * 2**i for i in range(stages)]
        layers = []
        for narrow, wide in pairwise([k, *widths]):
            layers += [(narrow, wide, 2)] if per_stage == 1 else [(narrow, wide, 1), (wide, wide, 2)]
        self.pad, self.strides = kernel // 2, [stride for *_, stride in layers]
        self.params = []
        for c_in, c_out, _ in layers:
            self.params += [torch.randn(c_out, c_in, kernel, kernel) * 0.3, *random_gain_and_shift(c_out)]
        del self.params[1:3]
        self.params.append(torch.randn(widths[-1] * 16, 1))

    def __call__(self, image, statistics=None):
        params = iter(self.params)
        h = leaky_relu(theano_conv(image, next(params), self.strides[0], self.pad), 0.2)
        for stride in self.strides[1:]:
            h = theano_conv(h, next(params), stride, self.pad)
            h = leaky_relu(batchnorm(h, next(params), next(params), statistics), 0.2)
        return (h.flatten(1) @ next(params))[:, 0]


def random_gain_and_shift(n):
    return [torch.randn(n) * 0.2 + 1, torch.randn(n) * 0.2]


def save_authors_arrays(path, network):
    for i, array in enumerate(network.params, 1):
        np.save(f"{path}_{i:02d}.npy", array.numpy())
    return path


def estimate_statistics(network, batches):
    """The authors' `infer_bnorm_stats`: means over batches of each batch's mean and biased variance."""
    runs = []
    for batch in batches:
        RECORDED.clear()
        network(batch)
        runs.append(list(RECORDED))
    return [tuple(sum(values) / len(runs) for values in zip(*layer, strict=True)) for layer in zip(*runs, strict=True)]
