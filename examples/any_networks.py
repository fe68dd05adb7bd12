"""Train two modules that know nothing of this package, with another loss and other optimisers.

python examples/any_networks.py
"""

import torch
from torch import nn

from dcgan import Trainer

# Learn a ring of eight points in the plane, the classic test of mode collapse.
generator = nn.Sequential(
    nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), nn.Unflatten(1, (2, 1, 1))
)
critic = nn.Sequential(nn.Flatten(), nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

trainer = Trainer(
    generator,
    critic,
    latent_dim=8,
    loss="wasserstein",
    gradient_penalty=1.0,
    d_steps=3,
    g_optimizer=torch.optim.Adam(generator.parameters(), 1e-3, (0.5, 0.9)),
    d_optimizer=torch.optim.Adam(critic.parameters(), 1e-3, (0.5, 0.9)),
)


def ring(n: int) -> torch.Tensor:
    """Return points `(n, 2, 1, 1)` near eight places on the unit circle."""
    angle = torch.randint(8, (n,)) * (torch.pi / 4)
    points = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.02 * torch.randn(n, 2)
    return points[:, :, None, None]


torch.manual_seed(0)
for metrics in trainer.iterate((ring(256) for _ in range(1000)), steps=1000):
    if trainer.steps % 200 == 0:
        print(f"step {trainer.steps}: critic's loss {metrics['d_loss'].item():.3f}")

with torch.no_grad():
    points = trainer.ema(torch.randn(1000, 8)).flatten(1)
print(f"mean distance from the centre: {points.norm(dim=1).mean().item():.2f} (1 would be right)")
