"""The command line: `dcgan train`, `generate`, `convert`, `export` and `bench`.

Commands import what they need when they run, so that help and mistakes are answered without torch.

Exit codes: 0 done; 1 the run failed; 2 a mistake in what was asked for; 128 + N stopped by signal N.
"""

import json
import sys
import time
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

import dcgan
from dcgan._allocator import keep_memory
from dcgan.architectures import Architecture
from dcgan.cli._terminal import RunError, UsageError, breakdowns, failures, mistakes, progress_bar, say
from dcgan.cli._train import describe, dry_run_of, recipe_file, train_to_the_end
from dcgan.recipe import SIZE, WHOLE, Compile, Precision, Recipe

_FLAG = Parameter(negative=())


_DEFAULTS = Recipe()

app = App(
    name="dcgan",
    help="Deep convolutional GANs: train them, and generate images with them.",
    version=dcgan.__version__,
    error_console=Console(stderr=True),
)


@app.command(config=recipe_file)
def train(
    *,
    out: Path | None = None,
    resume: Path | None = None,
    config: Path | None = None,  # noqa: ARG001 - read by recipe_file
    print_recipe: Annotated[bool, _FLAG] = False,
    dry_run: Annotated[bool, _FLAG] = False,
    recipe: Annotated[Recipe, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Train a DCGAN; without any option, on handwritten digits that need no download.

    Ctrl-C, or SIGTERM, finishes the step, saves, and says how to go on.

    Args:
        out: New folder of the run; by default runs/DATA.
        resume: Folder of a run to go on with, exactly as if it had not been interrupted.
        config: YAML file of options, which those on the command line override.
        print_recipe: Print all options as they would be used, in the form that --config reads, and stop.
        dry_run: Do all that a run does, for a single step, in a temporary folder.
        recipe: The options of the run.
    """
    with mistakes():
        if print_recipe:
            say(recipe.resolved().to_yaml().rstrip())
            return 0
        if resume is not None and out is not None:
            raise UsageError("a resumed run stays where it is: leave --out out")
        if resume is not None and dry_run:
            raise UsageError("--dry-run starts a run afresh: leave --resume out")
    keep_memory()
    if dry_run:
        return dry_run_of(recipe)
    from dcgan.run import Run

    began = time.perf_counter()
    with mistakes(), breakdowns(), progress_bar("decoding", "img") as progress:
        run = (
            Run.start(recipe, out, progress=progress)
            if resume is None
            else Run.resume(resume, recipe, progress=progress)
        )
    folder = quote(str(run.folder))
    describe(run)
    if run.trainer.steps >= run.steps:
        raise UsageError(
            f"{run.folder} has all its {run.steps} steps; for more: dcgan train --resume {folder} --steps N"
        )
    stopped_by = train_to_the_end(run)
    if stopped_by:
        say(f"\nstopped at step {run.trainer.steps} of {run.steps}, and saved; to go on:")
        say(f"  dcgan train --resume {folder}")
        return 128 + stopped_by
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    say(f"\ntrained {run.trainer.steps} steps in {minutes}:{seconds:02d}")
    say(f"  pictures   {run.folder}/samples.gif, {run.folder}/samples/")
    say(f"  networks   {run.folder}/  (Generator.from_pretrained({str(run.folder)!r}))")
    say("next:")
    say(f"  dcgan generate {folder} -n 64 --out samples")
    say(f"  dcgan train --resume {folder} --steps {2 * run.steps}")
    return 0


@app.command
def generate(
    model: str,
    *,
    number: Annotated[int, Parameter(name=["--number", "-n"]), WHOLE] = 64,
    out: Path = Path("samples"),
    seed: Annotated[int, WHOLE] = 0,
    start: Annotated[int, WHOLE] = 0,
    grid: Annotated[bool, _FLAG] = False,
    force: Annotated[bool, _FLAG] = False,
    batch_size: Annotated[int | None, WHOLE] = None,
    precision: Precision = "fp32",
    device: str = "auto",
) -> int:
    """Generate images as PNG files, or as one archive. Image I of a seed is the same however many are asked for.

    Args:
        model: Folder of a run or of a saved generator, or Hub repository.
        number: Number of images.
        out: Folder for them, 000000.png and so on; or a .zip of these, or a .npz with all of them as one array.
        seed: Seed of the latents.
        start: Index of the first image within the seed.
        grid: Write one picture of all, grid.png, instead.
        force: Replace files that are there.
        batch_size: Images computed at once; by default as many as make a million pixels, at most 256.
        precision: Arithmetic of the network: fp32, bf16 or fp16.
        device: Such as cpu, cuda or mps; auto takes the best there is.
    """
    with mistakes():
        for name, value, least in (
            ("-n", number, 1),
            ("--batch-size", batch_size, 1),
            ("--seed", seed, 0),
            ("--start", start, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        keep_memory()
        from dcgan._build import device_named
        from dcgan.generate import ARCHIVES, default_batch_size, existing_files, write_grid, write_images
        from dcgan.models import Generator
        from dcgan.trainer import DTYPES

        if grid and out.suffix in ARCHIVES:
            raise UsageError(f"--grid writes grid.png into a folder, and --out is an archive, {out}")
        if out.exists() and out.is_dir() == (out.suffix in ARCHIVES):
            raise UsageError(f"--out must be a folder, and {out} is a file" if out.is_file() else f"{out} is a folder")
        picture = out / "grid.png"
        there = [path for path in [picture] if path.exists()] if grid else existing_files(out, number, start=start)
        if there and not force:
            more = f", and {len(there) - 1} more of these files" if there[1:] else ""
            raise UsageError(f"{there[0]} exists{more}: --force replaces what is there")
        generator = Generator.from_pretrained(model, device=device_named(device))
        batch_size = batch_size or default_batch_size(generator)
        options: dict[str, Any] = {"seed": seed, "start": start, "batch_size": batch_size, "dtype": DTYPES[precision]}
    with failures():
        if grid:
            write_grid(generator, picture, number, **options)
        else:
            with progress_bar("generating", "img") as progress:
                for done in write_images(generator, out, number, **options):
                    progress(done, number)
    say(f"{number} images in {picture if grid else out}")
    return 0


@app.command
def convert(
    *paths: Path,
    key: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    image_size: Annotated[int | tuple[int, int] | None, SIZE] = None,
    latent: Literal["normal", "uniform"] | None = None,
    norm_eps: float | None = None,
    stem_activation: bool | None = None,
    output: Literal["tanh", "sigmoid"] | None = None,
    to: Literal["tutorial"] | None = None,
    discriminator: Annotated[bool, _FLAG] = False,
    force: Annotated[bool, _FLAG] = False,
) -> int:
    """Convert checkpoints of other programs to a folder that everything here loads, or back.

    Args:
        paths: Files to read, and the folder to write; with --to, the folder to read and the file to write.
        key: Where in its file a network is, if there are several of its kind, such as netG_ema; may be repeated.
        image_size: Side of the images, or HEIGHTxWIDTH; by default what the weights lead to.
        latent: Distribution of the latents; by default normal, and uniform for the authors' networks but SVHN's.
        norm_eps: Epsilon of the normalisations; by default 1e-5, and 1e-8 for the authors' networks.
        stem_activation: Whether a ReLU follows the generator's stem; by default it does, but for linear5.
        output: The generator's last activation; by default tanh.
        to: Write a state dict that the classes of PyTorch's example and tutorial load, instead.
        discriminator: With --to, write the discriminator rather than the generator.
        force: Replace what is there.
    """
    with mistakes():
        if len(paths) < 2:
            raise UsageError(f"convert needs at least one file to read and then what to write, got {len(paths)} paths")
        *sources, out = paths
        taken = out if to is not None else out / "config.json"
        if taken.exists() and not force:
            raise UsageError(f"{taken} exists: --force replaces it")
        if to is not None:
            from dcgan.convert import write_tutorial
            from dcgan.models import Discriminator, Generator

            if len(sources) > 1:
                raise UsageError(f"--to writes one network, got {len(sources)} to read")
            write_tutorial((Discriminator if discriminator else Generator).from_pretrained(sources[0]), out)
        else:
            import dcgan.convert

            converted = dcgan.convert.convert(
                sources,
                keys=key,
                image_size=image_size,
                latent=latent,
                norm_eps=norm_eps,
                stem_activation=stem_activation,
                output=output,
            )
            converted.save(out)
            for note in converted.notes:
                say(note)
    say(f"written to {out}")
    return 0


@app.command
def export(
    model: str,
    out: Path,
    *,
    discriminator: Annotated[bool, _FLAG] = False,
    force: Annotated[bool, _FLAG] = False,
) -> int:
    """Write a generator, or a discriminator, as ONNX, for batches of any size.

    Args:
        model: Folder of a run or of a saved generator, or Hub repository.
        out: File to write, such as generator.onnx.
        discriminator: Export the discriminator instead.
        force: Replace the file if it is there.
    """
    with mistakes():
        if out.exists() and not force:
            raise UsageError(f"{out} exists: --force replaces it")
        from dcgan.export import export_onnx
        from dcgan.models import Discriminator, Generator

        network = (Discriminator if discriminator else Generator).from_pretrained(model)
        export_onnx(network, out)
    say(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0


@app.command
def bench(
    *,
    suite: Annotated[bool, _FLAG] = False,
    architecture: Architecture = "tutorial",
    image_size: int = 64,
    channels: int = 3,
    base_channels: int = 64,
    batch_size: int = 128,
    samples: int = 1024,
    repeats: int = 5,
    precision: Precision = "fp32",
    compile: Compile = "auto",  # noqa: A002 - as in Trainer
    device: str = "auto",
    work: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Time training, reading, sampling and loading on this machine, beside the loop of the public tutorial, in turn.

    Args:
        suite: Go through the sizes, batches and networks that the documentation shows; half an hour on two cores.
        architecture: Published network.
        image_size: Side of the images in pixels.
        channels: Image channels.
        base_channels: Width of both networks next to the image.
        batch_size: Images a batch.
        samples: Images to sample, and to write.
        repeats: Rounds; the medians are reported.
        precision: Arithmetic of our side: fp32, bf16 or fp16. The tutorial's is fp32, as published.
        compile: What makes our steps faster on a CUDA device, as for train.
        device: Such as cpu, cuda or mps; auto takes the best there is.
        work: What to time: step, epoch, overhead, serve, sample, generate, archive, load, load_file, start; else all.
        as_json: Print JSON.
    """
    from dcgan.bench import SUITE, WORKS, benchmark, table

    with mistakes(), breakdowns():
        from dcgan._build import device_named

        options: dict[str, Any] = {
            "architecture": architecture,
            "image_size": image_size,
            "channels": channels,
            "base_channels": base_channels,
            "batch_size": batch_size,
            "samples": samples,
            "repeats": repeats,
            "precision": precision,
            "compile": compile,
            "device": device_named(device),
            "works": work or WORKS,
        }
        for setting in SUITE if suite else ({},):
            try:
                report = benchmark(**options | setting)
            except RuntimeError as error:
                raise RunError(str(error)) from error
            say(json.dumps(report, indent=2) if as_json else table(report) + "\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code: int = app(arguments, exit_on_error=False, result_action="return_value") or 0
    except CycloptsError:
        return 2  # already said
    except UsageError as error:
        say(f"dcgan: {error}", error=True)
        return 2
    except RunError as error:
        say(f"dcgan: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say("dcgan: interrupted", error=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except SystemExit:  # rich's own answer to a reader that went away
        return 0
    return code
