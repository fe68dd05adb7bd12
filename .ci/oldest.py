#!/usr/bin/env python3
"""Print pip constraints that hold every requirement of pyproject.toml to the oldest version it allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
tested = ["heic", "onnx", "lsun", "tensorboard", "wandb", "test"]
for requirement in [*project["dependencies"], *(need for extra in tested for need in extras[extra])]:
    if match := re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement):
        name, version = match.groups()
        # 3 means 3.0.*, 3.1 means 3.1.*, and 3.1.2 itself.
        print(f"{name}=={version}" + {0: ".0.*", 1: ".*"}.get(version.count("."), ""))
