"""Does training survive? Short runs of many datasets, widths, batch sizes and seeds, by the tutorial's recipe and ours.

Each run is scored as `dcgan train` scores it, by the Fréchet distance of 2,000 samples in features of a classifier that
never saw a generated image: noise and a generator of a single image are both far away. The runs are written to a file
of JSON lines as they end; started again, the suite goes on after the last one.
"""

import copy
import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import torch

from dcgan import _build
from dcgan._choices import DatasetName
from dcgan._errors import InputError
from dcgan._files import atomic_write, read_json_lines
from dcgan._optim import RateDecay
from dcgan._quality import Evaluator
from dcgan.data import Batches
from dcgan.recipe import Recipe, load_recipe
from dcgan.run import estimate_statistics

WIDTHS, BATCH_SIZES, SEEDS = (16, 32, 64), (16, 64, 128), (0, 1, 2)
SHORT_WIDTHS, SHORT_BATCH_SIZES, SHORT_SEEDS = (16, 32), (64,), (0,)
RECIPES = ("tutorial", "ours")
_STEPS = {1: 300, 3: 1000}  # by image channels: at fewer, colour is still noise
_CHECK_EVERY = 20


class Subject(NamedTuple):
    """A dataset at a size."""

    data: DatasetName
    root: Path | None
    image_size: int

    @classmethod
    def parse(cls, text: str, root: Path | None = None) -> "Subject":
        """Read `NAME:SIZE`, a dataset below `root`, or `FOLDER:SIZE`, a folder of images.

        Raises:
            ValueError: If the text is neither.
        """
        name, _, size = text.rpartition(":")
        if not name or not size.isdecimal():
            raise InputError(f"a set must be NAME:SIZE or FOLDER:SIZE, such as digits:32, got {text!r}")
        if name in get_args(DatasetName):
            needs_none = name in ("digits", "fake")
            return cls(name, None if needs_none else root, int(size))  # type: ignore[arg-type]  # it is one of them
        if not Path(name).is_dir():
            raise InputError(f"a set must be {', '.join(get_args(DatasetName))} or a folder, got {name!r}")
        return cls("folder", Path(name), int(size))

    @property
    def label(self) -> str:
        """Its name and size, for tables."""
        name = self.root.resolve().name if self.data == "folder" and self.root else self.data
        return f"{name} {self.image_size}"


