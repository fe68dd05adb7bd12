"""Networks as files, in folders and on the Hugging Face Hub, and the cards that describe them."""

from dcgan.hub._card import model_card
from dcgan.hub._pretrained import CARD, CONFIG, WEIGHTS, Pretrained

__all__ = ["CARD", "CONFIG", "WEIGHTS", "Pretrained", "model_card"]
