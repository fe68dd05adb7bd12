"""Take away each guideline of the paper, alone, and see what it was good for.

    python examples/guidelines.py                                              # digits, half an hour of two cores
    python examples/guidelines.py --root DATA --sets mnist cifar10 --seeds 3 --steps 2000    # long

Every run is a line of `runs/guidelines/rows.jsonl`, and a picture of the same 64 latents beside it; started again, the
script goes on after the last one. At the end it prints the table, and draws `curves-SET.png` and `samples-SET.png`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dcgan import Discriminator, Generator, Trainer, data, images, weights_init
from dcgan._files import read_json_lines
from dcgan.augment import augment
from dcgan.ema import ema_weight, update_average
from dcgan.latents import seeded_latents
from dcgan.metrics import Moments, frechet_distance, image_features, moments

SIDE, WIDTH, LATENT_DIM, BATCH = 32, 32, 100, 64
RATE = 2e-4 * 128 / WIDTH  # the paper's, at the paper's width
AUGMENTED = ("shift",)
CHECKPOINTS = 10
SAMPLES, REAL = 2000, 5000
CLEAR = 1.2  # a ratio of distances that counts as a difference, in every seed alike


# Networks that break a rule: plain stacks of layers, as the trainer takes any two modules.


def generator(channels: int, *, hidden: int = 0, last: tuple[nn.Module, ...] = (nn.Tanh(),)) -> nn.Module:
    """A generator with a hidden linear layer of `hidden` units, or other layers after the last convolution."""
    top = 4 * WIDTH
    if hidden:
        linear = [nn.Linear(LATENT_DIM, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        layers = [*linear, nn.Linear(hidden, top * 16, bias=False), nn.Unflatten(1, (top, 4, 4))]
    else:
        layers = [nn.Unflatten(1, (LATENT_DIM, 1, 1)), nn.ConvTranspose2d(LATENT_DIM, top, 4, bias=False)]
    for width in (2 * WIDTH, WIDTH, channels):
        layers += [nn.BatchNorm2d(2 * width if width != channels else WIDTH), nn.ReLU()]
        layers += [nn.ConvTranspose2d(layers[-2].num_features, width, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, *last).apply(weights_init)


def discriminator(
    channels: int, *, pooled: bool = False, norm_first: bool = False, hidden: int = 0, averaged: bool = False
) -> nn.Module:
    """A discriminator with max-pooling, BatchNorm after its first layer, a hidden linear layer, or averaged maps."""
    layers: list[nn.Module] = []
    before = channels
    for index, width in enumerate((WIDTH, 2 * WIDTH, 4 * WIDTH)):
        if pooled:
            layers += [nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.MaxPool2d(2)]
        else:
            layers += [nn.Conv2d(before, width, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width)] if index or norm_first else []
        layers += [nn.LeakyReLU(0.2)]
        before = width
    if averaged:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1)]
    elif hidden:
        layers += [nn.Flatten(), nn.Linear(before * 16, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)]
    else:
        layers += [nn.Conv2d(before, 1, 4, bias=False), nn.Flatten()]
    return nn.Sequential(*layers).apply(weights_init)


def pair(
    channels: int, g: dict[str, Any] | None = None, d: dict[str, Any] | None = None
) -> tuple[nn.Module, nn.Module]:
    """The networks of the tutorial at this size, with other arguments for either."""
    shared = {"image_size": SIDE, "channels": channels, "base_channels": WIDTH}
    return Generator(**shared, **(g or {})), Discriminator(**shared, **(d or {}))


def initialised(channels: int, init: Callable[[nn.Module], None]) -> tuple[nn.Module, nn.Module]:
    networks = pair(channels)
    for network in networks:
        network.apply(init)
    return networks


def pytorch_default(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def five_times_as_large(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.1)


class Variant(NamedTuple):
    """What is taken away, what the paper says of it, and how to build it."""

    group: str  # of the guidelines that are drawn together
    name: str
    says: str  # in our words, with the section
    networks: Callable[[int], tuple[nn.Module, nn.Module]] = pair
    options: dict[str, Any] = {}  # noqa: RUF012 - of a tuple, and never changed
    batch: int = BATCH
    together: bool = False  # real and generated images in one batch of BatchNorm
    claim: str = "distance"  # what the paper says grows without the guideline; "" if it says nothing of that


LAYERS, NORM, OUTPUTS, ADAM, START, STEPS = "layers", "BatchNorm", "activations", "Adam", "weights and latents", "steps"
OURS, TUTORIAL = "ours", "the tutorial"
VARIANTS = [
    Variant(ADAM, OURS, "the rate of the paper at the paper's width, and shift"),
    Variant(
        ADAM, TUTORIAL, "rates of 2e-4 at any width, nothing else", options={"lr": 2e-4, "augmentations": ()}, claim=""
    ),
    Variant(
        LAYERS,
        "max-pooling in D, nearest enlargement in G",
        "strides instead of pooling let the networks learn their own resampling (§3)",
        lambda k: (pair(k, {"upsample": "resize", "kernel_size": 3})[0], discriminator(k, pooled=True)),
    ),
    Variant(
        LAYERS,
        "a hidden linear layer of 1024 in both",
        "deep networks do without fully connected hidden layers (§3)",
        lambda k: (generator(k, hidden=1024), discriminator(k, hidden=1024)),
    ),
    Variant(
        LAYERS,
        "averaged maps before the logit",
        "global average pooling is stabler, but slower to converge (§3)",
        lambda k: (pair(k)[0], discriminator(k, averaged=True)),
        claim="half-way",
    ),
    Variant(
        NORM,
        "no BatchNorm",
        "BatchNorm is what lets deep generators begin to learn, and keeps them from one point (§3)",
        lambda k: pair(k, {"norm": "none"}, {"norm": "none"}),
    ),
    Variant(NORM, "no BatchNorm in G", "the same, of the generator", lambda k: pair(k, {"norm": "none"})),
    Variant(NORM, "no BatchNorm in D", "the same, of the discriminator", lambda k: pair(k, None, {"norm": "none"})),
    Variant(
        NORM,
        "BatchNorm at every layer",
        "at all layers it makes samples oscillate (§3)",
        lambda k: (generator(k, last=(nn.BatchNorm2d(k), nn.Tanh())), discriminator(k, norm_first=True)),
        claim="moves",
    ),
    Variant(
        NORM,
        "one BatchNorm batch of real and generated",
        "the authors' code keeps them apart",
        together=True,
        claim="",
    ),
    Variant(
        OUTPUTS,
        "LeakyReLU in G",
        "ReLU in the generator (§3)",
        lambda k: pair(k, {"activation": "leaky-relu"}),
    ),
    Variant(
        OUTPUTS,
        "ReLU in D",
        "LeakyReLU works well in the discriminator (§3)",
        lambda k: pair(k, None, {"activation": "relu"}),
    ),
    Variant(
        OUTPUTS,
        "linear output",
        "a bounded output learns to cover the colours sooner (§3)",
        lambda k: (generator(k, last=()), pair(k)[1]),
        claim="half-way",
    ),
    Variant(OUTPUTS, "sigmoid output", "tanh at the output (§3)", lambda k: pair(k, {"output": "sigmoid"})),
    Variant(
        ADAM,
        "β₁ 0.9",
        "0.9 makes training oscillate, 0.5 stabilises it (§4)",
        options={"betas": (0.9, 0.999)},
        claim="moves",
    ),
    Variant(ADAM, "rates five times as high", "0.001 is too high (§4); here it is 0.004", options={"lr": 5 * RATE}),
    Variant(ADAM, "rates a quarter as high", "0.0002 it is (§4); here ours is 0.0008", options={"lr": RATE / 4}),
    Variant(
        START,
        "PyTorch's initial weights",
        "all weights begin at a standard deviation of 0.02 (§4)",
        lambda k: initialised(k, pytorch_default),
    ),
    Variant(START, "initial weights of 0.1", "the same", lambda k: initialised(k, five_times_as_large)),
    Variant(
        START, "uniform latents", "the latents are uniform (§3)", lambda k: pair(k, {"latent": "uniform"}), claim=""
    ),
    Variant(
        STEPS,
        "minimax loss",
        "log D(G(z)) is maximised, for its stronger gradients (Goodfellow et al., 2014, §3)",
        options={"loss": "minimax"},
    ),
    Variant(STEPS, "batches of 16", "batches of 128 (§4)", batch=16, claim=""),
    Variant(STEPS, "batches of 512", "the same", batch=512, claim=""),
    Variant(
        STEPS,
        "turns",
        "the authors' code trains one network on each batch in turn",
        options={"schedule": "alternate"},
        claim="",
    ),
]


def train(
    variant: Variant, pictures: data.Images, real: Moments, steps: int, seed: int, picture: Path
) -> dict[str, Any]:
    """Train one variant; return its row."""
    torch.manual_seed(seed)
    channels = pictures.channels
    g, d = variant.networks(channels)
    distribution = getattr(g, "config", {}).get("latent", "normal")
    options = {"lr": RATE, "augmentations": AUGMENTED, "latent_dim": LATENT_DIM, "latent": distribution, "seed": seed}
    trainer = Trainer(g, d, **options | variant.options)
    batches = data.Batches(pictures, min(variant.batch, len(pictures)), seed=seed)
    run = joint_steps(trainer, batches, steps, seed) if variant.together else trainer.iterate(batches, steps)
    z = seeded_latents(SAMPLES, LATENT_DIM, seed=seed + 2, distribution=distribution)
    value_range = images.VALUE_RANGES[getattr(g, "config", {}).get("output", "tanh")]
    row: dict[str, Any] = {"distances": {}, "moved": {}, "collapse": None}
    began, before = time.perf_counter(), None
    try:
        for step, _ in enumerate(run, start=1):
            if step % (steps // CHECKPOINTS):
                continue
            samples = draw(trainer.ema, z, value_range)
            row["distances"][step] = round(frechet_distance(real, image_features(samples)), 2)
            now = draw(trainer.generator, z[:64], value_range).float() / 255  # not averaged, which would hide it
            if before is not None:
                row["moved"][step] = round((now - before).abs().mean().item(), 4)
            before = now
    except FloatingPointError as error:
        row["collapse"] = str(error)
    else:
        row["collapse"] = trainer.collapse
        images.save_png(picture, images.grid(samples[:64]))
    return row | {"seconds": round(time.perf_counter() - began)}


@torch.no_grad()
def draw(network: nn.Module, z: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Return uint8 images, normalised by the statistics of their own batches, as every network here can be."""
    network = copy.deepcopy(network).train()
    return torch.cat([images.to_uint8(network(part), value_range) for part in z.split(500)])


