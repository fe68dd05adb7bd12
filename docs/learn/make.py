"""Make what is not written by hand of the pages beside this file: pictures, printed lines and notebooks.

python docs/learn/make.py             # the notebooks of all pages
python docs/learn/make.py --run PAGE  # first run the code of PAGE.md, for its pictures and what it prints

A fence of "text" or "py" right after one of "python" holds what that prints. Pictures that the code saves go to
docs/assets/learn.
"""

import argparse
import contextlib
import io
import json
import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent
PICTURES = FOLDER.parent / "assets/learn"
CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```(text|py)\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r'^\?\?\? \w+ "(.+)"\n\n((?:    .*\n|\n)+)', re.MULTILINE)
INSTALL = """\
# The package is installed here if it is missing, as on a hosted service.
import importlib.util

if importlib.util.find_spec("dcgan") is None:
    %pip install --quiet dcgan"""


def pages() -> list[Path]:
    """Return the pages with code, in the order of their names."""
    return [page for page in sorted(FOLDER.glob("*.md")) if CODE.search(page.read_text(encoding="utf-8"))]


def run(page: Path, folder: Path) -> list[str]:
    """Run the code of a page in a folder, and return what each fence printed."""
    import matplotlib.pyplot as plt

    namespace: dict[str, object] = {"__name__": page.stem}
    outputs = []
    with contextlib.chdir(folder), plt.rc_context({"backend": "agg"}):
        for code, _, _ in CODE.findall(page.read_text(encoding="utf-8")):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, page.name, "exec"), namespace)  # noqa: S102 - the page's own code
            outputs.append(printed.getvalue())
        plt.close("all")
    return outputs


def compress(folder: Path) -> None:
    """Reduce the pictures of a folder to 256 colours, a third of their size."""
    from PIL import Image

    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            if picture.mode != "P":
                picture.convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)


def fill_in(text: str, outputs: list[str]) -> str:
    """Return the text of a page with what its fences printed."""
    remaining = iter(outputs)

    def code_and_output(match: re.Match[str]) -> str:
        output = next(remaining)
        fence = f"```python\n{match[1]}```\n"
        return f"{fence}\n```{match[2] or 'text'}\n{output}```\n" if output else fence

    return CODE.sub(code_and_output, text)


def notebook(text: str) -> str:
    """Return a page as a notebook without outputs: its own pictures and printed lines appear when it is run."""
    text = re.sub(r"^\[This page as a notebook\].*\n\n", "", text, flags=re.MULTILINE)
    text = ANSWER.sub(_details, text)
    cells = [_cell("code", INSTALL)]
    position = 0
    for match in [*CODE.finditer(text), None]:
        if words := _plain(text[position : match.start() if match else None]):
            cells.append(_cell("markdown", words))
        if match:
            cells.append(_cell("code", match[1].strip()))
            position = match.end()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, source: str) -> dict[str, object]:
    cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _plain(text: str) -> str:
    """Return Markdown without pictures, attributes and links to other pages, none of which a notebook has."""
    text = re.sub(r"^!\[[^]]*\]\([^)]*\)(\{[^}]*\})?\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^]]+)\](\((?!http)[^)]*\)|\[dcgan[^]]*\])", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _details(match: re.Match[str]) -> str:
    answer = re.sub(r"^    ", "", match[2], flags=re.MULTILINE).strip()
    return f"<details><summary>{match[1]}</summary>\n\n{answer}\n\n</details>\n\n"


def main() -> None:
    """Run the pages that are asked for, and write the notebooks of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", default=[], metavar="PAGE")
    for name in parser.parse_args().run:
        page = FOLDER / f"{Path(name).stem}.md"
        outputs = run(page, PICTURES)
        page.write_text(fill_in(page.read_text(encoding="utf-8"), outputs), encoding="utf-8", newline="\n")
        compress(PICTURES)
    for page in pages():
        page.with_suffix(".ipynb").write_text(
            notebook(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main()
