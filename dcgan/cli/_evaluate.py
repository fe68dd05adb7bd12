"""`dcgan evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from dcgan import __version__
from dcgan._choices import DatasetName, Resize
from dcgan._labelled import Split
from dcgan.cli import _processes
from dcgan.cli._arguments import expect_new, load_generator, write_json
from dcgan.cli._options import COUNT, FLAG, NATURAL, STEP, WORDS
from dcgan.cli._real_images import (
    COMPARED,
    RealImages,
    Reference,
    choose,
    compute_parts,
    find_source,
    measure_reference,
    open_images,
)
from dcgan.cli._terminal import UsageError, exit_on_error, log_above_progress_bar, progress_bar, say, say_table

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dcgan.metrics import FeatureExtractor, PixelShares
    from dcgan.models import Generator

_MIN_FID = 10_000  # images, below which a FID says more about their number than about them
_PIXELS = 2_000  # images of either kind, at most, whose pixels are counted: as many of both, since shares depend on it
_SUBSETS, _SUBSET_SIZE, _NEIGHBORS, _SPLITS = 100, 1000, 3, 10  # the usual ones


def evaluate(
    model: str = "digits",
    *,
    data: DatasetName | None = None,
    root: Path | None = None,
    split: Split = "train",
    resize: Resize | None = None,
    classes: Annotated[tuple[str, ...], WORDS] = (),
    number: Annotated[int, Parameter(name=["--number", "-n"]), COUNT] = 10_000,
    real_number: Annotated[int | None, COUNT] = None,
    features: str = "classifier",
    weights: Path | None = None,
    few: Annotated[bool, FLAG] = False,
    seed: Annotated[int, NATURAL] = 0,
    step: Annotated[int | Literal["best"] | None, STEP] = None,
    out: Path = Path("evaluation.json"),
    force: Annotated[bool, FLAG] = False,
    skip_bad: Annotated[bool, FLAG] = False,
    cache: Annotated[bool, Parameter(show_default=False)] = True,
    cache_dir: Path | None = None,
    batch_size: Annotated[int, COUNT] = 64,
    device: str = "auto",
) -> int:
    """Measure how far a generator's images are from real ones: distances, precision and recall, diversity.

    Prints the figures with their protocol, and writes both as JSON. Started by torchrun, as torchrun --nproc-per-node 2
    -m dcgan evaluate, each process generates a part of the images, and measures a part of either kind.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        data: Dataset to compare with, at the size of the generator's images; by default that of the run, or the one
            that has the name of the model, or else folder if --root is given.
        root: Folder that holds the dataset, or that it is downloaded to; for folder, the images; by default that of the
            run.
        split: The training images, or the test images of a labelled dataset.
        resize: How images get their size, as in training; by default as the run had it, or crop.
        classes: Categories of lsun.
        number: Number of images to generate.
        real_number: Number of real images, drawn at random, always the same; by default all.
        features: Network whose features are compared: classifier, which comes with the package; inception, for FID, KID
            and Inception Score; another name that torch-fidelity knows, such as vgg16; or MODULE:NAME of your own.
        weights: File of the weights of a network of torch-fidelity, where they cannot be downloaded.
        few: Compute a FID of fewer than 10,000 images, which is too high and comparable with no other.
        seed: Seed of the latents.
        step: Of a run, take the generator as it was at this step, or at the best one, instead of the last.
        out: JSON file to write.
        force: Overwrite an existing file.
        skip_bad: Leave out unreadable images.
        cache: Keep decoded images and the statistics of real ones on disk, and take them from there.
        cache_dir: Folder to keep them in; by default ~/.cache/dcgan.
        batch_size: Number of images computed at once.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        _expect_new_json(out, force=force)
        fid = features in ("inception", "inception-v3-compat")
        if fid and not few:
            _expect_many("-n", number)
    with _processes.process_group():
        from dcgan._build import select_device
        from dcgan._distributed import fail_together
        from dcgan.data import cache_folder
        from dcgan.metrics import FeatureExtractor

        with exit_on_error(), fail_together():
            chosen = select_device(device)
            generator = load_generator(model, chosen, step).float()
            source = find_source(model, data, root, split, resize, classes)
            size = {"image_size": generator.config["image_size"], "channels": generator.config["channels"]}
            with log_above_progress_bar(), progress_bar("decoding", "img") as progress:
                kept = {"cache": cache, "cache_dir": cache_dir, "skip_bad": skip_bad, "progress": progress}
                real = open_images(source, size | kept, with_labels=generator.config["num_classes"] is not None)
            real_count = min(real_number or real.count, real.count)
            if fid and not few:
                _expect_many("real", real_count)
            if min(number, real_count) <= _NEIGHBORS:
                raise UsageError(
                    f"there must be more than {_NEIGHBORS} images of either kind, got {number:,} generated and "
                    f"{real_count:,} real"
                )
            extractor = FeatureExtractor(features, weights=weights, device=chosen)
            folder = cache_folder(cache_dir) if cache else None
        which = model if step is None else f"{model}, step {step}"
        say(f"generated  {which}: {number:,} images of seed {seed}, by running BatchNorm statistics, in 8 bits")
        counted = f"{real_count:,} images, {'all' if real_count == real.count else f'of {real.count:,}'}"
        say(f"real       {source.name}, {source.split}: {counted}, at {real.shape} by {source.resize}")
        with exit_on_error():
            reference = measure_reference(real, real_count, extractor, batch_size, folder)
            images = _generate(generator, number, seed, extractor, batch_size, keep_all=real.labels is not None)
    if reference is None or images is None:  # the first process has them
        return 0
    hashed = f", weights {extractor.identity}" if extractor.identity else ""
    say(f"features   {features}: {reference.features.shape[1]:,} an image{hashed}")
    with exit_on_error():
        figures = _measure(images, reference, _compare_pixels(real, real_count, images.pixels))
        if real.labels is not None:
            figures.append(_measure_classes(real, real.labels, images.pixels, generator.config["num_classes"]))
    say_table([["figure", "value", "how"], *([figure.name, str(figure), figure.how] for figure in figures)])
    record: dict[str, Any] = {"dcgan": __version__, "model": model, "step": step, "seed": seed, "number": number}
    record |= {"data": source.name, "split": source.split, "size": real.shape, "resize": source.resize}
    record |= {"real_number": real_count, "real_available": real.count}
    record |= {"features": features, "feature_count": reference.features.shape[1], "network": extractor.identity}
    record["figures"] = {
        figure.key: {"value": figure.value, "spread": figure.spread, "how": figure.how} for figure in figures
    }
    with exit_on_error(running=True):
        write_json(out, record)
    say(f"written to {out}")
    return 0


