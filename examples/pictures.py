"""Draw the pictures of the documentation, and measure the tables that belong to them.

    python examples/pictures.py --data DATA --svhn SVHN --runs RUNS
    python examples/pictures.py models latents visualize features    # those that need no files

Without names, it makes all parts: some minutes of one core each, except `tables`, which takes an hour.

DATA holds MNIST as torchvision lays it out, CIFAR-10 as `cifar10-images`, with a folder for each class in `train` and
in `test`, and `faces`, a folder of images. SVHN is the folder that `dcgan convert` made of the paper authors' arrays,
or `svhn`, which is fetched. RUNS holds what these commands make:

    dcgan train --recipe mnist --root DATA --out RUNS/mnist
    dcgan train --conditional --out RUNS/conditional
    dcgan train --recipe mnist --conditional --root DATA --epochs 2 --out RUNS/conditional-mnist
    dcgan bench --suite robustness --root DATA --out RUNS/robustness.jsonl    # --short, unless you have a day
    python examples/guidelines.py --seeds 3 --out RUNS/guidelines

The picture of `dcgan explore` is a screenshot, which a test takes with Chromium: `pip install -e '.[dev]'`.
"""

import argparse
import json
import os
import shlex
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange

from dcgan import Generator, cli, data, images, list_architectures, list_models, zoo
from dcgan._files import read_json_lines
from dcgan._labelled import load_labelled
from dcgan.features import classify_by_neighbor
from dcgan.generate import sample_grid, sample_uint8
from dcgan.latents import seeded_latents, walk

ROOT = Path(__file__).parents[1]
WALKS, STEPS = 4, 10  # of each model

LATENTS = """
walk mnist --points 4 --out OUT/latents-mnist.png
walk cifar10 --points 9 --out OUT/latents-cifar10.png
walk faces --points 4 --steps 12 --out OUT/latents-walk.gif
walk faces --through 2,32,145,154 --out OUT/latents-slerp.png
walk faces --through 2,32,145,154 --interpolation lerp --out OUT/latents-lerp.png
arithmetic faces "145,51,156 - 110,141,31 + 56,107,128" --out OUT/latents-arithmetic.png
walk faces --from 22,14,112,100 --to 81,147,133,118 --through 2,56,62,126,51,144 --out OUT/latents-turn.png
"""
VISUALIZE = """
visualize filters faces --out OUT/visualize-filters.png
visualize features faces --stage 8x8 --out OUT/visualize-faces.png
visualize features digits --data digits --stage 8x8 --out OUT/visualize-digits.png
visualize features mnist --out OUT/visualize-mnist.png
visualize features cifar10 --out OUT/visualize-cifar10.png
visualize dropout faces --marks EYES --stage 8x8 -n 12 --out OUT/visualize-dropout.png
"""
SVHN = """
walk SVHN --points 9 --out OUT/latents-svhn.png
visualize features SVHN --out OUT/visualize-svhn.png
"""
TABLES = """
digits digits
mnist mnist --data mnist --root DATA --number 1000 --test-number 1000
cifar10 cifar10 --root DATA/cifar10-images --number 1000 --test-number 1000
svhn-20 SVHN --root DATA/cifar10-images --number 1500 --test-number 1000 --per-class 20 --draws 20 --nearest 0
svhn-100 SVHN --root DATA/cifar10-images --number 10000 --test-number 5000 --per-class 100 --nearest 0
"""


def run(*arguments: object) -> None:
    print("$ dcgan", *arguments, flush=True)
    if code := cli.main(list(map(str, arguments))):
        raise SystemExit(code)


def run_lines(lines: str, options: Namespace) -> None:
    places = {"SVHN": str(options.svhn), "EYES": str(Path(__file__).with_name("eyes.csv"))}
    for line in lines.strip().splitlines():
        words = [places.get(word, word.replace("OUT/", f"{options.out}/")) for word in shlex.split(line)]
        run(*words, "--force")


def draw_models(options: Namespace) -> None:
    """Samples of seed 0, none picked by hand, and walks between them."""
    for name in on_board():
        generator = Generator.from_pretrained(name)
        ends = rearrange(
            seeded_latents(2 * WALKS, generator.config["latent_dim"], seed=0), "(n two) z -> n two z", two=2
        )
        path = generator.sample(z=torch.cat([walk(pair, STEPS - 1) for pair in ends]))
        samples = images.grid(sample_uint8(generator, 64, seed=0), columns=16)
        images.save_png(options.out / f"{name}.png", samples)
        images.save_png(options.out / f"{name}-walk.png", images.grid(images.to_uint8(path), columns=STEPS))


