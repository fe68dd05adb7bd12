"""Model cards hold what is known, and nothing else."""

import yaml

from dcgan import Generator
from dcgan.hub import model_card
from dcgan.hub._card import is_licensed, rename, seal

CONFIG = Generator(image_size=(16, 48), base_channels=2).config


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_full_card_states_all_that_is_known():
    card = model_card(
        "me/faces",
        CONFIG,
        architecture="tutorial",
        dataset="mnist",
        steps=12_000,
        batch_size=128,
        recipe="data: mnist\n",
        metrics={"FID": "31.2 (50,000 samples, training split, seed 0)"},
        licence="mit",
        picture="samples.gif",
    )
    assert front_matter(card) == {
        "library_name": "dcgan",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["gan", "dcgan"],
        "license": "mit",
        "datasets": ["ylecun/mnist"],
    }
    for text in (
        "the tutorial architecture for 16×48 images with 3 channels, trained on mnist for 12,000 steps of 128 images",
        'Generator.from_pretrained("me/faces")',
        "![Generated images](samples.gif)",
        "| FID | 31.2 (50,000 samples, training split, seed 0) |",
        "```yaml\ndata: mnist\n```",
        "| `base_channels` | `2` |",
        "```bash\npip install dcgan\n```",
        "## Licence\n\nmit",
    ):
        assert text in card


def test_a_set_that_the_hub_does_not_have_is_no_dataset_of_the_card():
    card = model_card("me/faces", CONFIG, dataset="folder")
    assert "datasets" not in front_matter(card)
    assert "trained on folder" in card


def test_a_plain_card_claims_nothing():
    card = model_card("me/faces", CONFIG)
    assert front_matter(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Not stated." in card
    for absent in ("## Metrics", "## Recipe", "trained on", "!["):
        assert absent not in card


def test_a_card_takes_the_name_of_its_repository():
    for name in ("runs/mine", "./mine"):
        assert rename(seal(model_card(name, CONFIG, licence="mit")), "me/faces") == model_card(
            "me/faces", CONFIG, licence="mit"
        )
    edited = seal(model_card("runs/mine", CONFIG)).replace("# runs/mine\n", "# Faces\n") + "More about runs/mine.\n"
    renamed = rename(edited, "me/faces")
    assert renamed.endswith("Not stated.\nMore about runs/mine.\n")
    assert "\n# Faces\n" in renamed
    assert 'from_pretrained("me/faces")' in renamed
    assert rename("# Anything else\n", "me/faces") == "# Anything else\n"


def test_a_licence_counts_where_the_hub_reads_it():
    assert is_licensed(model_card("me/faces", CONFIG, licence="mit"))
    for card in (model_card("me/faces", CONFIG), "", "# license: mit\n", "---\ntags: [gan]\n---\nlicense: mit\n"):
        assert not is_licensed(card)


def test_a_conditional_model_is_not_called_unconditional():
    config = Generator(image_size=16, num_classes=3).config
    assert "pipeline_tag" not in front_matter(model_card("me/model", config))
