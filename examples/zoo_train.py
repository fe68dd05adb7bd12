"""Train the models that come with the package, each with three seeds; started again, it goes on where it was.

    python examples/zoo_train.py digits mnist=DATA cifar10=DATA faces=FOLDER
    python examples/zoo_train.py cifar10=FOLDER --seeds 0 --data folder --device cuda --precision bf16

Each run is `dcgan train --recipe NAME --seed S` in runs/zoo/NAME-S, with the options of dcgan train that are given. The
distances of all seeds are printed at the end; then `python examples/zoo_model.py NAME runs/zoo/NAME-0 --machine TEXT`
makes a run the model of that name.
"""

import argparse
import shutil
import sys
from pathlib import Path

from dcgan import cli
from dcgan._files import read_json_lines
from dcgan.run import Run


def is_complete(folder):
    with Run.resume(folder) as run:
        return run.trainer.steps == run.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[=ROOT]", help="recipe, and the folder of its data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    options, training = parser.parse_known_args()
    rows = ["| model | seed | steps | distance | lowest |", "|---|---|---|---|---|"]
    for seed in options.seeds:
        for name, _, root in (model.partition("=") for model in options.models):
            folder = options.runs / f"{name}-{seed}"
            if not list((folder / "state").glob("step-*.pt")):
                if (folder / "recipe.yaml").exists():  # of a run that was killed before its first state
                    shutil.rmtree(folder)
                where = ["--root", root] if root else []
                code = cli.main(
                    ["train", "--recipe", name, "--seed", str(seed), "--out", str(folder), *where, *training]
                )
            else:
                code = 0 if is_complete(folder) else cli.main(["train", "--resume", str(folder)])
            if code:
                sys.exit(code)
            figures = {row["step"]: row["fd"] for row in read_json_lines(folder / "metrics.jsonl") if "fd" in row}
            last, best = max(figures), min(figures, key=figures.__getitem__)
            rows.append(f"| {name} | {seed} | {last:,} | {figures[last]:.2f} | {figures[best]:.2f} at {best:,} |")
    print("\n".join(["", *rows]))


if __name__ == "__main__":
    main()
