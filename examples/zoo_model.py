"""Turn a finished run into a model of the zoo: weights in half precision, its record and its card.

    python examples/zoo_model.py runs/mnist mnist ABOUT.yaml
    python examples/zoo_model.py mnist

ABOUT.yaml says what a run does not know: description, data, terms, licence, source, recipe and machine. A run that was
started from a state of another has `origin: {run: FOLDER, step: N}` and, in place of `recipe`, `command`, with both
commands. The model is written to dcgan/zoo/weights/NAME and dcgan/zoo/records/NAME.yaml. With a name alone, the card of
that model is written again from its record.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

import dcgan
from dcgan import Discriminator, Generator, data, zoo
from dcgan._quality import Evaluator
from dcgan.generate import sample_uint8
from dcgan.hub import model_card
from dcgan.images import grid, save_png
from dcgan.metrics import frechet_distance, image_features
from dcgan.recipe import Recipe

FEW, SEEDS = 500, range(100, 110)  # samples of the figure that a test measures again
PICTURED, COLUMNS = 32, 8  # samples in the picture of the card
SHOWN = "<!-- --8<-- [start:training] -->", "<!-- --8<-- [end:training] -->"  # what docs/models.md shows of a card
NOT_LISTED = ("recipe", "curve")  # which have their own places in the card


class Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")
)


def minutes(records):
    """Add up the time of the steps, from their speed."""
    before, total = 0, 0.0
    for record in records:
        total += (record["step"] - before) / record["images_per_second"]
        before = record["step"]
    return total / 60


def read_log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_model(run, name, about):
    """Write the weights and the record of a run."""
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    records = read_log(run)
    spent = minutes(records)
    if origin := about.pop("origin", None):
        first = [record for record in read_log(Path(origin["run"])) if record["step"] <= origin["step"]]
        spent += minutes(first)
        records = first + [record | {"step": record["step"] + origin["step"]} for record in records]
    figures = {record["step"]: record["fd"] for record in records if "fd" in record}
    steps = records[-1]["step"]
    root = {"root": recipe.root} if recipe.root else {}
    images = data.load(recipe.data, image_size=recipe.image_size, channels=recipe.channels, **root)

    folder = zoo.WEIGHTS / name
    generator = Generator.from_pretrained(run)
    generator.half().save_pretrained(folder)
    Discriminator.from_pretrained(run).half().save_pretrained(folder)

    shipped, whole = Generator.from_pretrained(folder, dtype=torch.float32), Generator.from_pretrained(run)
    difference = (sample_uint8(shipped, 256, seed=0).int() - sample_uint8(whole, 256, seed=0).int()).abs()
    moved = f"moves pixels by {difference.float().mean():.4f} of 255 on average, at most {difference.max()}"
    evaluator = Evaluator(images, torch.device("cpu"))
    distance = evaluator.frechet_distance(shipped, seed=recipe.seed + 2)
    mean, covariance = (moment.float() for moment in evaluator.real)
    save_file({"mean": mean, "covariance": covariance}, folder / "reference.safetensors")
    reference = (mean.double(), covariance.double())
    few = torch.tensor(
        [frechet_distance(image_features(sample_uint8(shipped, FEW, seed=seed)), reference) for seed in SEEDS]
    )

    protocol = (
        f"2,000 samples against {min(5000, len(images)):,} images, dcgan.metrics.image_features, seed {recipe.seed + 2}"
    )
    root_option = " --root DATA" * bool(recipe.root)
    training = {
        "command": about.pop("command", "") or f"dcgan train --recipe {about.pop('recipe')}{root_option}",
        "steps": steps,
        "batch_size": recipe.batch_size,
        "images": steps * recipe.batch_size,
        "seed": recipe.seed,
        "minutes": round(spent * recipe.batch_size),
        "machine": about.pop("machine"),
        "versions": f"dcgan {dcgan.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "recipe": recipe.without_paths().to_yaml(),
        "curve": figures,
        "half_precision": moved,
    }
    record = {
        **about,
        "image_size": recipe.image_size if isinstance(recipe.image_size, int) else list(recipe.image_size),
        "channels": recipe.channels,
        "figures": {
            "distance": f"{distance:.2f} ({protocol})",
            "distance_of_few": {
                "samples": FEW,
                "mean": round(few.mean().item(), 3),
                "spread": round(4 * few.std().item(), 3),
            },
        },
        "training": training,
        "verified": True,
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.safetensors"))
        },
    }
    text = yaml.dump(record, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)
    (zoo.RECORDS / f"{name}.yaml").write_text(text)
    print(
        f"{name}: distance {distance:.2f}, of {FEW} samples {few.mean():.2f} ± {few.std():.2f}; half precision {moved}"
    )


def write_card(name):
    """Write the card and the picture of a model from its record and its weights."""
    record = zoo.load_record(name)
    training = record.training
    generator = Generator.from_pretrained(record.folder, dtype=torch.float32)
    save_png(record.folder / "samples.png", grid(sample_uint8(generator, PICTURED, seed=0), columns=COLUMNS))
    card = model_card(
        name,
        generator.config,
        architecture=Recipe.from_yaml(training["recipe"]).architecture,
        dataset=record.data,
        steps=training["steps"],
        batch_size=training["batch_size"],
        recipe=training["recipe"],
        metrics={"Fréchet distance": record.figures["distance"]},
        licence=record.licence,
        picture="samples.png",
    )
    facts = {"terms of the data": record.terms} | {k: v for k, v in training.items() if k not in NOT_LISTED}
    facts |= {f"SHA-256 of {file}": digest for file, digest in record.sha256.items()}
    facts |= {"picture": f"samples 0 to {PICTURED - 1} of seed 0, none chosen"}
    listed = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    curve = "\n".join(f"| {step:,} | {value:.2f} |" for step, value in training["curve"].items())
    facts_and_curve = f"{listed}\n\n| step | distance |\n|---|---|\n{curve}\n"
    card += f"\n## Training\n\n{SHOWN[0]}\n\n{facts_and_curve}\n{SHOWN[1]}\n"
    (record.folder / "README.md").write_text(card, encoding="utf-8")


if len(sys.argv) == 4:
    write_model(Path(sys.argv[1]), sys.argv[2], yaml.safe_load(Path(sys.argv[3]).read_text()))
write_card(sys.argv[2] if len(sys.argv) == 4 else sys.argv[1])
