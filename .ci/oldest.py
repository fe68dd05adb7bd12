#!/usr/bin/env python3
"""Print pip constraints that hold every requirement of pyproject.toml to the oldest version it allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["onnx"], *extras["lsun"], *extras["test"]]:
    if match := re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=(\d+)(?:\.(\d+))?", requirement):
        name, major, minor = match.groups(default="0")
        print(f"{name}=={major}.{minor}.*")
