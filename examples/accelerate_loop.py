"""Train with Accelerate, which splits the images between the processes, moves them and keeps the checkpoint.

python examples/accelerate_loop.py [FOLDER]
torchrun --standalone --nproc-per-node 2 examples/accelerate_loop.py [FOLDER]
accelerate launch --num_processes 2 examples/accelerate_loop.py [FOLDER]  # with two GPUs

Interrupt it and start it again, with as many processes: it goes on from the last checkpoint in FOLDER, bit for bit.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from dcgan import Discriminator, Generator, Trainer, data

EPOCHS, SAVE_EVERY = 2, 25
checkpoint = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/accelerate")

# This sampler's order is a function of the epoch: a resumed run sees the images that the unbroken one would.
config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
# It joins the processes, on CPUs only with `cpu=True`. The trainer is built after it.
accelerator = Accelerator(cpu=not torch.accelerator.is_available(), dataloader_config=config)
set_seed(0)

digits = data.load("digits", image_size=32, channels=1)
loader = DataLoader(digits, batch_size=32, shuffle=True, drop_last=True)
loader = accelerator.prepare(loader)  # of n processes, each takes every n-th batch

# Without `accelerator.prepare`: the trainer averages the gradients of all processes itself.
trainer = Trainer(
    Generator(image_size=32, channels=1, base_channels=16).to(accelerator.device),
    Discriminator(image_size=32, channels=1, base_channels=16).to(accelerator.device),
)
accelerator.register_for_checkpointing(trainer)
if checkpoint.exists():
    accelerator.load_state(checkpoint)

while trainer.steps < EPOCHS * len(loader):
    epoch, done = divmod(trainer.steps, len(loader))
    loader.set_epoch(epoch)
    for images in accelerator.skip_first_batches(loader, done):
        metrics = trainer.step(images)
        if trainer.steps % SAVE_EVERY == 0:
            accelerator.save_state(checkpoint)
    means = accelerator.reduce(metrics, "mean")
    accelerator.print(f"epoch {epoch}: " + ", ".join(f"{name} {mean.item():.2f}" for name, mean in means.items()))
accelerator.save_state(checkpoint)
accelerator.print(f"{trainer.steps} steps, saved in {checkpoint}")
accelerator.end_training()
