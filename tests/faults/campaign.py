"""Faults injected into runs and their files, and what became of each.

A fault is *survived* if the folder ends as that of an undisturbed run, bit for bit; *refused* if the command ends with
one message that names the file; *told* if it goes on without what was damaged, and says so. Anything else is *lost*: a
traceback, a crash, a hang, or another result without a word.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from distributed_commands import finish, start, wait, workers
from small_runs import EAGER, command, computed, listing, options, start_and_stop

from dcgan.checkpoint import list_states

RECIPE = EAGER.replace(steps=8, save_every=3, sample_every=2)
FLIPPED = (
    *("state/step-*.pt", "recipe.yaml", "metrics.jsonl", "samples/step-*.png"),
    *("model.safetensors", "config.json", "discriminator/model.safetensors", "packed"),
)


class Campaign:
    """Faults in runs of one small recipe, drawn from one seed.

    Args:
        folder: An empty folder to work in.
        seed: Of everything that is drawn.

    Attributes:
        counts: How many faults of each kind there were, and how many of them ended in each way.
        lost: A line for each loss.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.rng = folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.whole, self.stopped = folder / "whole" / "run", folder / "stopped" / "run"
        start_and_stop(RECIPE, self.whole)
        start_and_stop(RECIPE, self.stopped, stop=5)
        self.expected = self._result(self.whole)

    def kill(self, rounds: int = 12) -> None:
        """Kill a run at file operations that are drawn, again and again until it is through, or so many times."""
        run = self._new_folder()
        arguments = ["train", *options(RECIPE), "--out", run]
        for most in (200, *[40] * rounds, 10_000):
            code, said = self._command(*arguments, kill_at=(str(run), self.rng.randint(1, most)))
            if (code == 2 and "is not the folder of a run" in said) or "no state to resume from" in said:
                shutil.rmtree(run)
                arguments = ["train", *options(RECIPE), "--out", run]
                continue
            if code != -signal.SIGKILL:
                break
            self.counts["kills"] += 1
            arguments = ["train", "--resume", run]
        self._judge("killed", code, said, run)

    def kill_processes(self, kills: int) -> None:
        """Kill one of two processes that train under torchrun, which starts them again, so many times.

        A third of the kills fall anywhere in the first seconds of the processes, in which they import, join, and load
        the newest state; the others after some step, in which they train and save.
        """
        recipe = RECIPE.replace(steps=40 * kills, save_every=5, sample_every=10 * kills, log_every=10)
        unbroken, run = self.folder / "unbroken" / "run", self.folder / "killed" / "run"
        finish(start("train", *options(recipe), "--out", unbroken), 3600)
        launcher = start("train", *options(recipe), "--out", run, restarts=kills)
        for _ in range(kills):
            wait(lambda: len(workers(launcher)) == 2, launcher)
            if self.rng.random() < 1 / 3:
                time.sleep(self.rng.uniform(0, 8))
            else:
                saved = list_states(run / "state")
                wait(lambda: list_states(run / "state") != saved, launcher)  # noqa: B023 - called in this turn
                time.sleep(self.rng.uniform(0, 0.2))
            running = workers(launcher)
            os.kill(self.rng.choice(running), signal.SIGKILL)
            self.counts["kills under torchrun"] += 1
            wait(lambda: not set(workers(launcher)) & set(running), launcher)  # noqa: B023
        code, said, error = finish(launcher, 3600)
        if code == 0 and self._result(run) == self._result(unbroken):
            self.counts["survived"] += kills
        else:
            self._lose("killed under torchrun", code, said + error)

    def fill_disk(self) -> None:
        """Resume a run on a disk that is full once a file has as many bytes as are drawn, and again with room."""
        run, limit = self._copy(), int(10 ** self.rng.uniform(2, 5.5))
        self.counts["full disks"] += 1
        code, said = self._command("train", "--resume", run, file_limit=limit)
        if code and not self._is_refusal(code, said):
            self._lose(f"{limit} bytes", code, said)
        else:
            self._judge(f"{limit} bytes", *self._command("train", "--resume", run), run)

    def flip(self, kind: str) -> None:
        """Flip a bit in a file of a run, or in the packed file of its images, and resume it."""
        run = self._copy()
        files = Path(os.environ["DCGAN_CACHE"]).glob("*.npy") if kind == "packed" else run.glob(kind)
        path = max(files, key=lambda path: path.name)
        whole = path.read_bytes()
        place, bit = self.rng.randrange(len(whole)), self.rng.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        self.counts["damages"] += 1
        code, said = self._command("train", "--resume", run)
        if kind == "packed":
            path.write_bytes(whole)
        self._judge(f"bit {bit} of byte {place} of {kind}", code, said, run, path)

    def _judge(self, fault: str, code: int, said: str, run: Path, path: Path | None = None) -> None:
        if path is not None and self._is_refusal(code, said) and str(path.name) in said:
            self.counts["refused"] += 1
        elif code == 0 and self._result(run) == self.expected:
            self.counts["survived"] += 1
        elif code == 0 and path is not None and path.name in said and "set aside" in said:
            self.counts["told"] += 1
        elif code == 2 and path is None and "has completed all" in said and self._result(run) == self.expected:
            self.counts["survived"] += 1
        else:
            self._lose(fault, code, said)
        shutil.rmtree(run.parent)

    def _lose(self, fault: str, code: int, said: str) -> None:
        self.lost.append(f"{fault}: exit code {code}: {said[-500:]}")

    @staticmethod
    def _is_refusal(code: int, said: str) -> bool:
        return code in (1, 2) and said.count("dcgan: ") == 1 and "Traceback" not in said

    @staticmethod
    def _result(run: Path) -> dict[str, object]:
        card = (run / "README.md").read_bytes()
        steps = [record["step"] for record in computed(run)["metrics"]]  # a digit of a figure has no checksum
        return {**computed(run), "metrics": steps, "card": card, "files": listing(run)}

    def _command(self, *arguments: object, **faults: object) -> tuple[int, str]:
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        code = command(log, *arguments, **faults)
        return code, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def _new_folder(self) -> Path:
        # Of one name, which stands in the card.
        return self.folder / str(sum(self.counts.values())) / "run"

    def _copy(self) -> Path:
        return Path(shutil.copytree(self.stopped, self._new_folder()))