def draw_latents(options: Namespace) -> None:
    run_lines(LATENTS, options)
    digits = data.load("digits", image_size=32, channels=1, cache=False)
    files = [options.work / f"{index}.png" for index in range(10)]
    for index, file in enumerate(files):
        images.save_png(file, digits[index])
    run("project", "digits", *files, "--out", options.work / "projection")
    for picture in ("pairs", "errors"):
        copy(options.work / f"projection/{picture}.png", options.out / f"latents-{picture}.png")


def draw_features(options: Namespace) -> None:
    """The nearest images and the near-duplicates of scikit-learn's digits."""
    run("features", "digits", "--out", options.work / "digits")
    copy(options.work / "digits/nearest.png", options.out / "features-nearest.png")
    digits = data.load("digits", image_size=64, channels=1)
    (options.work / "images").mkdir()
    for index in range(len(digits)):
        images.save_png(options.work / f"images/{index:04}.png", digits[index])
    run("dedup", options.work / "images", "--out", options.out / "features-duplicates.png", "--force")


def measure_tables(options: Namespace) -> None:
    """The rows of docs/features.md."""
    places = {"SVHN": str(options.svhn), "DATA": str(options.data)}
    for line in TABLES.strip().splitlines():
        name, model, *words = line.split()
        words = [places.get(word, word.replace("DATA/", f"{options.data}/")) for word in words]
        run("features", places.get(model, model), *words, "--out", options.work / name)
        record = json.loads((options.work / name / "results.json").read_text())
        print(f"\n{name}: {record['training_images']:,} and {record['test_images']:,} images")
        for features, result in record["results"].items():
            spread = "" if result["spread"] is None else f" ± {result['spread']:.1%}"
            neighbor = f" {result['neighbor_error']:.1%} |" if "neighbor_error" in result else ""
            figures = f"{result['features']:,} | {result['c']:g} | {result['test_error']:.1%}{spread} |{neighbor}"
            print(f"| {Path(features).name} | {figures}")
        print(flush=True)
    for folder in ("faces", "cifar10-images"):
        run("dedup", options.data / folder, "--out", options.work / f"{folder}.png")


def draw_conditional(options: Namespace) -> None:
    """Samples by class, and the errors of docs/conditional.md."""
    networks = {"digits": "conditional", "mnist": "conditional-mnist"}
    generators = {name: Generator.from_pretrained(str(options.runs / run)) for name, run in networks.items()}
    for name, generator in generators.items():
        picture = images.enlarge(sample_grid(generator, 120, seed=0)[None], 640)[0]
        images.save_png(options.out / f"conditional-{name}.png", picture)

    parts = [load_labelled("digits", split, image_size=32, channels=1) for split in ("train", "test")]
    digits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def error(found: torch.Tensor) -> str:
        return f"{(found != labels).float().mean():.2%}"

    def by_the_others(index: int) -> torch.Tensor:
        keep = torch.arange(len(digits)) != index
        return classify_by_neighbor(digits[index : index + 1], digits[keep], labels[keep])

    print("real images, each by the others:", error(torch.cat([by_the_others(index) for index in range(len(digits))])))
    for count in (100, 1000, 10_000):
        samples = sample_uint8(generators["digits"], count, seed=1)
        print(f"{count} samples:", error(classify_by_neighbor(digits, samples, torch.arange(count) % 10)))


def draw_curves(options: Namespace) -> None:
    images.save_curves(options.out / "curves-mnist.png", read_json_lines(options.runs / "mnist/metrics.jsonl"))


