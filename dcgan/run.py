"""A training run in a folder: data, networks, trainer, log, samples, checkpoints.

The folder has the layout of a Hub repository, so that everything that loads networks can load it:

    config.json  model.safetensors  README.md    the averaged generator and its card
    discriminator/                               the discriminator's two files
    recipe.yaml  metrics.jsonl
    samples/step-000500.png  samples.gif
    state/step-000500.pt                         what `Run.resume` needs
"""

import copy
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from torch import Tensor

from dcgan import _build, checkpoint, data, ema, images
from dcgan._files import atomic_write
from dcgan.generate import sample_uint8
from dcgan.hub._card import model_card
from dcgan.latents import seeded_latents
from dcgan.models import Discriminator, Generator, from_pretrained
from dcgan.recipe import Recipe
from dcgan.trainer import Trainer

# What a resumed run may change: nothing that affects its numbers, except for the device and compilation, which round
# and draw random numbers differently.
RESUMABLE = {
    *("steps", "epochs", "log_every", "sample_every", "save_every", "keep", "on_collapse"),
    *("root", "cache", "cache_dir", "workers", "device", "compile"),
}


class CollapseError(RuntimeError):
    """Training has collapsed, and the recipe asks to stop then."""


class Run:
    """One training run; `start` creates one, `resume` continues one.

    Attributes:
        folder: Where its files are.
        recipe: What it computes, resolved.
        trainer: The networks and their optimisers.
        images: The dataset.
        batch_size: Number of images per step.
        steps: Number of steps to train in total.
    """

    def __init__(self, folder: Path, recipe: Recipe, images: data.Images, trainer: Trainer[Generator, Discriminator]):
        if recipe.batch_size is None:
            raise ValueError("recipe must be resolved")
        self.folder, self.recipe, self.images, self.trainer = folder, recipe, images, trainer
        self.batch_size = recipe.batch_size
        per_epoch = data.Batches(images, self.batch_size).steps_per_epoch
        self.steps = recipe.steps or (recipe.epochs or 1) * per_epoch
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise FileExistsError(f"another process is training in {folder}") from error

    @classmethod
    def start(
        cls, recipe: Recipe, folder: Path | None = None, *, progress: Callable[[int, int], None] | None = None
    ) -> Self:
        """Create a run from a recipe, in its own folder.

        Args:
            recipe: What to compute.
            folder: A new or empty folder; by default `runs/DATA`, with a number if that is taken.
            progress: Called with the number of images decoded so far and their total, while a dataset is packed.

        Raises:
            FileExistsError: If the folder is not empty.
            ValueError: If the recipe, the dataset and the networks to start from do not fit together.
            OSError: If the folder cannot be written.
        """
        _expect_empty(folder)
        device = _build.select_device(recipe.device)
        recipe, generator, discriminator = _build.build_networks(recipe)
        images = _build.open_images(recipe, progress)
        trainer = _build.build_trainer(recipe, generator.to(device), discriminator.to(device))
        _expect_empty(folder)  # packing may have taken minutes
        run = cls(_create_folder(folder, recipe.data), recipe, images, trainer)
        try:
            run._write("recipe.yaml", recipe.to_yaml())
            generator = run.ema_generator()
            run.sample(generator)
            run.save(generator)  # so that there is always something to resume
        except BaseException:
            run.close()
            shutil.rmtree(run.folder)  # new or empty a moment ago
            raise
        return run

    @classmethod
    def resume(
        cls, folder: Path, recipe: Recipe | None = None, *, progress: Callable[[int, int], None] | None = None
    ) -> Self:
        """Continue from the newest checkpoint in `folder`.

        Args:
            folder: The folder of a run.
            recipe: The run's recipe, in which the fields of `RESUMABLE` may be changed; by default unchanged.
            progress: As in `start`.

        Raises:
            FileNotFoundError: If the folder holds no run or no checkpoint.
            ValueError: If the recipe changes another field or asks for fewer steps than are done, or the number of
                images in the dataset has changed.
        """
        if not (stored_path := folder / "recipe.yaml").is_file():
            raise FileNotFoundError(f"{folder} is not the folder of a run: it has no recipe.yaml")
        if not checkpoint.list_states(folder / "state"):
            raise FileNotFoundError(f"{folder} has no checkpoint to resume from: start again in another folder")
        stored = Recipe.from_yaml(stored_path.read_text(encoding="utf-8"))
        recipe = _extend(stored, recipe or stored)
        device = _build.select_device(recipe.device)
        generator, discriminator = from_pretrained(folder, device=device)
        images = _build.open_images(recipe, progress)
        run = cls(folder, recipe, images, _build.build_trainer(recipe, generator, discriminator))
        try:
            run._restore()
        except BaseException:
            run.close()
            raise
        return run

    def _restore(self) -> None:
        # Read under the lock, so that it is the last state of the previous holder.
        state = checkpoint.load(checkpoint.list_states(self.folder / "state")[-1])
        if len(self.images) != state["images"]:
            raise ValueError(
                f"the dataset has {len(self.images)} images, but had {state['images']} when training began"
            )
        self.trainer.load_state_dict(state["trainer"])
        if self.trainer.steps > self.steps:
            raise ValueError(
                f"{self.folder} is already at step {self.trainer.steps}, beyond the requested {self.steps} steps"
            )
        self._sums = {name: value.to(self.trainer.device) for name, value in state["sums"].items()}
        self._counts = state["counts"]
        self._write("recipe.yaml", self.recipe.to_yaml())
        self._discard_after(self.trainer.steps)

    def train(self) -> Iterator[dict[str, Any] | None]:
        """Train to the last step, yielding after each: the record that was logged, or None.

        A record has the step, the mean of each metric since the last record, the images per second, and `collapse`, a
        description, while training is collapsed. The caller may stop between steps, and then `save`.

        Raises:
            CollapseError: If training has collapsed and the recipe asks to stop then; the state is saved.
            FloatingPointError: If training diverges, naming the step, the network and the last good checkpoint.
        """
        recipe, began, done = self.recipe, time.perf_counter(), self.trainer.steps
        batches = data.Batches(
            self.images,
            self.batch_size,
            seed=recipe.seed,
            flip=recipe.flip,
            start=self.trainer.steps,
            device=self.trainer.device,
        )
        try:
            for metrics in self.trainer.iterate(batches, self.steps):
                step, record = self.trainer.steps, None
                last = step == self.steps
                for name, value in metrics.items():
                    self._sums[name] = self._sums.get(name, 0) + value
                    self._counts[name] = self._counts.get(name, 0) + 1
                if step % recipe.log_every == 0 or last:
                    self.trainer.check()  # waits for the device, so that its work is timed
                    record = self._log((step - done) * self.batch_size / (time.perf_counter() - began))
                    began, done = time.perf_counter(), step
                sample_now, save_now = step % recipe.sample_every == 0 or last, step % recipe.save_every == 0 or last
                if sample_now or save_now:
                    paused = time.perf_counter()
                    generator = self.ema_generator()
                    if sample_now:
                        self.sample(generator)
                    if save_now:
                        self.save(generator)
                    began += time.perf_counter() - paused
                yield record
                if self.trainer.collapse and recipe.on_collapse == "stop" and not last:
                    self.save()
                    raise CollapseError(f"stopped and saved at step {step}: {self.trainer.collapse}")
        except FloatingPointError as error:
            states = checkpoint.list_states(self.folder / "state")
            good = f"the last good state is {states[-1]}" if states else "no state had been saved"
            raise FloatingPointError(f"{error}; {good}") from error

    def save(self, generator: Generator | None = None) -> Path:
        """Write a checkpoint, the networks and the animation of the samples; return the checkpoint's path.

        Args:
            generator: What `ema_generator` has returned since the last step, if it was called.

        Raises:
            FloatingPointError: If the weights are not finite; then nothing is written.
        """
        self.trainer.check()
        state = {
            "trainer": self.trainer.state_dict(),
            "sums": self._sums,
            "counts": self._counts,
            "images": len(self.images),
        }
        # The networks go first: where there is a state, there are networks for `resume` to load it into.
        (generator or self.ema_generator()).save_pretrained(self.folder)
        self.trainer.discriminator.save_pretrained(self.folder)
        path = checkpoint.save(self.folder / "state", state, step=self.trainer.steps, keep=self.recipe.keep)
        self._write("README.md", self._card())
        if frames := self._frames():
            stride = -(-len(frames) // 100)  # at most 100 frames
            images.save_gif(self.folder / "samples.gif", frames[::-1][::stride][::-1])
        return path

    def sample(self, generator: Generator | None = None) -> Path:
        """Write a grid of images from fixed latents; return its path. `generator` is as in `save`."""
        samples = sample_uint8(generator or self.ema_generator(), self.recipe.samples, seed=self.recipe.seed)
        path = self.folder / "samples" / f"step-{self.trainer.steps:06d}.png"
        path.parent.mkdir(exist_ok=True)
        images.save_png(path, images.grid(samples))
        return path

    def ema_generator(self) -> Generator:
        """Return a copy of the generator as it is sampled and saved: averaged, in evaluation mode.

        The BatchNorm statistics of the averaged weights are estimated over 1024 seeded latents.
        """
        if self.trainer.ema is None:
            return copy.deepcopy(self.trainer.generator).eval()
        generator = copy.deepcopy(self.trainer.ema)
        config = generator.config
        z = seeded_latents(1024, config["latent_dim"], seed=self.recipe.seed + 1, distribution=config["latent"])
        ema.estimate_batchnorm_statistics(generator, z.to(self.trainer.device).chunk(8))
        return generator

    def close(self) -> None:
        """Release the folder to other processes."""
        self._lock.release()

    def _log(self, images_per_second: float) -> dict[str, Any]:
        means = {name: round(float(total) / self._counts[name], 6) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        record: dict[str, Any] = {"step": self.trainer.steps, **means, "images_per_second": round(images_per_second, 1)}
        if self.trainer.collapse:
            record["collapse"] = self.trainer.collapse
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def _discard_after(self, step: int) -> None:
        """Remove what was logged and sampled after `step`, and files that a killed process left half written."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
        self._write("metrics.jsonl", "".join(kept))
        late = [frame for frame in self._frames() if _frame_step(frame) > step]
        temporary = [path for path in self.folder.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]
        for leftover in (*late, *temporary):
            leftover.unlink()

    def _frames(self) -> list[Path]:
        """Return the paths of the sample grids, sorted by step."""
        return sorted((self.folder / "samples").glob("step-*.png"), key=_frame_step)

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as file:
            file.write(text.encode())

    def _card(self) -> str:
        recipe = self.recipe
        return model_card(
            str(self.folder),
            self.trainer.generator.config,
            architecture=None if recipe.generator else recipe.architecture,
            dataset=None if recipe.data in ("folder", "fake") else recipe.data,
            steps=self.trainer.steps,
            batch_size=recipe.batch_size,
            recipe=recipe.to_yaml(),
            picture="samples.gif",
        )


def _expect_empty(folder: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: continue with --resume {folder}, or choose another folder")


def _frame_step(frame: Path) -> int:
    return int(frame.stem.removeprefix("step-"))


def _extend(stored: Recipe, recipe: Recipe) -> Recipe:
    # A new length replaces the old one, in whichever unit either is given.
    if recipe.steps not in (None, stored.steps):
        recipe = recipe.replace(epochs=None)
    elif recipe.epochs != stored.epochs:
        recipe = recipe.replace(steps=None)
    recipe = recipe.resolve()
    if fixed := [name for name in recipe.changes(stored) if name not in RESUMABLE]:
        raise ValueError(
            f"a resumed run cannot change {', '.join(fixed)}; it can change {', '.join(sorted(RESUMABLE))}"
        )
    return recipe


def _create_folder(folder: Path | None, name: str) -> Path:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
