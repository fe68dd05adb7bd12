"""Train inside a loop of your own, on images of your own: here, smooth random blobs.

python examples/own_loop.py
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from dcgan import Discriminator, Generator, Trainer


def blobs(n: int, side: int = 16) -> torch.Tensor:
    """Return images `(n, 1, side, side)` in [-1, 1], each of one bright spot."""
    centres = torch.rand(n, 2, 1, 1) * (side / 2) + side / 4
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2
    return (2 * torch.exp(-distance / 8) - 1)[:, None]


torch.manual_seed(0)
loader = DataLoader(TensorDataset(blobs(1024)), batch_size=32, shuffle=True, drop_last=True)
generator = Generator(image_size=16, channels=1, latent_dim=16, base_channels=16)
discriminator = Discriminator(image_size=16, channels=1, base_channels=16)
trainer = Trainer(generator, discriminator)

for epoch in range(2):
    for (real,) in loader:
        metrics = trainer.step(real)
    print(f"epoch {epoch}: " + ", ".join(f"{name} {value.item():.2f}" for name, value in metrics.items()))

generator.save_pretrained("blobs")
samples = Generator.from_pretrained("blobs").sample(4, seed=0)
print(f"saved in blobs/; brightest pixel of four samples: {samples.amax(dim=(1, 2, 3)).tolist()}")
