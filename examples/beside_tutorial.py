"""Train by a recipe of the package and by the public tutorial's, and compare them at equal steps and equal seconds.

    python examples/beside_tutorial.py digits
    python examples/beside_tutorial.py mnist --root DATA --steps 400 --seeds 3
    python examples/beside_tutorial.py faces --root FOLDER

The tutorial's settings (64 base channels, batches of 128, rates of 2e-4) are trained by the loop of the package, which
is no slower than the tutorial's. Ours is trained twice: as it is, and with the tutorial's batches, so that as many
steps see as many images. Seconds are those of one core of the processor, so that a busy machine does not count.
Every run is a line of `runs/beside/NAME.jsonl`; started again, the script goes on.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dcgan import _build
from dcgan._files import read_json_lines
from dcgan._quality import Evaluator
from dcgan.data import Batches, Images
from dcgan.recipe import Recipe, load_recipe
from dcgan.run import estimate_statistics

CHECKPOINTS = 10
THEIRS, OURS, JOINT = "tutorial", "ours", "ours, with their batches"
SIZE = ("data", "root", "image_size", "channels")  # what the tutorial's recipe takes from ours


def train(recipe: Recipe, pictures: Images, evaluator: Evaluator, steps: int, seconds: float) -> list[dict[str, Any]]:
    """Train for so many steps, and on until so many seconds are spent; measure at each tenth, and at the end."""
    recipe, generator, discriminator = _build.build_networks(recipe)
    trainer = _build.build_trainer(recipe, generator, discriminator)
    batch_size = min(recipe.batch_size or 1, len(pictures))
    run = trainer.iterate(Batches(pictures, batch_size, seed=recipe.seed, flip=recipe.flip), 1_000_000)
    curve: list[dict[str, Any]] = []
    spent = 0.0
    while trainer.steps < steps or spent < seconds:
        began = time.process_time()
        next(run)
        spent += time.process_time() - began
        last = trainer.steps >= steps and spent >= seconds
        if last or (trainer.steps <= steps and trainer.steps % (steps // CHECKPOINTS) == 0):
            network = copy.deepcopy(trainer.generator if trainer.ema is None else trainer.ema).eval()
            estimate_statistics(network, recipe.seed)
            distance = evaluator.frechet_distance(network, seed=recipe.seed + 2)
            curve.append({"step": trainer.steps, "seconds": round(spent, 1), "distance": distance})
    return curve


def compare(rows: list[dict[str, Any]], steps: int) -> str:
    """Format the runs of a set: medians of the seeds, their span, and the ratio to the tutorial's."""
    theirs, ours, joint = ([row["curve"] for row in rows if row["recipe"] == name] for name in (THEIRS, OURS, JOINT))
    points = {
        "the tutorial": [curve[-1] for curve in theirs],
        "ours, as many steps": [next(point for point in curve if point["step"] == steps) for curve in ours],
        "ours, as many steps and images": [curve[-1] for curve in joint],
        "ours, as many seconds": [curve[-1] for curve in ours],
    }
    lines = ["| | steps | seconds | distance | of the tutorial's |", "|---|---|---|---|---|"]
    for name, reached in points.items():
        distances = [point["distance"] for point in reached]
        ratio = median(mine / other[-1]["distance"] for mine, other in zip(distances, theirs, strict=True))
        span = f" ({min(distances):.2f} to {max(distances):.2f})" if len(distances) > 1 else ""
        cells = [f"{median(point[key] for point in reached):,.0f}" for key in ("step", "seconds")]
        lines.append(f"| {name} | {' | '.join(cells)} | {median(distances):.2f}{span} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of the package, or the file of one")
    parser.add_argument("--data", help="another dataset than the recipe's, such as folder")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/beside"))
    options = parser.parse_args()
    if options.steps % CHECKPOINTS or options.steps <= 0:
        parser.error(f"--steps must be a multiple of {CHECKPOINTS}, got {options.steps}")
    torch.set_num_threads(1)  # seconds of the processor are then those of a core
    given = {key: value for key in ("data", "root") if (value := getattr(options, key)) is not None}
    ours = load_recipe(options.recipe).replace(**given, steps=1, epochs=None).resolve()
    theirs = load_recipe("tutorial").replace(**{key: getattr(ours, key) for key in SIZE}, steps=1, epochs=None)
    pictures = _build.open_images(ours, None)
    evaluator = Evaluator(pictures, torch.device("cpu"))
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"{Path(options.recipe).stem}.jsonl"
    of_this = {"data": ours.data, "root": str(ours.root), "steps": options.steps}
    for seed in range(options.seeds):
        seconds = 0.0
        for name, recipe in ((THEIRS, theirs), (OURS, ours), (JOINT, ours.replace(batch_size=theirs.batch_size))):
            key = of_this | {"recipe": name, "seed": seed}
            row = next((row for row in read_json_lines(log) if key.items() <= row.items()), None)
            if row is None:
                seeded = recipe.replace(seed=seed, device="cpu").resolve()
                row = key | {
                    "curve": train(seeded, pictures, evaluator, options.steps, 0 if name == JOINT else seconds)
                }
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            seconds = row["curve"][-1]["seconds"]
            print(f"{name}, seed {seed}: {row['curve'][-1]}")
    rows = [row for row in read_json_lines(log) if of_this.items() <= row.items() and row["seed"] < options.seeds]
    rows.sort(key=lambda row: row["seed"])  # for seeds may have been trained in another order, or side by side
    print(f"\n{options.recipe}\n{compare(rows, options.steps)}")


if __name__ == "__main__":
    main()
