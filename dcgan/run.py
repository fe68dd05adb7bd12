"""A training run in a folder: data, networks, trainer, log, samples, checkpoints.

The folder has the layout of a Hub repository, so that everything that loads networks can load it:

    config.json  model.safetensors  README.md    the averaged generator and its card
    discriminator/                               the discriminator's two files
    recipe.yaml  metrics.jsonl  curves.png
    samples/step-000500.png  samples.gif
    state/step-000500.pt                         what `Run.resume` needs: the last ones, and the best
"""

import base64
import logging
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from filelock import FileLock
from torch import Tensor

from dcgan import _build, _distributed, _log, _run_folder, checkpoint, data, images
from dcgan._errors import DcganError, InputError
from dcgan._files import atomic_write
from dcgan._loggers import Logger, open_loggers
from dcgan._optim import RateDecay
from dcgan._quality import Evaluator
from dcgan.checkpoint import step_of
from dcgan.ema import estimate_generator_statistics
from dcgan.generate import sample_grid
from dcgan.hub._card import is_unchanged, model_card, seal
from dcgan.models import Discriminator, Generator
from dcgan.recipe import Recipe, load_recipe
from dcgan.trainer import Trainer, statistics_latents

if TYPE_CHECKING:
    from PIL import Image

# What a resumed run may change: nothing that affects its numbers, except for the device and compilation, which round
# and draw random numbers differently.
RESUMABLE = {
    *("steps", "epochs", "log_every", "sample_every", "save_every", "eval_every", "keep", "log", "on_collapse"),
    *("root", "cache", "cache_dir", "workers", "device", "compile"),
}

# A collapse late in a run shows in the figures of quality alone: the last ones are this many times the best.
_DECLINE, _STEPS_OF_DECLINE = 3, 2

logger = logging.getLogger(__name__)


class CollapseError(DcganError, RuntimeError):
    """Training has collapsed, and the recipe asks to stop then."""


