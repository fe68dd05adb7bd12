"""`dcgan features`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from dcgan._choices import Precision
from dcgan._labelled import LabelledImages, LabelledName
from dcgan._numbers import MAX_PICTURED
from dcgan.cli import _processes
from dcgan.cli._arguments import expect_new, expect_unconditional, load_generator, write_json
from dcgan.cli._options import COUNT, FLAG, INTEGER, NATURAL
from dcgan.cli._terminal import UsageError, exit_on_error, log_above_progress_bar, progress_bar, say, say_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcgan.models import Discriminator, Generator

_VERSION = 1  # part of the name of cached features: raise it when the same networks and images give others
_COMPARED = 500  # samples, and test images, whose distances to the training images are compared
_NEIGHBORS = 4  # of each sample, in the picture
_GAP = 6  # pixels between the parts of the picture


def features(
    model: str = "digits",
    *,
    data: LabelledName | None = None,
    root: Path | None = None,
    number: Annotated[int | None, COUNT] = None,
    test_number: Annotated[int | None, COUNT] = None,
    per_class: Annotated[int | None, COUNT] = None,
    draws: Annotated[int, COUNT] = 100,
    validation: Annotated[int | None, COUNT] = None,
    batchnorm: Literal["training", "running"] = "training",
    grid: Annotated[int, COUNT] = 4,
    nearest: Annotated[int, INTEGER, Parameter(validator=Number(gte=0, lte=MAX_PICTURED))] = 8,
    seed: Annotated[int, NATURAL] = 0,
    out: Path = Path("features"),
    force: Annotated[bool, FLAG] = False,
    skip_bad: Annotated[bool, FLAG] = False,
    cache: Annotated[bool, Parameter(show_default=False)] = True,
    cache_dir: Path | None = None,
    batch_size: Annotated[int, COUNT] = 256,
    precision: Precision = "fp32",
    device: str = "auto",
) -> int:
    """Classify images by a discriminator's features, beside raw pixels and a random network (the paper's Section 5).

    Writes results.json, and nearest.png: samples of the generator, each with the training images nearest to it. Started
    by torchrun, as torchrun --nproc-per-node 2 -m dcgan features, each process computes the features of a part.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of saved networks; or Hub repository.
        data: Labelled images to classify, scaled to the size of the network's; by default digits, or folder if --root
            is given.
        root: Folder that holds the data, or that it is downloaded to; for folder, one with a folder of images for each
            class, or with folders train and test that hold these.
        number: Number of training images, drawn at random; by default all.
        test_number: Number of test images, drawn at random; by default all.
        per_class: Number of labelled images of each class, 100 in the paper's Table 2, in each of several draws; by
            default all labels are used, once.
        draws: Number of draws that are tested, with --per-class; C is chosen by as many others, but at most ten.
        validation: Number of training images to choose C by; by default 10,000, but at most a fifth.
        batchnorm: Normalise with the statistics of training images, as the paper's authors do, or the running ones.
        grid: Side of the grid that activations are pooled to.
        nearest: Number of samples in the picture; 0 for none.
        seed: Seed of the choice of images, of the draws, of the random network and of the samples.
        out: Folder to write to.
        force: Overwrite existing files.
        skip_bad: Leave out unreadable images.
        cache: Keep decoded images and features on disk, and take them from there.
        cache_dir: Folder to keep them in; by default ~/.cache/dcgan.
        batch_size: Number of images computed at once.
        precision: Floating-point format to compute in.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        _expect_new(out, ["results.json", *(["nearest.png"] if nearest else [])], force=force)
    with _processes.process_group():
        from dcgan._build import select_device
        from dcgan._distributed import fail_together
        from dcgan.data import cache_folder
        from dcgan.features import split
        from dcgan.images import VALUE_RANGES, from_uint8
        from dcgan.models import Discriminator

        with exit_on_error(), fail_together():
            discriminator = Discriminator.from_pretrained(model, device=select_device(device)).float()
            expect_unconditional(discriminator, model)
            generator = _load_generator(model, discriminator)
            name: LabelledName = data or ("digits" if root is None else "folder")
            options = {"root": root, "seed": seed, "skip_bad": skip_bad, "cache": cache, "cache_dir": cache_dir}
            train, test = _load_images(name, number, test_number, discriminator.config, options)
            split(train.labels.numpy(), per_class=per_class, validation=validation, seed=seed)  # before hours of work
            samples = _sample(generator, nearest, seed, train.images)
            parts = [train.images, test.images, samples]
            folder = cache_folder(cache_dir) if cache else None
        with exit_on_error():
            values = VALUE_RANGES["tanh" if generator is None else generator.config["output"]]
            pool = _Pooling(grid, precision, values, batch_size, folder)
            # The running statistics of a new network are of no image: only training images can normalise it.
            at_random = pool("random network", _random_network(discriminator, seed), parts[:2], train.images)
            pooled = pool(model, discriminator, parts, train.images if batchnorm == "training" else None)
    if _processes.process_rank():  # the first process has all features
        return 0
    pixels = [from_uint8(part).flatten(1) for part in parts]
    protocol = {"per_class": per_class, "draws": draws, "validation": validation, "seed": seed}
    with exit_on_error():
        results = {
            label: _classify(label, vectors, train.labels, test.labels, protocol)
            for label, vectors in (("pixels", pixels), ("random network", at_random), (model, pooled))
        }
    _say_results(results, protocol)

    record: dict[str, Any] = {"model": model, "data": name}
    record |= {"training_images": len(train.labels), "test_images": len(test.labels), **protocol}
    record |= {"batchnorm": batchnorm, "grid": grid, "precision": precision, "results": results}
    with exit_on_error(running=True):
        out.mkdir(parents=True, exist_ok=True)
        if len(samples):
            spaces = {"pixels": pixels, "features": pooled}
            record["distances"] = _compare_samples(spaces)
            _draw_nearest(out / "nearest.png", samples[:nearest], train.images, spaces)
        write_json(out / "results.json", record)
    say(f"written to {out}")
    return 0


