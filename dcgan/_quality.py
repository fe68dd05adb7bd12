"""The figure of quality of a run: the Fréchet distance of its generator's images from the dataset's."""

import numpy as np
import torch

from dcgan import data
from dcgan.generate import sample_uint8
from dcgan.metrics import frechet_distance, image_features, moments
from dcgan.models import Generator

# Few images, so that a figure takes seconds, and always as many, since it depends on their number.
_GENERATED, _REAL = 2000, 5000


class Evaluator:
    """Measures generators against one dataset.

    Args:
        images: The dataset; 5,000 of its images are used, or all if there are fewer, always the same.
        device: Where to compute.
    """

    def __init__(self, images: data.Images, device: torch.device):
        self._device = device
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:_REAL])
        parts = [images.batch(part) for part in np.array_split(chosen, -(-len(chosen) // 500))]
        self.real = moments(torch.cat([image_features(part, device=device) for part in parts]))

    def frechet_distance(self, generator: Generator, *, seed: int) -> float:
        """Return the Fréchet distance of 2,000 samples from the dataset, in `metrics.image_features`."""
        samples = sample_uint8(generator, _GENERATED, seed=seed)
        return round(frechet_distance(self.real, image_features(samples, device=self._device)), 3)