def joint_steps(trainer: Trainer, batches: data.Batches, steps: int, seed: int) -> Iterator[None]:
    """Train as the trainer does, but on real and generated images as one batch of BatchNorm; no collapse is noticed."""
    g, d, rng, step = trainer.generator, trainer.discriminator, torch.Generator().manual_seed(seed), 0
    while True:
        for batch in batches:
            real = images.from_uint8(batch)
            z = torch.randn(len(real), LATENT_DIM, generator=rng)
            fake = g(z)
            both = augment(torch.cat([real, fake]), AUGMENTED, rng)
            on_real, on_fake = d(both.detach()).flatten().chunk(2)
            trainer.d_optimizer.zero_grad()
            (functional.softplus(-on_real) + functional.softplus(on_fake)).mean().backward()
            trainer.d_optimizer.step()
            trainer.g_optimizer.zero_grad()
            functional.softplus(-d(both).flatten().chunk(2)[1]).mean().backward()
            trainer.g_optimizer.step()
            update_average(trainer.ema, g, ema_weight(torch.tensor(step), 0.999))
            step += 1
            yield
            if step == steps:
                return


def verdict(claim: str, ratios: list[float], dead: int) -> str:
    """Say whether runs without a guideline bear the paper out, by what it is about as multiples of that with it."""
    if dead:
        said = f"{dead} of {dead + len(ratios)} died"
        return f"holds: {said}" if claim else said
    grows, falls = min(ratios) > CLEAR, max(ratios) < 1 / CLEAR
    if not claim:
        return "worse" if grows else "better" if falls else "as good"
    return "holds" if grows else "the other way round" if falls else "does not show here"