def _expect_new_json(out: Path, *, force: bool) -> None:
    if out.suffix.lower() != ".json" or out.is_dir():
        raise UsageError(f"--out must be a .json file, got {out}")
    expect_new(out, force=force)


def _expect_many(which: str, count: int) -> None:
    if count < _MIN_FID:
        raise UsageError(
            f"a FID takes at least {_MIN_FID:,} images, got {which} {count:,}: with fewer it is too high and "
            "comparable with no other; --few computes it all the same"
        )


class _Generated(NamedTuple):
    """Of all images in their order, features `(N, F)`, and logits, if the network has any; and pixels of the first."""

    features: "Tensor"
    logits: "Tensor | None"
    pixels: "Tensor"


def _generate(
    generator: "Generator", number: int, seed: int, extractor: "FeatureExtractor", batch_size: int, *, keep_all: bool
) -> _Generated | None:
    """Generate images, and compute their features; None unless in the first process."""
    import torch

    from dcgan.generate import sample_uint8

    def compute(start: int, end: int) -> "tuple[Tensor | None, ...]":
        images = sample_uint8(generator, end - start, seed=seed, start=start, batch_size=batch_size)
        return *extractor.extract(images, batch_size=batch_size), images if start < _PIXELS or keep_all else None

    if not (parts := compute_parts("generating", number, compute)):
        return None
    kept = [[tensor for tensor in column if tensor is not None] for column in zip(*parts, strict=True)]
    features, logits, pixels = (torch.cat(column) if column else None for column in kept)
    return _Generated(features, logits, pixels)  # type: ignore[arg-type]  # only logits may be missing


