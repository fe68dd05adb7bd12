"""Networks as files, in folders and on the Hugging Face Hub, and the cards that describe them.

`Generator` and `Discriminator` load and save themselves: see `from_pretrained`, `save_pretrained` and `push_to_hub`.
"""

from dcgan.hub._card import model_card

__all__ = ["model_card"]
