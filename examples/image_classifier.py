"""Train the small classifier in whose features `dcgan` measures distances between images.

It tells the ten digits of MNIST and the ten classes of CIFAR-10 apart, twenty classes in all. Half of every batch is of
either set. CIFAR10 is a folder of images with a subfolder per class:

    python examples/image_classifier.py MNIST_ROOT CIFAR10/train CIFAR10/test classifier.safetensors
"""

import sys

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from dcgan import data
from dcgan.images import from_uint8
from dcgan.metrics import build_classifier

STEPS, HALF, RATE = 2500, 64, 4e-3


def colour(images):
    return from_uint8(images).expand(-1, 3, -1, -1)


def batch(images, offset, rng, flip):
    chosen = rng.integers(0, len(images), HALF)
    x = F.pad(colour(images.batch(chosen)), (4, 4, 4, 4), mode="reflect")
    i, j = rng.integers(0, 9, 2)
    x = x[..., i : i + 32, j : j + 32]
    return x.flip(3) if flip and rng.random() < 0.5 else x, torch.from_numpy(images.labels[chosen]) + offset


def accuracy(network, images, offset):
    parts = [slice(i, i + 500) for i in range(0, len(images), 500)]
    hits = [
        (network(colour(images.batch(np.arange(len(images))[part]))).argmax(1).numpy() - offset == images.labels[part])
        for part in parts
    ]
    return np.concatenate(hits).mean()


def open_sets(mnist_root, cifar_train, cifar_test):
    for train, cifar in ((True, cifar_train), (False, cifar_test)):
        mnist = torchvision.datasets.MNIST(mnist_root, train=train)
        yield [
            data.from_dataset(mnist, image_size=32),
            data.from_dataset(torchvision.datasets.ImageFolder(cifar), image_size=32),
        ]


def main(mnist_root, cifar_train, cifar_test, out):
    training, test = open_sets(mnist_root, cifar_train, cifar_test)
    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), build_classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        (x, y), (u, v) = batch(training[0], 0, rng, flip=False), batch(training[1], 10, rng, flip=True)
        loss = F.cross_entropy(network(torch.cat([x, u])), torch.cat([y, v]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(step, round(loss.item(), 3), flush=True)
    network.eval()
    with torch.no_grad():
        print("accuracy on held-out MNIST and CIFAR-10:", *(accuracy(network, s, 10 * i) for i, s in enumerate(test)))
    half = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file({name: value.contiguous() for name, value in half.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