class _PixelShares(NamedTuple):
    number: int
    generated: "PixelShares"
    real: "PixelShares"


def _compare_pixels(real: RealImages, count: int, generated: "Tensor") -> _PixelShares:
    """Return the shares of dead and saturated pixels in as many generated and real images."""
    import numpy as np

    from dcgan.metrics import pixel_shares

    number = min(_PIXELS, count, len(generated))
    order = np.random.default_rng(1).permutation(count)
    chosen = choose(real, count)[np.sort(order[:number])]
    return _PixelShares(number, pixel_shares(generated[:number]), pixel_shares(real.batch(chosen).contiguous()))


class _Figure(NamedTuple):
    key: str
    name: str
    value: float
    how: str
    spread: float | None = None
    digits: str = ".4g"

    def __str__(self) -> str:
        return f"{self.value:{self.digits}}" + ("" if self.spread is None else f" ± {self.spread:.2g}")


def _measure(images: _Generated, reference: Reference, shares: "_PixelShares") -> list[_Figure]:
    from dcgan.metrics import diversity, frechet_distance, kernel_distance, precision_recall

    fake, logits, number = images.features, images.logits, len(images.features)
    compared = min(number, COMPARED, len(reference.features))
    fakes, reals = fake[:compared], reference.features[:compared]
    distance = frechet_distance(reference.moments, fake)
    kernel, spread = kernel_distance(reference.features, fake[:COMPARED], subsets=_SUBSETS, subset_size=_SUBSET_SIZE)
    precision, recall = precision_recall(reals, fakes, neighbors=_NEIGHBORS)

    size = min(_SUBSET_SIZE, len(reference.features), number)
    names = ("Fréchet distance", "kernel distance") if logits is None else ("FID", "KID")
    subsets = (
        f"{_SUBSETS} subsets of {size:,} of {compared:,} images, ± 1 standard deviation"
        if spread
        else f"{size:,} images of either"
    )
    near = f"{_NEIGHBORS} neighbours among {compared:,} images of either kind"
    dead = f"alike in {shares.number:,} images; of as many real ones {shares.real.dead:.2%}"
    figures = [
        _Figure("frechet_distance", names[0], distance, f"{number:,} generated and {reference.number:,} real images"),
        _Figure(
            "kernel_distance",
            names[1],
            kernel,
            subsets,
            spread or None,
        ),
        _Figure("precision", "precision", precision, near, digits=".3f"),
        _Figure("recall", "recall", recall, near, digits=".3f"),
        _Figure(
            "diversity", "diversity", diversity(reals, fakes), f"of {compared:,} images; real ones have 1", digits=".3f"
        ),
        _Figure("dead_pixels", "dead pixels", shares.generated.dead, dead, digits=".2%"),
        _Figure(
            "saturated_pixels",
            "saturated pixels",
            shares.generated.saturated,
            f"of real images {shares.real.saturated:.2%}",
            digits=".2%",
        ),
    ]
    if logits is not None:
        figures.insert(2, _inception_score(logits))
    return figures


def _measure_classes(real: RealImages, labels: "np.ndarray", images: "Tensor", classes: int) -> _Figure:
    import numpy as np
    import torch

    from dcgan.features import classify_by_neighbor

    chosen = np.sort(np.random.default_rng(0).permutation(real.count)[:COMPARED])
    drawn = torch.arange(len(images)) % classes  # in turn, as `sample_uint8` draws them
    found = classify_by_neighbor(real.batch(chosen).contiguous(), images, drawn).numpy()
    error = float(np.mean(found != labels[chosen]))
    how = f"of {len(found):,} real images, each by the nearest generated one, in pixels"
    return _Figure("neighbor_error", "1-NN error", error, how, digits=".2%")


def _inception_score(logits: "Tensor") -> _Figure:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    score = isc_features_to_metric(logits, _SPLITS)
    how = f"{_SPLITS} splits of {len(logits):,} images, ± 1 standard deviation"
    return _Figure("inception_score", "Inception Score", score[KEY_METRIC_ISC_MEAN], how, score[KEY_METRIC_ISC_STD])