class Run:
    """One training run; `start` creates one, `resume` continues one.

    In a process group of several processes, each calls the same methods: each trains on its part of every batch, and
    the first writes all files, in a folder that the others can read. `recipe.batch_size` is that of the joint batch.

    Attributes:
        folder: Where its files are.
        recipe: What it computes, resolved.
        trainer: The networks and their optimisers.
        images: The dataset.
        batch_size: Number of images per step.
        steps: Number of steps to train in total.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        images: data.Images,
        trainer: Trainer[Generator, Discriminator],
        lock: FileLock | None,
    ):
        if recipe.batch_size is None:
            raise InputError("recipe must be resolved")
        self.folder, self.recipe, self.images, self.trainer = folder, recipe, images, trainer
        self.batch_size = recipe.batch_size
        self._processes = _distributed.process_count()
        per_epoch = data.Batches(images, self.batch_size, processes=self._processes).steps_per_epoch
        self.steps = recipe.steps or (recipe.epochs or 1) * per_epoch
        # Before a state is loaded, whose rates may have fallen already.
        optimizers = (trainer.g_optimizer, trainer.d_optimizer)
        self._decay = RateDecay(optimizers, recipe.lr_decay, self.steps)
        self._decay.set(trainer.steps)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._began, self._logged = time.perf_counter(), trainer.steps  # when the last record was logged, and its step
        self._figures: dict[int, float] = {}  # the figure of quality at each step that has one
        self._evaluator: Evaluator | None = None
        self._declined = False  # by the figures since this process began
        self._loggers: list[Logger] = []
        self._lock = lock  # of the first process, which writes

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        folder: str | PathLike[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Create a run from a recipe, in its own folder.

        Args:
            recipe: What to compute.
            folder: A new or empty folder; by default `runs/DATA`, with a number if that is taken.
            progress: Called with the number of images decoded so far and their total, while a dataset is packed.

        Raises:
            FileExistsError: If the folder is not empty.
            ImportError: If the package of a logger is missing.
            ValueError: If the recipe, the dataset and the networks to start from do not fit together.
            OSError: If the folder cannot be written.
        """
        folder, lock = None if folder is None else Path(folder), None
        writes = _distributed.process_rank() == 0
        with _distributed.fail_together():
            if writes:
                _run_folder.expect_empty(folder)
            device = _build.select_device(recipe.device)
            chosen = recipe.batch_size
            recipe, generator, discriminator = _build.build_networks(recipe)
            images = _build.open_images(recipe, progress)
            recipe = _build.fit_batch_size(recipe, chosen, images)
        trainer = _build.build_trainer(recipe, generator.to(device), discriminator.to(device))
        _build.adopt_state(recipe, trainer)
        with _distributed.fail_together():
            if writes:
                _run_folder.expect_empty(folder)  # packing may have taken minutes
                was_there = folder is not None and folder.exists()
                folder = _run_folder.create_folder(folder, recipe.data)
                lock = _run_folder.acquire_lock(folder)
        run = cls(_distributed.gather(folder or Path())[0], recipe, images, trainer, lock)
        with _distributed.fail_together():
            if writes:
                run._write_first(keep_folder=was_there)
        return run

    def _write_first(self, *, keep_folder: bool) -> None:
        try:
            self._write("recipe.yaml", self.recipe.to_yaml())
            self._loggers = open_loggers(self.recipe.log, self.folder, config=self.recipe.to_yaml())
            generator = self.ema_generator()
            self.sample(generator)
            self._save(generator)  # so that there is always something to resume
        except BaseException:
            self.close()
            for path in self.folder.iterdir():  # which was new or empty a moment ago
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not keep_folder:
                self.folder.rmdir()
            raise

    @classmethod
    def resume(
        cls,
        folder: str | PathLike[str],
        recipe: Recipe | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Continue from the newest checkpoint in `folder`.

        Args:
            folder: The folder of a run.
            recipe: The run's recipe, in which the fields of `RESUMABLE` may be changed; by default unchanged.
            progress: As in `start`.

        Raises:
            FileNotFoundError: If the folder holds no run or no checkpoint.
            ValueError: If the recipe changes another field or asks for fewer steps than are done, the newest checkpoint
                is damaged, or the images are not those that training began with.
        """
        folder, lock = Path(folder), None
        with ExitStack() as on_failure:
            with _distributed.fail_together():
                if not (stored_path := folder / "recipe.yaml").is_file():
                    raise FileNotFoundError(_run_folder.describe_missing(folder))
                if not checkpoint.list_states(folder / "state"):
                    raise FileNotFoundError(
                        f"{folder} has no state to resume from: start again in another folder, or remove it"
                    )
                stored = load_recipe(stored_path)
                recipe = _extend(folder, stored, recipe or stored)
                device = _build.select_device(recipe.device)
                if _distributed.process_rank() == 0:
                    lock = _run_folder.acquire_lock(folder)
                    on_failure.callback(lock.release)
                # Under the lock, so that it is the last one of the previous holder.
                state = _run_folder.load_newest(folder)
                _expect_recipe_of(state, stored, stored_path)
                generator, discriminator = _build.networks_of(state, folder)
                images = _build.open_images(recipe, progress)
            trainer = _build.build_trainer(recipe, generator.to(device), discriminator.to(device))
            run = cls(folder, recipe, images, trainer, lock)
            on_failure.callback(run.close)
            with _distributed.fail_together(), run._naming_the_last_state():
                run._restore(state)
            on_failure.pop_all()
        return run

    def _restore(self, state: dict[str, Any]) -> None:
        if len(self.images) != state["images"]:
            raise InputError(
                f"the dataset has {len(self.images)} images, but had {state['images']} when training began"
            )
        kind, _, content = state.get("fingerprint", "").partition(":")  # none before 0.3
        kind_now, _, content_now = self.images.fingerprint.partition(":")
        if kind and kind != kind_now:
            logger.warning("the images could not be compared with those of before: packed and unpacked ones differ")
        elif kind and content != content_now:
            raise InputError("the dataset has as many images as when training began, but other ones")
        self._decay.set(state["trainer"]["steps"])  # so that the state's rates are no news
        self.trainer.load_state_dict(state["trainer"])
        self._decay.set(self.trainer.steps)
        if self.trainer.steps > self.steps:
            raise InputError(
                f"{self.folder} is already at step {self.trainer.steps}, beyond the requested {self.steps} steps"
            )
        self._sums = {name: value.to(self.trainer.device) for name, value in state["sums"].items()}
        self._counts = state["counts"]
        self._figures = state.get("figures", {})  # none before 0.3
        if not self._writes:
            return
        step = self.trainer.steps
        if step < self.steps:  # before the recipe is written, which the next resumption reads
            self._loggers = open_loggers(self.recipe.log, self.folder, config=self.recipe.to_yaml(), resume_step=step)
        self._write("recipe.yaml", self.recipe.to_yaml())
        self._discard_after(step)
        self._write_files(self.ema_generator())  # what the previous process may not have come to

    def train(self) -> Iterator[dict[str, Any] | None]:
        """Train to the last step, yielding after each: the record that was logged, or None.

        A record has the step, the mean of each metric since the last record, the images per second, `fd`, the figure of
        quality, where it was computed, and `collapse`, a description, while training is collapsed. The caller may stop
        between steps, and then `save`.

        Raises:
            CollapseError: If training has collapsed and the recipe asks to stop then; the state is saved.
            FloatingPointError: If training diverges, naming the step, the network and the last good checkpoint.
            OSError: If something cannot be saved, as on a full disk, naming the file and the last good checkpoint.
        """
        recipe = self.recipe
        self._began, self._logged = time.perf_counter(), self.trainer.steps
        batches = data.Batches(
            self.images,
            self.batch_size,
            seed=recipe.seed,
            flip=recipe.flip,
            start=self.trainer.steps,
            device=self.trainer.device,
            rank=_distributed.process_rank(),
            processes=self._processes,
        )
        with self._naming_the_last_state():
            for metrics in self.trainer.iterate(batches.with_labels() if recipe.conditional else batches, self.steps):
                for name, value in metrics.items():
                    self._sums[name] = self._sums.get(name, 0) + value
                    self._counts[name] = self._counts.get(name, 0) + 1
                self._decay.set(self.trainer.steps)  # for the next step, and for a state that is saved now
                yield self._report()
                collapsed = self.trainer.collapse or self._declined
                if collapsed and recipe.on_collapse == "stop" and self.trainer.steps < self.steps:
                    self._save()
                    raise CollapseError(f"stopped and saved at step {self.trainer.steps}: {self.collapse}")

    @contextmanager
    def _naming_the_last_state(self) -> Iterator[None]:
        """Add to the errors of training and of saving from which state one can go on."""
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self._last_good()}") from error
        except OSError as error:
            if error.errno is not None:
                error.strerror = f"{error.strerror}; {self._last_good()}, from which --resume goes on"
            raise

    def _last_good(self) -> str:
        states = checkpoint.list_states(self.folder / "state")
        return f"the last good state is {states[-1]}" if states else "no state had been saved"

    def _report(self) -> dict[str, Any] | None:
        """Evaluate, log, sample and save if it is time to; return what was logged, if anything."""
        recipe, step, record = self.recipe, self.trainer.steps, None
        last = step == self.steps
        evaluate_now = self._is_due(recipe.eval_every) or (last and step > (recipe.eval_every or step))
        evaluate_now = evaluate_now and len(self.images) > 1
        log_now = self._is_due(recipe.log_every) or last or evaluate_now
        sample_now = self._is_due(recipe.sample_every) or last
        save_now = self._is_due(recipe.save_every) or last
        if log_now:
            self.trainer.check()  # waits for the device, so that its work is timed
        paused = time.perf_counter()
        generator = self.ema_generator() if self._writes and (evaluate_now or sample_now or save_now) else None
        if evaluate_now:
            self._add_figure(generator)
            save_now = save_now or self.best_step == step
        if log_now:
            record = self._log((step - self._logged) * self.batch_size / (paused - self._began))
            self._began, self._logged = paused, step
        if sample_now:
            self.sample(generator)
        if save_now:
            self._save(generator)
        self._began += time.perf_counter() - paused
        return record

    def save(self, generator: Generator | None = None) -> Path:
        """Write a checkpoint, the networks and the animation of the samples; return the checkpoint's path.

        Args:
            generator: What `ema_generator` has returned since the last step, if it was called.

        Raises:
            FloatingPointError: If the weights are not finite; then nothing is written.
            OSError: If something cannot be saved, naming it and the last good checkpoint, as `train` does.
        """
        with self._naming_the_last_state():
            self._save(generator)
        return self.folder / "state" / f"step-{self.trainer.steps:06d}.pt"

    def _save(self, generator: Generator | None = None) -> None:
        self.trainer.check()
        if not self._writes:
            return
        generator = generator or self.ema_generator()
        state = {
            "trainer": self.trainer.state_dict(),
            "recipe": self.recipe.to_yaml(),
            "configs": {"generator": generator.config, "discriminator": self.trainer.discriminator.config},
            "sums": self._sums,
            "counts": self._counts,
            "images": len(self.images),
            "fingerprint": self.images.fingerprint,
            "figures": self._figures,
        }
        checkpoint.save(self.folder / "state", state, step=self.trainer.steps, keep=None)
        self._write_files(generator)

    def _write_files(self, generator: Generator) -> None:
        """Write all that is made from the state, the log and the samples, and remove outdated states."""
        generator.save_pretrained(self.folder)
        self.trainer.discriminator.save_pretrained(self.folder)
        card = self.folder / "README.md"
        if not card.exists() or is_unchanged(card.read_text(encoding="utf-8", errors="replace")):
            self._write("README.md", seal(self._card()))
        if records := _log.read(self.folder / "metrics.jsonl"):
            images.save_curves(self.folder / "curves.png", records)
        if frames := self._frames():
            stride = -(-len(frames) // 100)  # at most 100 frames
            images.save_gif(self.folder / "samples.gif", frames[::-1][::stride][::-1])
        checkpoint.prune(self.folder / "state", self._kept_steps())

    def _kept_steps(self) -> set[int]:
        """Return the steps whose states stay: the last ones that were due, the best one, and this one."""
        steps = map(step_of, checkpoint.list_states(self.folder / "state"))
        kept = {*[step for step in steps if self._is_due_state(step)][-self.recipe.keep :], self.trainer.steps}
        return kept if self.best_step is None else kept | {self.best_step}

    def _is_due_state(self, step: int) -> bool:
        """Whether an unbroken run saves its state at a step, which a signal or a caller may also do at others."""
        every, figures = self.recipe.save_every, self._figures
        improved = step in figures and all(figures[step] < figures[other] for other in figures if other < step)
        return every is None or step % every == 0 or step == self.steps or improved

    def sample(self, generator: Generator | None = None) -> Path:
        """Write a grid of images from fixed latents, with a row for each class; return its path.

        `generator` is as in `save`.
        """
        path = self.folder / "samples" / f"step-{self.trainer.steps:06d}.png"
        if not self._writes:
            return path
        picture = sample_grid(generator or self.ema_generator(), self.recipe.samples, seed=self.recipe.seed)
        path.parent.mkdir(exist_ok=True)
        images.save_png(path, picture)
        for logger in self._loggers:
            logger.picture(self.trainer.steps, path)
        return path

    def evaluate(self, generator: Generator | None = None) -> float:
        """Return the figure of quality: how far generated images are from real ones; lower is better.

        It is the Fréchet distance between the `metrics.image_features` of 2,000 samples of a fixed seed and of 5,000
        images of the dataset, or of all if there are fewer. `generator` is as in `save`.
        """
        if self._evaluator is None:
            self._evaluator = Evaluator(self.images, self.trainer.device)
        return self._evaluator.frechet_distance(generator or self.ema_generator(), seed=self.recipe.seed + 2)

    @property
    def best_step(self) -> int | None:
        """The step with the best figure of quality so far, whose state is kept; None if there is no figure."""
        return min(self._figures, key=self._figures.__getitem__, default=None)

    @property
    def collapse(self) -> str | None:
        """How training has collapsed: as the trainer found it, or from its figures of quality; None if it has not."""
        return self.trainer.collapse or self._find_decline()

    def _find_decline(self) -> str | None:
        best, steps = self.best_step, sorted(self._figures)[-_STEPS_OF_DECLINE:]
        if (
            best is None
            or self.recipe.eval_every is None
            or not all(self._figures[step] > _DECLINE * self._figures[best] for step in steps)
        ):
            return None
        return (
            f"the distance from the images was {self._figures[best]:g} at step {best}, and has been more than "
            f"{_DECLINE} times that since step {steps[0]}"
        )

    def _add_figure(self, generator: Generator | None) -> None:
        """Compute the figure of this step, and warn when the last ones tell of a collapse."""
        step, figure = self.trainer.steps, None
        try:
            figure = self.evaluate(generator) if self._writes else None
        except RuntimeError as error:  # such as a device that is out of memory: a figure is not worth a run
            logger.warning("step %d: no figure of quality could be computed: %s", step, error)
        figure = _distributed.gather(figure)[0]
        if figure is None:
            return
        self._figures[step] = figure
        decline = self._find_decline()
        if decline and not self._declined:
            logger.warning("step %d: training has collapsed: %s. The state of the best step is kept", step, decline)
        self._declined = decline is not None

    def summary(self) -> dict[str, str]:
        """Describe in words how training has gone so far, from its log; each entry is a line with its label."""
        return _log.summarize(_log.read(self.folder / "metrics.jsonl"), self._figures)

    def _repr_html_(self) -> str:
        """Return how training has gone so far, its curves and its last samples, as a notebook shows a run."""
        from PIL import Image

        lines = {"folder": str(self.folder), "steps": f"{self.trainer.steps:,} of {self.steps:,}", **self.summary()}
        rows = (f'<tr><th scope="row">{name}</th><td>{escape(line)}</td></tr>' for name, line in lines.items())
        parts = [f"<table>{''.join(rows)}</table>"]
        if records := _log.read(self.folder / "metrics.jsonl"):
            parts.append(_embed(Image.fromarray(images.draw_curves(records)), "curves"))
        if frames := self._frames():
            with Image.open(frames[-1]) as picture:
                parts.append(_embed(picture, f"samples of step {step_of(frames[-1])}"))
        return f"<div>{''.join(parts)}</div>"

    def ema_generator(self) -> Generator:
        """Return a copy of the generator as it is sampled and saved: averaged, in evaluation mode.

        The BatchNorm statistics of the averaged weights are estimated over 1024 seeded latents.
        """
        return self.trainer.averaged()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what loggers report, and release the folder to other processes."""
        try:
            for logger in self._loggers:
                logger.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    @property
    def _writes(self) -> bool:
        """Whether this process writes the files, as one of several does."""
        return self._lock is not None

    def _log(self, images_per_second: float) -> dict[str, Any]:
        means = {name: round(float(total) / self._counts[name], 6) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        record: dict[str, Any] = {"step": self.trainer.steps, **means, "images_per_second": round(images_per_second, 1)}
        if self.trainer.steps in self._figures:
            record["fd"] = self._figures[self.trainer.steps]
        if collapse := self.collapse:
            record["collapse"] = collapse
        if self._writes:
            _log.append(self.folder / "metrics.jsonl", record)
        for logger in self._loggers:
            logger.log(self.trainer.steps, record)
        return record

    def _discard_after(self, step: int) -> None:
        """Remove what was logged and sampled after `step`, and files that a killed process left half written."""
        _log.rewind(self.folder / "metrics.jsonl", step)
        for frame in self._frames():
            if not _run_folder.is_whole(frame):
                frame.replace(frame.with_name(f"{frame.name}.damaged"))
                logger.warning("%s is damaged, and set aside as %s.damaged", frame, frame.name)
        late = [frame for frame in self._frames() if step_of(frame) > step]
        temporary = [path for path in self.folder.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]
        for leftover in (*late, *temporary):
            leftover.unlink()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.trainer.steps % every == 0

    def _frames(self) -> list[Path]:
        """Return the paths of the sample grids, sorted by step."""
        frames = (self.folder / "samples").glob("step-*.png")
        return sorted((path for path in frames if re.fullmatch(r"step-\d+\.png", path.name)), key=step_of)

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as file:
            file.write(text.encode())

    def _card(self) -> str:
        recipe = self.recipe
        inside = not self.folder.is_absolute() and ".." not in self.folder.parts and len(self.folder.parts) > 1
        name = self.folder.as_posix() if inside else f"./{self.folder.name}"
        return model_card(
            name.encode(errors="backslashreplace").decode(),  # it may be no text
            self.trainer.generator.config,
            architecture=None if recipe.generator else recipe.architecture,
            dataset=None if recipe.data in ("folder", "wds", "hf", "fake") else recipe.data,
            steps=self.trainer.steps,
            batch_size=recipe.batch_size,
            recipe=recipe.without_paths().to_yaml(),
            picture="samples.gif",
        )


def load_generator(folder: str | PathLike[str], step: int | Literal["best"]) -> Generator:
    """Load the averaged generator of a run as it was at a step whose state is kept, in evaluation mode, on the CPU.

    Args:
        folder: The folder of a run.
        step: Number of the step, or "best" for the one with the best figure of quality.

    Raises:
        FileNotFoundError: If the folder holds no run, or no state of that step.
    """
    folder = Path(folder)
    states = {step_of(path): path for path in checkpoint.list_states(folder / "state")}
    if not states:
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no state/step-….pt")
    if step == "best":
        figures = _build.load_state(states[max(states)]).get("figures", {})  # none before 0.3
        if not figures:
            raise FileNotFoundError(
                f"{folder} has no figure of quality to choose by: pass one of {_join_steps(states)}"
            )
        step = min(figures, key=figures.__getitem__)
    if step not in states:
        raise FileNotFoundError(f"{folder} has no state of step {step}: it keeps those of {_join_steps(states)}")
    state = _build.load_state(states[step])
    generator, _ = _build.networks_of(state, folder)
    weights = state["trainer"]
    generator.load_state_dict(weights["ema" if "ema" in weights else "generator"])
    recipe = load_recipe(folder / "recipe.yaml")
    return estimate_statistics(generator, recipe.seed) if "ema" in weights else generator


def estimate_statistics(average: Generator, seed: int) -> Generator:
    """Estimate the BatchNorm statistics of averaged weights in place, over 1024 seeded latents and classes in turn."""
    config = average.config
    z = statistics_latents((config["latent_dim"],), config["latent"], seed)
    estimate_generator_statistics(average, z, num_classes=config["num_classes"])
    return average


def _join_steps(steps: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(steps)))


def _embed(picture: "Image.Image", name: str) -> str:
    """Return a picture, made smaller if it is large, as HTML that needs no file."""
    picture.thumbnail((900, 900))
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{name}" src="data:image/webp;base64,{data}" style="max-width:100%"/></p>'


def _expect_recipe_of(state: dict[str, Any], stored: Recipe, path: Path) -> None:
    """Check that a recipe in the folder of a run is still that of its state, but for what a resumed run may change."""
    if "recipe" not in state:  # before 0.3
        return
    trained = Recipe.from_yaml(state["recipe"])

    def values(names: Iterable[str]) -> str:
        return ", ".join(f"{name} is {getattr(stored, name)} instead of {getattr(trained, name)}" for name in names)

    changed = stored.changes(trained)
    if edited := [name for name in changed if name not in RESUMABLE]:
        raise InputError(f"{path} is not the recipe of this run any more: {values(edited)}")
    if changed:
        logger.info("%s differs from the newest state: %s", path, values(changed))


def _extend(folder: Path, stored: Recipe, recipe: Recipe) -> Recipe:
    # A new length replaces the old one, in whichever unit either is given.
    if recipe.steps not in (None, stored.steps):
        recipe = recipe.replace(epochs=None)
    elif recipe.epochs != stored.epochs:
        recipe = recipe.replace(steps=None)
    recipe = recipe.resolve()
    resumable = RESUMABLE - {"steps", "epochs"} if stored.lr_decay else RESUMABLE  # its rates lead to its last step
    if fixed := [name for name in recipe.changes(stored) if name not in resumable]:
        raise InputError(
            f"a resumed run cannot change {', '.join(fixed)}; it can change {', '.join(sorted(resumable))}. A new run "
            "that starts from its networks can:\n"
            f"  {shlex.join(['dcgan', 'train', '--from', str(folder), *recipe.options(recipe.changes(stored))])}"
        )
    return recipe
