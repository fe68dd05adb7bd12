"""Model cards hold what is known, and nothing else."""

import yaml

from dcgan import Generator
from dcgan.hub import model_card

CONFIG = Generator(image_size=(16, 48), base_channels=2).config


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_full_card_states_all_that_is_known():
    card = model_card(
        "me/faces",
        CONFIG,
        architecture="tutorial",
        dataset="celeba",
        steps=12_000,
        batch_size=128,
        recipe="data: celeba\n",
        metrics={"FID": "31.2 (50,000 samples, training split, seed 0)"},
        licence="mit",
        picture="samples.gif",
    )
    assert front_matter(card) == {
        "library_name": "dcgan",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["gan", "dcgan"],
        "license": "mit",
        "datasets": ["celeba"],
    }
    for text in (
        "the tutorial architecture for 16×48 images with 3 channels, trained on celeba for 12,000 steps of 128 images",
        'Generator.from_pretrained("me/faces")',
        "![Generated images](samples.gif)",
        "| FID | 31.2 (50,000 samples, training split, seed 0) |",
        "```yaml\ndata: celeba\n```",
        "| `base_channels` | `2` |",
        "## Licence\n\nmit",
    ):
        assert text in card


def test_a_plain_card_claims_nothing():
    card = model_card("me/faces", CONFIG)
    assert front_matter(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Not stated." in card
    for absent in ("## Metrics", "## Recipe", "trained on", "!["):
        assert absent not in card
