"""`dcgan features`."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dcgan._choices import Precision
from dcgan._labelled import LabelledName
from dcgan.cli._options import COUNT, FLAG, NATURAL
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
    nearest: Annotated[int, NATURAL] = 8,
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

    Writes results.json, and nearest.png: samples of the generator, each with the training images nearest to it.

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
        paths = [out / "results.json"] + ([out / "nearest.png"] if nearest else [])
        if (existing := next((path for path in paths if path.exists()), None)) and not force:
            raise UsageError(f"{existing} exists: --force overwrites it")
        if out.is_file():
            raise UsageError(f"--out must be a folder, but {out} is a file")

        from dcgan._build import select_device
        from dcgan._labelled import load_labelled
        from dcgan.data import cache_folder
        from dcgan.images import VALUE_RANGES, from_uint8
        from dcgan.models import Discriminator

        discriminator = Discriminator.from_pretrained(model, device=select_device(device)).float()
        generator = _load_generator(model, discriminator)
        name: LabelledName = data or ("digits" if root is None else "folder")
        options: dict[str, Any] = {"root": root, "seed": seed, "skip_bad": skip_bad}
        options |= {"image_size": discriminator.config["image_size"], "channels": discriminator.config["channels"]}
        options |= {"cache": cache, "cache_dir": cache_dir}
        with log_above_progress_bar(), progress_bar("decoding", "img") as progress:
            train = load_labelled(name, "train", number=number, progress=progress, **options)
        with log_above_progress_bar(), progress_bar("decoding", "img") as progress:
            test = load_labelled(name, "test", number=test_number, progress=progress, **options)
        shape = "x".join(str(train.images.shape[side]) for side in (2, 3, 1))
        counts = f"{len(train.labels):,} training and {len(test.labels):,} test images {shape}"
        say(f"data      {name}: {counts}, {len(set(train.labels.tolist()))} classes")

        kept = cache_folder() if cache_dir is None else cache_dir.expanduser()
        values = VALUE_RANGES["tanh" if generator is None else generator.config["output"]]
        pool = _Pooling(grid, precision, values, batch_size, kept if cache else None)
        frozen = train.images if batchnorm == "training" else None
        protocol = {"per_class": per_class, "draws": draws, "validation": validation, "seed": seed}
        results = {}
        pixels = [from_uint8(part.images).flatten(1) for part in (train, test)]
        results["pixels"] = _classify("pixels", pixels, train.labels, test.labels, protocol)
        # The running statistics of a new network are of no image: only training images can normalise it.
        random = _random_network(discriminator, seed)
        pooled = [pool("random network", random, part.images, train.images) for part in (train, test)]
        results["random network"] = _classify("random network", pooled, train.labels, test.labels, protocol)
        pooled = [pool(model, discriminator, part.images, frozen) for part in (train, test)]
        results[model] = _classify(model, pooled, train.labels, test.labels, protocol)
        _say_results(results, protocol)

    record: dict[str, Any] = {"model": model, "data": name}
    record |= {"training_images": len(train.labels), "test_images": len(test.labels), **protocol}
    record |= {"batchnorm": batchnorm, "grid": grid, "precision": precision, "results": results}
    with exit_on_error(running=True):
        from dcgan._files import atomic_write

        out.mkdir(parents=True, exist_ok=True)
        if generator is not None and nearest:
            record["distances"] = _find_nearest(
                generator,
                lambda images: pool(model, discriminator, images, frozen),
                {"pixels": pixels, "features": pooled},
                train.images,
                out / "nearest.png",
                nearest,
                seed,
            )
        with atomic_write(out / "results.json") as file:
            file.write(f"{json.dumps(record, indent=1)}\n".encode())
    say(f"written to {out}")
    return 0


def _load_generator(model: str, discriminator: "Discriminator") -> "Generator | None":
    from dcgan.models import Generator

    try:
        generator = Generator.from_pretrained(model, device=next(discriminator.parameters()).device)
    except FileNotFoundError as error:  # of a discriminator alone
        say(f"no samples: {error}", error=True)
        return None
    return generator.float()


def _random_network(discriminator: "Discriminator", seed: int) -> "Discriminator":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = type(discriminator)(**discriminator.config)
    return network.to(next(discriminator.parameters()).device)


@dataclass(frozen=True)
class _Pooling:
    """Computes pooled features, or takes them from a file of an earlier call."""

    grid: int
    precision: Precision
    value_range: tuple[float, float]
    batch_size: int
    folder: Path | None

    def __call__(self, label: str, network: "nn.Module", images: "Tensor", statistics: "Tensor | None") -> "Tensor":
        import numpy as np
        import torch

        from dcgan._files import atomic_write

        path = None
        if self.folder is not None:
            path = self.folder / f"features-{self._key(network, images, statistics)}.npy"
            if path.exists():
                return torch.from_numpy(np.load(path))
        pooled = self._compute(label, network, images, statistics)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, durable=False) as file:
                np.save(file, pooled.numpy())
        return pooled

    def _compute(self, label: str, network: "nn.Module", images: "Tensor", statistics: "Tensor | None") -> "Tensor":
        from dcgan.features import pooled_features

        with progress_bar(f"features of {label}", "img") as progress:
            return pooled_features(
                network,
                images,
                grid=self.grid,
                batchnorm_images=statistics,
                value_range=self.value_range,
                batch_size=self.batch_size,
                precision=self.precision,
                progress=progress,
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
    label: str, pooled: "list[Tensor]", labels: "Tensor", test_labels: "Tensor", protocol: dict[str, Any]
) -> dict[str, Any]:
    from dcgan.features import classify_by_neighbor, linear_probe

    train, test = pooled
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


def _find_nearest(
    generator: "Generator",
    pool: "Any",
    references: "dict[str, list[Tensor]]",
    images: "Tensor",
    path: Path,
    number: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Draw the training images nearest to some samples; return how far more samples, and test images, are from them."""
    import torch

    from dcgan.features import nearest_neighbors
    from dcgan.generate import sample_uint8
    from dcgan.images import from_uint8, grid, save_png

    samples = sample_uint8(generator, max(number, _COMPARED), seed=seed).cpu()
    vectors = {"pixels": from_uint8(samples).flatten(1), "features": pool(samples)}
    parts, distances = [grid(samples[:number], columns=1)], {}
    for space, (train, test) in references.items():
        near, indices = nearest_neighbors(vectors[space], train, k=min(_NEIGHBORS, len(train)))
        others, _ = nearest_neighbors(test[:_COMPARED], train)
        distances[space] = {"samples": near[:, 0].median().item(), "test": others[:, 0].median().item()}
        parts += [
            torch.full_like(parts[0][:, :, :_GAP], 255),
            grid(images[indices[:number].flatten()], columns=near.shape[1]),
        ]
    save_png(path, torch.cat(parts, 2))
    for space, median in distances.items():
        figures = f"{median['samples']:.3g} for samples, {median['test']:.3g} for test images"
        say(f"median distance to the nearest training image, in {space}: {figures}")
    return distances
