"""The published networks written out plainly, layer by layer, as their sources have them."""

from itertools import pairwise

import torch
from torch import nn


def convt(c_in, c_out, k, s, p, op=0, bias=False):
    return nn.ConvTranspose2d(c_in, c_out, k, s, p, output_padding=op, bias=bias)


def conv(c_in, c_out, k, s, p, bias=False):
    return nn.Conv2d(c_in, c_out, k, s, p, bias=bias)


class Latent(nn.Module):
    """(N, Z) to (N, Z, 1, 1)."""

    def forward(self, z):
        return z[:, :, None, None]


class Tutorial:
    """PyTorch's example: 4×4 kernels; with `bias`, the blog's twice as wide version of it."""

    size, latent_dim = 64, 100

    @staticmethod
    def generator(c=64, bias=False):
        layers = [Latent(), convt(100, 8 * c, 4, 1, 0, bias=bias), nn.BatchNorm2d(8 * c), nn.ReLU()]
        for wide, narrow in ((8, 4), (4, 2), (2, 1)):
            layers += [convt(wide * c, narrow * c, 4, 2, 1, bias=bias), nn.BatchNorm2d(narrow * c), nn.ReLU()]
        return nn.Sequential(*layers, convt(c, 3, 4, 2, 1, bias=bias), nn.Tanh())

    @staticmethod
    def discriminator(c=64, bias=False):
        layers = [conv(3, c, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2)]
        for narrow, wide in ((1, 2), (2, 4), (4, 8)):
            layers += [conv(narrow * c, wide * c, 4, 2, 1, bias=bias), nn.BatchNorm2d(wide * c), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, conv(8 * c, 1, 4, 1, 0, bias=bias), nn.Flatten(0))


class Biased(Tutorial):
    @staticmethod
    def generator():
        return Tutorial.generator(128, bias=True)

    @staticmethod
    def discriminator():
        return Tutorial.discriminator(128, bias=True)


class Linear5:
    size, latent_dim = 64, 100

    @staticmethod
    def generator(c=128):
        layers = [nn.Linear(100, 8 * c * 16), nn.Unflatten(1, (8 * c, 4, 4)), nn.BatchNorm2d(8 * c)]
        for wide, narrow in ((8, 4), (4, 2), (2, 1)):
            layers += [convt(wide * c, narrow * c, 5, 2, 2, 1, bias=True), nn.BatchNorm2d(narrow * c), nn.ReLU()]
        return nn.Sequential(*layers, convt(c, 3, 5, 2, 2, 1, bias=True), nn.Tanh())

    @staticmethod
    def discriminator(c=128):
        layers = [conv(3, c, 5, 2, 2, bias=True), nn.LeakyReLU(0.2)]
        for narrow, wide in ((1, 2), (2, 4), (4, 8)):
            layers += [conv(narrow * c, wide * c, 5, 2, 2, bias=True), nn.BatchNorm2d(wide * c), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * c * 16, 1), nn.Flatten(0))


class Paper:
    size, latent_dim = 64, 100
    widths = (8, 4, 2, 1)
    c = 128

    @classmethod
    def generator(cls):
        c, top = cls.c, cls.widths[0] * cls.c
        stem = [nn.Linear(100, top * 16, bias=False), nn.BatchNorm1d(top * 16, 1e-8), nn.ReLU()]
        layers = [*stem, nn.Unflatten(1, (top, 4, 4))]
        for wide, narrow in pairwise(cls.widths):
            layers += [convt(wide * c, narrow * c, 5, 2, 2, 1), nn.BatchNorm2d(narrow * c, 1e-8), nn.ReLU()]
        return nn.Sequential(*layers, convt(c, 3, 5, 2, 2, 1), nn.Tanh())

    @classmethod
    def discriminator(cls):
        c, widths = cls.c, cls.widths[::-1]
        layers = [conv(3, c, 5, 2, 2), nn.LeakyReLU(0.2)]
        for narrow, wide in pairwise(widths):
            layers += [conv(narrow * c, wide * c, 5, 2, 2), nn.BatchNorm2d(wide * c, 1e-8), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * c * 16, 1, bias=False), nn.Flatten(0))


class Svhn(Paper):
    size = 32
    widths = (4, 2, 1)
    c = 64


class ImageNet32:
    size, latent_dim = 32, 256

    @staticmethod
    def generator():
        stem = [nn.Linear(256, 8192, bias=False), nn.BatchNorm1d(8192, 1e-8), nn.ReLU(), nn.Unflatten(1, (512, 4, 4))]
        layers = list(stem)
        for c_in, c_out, stride in ((512, 512, 2), (512, 256, 1), (256, 256, 2), (256, 128, 1), (128, 128, 2)):
            layers += [convt(c_in, c_out, 3, stride, 1, stride - 1), nn.BatchNorm2d(c_out, 1e-8), nn.ReLU()]
        return nn.Sequential(*layers, convt(128, 3, 3, 1, 1), nn.Tanh())

    @staticmethod
    def discriminator():
        layers = [conv(3, 128, 3, 1, 1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in ((128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1), (512, 512, 2)):
            layers += [conv(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out, 1e-8), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8192, 1, bias=False), nn.Flatten(0))


REFERENCES = {
    "tutorial": Tutorial,
    "biased": Biased,
    "linear5": Linear5,
    "paper": Paper,
    "svhn": Svhn,
    "imagenet32": ImageNet32,
}


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers one after the other; their shapes have to agree."""
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    with torch.no_grad():
        for theirs, ours in pairs:
            assert theirs.shape == ours.shape
            ours.copy_(theirs)
