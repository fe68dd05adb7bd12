"""Turn a finished run into a model of the zoo: weights in half precision, its record and its card.

    python examples/zoo_model.py mnist runs/zoo/mnist-0 --machine "one core of an AMD EPYC"
    python examples/zoo_model.py mnist

The model is written to dcgan/zoo/weights/NAME and dcgan/zoo/records/NAME.yaml. What a run does not know is taken from
the record that is there, or from the YAML file ABOUT: description, data, terms, licence and source. Runs beside it with
other seeds, as examples/zoo_train.py leaves them, have their figures in the record, too. With a name alone, the card of
that model is written again from its record.
"""

import argparse
import hashlib
import platform
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

import dcgan
from dcgan import Discriminator, Generator, data, zoo
from dcgan._files import read_json_lines
from dcgan._quality import Evaluator
from dcgan.generate import sample_uint8
from dcgan.hub import model_card
from dcgan.images import grid, save_png
from dcgan.metrics import frechet_distance, image_features
from dcgan.recipe import Recipe, load_recipe

FEW, SEEDS = 500, range(100, 110)  # samples of the figure that a test measures again
PICTURED, COLUMNS = 32, 8  # samples in the picture of the card
SHOWN = "<!-- --8<-- [start:training] -->", "<!-- --8<-- [end:training] -->"  # what docs/models.md shows of a card
OPTIONS = "data", "root", "precision"  # in which a run may differ from its recipe
NOT_LISTED = ("recipe", "curve", "distance_by_seed")  # which have their own places in the card


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


def read_curve(run):
    """Return the figure at each step that has one."""
    return {record["step"]: record["fd"] for record in read_json_lines(run / "metrics.jsonl") if "fd" in record}


def read_seeds(run):
    """Return the last figure of this run and of those beside it, by seed."""
    runs = sorted(run.parent.glob(f"{run.name.rpartition('-')[0]}-*"))
    seeds = {Recipe.from_yaml((other / "recipe.yaml").read_text()).seed: read_curve(other) for other in runs}
    return {seed: curve[max(curve)] for seed, curve in sorted(seeds.items())}


def write_model(run, name, about, machine):
    """Write the weights and the record of a run."""
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    records = read_json_lines(run / "metrics.jsonl")
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
    given, named = recipe.replace(root=recipe.root and "DATA"), load_recipe(name)
    options = [f" --{key} {getattr(given, key)}" for key in OPTIONS if getattr(given, key) != getattr(named, key)]
    training = {
        "command": f"dcgan train --recipe {name}{''.join(options)}",
        "steps": steps,
        "batch_size": recipe.batch_size,
        "images": steps * recipe.batch_size,
        "seed": recipe.seed,
        "minutes": round(minutes(records) * recipe.batch_size),
        "machine": f"{machine}, {recipe.precision}",
        "versions": f"dcgan {dcgan.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "recipe": recipe.without_paths().to_yaml(),
        "curve": read_curve(run),
        "distance_by_seed": read_seeds(run),
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
    seeds = [f"{distance:.2f} with seed {seed}" for seed, distance in training.get("distance_by_seed", {}).items()]
    facts |= {"distance at the end": ", ".join(seeds)} if seeds else {}
    facts |= {f"SHA-256 of {file}": digest for file, digest in record.sha256.items()}
    facts |= {"picture": f"samples 0 to {PICTURED - 1} of seed 0, none chosen"}
    listed = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    curve = "\n".join(f"| {step:,} | {value:.2f} |" for step, value in training["curve"].items())
    facts_and_curve = f"{listed}\n\n| step | distance |\n|---|---|\n{curve}\n"
    card += f"\n## Training\n\n{SHOWN[0]}\n\n{facts_and_curve}\n{SHOWN[1]}\n"
    (record.folder / "README.md").write_text(card, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the model, and of its recipe")
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--machine", help="what it was trained on")
    parser.add_argument("--about", type=Path)
    options = parser.parse_args()
    if options.run:
        record = options.about or zoo.RECORDS / f"{options.name}.yaml"
        about = yaml.safe_load(record.read_text())
        about = {key: about[key] for key in ("description", "data", "terms", "licence", "source")}
        write_model(options.run, options.name, about, options.machine)
    write_card(options.name)


if __name__ == "__main__":
    main()
