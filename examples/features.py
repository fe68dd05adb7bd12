"""Make the tables and pictures of docs/features.md anew; it takes some minutes of one core.

    python examples/features.py DATA SVHN CIFAR10_RUN docs/assets

DATA holds MNIST as torchvision lays it out, `cifar10-images` with a folder for each class in `train` and `test`, and
`faces`; SVHN is the folder that `dcgan convert` made of the paper authors' arrays; CIFAR10_RUN is a run on CIFAR-10.
"""

import json
import sys
import tempfile
from pathlib import Path

from dcgan import data, images
from dcgan.cli import main

root, svhn, cifar10_run, assets = map(Path, sys.argv[1:])
cifar10 = ["--root", root / "cifar10-images"]
few = ["--per-class", 20, "--draws", 20]
EXPERIMENTS = {
    "digits": ["digits"],
    "mnist": ["mnist", "--data", "mnist", "--root", root, "--number", 1000, "--test-number", 1000],
    "cifar10": [cifar10_run, *cifar10, "--number", 1000, "--test-number", 1000],
    "svhn-few": [svhn, *cifar10, *few, "--number", 1500, "--test-number", 1000],
}


def run(*arguments):
    print("$ dcgan", *arguments)
    if code := main(list(map(str, arguments))):
        raise SystemExit(code)


with tempfile.TemporaryDirectory() as temporary:
    work = Path(temporary)
    for name, arguments in EXPERIMENTS.items():
        run("features", *arguments, "--out", work / name)
        record = json.loads((work / name / "results.json").read_text())
        print(f"\n{name}: {record['training_images']:,} and {record['test_images']:,} images")
        for features, result in record["results"].items():
            spread = "" if result["spread"] is None else f" ± {result['spread']:.1%}"
            neighbor = f" {result['neighbor_error']:.1%} |" if "neighbor_error" in result else ""
            figures = f"{result['features']:,} | {result['c']:g} | {result['test_error']:.1%}{spread} |{neighbor}"
            print(f"| {Path(features).name} | {figures}")
        print()
    (assets / "features-nearest.png").write_bytes((work / "digits/nearest.png").read_bytes())  # scikit-learn's digits

    digits = data.load("digits", image_size=64, channels=1)
    (work / "images").mkdir()
    for index in range(len(digits)):
        images.save_png(work / f"images/{index:04}.png", digits[index])
    run("dedup", work / "images", "--out", assets / "features-duplicates.png", "--force")
    for folder in ("faces", "cifar10-images"):
        run("dedup", root / folder, "--out", work / f"{folder}.png")
