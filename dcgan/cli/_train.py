"""What `dcgan train` does at the terminal: recipe files, the announcement, the bar, signals."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from cyclopts import App, ArgumentCollection
from cyclopts.config import Yaml

from dcgan.cli._terminal import UsageError, breakdowns, failures, mistakes, progress_bar, remarks, say, signals
from dcgan.recipe import Recipe

if TYPE_CHECKING:
    from dcgan.run import Run


def recipe_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let a recipe file, or the recipe of a run to resume, give what the command line does not."""
    given = {argument.name: argument.tokens[-1].value for argument in arguments if argument.tokens}
    if "--resume" in given and "--config" in given:
        raise UsageError("--resume brings its own recipe: leave --config out")
    if "--resume" in given:
        path = Path(given["--resume"], "recipe.yaml")
        if not path.is_file():
            raise UsageError(f"{given['--resume']} is not the folder of a run: it has no recipe.yaml")
    elif "--config" in given:
        path = Path(given["--config"])
        if not path.is_file():
            raise UsageError(f"there is no recipe file {path}")
    else:
        return
    _check_recipe_file(path)
    Yaml(path, use_commands_as_keys=False)(app, commands, arguments)
    lengths = {argument.name: argument for argument in arguments if argument.name in {"--steps", "--epochs"}}
    if len(lengths.keys() & given.keys()) == 1:
        # A length on the command line replaces that of the file, whichever unit either has.
        for name in lengths.keys() - given.keys():
            lengths[name].tokens.clear()


def _check_recipe_file(path: Path) -> None:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} must hold the fields of a recipe, such as 'steps: 1000'")
    if own := {"out", "resume", "config", "print_recipe", "dry_run"} & {str(name).replace("-", "_") for name in fields}:
        raise UsageError(
            f"{path} is a recipe, where {', '.join(sorted(own))} has no place: give it on the command line"
        )


def train_to_the_end(run: "Run") -> int:
    """Train to the end or to a signal, whose number is returned."""
    from tqdm import tqdm

    with (
        failures(),
        remarks(),
        signals() as received,
        tqdm(total=run.steps, initial=run.trainer.steps, unit="step", disable=None, dynamic_ncols=True) as bar,
    ):
        said = time.perf_counter()
        for record in run.train():
            bar.update()
            if record is not None:
                bar.set_postfix_str(_summary(record))
                if bar.disable and time.perf_counter() - said > 10:  # a log file gets a line now and then
                    said = time.perf_counter()
                    say(f"step {run.trainer.steps} of {run.steps}: {_summary(record)}")
            if received and run.trainer.steps < run.steps:
                run.save()
                return received[0]
    return 0


def _summary(record: dict[str, float]) -> str:
    names = {"d_loss": "D", "g_loss": "G", "d_real": "D(x)", "d_fake": "D(G(z))"}
    figures = [f"{label} {record[name]:.3f}" for name, label in names.items() if name in record]
    return "  ".join([*figures, f"{record['images_per_second']:.0f} img/s"])


def describe(run: "Run") -> None:
    """Say what is about to be trained, on what, and where."""
    images, recipe = run.images, run.recipe
    where = ""
    if images.path is not None:
        where = f", packed in {images.path} ({images.path.stat().st_size / 2**20:.1f} MiB)"
    height, width = images.image_size
    say(f"data      {images.name}: {len(images):,} images {height}x{width}x{images.channels}{where}")
    if images.skipped:
        say(f"          {len(images.skipped)} files left out, such as {images.skipped[0][0]}: {images.skipped[0][1]}")
    sizes = [sum(p.numel() for p in n.parameters()) for n in (run.trainer.generator, run.trainer.discriminator)]
    kind = "loaded" if recipe.generator else recipe.architecture
    say(f"networks  {kind}: generator {sizes[0]:,} parameters, discriminator {sizes[1]:,}")
    steps = f"step {run.trainer.steps} to {run.steps}, {recipe.batch_size} images each"
    say(f"run       {run.folder}: {steps}, on {run.trainer.device}")


def dry_run_of(recipe: Recipe) -> int:
    """Do all that a run does for one step, in a folder that goes away; return the exit code."""
    from dcgan.run import Run

    with tempfile.TemporaryDirectory() as folder, mistakes(), breakdowns():
        with progress_bar("decoding", "img") as progress:
            run = Run.start(recipe.replace(steps=1, epochs=None), Path(folder), progress=progress)
        describe(run)
        with failures():
            for _ in run.train():
                pass
    say("dry run: trained, sampled and saved one step; nothing was kept")
    return 0