def run_suite(
    subjects: Sequence[Subject],
    out: Path,
    *,
    widths: Sequence[int] = WIDTHS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seeds: Sequence[int] = SEEDS,
    recipes: Sequence[str] = RECIPES,
    device: str = "auto",
) -> Iterator[tuple[int, int]]:
    """Train every combination that `out` does not hold yet, yielding the number of runs that are there and their total.

    Args:
        subjects: Datasets to train on.
        out: File of JSON lines, one for each run.
        widths: `base_channels` of both networks.
        batch_sizes: Images per step.
        seeds: Seeds of weights, latents and data order.
        recipes: `tutorial`, PyTorch's tutorial; `ours`, the defaults of this package with the same networks; or the
            name or file of another recipe.
        device: As in `Recipe`.
    """
    cells: list[dict[str, Any]] = [
        {"set": subject.label, "width": width, "batch_size": batch_size, "seed": seed, "recipe": recipe}
        for subject, width, batch_size, seed, recipe in product(subjects, widths, batch_sizes, seeds, recipes)
    ]
    by_label = {subject.label: subject for subject in subjects}
    if len(by_label) < len(subjects):
        raise InputError(f"sets must differ in name or size, got {', '.join(subject.label for subject in subjects)}")
    rows = read_json_lines(out)
    with atomic_write(out) as finished:  # without a line that was cut off
        finished.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    missing = [cell for cell in cells if not any(cell.items() <= row.items() for row in rows)]
    yield len(cells) - len(missing), len(cells)
    evaluators: dict[str, Evaluator] = {}
    for index, cell in enumerate(missing, start=1):
        row = cell | _train(cell, by_label[cell["set"]], evaluators, device)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield len(cells) - len(missing) + index, len(cells)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format runs as a Markdown table: for each set, width and batch size the median distance, and how many died."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    header = ["set", "width", "batch", "seeds", *(f"{recipe}: distance, dead" for recipe in recipes)]
    if set(RECIPES) <= set(recipes):
        header.append("ratio")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for key in dict.fromkeys((row["set"], row["width"], row["batch_size"]) for row in rows):
        chosen = [row for row in rows if (row["set"], row["width"], row["batch_size"]) == key]
        cells: list[str] = []
        medians: dict[str, float | None] = {}
        for recipe in recipes:
            runs = [row for row in chosen if row["recipe"] == recipe]
            alive = [row["distance"] for row in runs if not row["collapse"]]
            medians[recipe] = median(alive) if alive else None
            share = f", {len(runs) - len(alive)} of {len(runs)} dead" if len(alive) < len(runs) else ""
            cells.append((f"{medians[recipe]:.1f}" if alive else "-") + share)
        if set(RECIPES) <= set(recipes):
            theirs, ours = (medians[recipe] for recipe in RECIPES)
            cells.append(f"{theirs / ours:.1f}" if theirs and ours else "")
        count = len({row["seed"] for row in chosen})
        lines.append(f"| {' | '.join([*map(str, key), str(count), *cells])} |")
    for recipe in recipes:
        runs = [row for row in rows if row["recipe"] == recipe]
        dead = sum(row["collapse"] is not None for row in runs)
        recovered = sum(row["warned"] and row["collapse"] is None for row in runs)
        lines.append(
            f"\n{recipe}: {dead} of {len(runs)} runs dead at the end, {recovered} more that were warned about."
        )
    return "\n".join(lines)


def _train(cell: dict[str, Any], subject: Subject, evaluators: dict[str, Evaluator], device: str) -> dict[str, Any]:
    """Train one combination; return its score."""
    recipe = Recipe(architecture="tutorial") if cell["recipe"] == "ours" else load_recipe(cell["recipe"])
    recipe = recipe.replace(
        data=subject.data,
        root=subject.root,
        image_size=subject.image_size,
        channels=None,
        base_channels=cell["width"],
        d_base_channels=cell["width"],
        batch_size=cell["batch_size"],
        seed=cell["seed"],
        device=device,
        steps=1,
        epochs=None,
    ).resolve()
    steps = _STEPS[1 if recipe.channels == 1 else 3]
    place = _build.select_device(device)
    recipe, generator, discriminator = _build.build_networks(recipe)
    images = _build.open_images(recipe, None)
    trainer = _build.build_trainer(recipe, generator.to(place), discriminator.to(place))
    decay = RateDecay([trainer.g_optimizer, trainer.d_optimizer], recipe.lr_decay, steps)
    batches = Batches(images, cell["batch_size"], seed=cell["seed"], flip=recipe.flip, device=place)
    row: dict[str, Any] = {"steps": steps, "distance": None, "collapse": None, "warned": False}
    began = time.perf_counter()
    try:
        decay.set(0)
        for _ in trainer.iterate(batches, steps):
            decay.set(trainer.steps)
            if trainer.steps % _CHECK_EVERY == 0:
                trainer.check()
                row["warned"] = row["warned"] or trainer.collapse is not None
    except FloatingPointError as error:
        row["collapse"] = str(error)
    else:
        row["collapse"] = trainer.collapse
        if subject.label not in evaluators:
            evaluators[subject.label] = Evaluator(images, place)
        # Either as it is shipped, averaged or raw, with BatchNorm statistics of its own weights.
        shipped = copy.deepcopy(trainer.generator if trainer.ema is None else trainer.ema).eval()
        estimate_statistics(shipped, cell["seed"])
        row["distance"] = evaluators[subject.label].frechet_distance(shipped, seed=cell["seed"] + 2)
    return row | {"seconds": round(time.perf_counter() - began, 1), "torch": torch.__version__}