def _expect_new(folder: Path, names: list[str], *, force: bool) -> None:
    if folder.is_file():
        raise UsageError(f"--out must be a folder, but {folder} is a file")
    expect_new(*(folder / name for name in names), force=force)


def _load_images(
    name: LabelledName,
    number: int | None,
    test_number: int | None,
    config: dict[str, Any],
    options: dict[str, Any],
) -> list[LabelledImages]:
    from dcgan._labelled import load_labelled

    options = options | {"image_size": config["image_size"], "channels": config["channels"]}
    splits: list[LabelledImages] = []
    for split, count in (("train", number), ("test", test_number)):
        with log_above_progress_bar(), progress_bar("decoding", "img") as progress:
            found = load_labelled(name, split, number=count, progress=progress, **options)  # type: ignore[arg-type]  # a str
            splits.append(found)
    train, test = splits
    shape = "x".join(str(train.images.shape[side]) for side in (2, 3, 1))
    sizes = f"{len(train.labels):,} training and {len(test.labels):,} test images {shape}"
    say(f"data      {name}: {sizes}, {len(set(train.labels.tolist()))} classes")
    return splits


def _sample(generator: "Generator | None", nearest: int, seed: int, like: "Tensor") -> "Tensor":
    from dcgan.generate import sample_uint8

    if generator is None or not nearest:
        return like[:0]
    return sample_uint8(generator, max(nearest, _COMPARED), seed=seed).cpu()


def _load_generator(model: str, discriminator: "Discriminator") -> "Generator | None":
    try:
        return load_generator(model, next(discriminator.parameters()).device).float()
    except FileNotFoundError as error:  # of a discriminator alone
        if _processes.process_rank() == 0:
            say(f"no samples: {error}", error=True)
        return None


def _random_network(discriminator: "Discriminator", seed: int) -> "Discriminator":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = type(discriminator)(**discriminator.config)
    return network.to(next(discriminator.parameters()).device)


