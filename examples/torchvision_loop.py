"""Train in a bare loop over a dataset of torchvision, with torch's own loader, sampler and checkpoint.

python examples/torchvision_loop.py [FOLDER] [--mnist ROOT]
torchrun --standalone --nproc-per-node 2 examples/torchvision_loop.py [FOLDER] [--mnist ROOT]

Without --mnist the images are noise. Interrupt it and start it again, with as many processes: it goes on from the last
checkpoint in FOLDER, bit for bit.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets
from torchvision.transforms import v2

from dcgan import Discriminator, Generator, Trainer

EPOCHS, SAVE_EVERY = 2, 25
parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", type=Path, default="runs/torchvision", metavar="FOLDER")
parser.add_argument("--mnist", metavar="ROOT", help="the root given to datasets.MNIST when it was downloaded")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)
checkpoint, unfinished = args.folder / "trainer.pt", args.folder / "trainer.pt.tmp"

rank, processes = 0, 1
device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
if dist.is_torchelastic_launched():
    dist.init_process_group()  # the trainer, which is built after it, finds the other processes
    rank, processes = dist.get_rank(), dist.get_world_size()
    if device.type != "cpu":
        torch.accelerator.set_device_index(dist.get_node_local_rank())

# The trainer scales pixels. No transform is random, or a resumed run would see other images than the unbroken one.
transform = v2.Compose([v2.Resize(32), v2.PILToTensor()])
noise = datasets.FakeData(2048, (1, 28, 28), transform=transform)
dataset = datasets.MNIST(args.mnist, transform=transform) if args.mnist else noise
sampler = DistributedSampler(dataset, processes, rank, drop_last=True)  # each process has its part of the images
loader = DataLoader(dataset, batch_size=32, sampler=sampler, drop_last=True)

torch.manual_seed(0)
networks = [kind(image_size=32, channels=1, base_channels=16).to(device) for kind in (Generator, Discriminator)]
trainer = Trainer(*networks)
if checkpoint.exists():
    trainer.load_state_dict(torch.load(checkpoint, map_location="cpu"))
while trainer.steps < EPOCHS * len(loader):
    epoch, done = divmod(trainer.steps, len(loader))
    sampler.set_epoch(epoch)
    for batch in islice(loader, done, None):
        metrics = trainer.step(batch)  # batch is [images, labels]
        if rank == 0 and (trainer.steps % SAVE_EVERY == 0 or trainer.steps == EPOCHS * len(loader)):
            torch.save(trainer.state_dict(), unfinished)
            unfinished.replace(checkpoint)  # there is a whole checkpoint at any time
    print(f"rank {rank}, epoch {epoch}: " + ", ".join(f"{name} {value.item():.2f}" for name, value in metrics.items()))
if dist.is_initialized():
    dist.destroy_process_group()
