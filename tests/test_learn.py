"""The pages of the course run, print what stands on them, draw their pictures, and are the notebooks beside them."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs/learn"
PICTURE = re.compile(r"\(\.\./assets/learn/([\w-]+\.png)\)")
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?")
COLLAPSE = re.compile("(?<=: )(over|for) \\d+ steps, .*")
TRAINED = {"1-game", "4-step", "5-curves"}  # after many steps, figures differ between machines


def load_make():
    specification = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


make = load_make()


def test_there_are_six_pages_and_their_notebooks_only():
    names = [page.stem for page in make.pages()]
    assert [name[:2] for name in names] == ["1-", "2-", "3-", "4-", "5-", "6-"]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == names


@pytest.mark.parametrize("page", make.pages(), ids=lambda page: page.stem)
def test_a_notebook_is_what_its_page_makes(page):
    text = page.read_text(encoding="utf-8")
    assert page.with_suffix(".ipynb").read_text(encoding="utf-8") == make.notebook(text)
    assert f"({page.stem}.ipynb)" in text


def test_pictures_are_small_and_each_is_on_a_page():
    shown = [name for page in make.pages() for name in PICTURE.findall(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(path.name for path in make.PICTURES.iterdir())
    assert all(path.stat().st_size < 100_000 for path in make.PICTURES.iterdir())


def close(printed, written, *, relative, absolute):
    """Return whether two texts have the same words, and nearly the same numbers."""
    numbers = zip(NUMBER.findall(printed), NUMBER.findall(written), strict=False)
    return NUMBER.split(printed) == NUMBER.split(written) and all(
        math.isclose(float(a), float(b), rel_tol=relative, abs_tol=absolute) for a, b in numbers
    )


def test_outputs_that_differ_are_told_apart():
    assert close("mean 0.50, 4x4", "mean 0.51, 4x4", relative=0.05, absolute=0)
    assert not close("mean 0.50", "mean 0.60", relative=0.05, absolute=0)
    assert not close("mean 0.50", "std 0.50", relative=0.05, absolute=0)
    assert not close("(4, 8)", "(4, 9)", relative=0.05, absolute=0.02)
    assert not close("1 2", "1", relative=0.05, absolute=0.02)


# Of tensors that matplotlib is given: torch does not take NumPy's newest argument yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("page", make.pages(), ids=lambda page: page.stem)
def test_a_page_prints_what_stands_on_it_and_draws_its_pictures(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    outputs = make.run(page, tmp_path)
    tolerance = {"relative": 0.5, "absolute": 0.15} if page.stem in TRAINED else {"relative": 0.05, "absolute": 0.02}
    written = [output for _, _, output in make.CODE.findall(text)]
    if page.stem == "5-curves":  # which sign of a collapse comes first differs, too
        outputs, written = ([COLLAPSE.sub("collapse", output) for output in each] for each in (outputs, written))
    for printed, expected in zip(outputs, written, strict=True):
        assert close(printed, expected, **tolerance), f"{page.name} says\n{expected}\nbut its code printed\n{printed}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PICTURE.findall(text))


PAGE = """\
# Title

[This page as a notebook](page.ipynb){ download }: a second.

A [link](other.md#part), an [address](https://example.org) and [`Trainer`][dcgan.trainer.Trainer].

```python
print(1)
```

```text
2
```

![A picture](../assets/learn/picture.png)

Words.

??? question "Answer"

    The **answer**,

    in two parts.

The end.
"""


def test_a_page_becomes_cells_and_takes_in_what_was_printed():
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(make.notebook(PAGE))["cells"]]
    answer = "<details><summary>Answer</summary>\n\nThe **answer**,\n\nin two parts.\n\n</details>"
    assert cells == [
        ("code", make.INSTALL),
        ("markdown", "# Title\n\nA link, an [address](https://example.org) and `Trainer`."),
        ("code", "print(1)"),
        ("markdown", f"Words.\n\n{answer}\n\nThe end."),
    ]
    assert make.fill_in(PAGE, ["1\n"]) == PAGE.replace("\n2\n", "\n1\n")
    assert make.fill_in(PAGE, [""]) == PAGE.replace("```text\n2\n```\n\n", "").replace("```\n!", "```\n\n!")


def test_a_page_runs_where_its_pictures_belong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nfrom pathlib import Path\n```\n\n```python\nPath('a').touch()\nprint(2)\n```\n")
    (tmp_path / "pictures").mkdir()
    assert make.run(page, tmp_path / "pictures") == ["", "2\n"]
    assert (tmp_path / "pictures/a").exists()