@dataclass(frozen=True)
class _Pooling:
    """Computes pooled features, or takes them from a file of an earlier call; the first process has them."""

    grid: int
    precision: Precision
    value_range: tuple[float, float]
    batch_size: int
    folder: Path | None

    def __call__(
        self, label: str, network: "nn.Module", parts: "Sequence[Tensor]", statistics: "Tensor | None"
    ) -> "Sequence[Tensor]":
        import numpy as np
        import torch

        from dcgan._distributed import gather
        from dcgan._files import atomic_write

        images, path = torch.cat(list(parts)), None
        if self.folder is not None:
            path = self.folder / f"features-{self._key(network, images, statistics)}.npy"
        is_kept = gather(path is not None and path.exists())[0]
        computed = [] if is_kept else self._compute(label, network, images, statistics)
        if _processes.process_rank():
            return ()
        pooled = torch.from_numpy(np.load(path)) if path is not None and is_kept else torch.cat(computed)
        if path is not None and not is_kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, durable=False) as file:
                np.save(file, pooled.numpy())
        return torch.split(pooled, [len(part) for part in parts])

    def _compute(
        self, label: str, network: "nn.Module", images: "Tensor", statistics: "Tensor | None"
    ) -> "list[Tensor]":
        """Compute the features, each process those of its part: whole batches, as one process would make them."""
        from dcgan._distributed import compute_parts
        from dcgan.features import pooled_features

        batches = -(-len(images) // self.batch_size)
        size = -(-batches // _processes.process_count()) * self.batch_size
        with progress_bar(f"features of {label}", "img") as progress:
            return compute_parts(
                lambda start, end: pooled_features(
                    network,
                    images[start:end],
                    grid=self.grid,
                    batchnorm_images=statistics,
                    value_range=self.value_range,
                    batch_size=self.batch_size,
                    precision=self.precision,
                    progress=progress,
                ),
                len(images),
                size,
            )

    def _key(self, network: "nn.Module", images: "Tensor", statistics: "Tensor | None") -> str:
        import torch

        config = (_VERSION, self.grid, self.precision, self.value_range, type(network).__name__)
        digest = hashlib.sha256(repr((*config, getattr(network, "config", None), images.shape)).encode())
        given = [images] if statistics is None else [images, statistics]
        for tensor in [*network.state_dict().values(), *given]:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def _classify(
    label: str, pooled: "Sequence[Tensor]", labels: "Tensor", test_labels: "Tensor", protocol: dict[str, Any]
) -> dict[str, Any]:
    from dcgan.features import classify_by_neighbor, linear_probe

    train, test = pooled[:2]
    with progress_bar(f"classifying by {label}", "fit") as progress:
        tried = min(10, protocol["draws"])
        found = linear_probe(train, labels, test, test_labels, validation_draws=tried, progress=progress, **protocol)
    result: dict[str, Any] = {"features": train.shape[1], "c": found.c, "validation_errors": found.validation_errors}
    result |= {"test_error": found.test_error, "spread": found.spread, "test_errors": list(found.test_errors)}
    if protocol["per_class"] is None:
        mistaken = classify_by_neighbor(test, train, labels) != test_labels
        result["neighbor_error"] = mistaken.double().mean().item()
    return result


def _say_results(results: dict[str, dict[str, Any]], protocol: dict[str, Any]) -> None:
    few = protocol["per_class"] is not None
    rows = [["features", "number", "C", "validation error", "test error", *([] if few else ["1-NN error"])]]
    for name, result in results.items():
        test = f"{result['test_error']:.2%}" + (f" ± {result['spread']:.2%}" if result["spread"] is not None else "")
        validation = f"{result['validation_errors'][result['c']]:.2%}"
        neighbor = [] if few else [f"{result['neighbor_error']:.2%}"]
        rows.append([name, f"{result['features']:,}", f"{result['c']:g}", validation, test, *neighbor])
    say_table(rows)
    if few:
        say(f"mean ± 1.96 standard deviations of {protocol['draws']} draws of {protocol['per_class']} images per class")


def _compare_samples(spaces: "dict[str, Sequence[Tensor]]") -> dict[str, dict[str, float]]:
    """Return how far samples, and test images, are from the nearest training image: the medians."""
    from dcgan.features import nearest_neighbors

    medians = {}
    for space, (train, test, samples) in spaces.items():
        parts = {"samples": samples[:_COMPARED], "test images": test[:_COMPARED]}
        medians[space] = {name: nearest_neighbors(part, train)[0].median().item() for name, part in parts.items()}
        figures = ", ".join(f"{distance:.3g} for {name}" for name, distance in medians[space].items())
        say(f"median distance to the nearest training image, in {space}: {figures}")
    return medians


def _draw_nearest(path: Path, samples: "Tensor", images: "Tensor", spaces: "dict[str, Sequence[Tensor]]") -> None:
    """Draw samples, one a row, each with the training images nearest to it in each of the spaces."""
    import torch

    from dcgan.features import nearest_neighbors
    from dcgan.images import grid, save_png

    parts = [grid(samples, columns=1)]
    for train, _, vectors in spaces.values():
        count = min(_NEIGHBORS, len(train))
        _, indices = nearest_neighbors(vectors[: len(samples)], train, k=count)
        gap = torch.full_like(parts[0][:, :, :_GAP], 255)
        parts += [gap, grid(images[indices.flatten()], columns=count)]
    save_png(path, torch.cat(parts, 2))
