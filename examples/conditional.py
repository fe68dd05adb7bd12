"""Draw the pictures of docs/conditional.md and measure its errors; it takes some minutes of one core.

dcgan train --conditional --out runs/conditional
dcgan train --recipe mnist --conditional --root DATA --epochs 2 --out runs/conditional-mnist
python examples/conditional.py runs/conditional runs/conditional-mnist docs/assets
"""

import sys
from pathlib import Path

import torch

from dcgan import Generator
from dcgan._labelled import load_labelled
from dcgan.features import classify_by_neighbor
from dcgan.generate import sample_grid, sample_uint8
from dcgan.images import enlarge, save_png

*runs, assets = map(Path, sys.argv[1:])
generator, of_mnist = map(Generator.from_pretrained, runs)
for name, network in {"digits": generator, "mnist": of_mnist}.items():
    save_png(assets / f"conditional-{name}.png", enlarge(sample_grid(network, 120, seed=0)[None], 640)[0])

parts = [load_labelled("digits", split, image_size=32, channels=1) for split in ("train", "test")]
images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))


def error(found):
    return f"{(found != labels).float().mean():.2%}"


def others(index):
    keep = torch.arange(len(images)) != index
    return classify_by_neighbor(images[index : index + 1], images[keep], labels[keep])


print("real images, each by the others:", error(torch.cat([others(index) for index in range(len(images))])))
for count in (100, 1000, 10_000):
    samples = sample_uint8(generator, count, seed=1)
    print(f"{count} samples:", error(classify_by_neighbor(images, samples, torch.arange(count) % 10)))
