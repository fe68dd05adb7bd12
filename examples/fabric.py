"""Train with Lightning Fabric, which starts the processes, moves the images and writes the checkpoint.

python examples/fabric.py [FOLDER]
fabric run --accelerator cpu --devices 2 --strategy ddp examples/fabric.py [FOLDER]

Interrupt it and start it again, with as many processes: it goes on from the last checkpoint in FOLDER, bit for bit.
"""

import itertools
import sys
from pathlib import Path

from lightning.fabric import Fabric
from torch.utils.data import DataLoader, DistributedSampler

from dcgan import Discriminator, Generator, Trainer, data

EPOCHS, SAVE_EVERY = 2, 25
checkpoint = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/fabric") / "trainer.ckpt"

fabric = Fabric()  # with `fabric run`, it joins the processes; the trainer is built after it
fabric.seed_everything(0, verbose=False)

digits = data.load("digits", image_size=32, channels=1)


def load_epoch(epoch: int) -> DataLoader:
    """Return this process's part of the images, in the order of one epoch."""
    # Fabric counts the epochs of a loader from 0, after a restart too: the seed makes the orders differ.
    sampler = DistributedSampler(digits, fabric.world_size, fabric.global_rank, seed=epoch, drop_last=True)
    return fabric.setup_dataloaders(DataLoader(digits, batch_size=32, sampler=sampler, drop_last=True))


# Without `fabric.setup`: the trainer averages the gradients of all processes itself.
trainer = Trainer(
    Generator(image_size=32, channels=1, base_channels=16).to(fabric.device),
    Discriminator(image_size=32, channels=1, base_channels=16).to(fabric.device),
)
if checkpoint.exists():
    fabric.load(checkpoint, {"trainer": trainer})

steps_per_epoch = len(load_epoch(0))
while trainer.steps < EPOCHS * steps_per_epoch:
    epoch, done = divmod(trainer.steps, steps_per_epoch)
    for images in itertools.islice(load_epoch(epoch), done, None):
        metrics = trainer.step(images)
        if trainer.steps % SAVE_EVERY == 0:
            fabric.save(checkpoint, {"trainer": trainer})
    means = fabric.all_reduce(metrics)
    fabric.print(f"epoch {epoch}: " + ", ".join(f"{name} {mean.item():.2f}" for name, mean in means.items()))
fabric.save(checkpoint, {"trainer": trainer})
fabric.print(f"{trainer.steps} steps, saved in {checkpoint}")
