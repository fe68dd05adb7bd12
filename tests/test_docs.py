"""The README and the documentation do what they say: their Python runs and their commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from dcgan import Discriminator, Generator

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page, language):
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [code for skipped, name, code in found if name == language and not skipped]


def is_run(page):  # those of the course take minutes: see test_learn.py
    return page.parent.name != "learn" and bool(fences(page, "python"))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # by checkpoints of a single process
@pytest.mark.parametrize("page", [page for page in PAGES if is_run(page)], ids=lambda page: page.name)
def test_python_on_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Generator(image_size=32, channels=1, base_channels=4).save_pretrained("runs/digits")
    Discriminator(image_size=32, channels=1, base_channels=4).save_pretrained("runs/digits")
    namespace = {"__name__": "page"}
    for code in fences(page, "python"):
        exec(compile(code, page.name, "exec"), namespace)


def commands():
    for page in PAGES:
        for code in fences(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("dcgan "):
                    yield pytest.param(line.removeprefix("dcgan "), id=f"{page.name}: {line}")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_on_the_pages_parse(command, tmp_path, monkeypatch):
    from dcgan.cli import app
    from dcgan.cli._arguments import locate_data
    from dcgan.recipe import Recipe

    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r"--(?:resume|from) (\S+)", command):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "recipe.yaml").write_text(Recipe().resolve().to_yaml())
        (tmp_path / folder / "state").mkdir()
        (tmp_path / folder / "state/step-000001.pt").touch()
    for file in re.findall(r"--(?:config|recipe) (\S+\.yaml)", command):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("data: mnist\n")
    tokens = shlex.split(command, comments=True)
    if not {"--help", "--version"} & set(tokens):
        app.parse_args(locate_data(tokens), exit_on_error=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_copy_button_copies_can_be_pasted(page):
    prompts = re.findall(r"^\$ .*", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert prompts == []


def test_links_and_pictures_are_there():
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(re.findall(r"\S+\.md", navigation)) == sorted(pages)


def test_every_public_module_is_on_one_page_of_the_reference():
    pages = sorted((ROOT / "docs/reference").glob("*.md"))
    documented = [name for page in pages for name in re.findall(r"(?m)^::: dcgan\.(\S+)$", page.read_text("utf-8"))]
    modules = {path.stem for path in (ROOT / "dcgan").glob("[!_]*.py")}
    packages = {path.parent.name for path in (ROOT / "dcgan").glob("*/__init__.py")}
    assert sorted(documented) == sorted((modules | packages) - {"bench", "cli", "layers"})
    assert len(pages) > 5


def test_places_to_change_are_where_the_guide_says():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, path in re.findall(r"`([\w.]+)` in `([\w/.]+)`", text):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text(encoding="utf-8")), (name, path)
    for path in re.findall(r"`((?:dcgan|tests|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", ["train", "show", "generate", "convert", "export", "push", "bench"])
def test_every_option_is_documented(command):
    from dcgan.cli import app

    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    section = re.search(rf"^## dcgan {command}\n(.*?)(?=^## dcgan |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    arguments = app[command].assemble_argument_collection()
    options = [argument.name for argument in arguments if argument.show and argument.index is None]
    assert options
    assert [name for name in options if f"`{name}" not in section] == []