def draw_robustness(options: Namespace) -> None:
    """Draw the distance of each run of the tutorial's recipe and of ours; dead ones are crosses at the top."""
    from matplotlib.figure import Figure

    rows = read_json_lines(options.runs / "robustness.jsonl")
    sets = list(dict.fromkeys(row["set"] for row in rows))
    cells = sorted({(row["set"], row["width"], row["batch_size"]) for row in rows}, key=lambda c: (sets.index(c[0]), c))
    highest = 1.5 * max(row["distance"] for row in rows if row["distance"])
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for recipe, colour, shift in (("tutorial", "tab:orange", -0.15), ("ours", "tab:blue", 0.15)):
        runs = [row for row in rows if row["recipe"] == recipe]
        places = [cells.index((row["set"], row["width"], row["batch_size"])) + shift for row in runs]
        alive = [(place, row["distance"]) for place, row in zip(places, runs, strict=True) if not row["collapse"]]
        dead = [place for place, row in zip(places, runs, strict=True) if row["collapse"]]
        axes.scatter(*zip(*alive, strict=True), color=colour, label=recipe)
        axes.scatter(dead, [highest] * len(dead), color=colour, marker="x", label=f"{recipe}, dead" if dead else None)
    labels = [f"{name}\nwidth {width}\nbatch {size}" for name, width, size in cells]
    axes.set_xticks(range(len(cells)), labels, fontsize=6.5)
    axes.set(yscale="log", ylabel="distance from the images")
    figure.legend(loc="outside upper right", ncols=3)
    figure.savefig(options.out / "robustness.png")


def draw_guidelines(options: Namespace) -> None:
    import guidelines  # the script beside this one

    folder = options.runs / "guidelines"
    rows = [row for row in read_json_lines(folder / "rows.jsonl") if (row["set"], row["steps"]) == ("digits", 400)]
    print(guidelines.table(rows, "digits"))
    guidelines.draw_curves(rows, options.out / "guidelines-curves.png")
    guidelines.draw_samples(folder, "digits", options.out / "guidelines-samples.png")


def draw_diagrams(options: Namespace) -> None:
    from diagrams import draw_all  # the script beside this one

    draw_all(options.out, options.work)


def draw_explore(options: Namespace) -> None:
    import pytest

    os.environ["DCGAN_SCREENSHOTS"] = str(options.work)
    test = ROOT / "tests/test_explore_browser.py"
    if code := pytest.main(["-n", "0", "-m", "browser", "-k", "fits_a_desk", str(test)]):
        raise SystemExit(code)
    copy(options.work / "explore.png", options.out / "explore.png")


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def on_board() -> list[str]:
    return [name for name in list_models() if zoo.load_record(name).on_board]


class Part(NamedTuple):
    make: Callable[[Namespace], None]
    pictures: list[str]
    needs: tuple[str, ...] = ()


def written_by(lines: str) -> list[str]:
    return [word.removeprefix("OUT/") for word in lines.split() if word.startswith("OUT/")]


PARTS = {
    "models": Part(draw_models, [f"{name}{kind}.png" for name in on_board() for kind in ("", "-walk")]),
    "latents": Part(draw_latents, [*written_by(LATENTS), "latents-pairs.png", "latents-errors.png"]),
    "visualize": Part(lambda options: run_lines(VISUALIZE, options), written_by(VISUALIZE)),
    "svhn": Part(lambda options: run_lines(SVHN, options), written_by(SVHN), ("svhn",)),
    "features": Part(draw_features, ["features-nearest.png", "features-duplicates.png"]),
    "tables": Part(measure_tables, [], ("data", "svhn")),
    "conditional": Part(draw_conditional, ["conditional-digits.png", "conditional-mnist.png"], ("runs",)),
    "curves": Part(draw_curves, ["curves-mnist.png"], ("runs",)),
    "robustness": Part(draw_robustness, ["robustness.png"], ("runs",)),
    "guidelines": Part(draw_guidelines, ["guidelines-curves.png", "guidelines-samples.png"], ("runs",)),
    "diagrams": Part(
        draw_diagrams,
        [*(f"network-{name}.svg" for name in list_architectures()), "step.svg", "curves-dead.png"],
    ),
    "explore": Part(draw_explore, ["explore.png"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all of them")
    for name in ("data", "svhn", "runs"):
        parser.add_argument(f"--{name}", type=Path, metavar=name.upper())
    parser.add_argument("--out", type=Path, default=ROOT / "docs/assets", help="by default docs/assets")
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name}: {', '.join(PARTS)}")
    chosen = {name: PARTS[name] for name in options.parts or PARTS}
    for name, part in chosen.items():
        if missing := [need for need in part.needs if getattr(options, need) is None]:
            parser.error(f"the part {name} needs --{missing[0]}")
    options.out.mkdir(parents=True, exist_ok=True)
    for part in chosen.values():
        with tempfile.TemporaryDirectory() as work:
            options.work = Path(work)
            part.make(options)


if __name__ == "__main__":
    main()
