"""Draw the pictures of the models on board: samples of seed 0, none picked by hand, and walks between them.

python examples/gallery.py docs/assets
"""

import sys
from pathlib import Path

import torch
from einops import rearrange

from dcgan import Generator, images, list_models, zoo
from dcgan.latents import seeded_latents, walk

WALKS, STEPS = 4, 10


folder = Path(sys.argv[1])
for name in list_models():
    if not zoo.load_record(name).on_board:
        continue
    generator = Generator.from_pretrained(name)
    z = seeded_latents(2 * WALKS, generator.config["latent_dim"], seed=0)
    ends = rearrange(z, "(n two) z -> n two z", two=2)
    latents = torch.cat([walk(pair, STEPS - 1) for pair in ends])
    images.save_png(folder / f"{name}.png", images.grid(images.to_uint8(generator.sample(64, seed=0)), columns=16))
    images.save_png(
        folder / f"{name}-walk.png", images.grid(images.to_uint8(generator.sample(z=latents)), columns=STEPS)
    )