def measures(row: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """The figures of a run: distance at the end, movement in its second half, step that is half-way to ours."""
    mark = list(ours["distances"].values())[CHECKPOINTS // 2 - 1]
    reached = [int(step) for step, distance in row["distances"].items() if distance <= mark]
    moves = median(list(row["moved"].values())[CHECKPOINTS // 2 - 1 :])
    return {"distance": end(row), "moves": moves, "half-way": min(reached, default=float("inf"))}


def table(rows: list[dict[str, Any]], name: str) -> str:
    """Format the runs on a set as Markdown: medians of the seeds, of what each claim is about as multiples of ours."""
    lines = ["| variant | the paper | distance | moves | half-way | beside ours | |", "|---|---|---|---|---|---|---|"]
    ours = {row["seed"]: row for row in rows if (row["set"], row["variant"]) == (name, OURS)}
    for variant in VARIANTS:
        runs = [row for row in rows if (row["set"], row["variant"]) == (name, variant.name) and row["seed"] in ours]
        if not runs:
            continue
        alive = [row for row in runs if not row["collapse"]]
        figures = [measures(row, ours[row["seed"]]) for row in alive]
        key = variant.claim or "distance"
        with_it = [measures(ours[row["seed"]], ours[row["seed"]]) for row in alive]
        ratios = [mine[key] / theirs[key] for mine, theirs in zip(figures, with_it, strict=True)]
        cells = [write(median(f[what] for f in figures)) if alive else "" for what in ("distance", "moves", "half-way")]
        span = " to ".join(dict.fromkeys(write(ratio, 2) for ratio in (min(ratios), max(ratios)))) if ratios else ""
        said = "" if variant.name == OURS else verdict(variant.claim, ratios, len(runs) - len(alive))
        compared = "" if variant.name == OURS or not span else f"{key} × {span}"
        lines.append(f"| {variant.name} | {variant.says} | {' | '.join(cells)} | {compared} | {said} |")
    return "\n".join(lines)


def write(figure: float, digits: int = 3) -> str:
    return "never" if figure == float("inf") else f"{figure:.{digits}g}"


def end(row: dict[str, Any]) -> float:
    return list(row["distances"].values())[-1]


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the distances of each group of variants over the steps, medians of the seeds, ours in black."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    groups = list(dict.fromkeys(variant.group for variant in VARIANTS))
    for axes, group in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, groups, strict=True):
        for variant in VARIANTS:
            runs = [row["distances"] for row in rows if row["variant"] == variant.name and row["distances"]]
            if not runs or (variant.group != group and variant.name != OURS):
                continue
            steps = [step for step in runs[0] if all(step in run for run in runs)]
            style = {"color": "black", "linewidth": 2.0} if variant.name == OURS else {}
            distances = [median(run[step] for run in runs) for step in steps]
            axes.plot(list(map(int, steps)), distances, label=variant.name, **style)
        axes.set(title=group, yscale="log")
        axes.legend(fontsize=6, frameon=False)
    figure.supxlabel("step")
    figure.supylabel("distance from the images")
    figure.savefig(path)


def draw_samples(folder: Path, name: str, path: Path) -> None:
    """Put the pictures of the first seed's 64 latents beside each other, each with what it was trained without."""
    from torchvision.transforms.functional import pil_to_tensor

    files = {variant.name: picture_path(folder, name, variant.name, 0) for variant in VARIANTS}
    there = {variant: pil_to_tensor(Image.open(file)) for variant, file in files.items() if file.exists()}
    if missing := [variant for variant in files if variant not in there]:
        print(f"{path} is without {', '.join(missing)}")
    captions = [variant.replace("β₁", "beta1") for variant in there]
    images.save_png(path, images.grid(images.caption(torch.stack(list(there.values())), captions), columns=4, gap=8))


def picture_path(folder: Path, name: str, variant: str, seed: int) -> Path:
    return folder / f"{Path(name).name}-{variant.replace(' ', '-')}-{seed}.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["digits"], help="datasets, or folders of images")
    parser.add_argument("--root", type=Path, help="folder that holds the datasets")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="parts of the names of variants to run")
    parser.add_argument("--out", type=Path, default=Path("runs/guidelines"))
    options = parser.parse_args()
    if options.steps % CHECKPOINTS or options.steps <= 0:
        parser.error(f"--steps must be a multiple of {CHECKPOINTS}, got {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rows.jsonl"
    chosen = [v for v in VARIANTS if not options.only or any(part in v.name for part in [OURS, *options.only])]
    for name in options.sets:
        grey = name in ("digits", "mnist", "fashion-mnist")
        known = name in data.DATASETS
        root = None if name == "digits" else options.root if known else Path(name)
        pictures = data.load(name if known else "folder", root=root, image_size=SIDE, channels=1 if grey else 3)
        shown = np.sort(np.random.default_rng(0).permutation(len(pictures))[:REAL])
        real = moments(image_features(pictures.batch(shown)))
        for seed in range(options.seeds):
            for variant in chosen:
                key = {"set": name, "variant": variant.name, "seed": seed, "steps": options.steps}
                if any(key.items() <= row.items() for row in read_json_lines(log)):
                    continue
                row = key | train(
                    variant, pictures, real, options.steps, seed, picture_path(options.out, name, variant.name, seed)
                )
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name}, {variant.name}, seed {seed}: {row['collapse'] or end(row)} in {row['seconds']} s")
        rows = [row for row in read_json_lines(log) if (row["set"], row["steps"]) == (name, options.steps)]
        print(f"\n{name}\n{table(rows, name)}\n")
        draw_curves(rows, options.out / f"curves-{Path(name).name}.png")
        draw_samples(options.out, name, options.out / f"samples-{Path(name).name}.png")


if __name__ == "__main__":
    main()
