"""Train on a stream: a dataset of Hugging Face that is read as it comes, and not kept.

python examples/streamed_loop.py [FOLDER] [--data NAME]
torchrun --standalone --nproc-per-node 2 examples/streamed_loop.py [FOLDER] [--data NAME]

Without --data the images are noise. Started again, with as many processes, it goes on from the checkpoint in FOLDER,
bit for bit: it reads anew, undecoded, what its epoch has had, for the buffer that shuffles a stream is not kept.
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset, Image, load_dataset
from datasets.distributed import split_dataset_by_node
from PIL import Image as Picture
from torchvision.transforms.functional import pil_to_tensor

from dcgan import Discriminator, Generator, Trainer

IMAGES, SAVE_EVERY = 4096, 10
parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", type=Path, default="runs/streamed", metavar="FOLDER")
parser.add_argument("--data", metavar="NAME", help="a dataset on the Hub, or a folder of images or Parquet files")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)
checkpoint, unfinished = args.folder / "trainer.pt", args.folder / "trainer.pt.tmp"
alone = {} if dist.is_torchelastic_launched() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
dist.init_process_group("gloo", **alone)
rank, processes = dist.get_rank(), dist.get_world_size()
steps = IMAGES // (32 * processes)
noise = np.random.default_rng(0).integers(256, size=(IMAGES // 2, 28, 28), dtype="uint8")
noise = Dataset.from_dict({"image": [*map(Picture.fromarray, noise)]}).to_iterable_dataset(num_shards=8)
stream = load_dataset(args.data, split="train", streaming=True) if args.data else noise
stream = stream.select_columns("image").cast_column("image", Image(decode=False)).shuffle(seed=0, buffer_size=500)
batches = split_dataset_by_node(stream, rank, processes).batch(32, drop_last_batch=True)
torch.manual_seed(0)
trainer = Trainer(*(kind(image_size=32, channels=1, base_channels=16) for kind in (Generator, Discriminator)))
places = [(0, 0)] * processes  # of each, the epoch and the batches that it has had of it
if checkpoint.exists():
    state, places = torch.load(checkpoint)
    trainer.load_state_dict(state)
epoch, done = places[rank]
while trainer.steps < steps:
    batches.set_epoch(epoch)
    for batch in islice(batches, done, done + steps - trainer.steps):
        pictures = [Image().decode_example(image).convert("L").resize((32, 32)) for image in batch["image"]]
        metrics = trainer.step(torch.stack([pil_to_tensor(picture) for picture in pictures]))
        done += 1
        if trainer.steps % SAVE_EVERY == 0 or trainer.steps == steps:
            dist.all_gather_object(places, (epoch, done))
            if rank == 0:
                torch.save((trainer.state_dict(), places), unfinished)
                unfinished.replace(checkpoint)
    print(f"rank {rank}, epoch {epoch}: " + ", ".join(f"{name} {value.item():.2f}" for name, value in metrics.items()))
    epoch, done = epoch + 1, 0
