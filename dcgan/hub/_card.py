"""Model cards: the README.md of a network's repository."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from dcgan._config import sides

# Datasets whose cards the Hub links to a model's; a set of no or of another name has no place in a card's data.
_ON_THE_HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "svhn": "ufldl-stanford/svhn",
}


def model_card(
    name: str,
    config: Mapping[str, Any],
    *,
    architecture: str | None = None,
    dataset: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    recipe: str | None = None,
    metrics: Mapping[str, str] | None = None,
    licence: str | None = None,
    picture: str | None = None,
) -> str:
    """Return the text of a model card, without facts that are not given; a missing licence is mentioned.

    Args:
        name: Title, such as `"organisation/dcgan-celeba"`, and what the example loads.
        config: The network's arguments.
        architecture: Name of the published architecture that it is a version of.
        dataset: Dataset that it was trained on.
        steps: Number of training steps.
        batch_size: Images per step.
        recipe: The run's recipe, in YAML.
        metrics: Measured quality with its protocol, such as `{"FID": "31.2 (50,000 samples, CIFAR-10 train, ...)"}`.
        licence: Identifier of the licence of the weights, such as `"mit"`.
        picture: Path of generated images inside the repository.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="dcgan",
        # The Hub has no task for images of a class.
        pipeline_tag=None if config.get("num_classes") else "unconditional-image-generation",
        tags=["gan", "dcgan"],
        license=licence,
        datasets=[_ON_THE_HUB[dataset]] if dataset in _ON_THE_HUB else None,
    )
    (height, width), channels = sides(config), config["channels"]
    training = f", trained on {dataset}" if dataset else ", trained" if steps is not None else ""
    training += f" for {steps:,} steps" if steps is not None else ""
    training += f" of {batch_size} images" if steps is not None and batch_size else ""
    network = f"the {architecture} architecture" if architecture else "its own architecture"
    images = f"{height}×{width} images with {channels} channel{'s' if channels > 1 else ''}"
    use = _USE if "latent_dim" in config else _USE_DISCRIMINATOR
    parts = [
        f"---\n{data.to_yaml()}\n---\n# {name.removeprefix('./')}",
        f"A deep convolutional GAN of {network} for {images}{training}.",
        _INSTALL,
        use.format(name=name),
    ]
    if picture:
        parts.append(f"![Generated images]({picture})")
    if metrics:
        rows = "\n".join(f"| {metric} | {value} |" for metric, value in metrics.items())
        parts.append(f"## Metrics\n\n| metric | value and protocol |\n|---|---|\n{rows}")
    arguments = "\n".join(f"| `{key}` | `{value}` |" for key, value in config.items())
    parts.append(f"## Architecture\n\n| argument | value |\n|---|---|\n{arguments}")
    if recipe:
        parts.append(f"## Recipe\n\n```yaml\n{recipe.rstrip()}\n```")
    parts.append(f"## Licence\n\n{licence or 'Not stated.'}")
    return "\n\n".join(parts) + "\n"


def seal(card: str) -> str:
    """Add a comment to a card by which `is_unchanged` sees whether somebody has edited it."""
    return f"{card}\n<!-- Written by dcgan, and replaced as training goes on unless you edit it: {_digest(card)} -->\n"


def is_unchanged(text: str) -> bool:
    """Whether a card is as `seal` returned it."""
    card, _, comment = text.rpartition("\n<!-- ")
    return comment.endswith(f" {_digest(card)} -->\n")


def rename(card: str, name: str) -> str:
    """Return a card under the name of a repository, in title and example, without the comment of `seal`."""
    card = re.sub(r"\n<!-- Written by dcgan, .* -->\n", "", card)
    if not (example := re.search(r'from_pretrained\("([^"]+)"\)', card)):
        return card
    card = card.replace(example[0], f'from_pretrained("{name}")')
    return card.replace(f"\n# {example[1].removeprefix('./')}\n", f"\n# {name}\n", 1)


def is_licensed(card: str) -> bool:
    """Whether the data at the top of a card state a licence."""
    return bool(re.match(r"---\n(?:(?!---).*\n)*?license: *\w", card))


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]


_INSTALL = "```bash\npip install dcgan\n```"

_USE = """```python
from dcgan import Generator

generator = Generator.from_pretrained("{name}")
images = generator.sample(16, seed=0)
```"""

_USE_DISCRIMINATOR = """```python
from dcgan import Discriminator

discriminator = Discriminator.from_pretrained("{name}")
activations = discriminator.features(images)
```"""
