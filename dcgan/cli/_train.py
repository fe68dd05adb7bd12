"""`dcgan train`."""

import tempfile
import time
from contextlib import closing, nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dcgan._allocator import keep_memory
from dcgan._errors import InputError
from dcgan.cli import _processes
from dcgan.cli._messages import count
from dcgan.cli._options import FLAG, RecipeOptions, locate_errors
from dcgan.cli._terminal import (
    UsageError,
    collect_signals,
    exit_on_error,
    hides_bars,
    log_above_progress_bar,
    progress_bar,
    say,
)
from dcgan.cli._watch import page
from dcgan.recipe import Recipe

if TYPE_CHECKING:
    from dcgan.run import Run

_DEFAULTS = RecipeOptions()


def train(
    *,
    out: Path | None = None,
    resume: Path | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,  # noqa: ARG001 - read by read_recipe_file
    recipe: Annotated[str | None, Parameter(metavar="NAME")] = None,  # noqa: ARG001 - read by read_recipe_file
    config: Path | None = None,  # noqa: ARG001 - read by read_recipe_file
    print_recipe: Annotated[bool, FLAG] = False,
    dry_run: Annotated[bool, FLAG] = False,
    watch: Annotated[bool, FLAG] = False,
    options: Annotated[RecipeOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Train a DCGAN; without any options, on handwritten digits that need no download.

    Ctrl-C or SIGTERM finishes the current step, saves, and prints how to resume.

    Started by torchrun, as torchrun --nproc-per-node 2 -m dcgan train, several processes train together, each on its
    part of every batch. With torchrun's --max-restarts, the run in --out goes on when it is started again.

    Args:
        out: New folder for the run; by default runs/DATA.
        resume: Folder of a run to continue exactly as if it had not been interrupted.
        from_: Folder of a run to start a new one from: its networks and the moments of Adam as in its newest state,
            and its recipe with the options given here.
        recipe: Name of a recipe, which `dcgan recipes` lists, or YAML file of options; options on the command line
            override it.
        config: YAML file of options; the older spelling of --recipe.
        print_recipe: Print every option with the value it would have, in the format that --recipe reads, and exit.
        dry_run: Do a whole run of a single step, in a temporary folder.
        watch: Open the page of dcgan explore on the run in the browser; it follows the run until training ends.
        options: The options of the run.
    """
    with exit_on_error():
        if print_recipe:
            say(options.resolve().to_yaml().rstrip())
            return 0
        if resume is not None and out is not None:
            raise UsageError("a resumed run stays in its folder: omit --out")
        if resume is not None and dry_run:
            raise UsageError("--dry-run starts a new run: omit --resume")
        if watch and dry_run:
            raise UsageError("--dry-run ends before there is anything to see: omit --watch")
        if watch:
            from dcgan.explore._server import expect_gradio

            expect_gradio()
        if _processes.may_restart() and out is None and resume is None and not dry_run:
            raise UsageError("torchrun --max-restarts needs --out, the folder in which the run goes on")
        if resume is None:
            _expect_used(options)
    keep_memory()
    with _processes.process_group():
        if dry_run:
            return _try_one_step(options, out)
        return _train(options, out, resume, watch=watch)


def _try_one_step(options: Recipe, out: Path | None) -> int:
    with exit_on_error():
        from dcgan._run_folder import expect_empty

        expect_empty(out)
        options.resolve()  # as it is: the run of a single step has no epochs to contradict
    with tempfile.TemporaryDirectory() as folder:
        _train_to_the_end(_open_run(options.replace(steps=1, epochs=None, log=()), Path(folder), None))
    say("dry run: trained, sampled and saved one step; nothing was kept")
    return 0


def _train(options: Recipe, out: Path | None, resume: Path | None, *, watch: bool) -> int:
    began = time.perf_counter()
    run = _open_run(options, out, resume)
    folder = quote(str(run.folder))
    command = f"{_processes.launcher()} train"
    if run.trainer.steps >= run.steps:
        run.close()
        if resume is None:  # torchrun has started anew what was done
            say(f"{run.folder} has completed all of its {run.steps} steps")
            return 0
        more = f"to train longer: {command} --resume {folder} --steps N"
        if run.recipe.lr_decay:
            more = f"to start a new run from its networks: {command} --from {folder}"
        raise UsageError(f"{run.folder} has completed all of its {run.steps} steps; {more}")
    with page(run.folder) if watch and _processes.process_rank() == 0 else nullcontext():
        if stopped_by := _train_to_the_end(run):
            say(f"\nstopped at step {run.trainer.steps} of {run.steps}, and saved; to resume:")
            say(f"  {command} --resume {folder}")
            return 128 + stopped_by
        _conclude(run, round(time.perf_counter() - began))
    return 0


def _expect_used(options: Recipe) -> None:
    """Check that the dataset of a new run uses what is given; an older run may have been given more."""
    if options.data not in ("digits", "fake"):
        return
    for name in ("skip_bad", "max_pixels"):
        if getattr(options, name):
            raise InputError(f"the dataset {options.data!r} takes no {name}, which is for image files")
    size = options.image_size
    if options.resize != "crop" and (not isinstance(size, tuple) or size[0] == size[1]):
        raise InputError(
            f"the dataset {options.data!r} takes no resize {options.resize}: its images and the image size are square"
        )


def _conclude(run: "Run", seconds: int) -> None:
    folder = quote(str(run.folder))
    minutes, seconds = divmod(seconds, 60)
    say(f"\ntrained {run.trainer.steps} steps in {minutes}:{seconds:02d}")
    for label, line in run.summary().items():
        say(f"  {label:<10} {line}")
    say(f"  pictures   {run.folder}/samples.gif, {run.folder}/samples/, {run.folder}/curves.png")
    say(f"  networks   {run.folder}/  (Generator.from_pretrained({str(run.folder)!r}))")
    say("next:")
    say(f"  dcgan generate {folder} -n 64 --out samples")
    if run.best_step not in (None, run.trainer.steps):
        say(f"  dcgan generate {folder} -n 64 --step best --out best")
    if not run.recipe.lr_decay and not run.trainer.collapse:
        say(f"  {_processes.launcher()} train --resume {folder} --steps {2 * run.steps}")


def _open_run(recipe: Recipe, out: Path | None, resume: Path | None) -> "Run":
    with (
        locate_errors(resume, recipe),
        exit_on_error(),
        log_above_progress_bar(),
        progress_bar("decoding", "img") as progress,
    ):
        from dcgan._run_folder import find_continuation, remove_stillborn
        from dcgan.run import Run

        if out is not None and _processes.is_restarted() and _processes.process_rank() == 0:
            remove_stillborn(out)
        if out is not None and _processes.may_restart() and (continued := find_continuation(out, recipe)):
            resume, recipe = out, continued
        if resume is None:
            run = Run.start(recipe, out, progress=progress)
        else:
            run = Run.resume(resume, recipe, progress=progress)
    _describe(run)
    return run


def _describe(run: "Run") -> None:
    from dcgan.data._sources import describe_left_out

    images, recipe = run.images, run.recipe
    where = ""
    if images.path is not None:
        where = f", packed in {images.path} ({images.path.stat().st_size / 2**20:.1f} MiB)"
    height, width = images.image_size
    classes = run.trainer.generator.config["num_classes"]
    kinds = f" of {classes} classes" if classes is not None else ""
    say(f"data      {recipe.data}: {count(len(images), 'image')}{kinds} {height}x{width}x{images.channels}{where}")
    if images.skipped:
        file, reason = images.skipped[0]
        say(f"          skipped {count(len(images.skipped), 'file')}, such as {file}: {reason}")
    if images.left_out:
        say(f"          left out: {describe_left_out(images.left_out)}")
    sizes = [sum(p.numel() for p in n.parameters()) for n in (run.trainer.generator, run.trainer.discriminator)]
    origin = f"of {recipe.generator}" if recipe.generator else recipe.architecture
    say(f"networks  {origin}: generator {sizes[0]:,} parameters, discriminator {sizes[1]:,}")
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (run.trainer.g_optimizer, run.trainer.d_optimizer)]
    say(f"rates     generator {rates[0]:g}, discriminator {rates[1]:g}")
    steps = f"step {run.trainer.steps} to {run.steps}, {count(run.batch_size, 'image')} each"
    where = f"on {run.trainer.device}"
    if (processes := _processes.process_count()) > 1:
        where = f"in {processes} processes of {(recipe.batch_size or 0) // processes}, on {run.trainer.device.type}"
    say(f"run       {run.folder}: {steps}, {where}")


def _train_to_the_end(run: "Run") -> int:
    """Train to the last step and return 0, or to a signal and return its number."""
    from tqdm import tqdm

    from dcgan._distributed import largest

    with (
        closing(run),
        exit_on_error(running=True),
        log_above_progress_bar(),
        collect_signals() as received,
        tqdm(total=run.steps, initial=run.trainer.steps, unit="step", disable=hides_bars(), dynamic_ncols=True) as bar,
    ):
        last_line = time.perf_counter()
        for record in run.train():
            bar.update()
            if record is not None:
                bar.set_postfix_str(_summarize(record))
                if bar.disable and time.perf_counter() - last_line > 10:  # an occasional line, for log files
                    last_line = time.perf_counter()
                    say(f"step {run.trainer.steps} of {run.steps}: {_summarize(record)}")
            # A signal may reach one process alone, or several at different steps.
            if run.trainer.steps < run.steps and (signal := largest(received[0] if received else 0)):
                run.save()
                return signal
    return 0


def _summarize(record: dict[str, Any]) -> str:
    names = {"d_loss": "D", "g_loss": "G", "d_real": "D(x)", "d_fake": "D(G(z))"}
    figures = [f"{label} {record[name]:.3f}" for name, label in names.items() if name in record]
    return "  ".join([*figures, f"{record['images_per_second']:.0f} img/s"])
