"""Train two networks of your own inside Lightning, which saves and restores them and their optimisers.

python examples/lightning_module.py [EPOCHS [DEVICES]]; again, with more epochs, it goes on from its last checkpoint.
"""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from dcgan import Discriminator, Generator, Trainer, data


class GAN(L.LightningModule):
    """Any two networks, trained by `dcgan.Trainer` under manual optimisation."""

    def __init__(self, generator, discriminator, images):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator, self.images = generator, discriminator, images
        self.restored = None

    def configure_optimizers(self):
        networks = self.generator, self.discriminator
        return [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in networks]

    def train_dataloader(self):  # whose order is a function of the epoch, also after resuming
        sampler = DistributedSampler(self.images, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(self.images, batch_size=64, sampler=sampler, drop_last=True)

    def on_fit_start(self):  # the networks are on their device
        g_optimizer, d_optimizer = self.optimizers()  # Lightning counts the steps of these, not of those inside
        self.gan = Trainer(self.generator, self.discriminator, g_optimizer=g_optimizer, d_optimizer=d_optimizer)

    def on_train_start(self):  # the networks and optimisers are restored
        if self.restored is not None:
            self.gan.load_state_dict(self.restored, strict=False)
            self.restored = None

    def training_step(self, batch, _):
        self.log_dict(self.gan.step(batch), sync_dist=True, prog_bar=True)

    def on_save_checkpoint(self, checkpoint):  # what Lightning does not save itself
        self.gan.check()  # raises if training is no longer finite
        checkpoint["gan"] = {name: self.gan.state_dict()[name] for name in ("steps", "seed", "ema")}

    def on_load_checkpoint(self, checkpoint):
        self.restored = checkpoint["gan"]


if __name__ == "__main__":
    epochs, devices = (int(word) for word in (sys.argv[1:] + ["2", "1"][len(sys.argv) - 1 :]))
    torch.manual_seed(0)
    networks = [kind(image_size=32, channels=1, base_channels=16) for kind in (Generator, Discriminator)]
    checkpoints = ModelCheckpoint("lightning", save_last=True)
    trainer = L.Trainer("cpu", devices=devices, max_epochs=epochs, callbacks=[checkpoints], logger=False)
    trainer.fit(GAN(*networks, data.load("digits", image_size=32, channels=1)), ckpt_path="last")
