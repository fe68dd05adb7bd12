"""Train in an engine of PyTorch-Ignite, which runs the loop, joins the processes and keeps the checkpoints.

python examples/ignite_loop.py [FOLDER]
torchrun --standalone --nproc-per-node 2 examples/ignite_loop.py [FOLDER]

Interrupt it and start it again, with as many processes: it goes on from the last epoch saved in FOLDER, bit for bit.
"""

import os
import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch.utils.data import DistributedSampler

from dcgan import Discriminator, Generator, Trainer, data

EPOCHS = 2
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ignite")


def train(_local_rank: int) -> None:
    """Train in one of the processes; the trainer finds the others."""
    torch.manual_seed(0)
    digits = data.load("digits", image_size=32, channels=1)
    # Ignite adds such a sampler only where there are several processes. The batch size is that of all of them together.
    sampler = DistributedSampler(digits, idist.get_world_size(), idist.get_rank(), drop_last=True)
    loader = idist.auto_dataloader(digits, batch_size=32, sampler=sampler, drop_last=True)

    # Without `idist.auto_model`: the trainer averages the gradients of all processes itself.
    trainer = Trainer(
        Generator(image_size=32, channels=1, base_channels=16).to(idist.device()),
        Discriminator(image_size=32, channels=1, base_channels=16).to(idist.device()),
    )
    engine = Engine(lambda _, images: trainer.step(images))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: sampler.set_epoch(engine.state.epoch))

    state = {"trainer": trainer, "engine": engine}
    if saved := sorted(folder.glob("*.pt"), key=os.path.getmtime):
        Checkpoint.load_objects(state, torch.load(saved[-1], map_location="cpu"))
    # At the end of an epoch, since an engine that resumes within one gets the epoch's first batches again.
    saver = Checkpoint(state, DiskSaver(folder, require_empty=False), n_saved=2)
    engine.add_event_handler(Events.EPOCH_COMPLETED, saver)
    if trainer.steps < EPOCHS * len(loader):  # an engine that is done would count from 0 again
        engine.run(loader, max_epochs=EPOCHS)
    if idist.get_rank() == 0:
        print(f"{trainer.steps} steps, saved in {folder}")


backend = "nccl" if torch.cuda.is_available() else "gloo"
with idist.Parallel(backend if torch.distributed.is_torchelastic_launched() else None) as parallel:
    parallel.run(train)
