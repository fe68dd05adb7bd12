"""What holds for the package as a whole: its surface, its imports, its house rules."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dcgan

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT / "dcgan").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "dcgan").rglob("*.py")
}
MODULES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}

# Each module may import those above it.
ORDER = """
    _allocator _choices _compat _devices _errors _numbers _config _files _log _loggers _modules _precision _random
    latents losses augment images metrics._classifier metrics._extractors metrics ema features
    _distributed _cuda_graphs _optim _checks _monitor
    architectures checkpoint recipe
    data._formats data._sources data._decoding data._integrity data._images data._packing data._batches data._datasets
    data._shards data._hub data._sharding
    data _labelled _dedup
    hub._card hub._client zoo hub._pretrained hub
    drawing layers models visualize trainer
    convert._files convert._chains convert._configs convert._statistics convert._build convert zoo._fetch
    export generate _quality _build _run_folder run
    explore._view explore._page explore._server explore._space explore
    bench._contender bench bench.robustness
    cli._messages cli._processes cli._terminal cli._migration cli._options cli._arguments cli._real_images
    cli._bench cli._convert cli._dedup cli._evaluate cli._explore cli._features cli._generate cli._latents cli._models
    cli._pack cli._push cli._recipes cli._show cli._watch cli._train cli._visualize cli __main__
""".split()  # noqa: SIM905 - it reads as the layers that it is


# Somebody else's model has to be converted, which takes the classes that load it.
DEFERRED = {"hub._pretrained": {"zoo._fetch"}}


def imported_by(module, *, types_too=False):
    """Names of this package's modules that a module imports, anywhere in it."""
    found = set()
    skipped = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
            skipped |= {id(child) for child in ast.walk(node)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dcgan":
            package = node.module.removeprefix("dcgan").removeprefix(".")
            modules = {f"{package}.{alias.name}".removeprefix(".") for alias in node.names} & MODULES.keys()
            found |= modules or {package} - {""}
    return found


def test_seven_names_are_public_and_each_is_what_it_says():
    functions = ["from_pretrained", "list_architectures", "list_models", "weights_init"]
    assert sorted(dcgan.__all__) == ["Discriminator", "Generator", "Trainer", *functions]
    for name in dcgan.__all__:
        assert getattr(dcgan, name).__name__ == name
    assert set(dcgan.__all__) <= set(dir(dcgan))
    with pytest.raises(AttributeError, match="module 'dcgan' has no attribute 'generator'"):
        _ = dcgan.generator


def test_every_module_has_its_place_in_the_order():
    assert set(ORDER) == MODULES.keys() - {"__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    assert imported_by(module) - DEFERRED.get(module, set()) <= set(ORDER[: ORDER.index(module)])


def loaded_after(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


HEAVY = {
    *("torchvision", "PIL", "huggingface_hub", "safetensors", "sklearn", "lmdb", "cyclopts", "torch._dynamo"),
    *("matplotlib", "tensorboard", "wandb", "imagehash", "scipy", "gradio"),
}


def test_imports_are_light():
    modules = ["models", "trainer", "ema", "hub", "losses", "latents", "augment", "images", "data", "checkpoint"]
    modules += ["features"]
    assert not HEAVY & loaded_after("; ".join(f"import dcgan.{module}" for module in modules))


def test_the_package_and_the_command_line_start_without_torch():
    assert "torch" not in loaded_after("import dcgan, dcgan.cli, dcgan.recipe")
    assert "torch" in loaded_after("from dcgan import Generator")  # the check can fail


def test_only_the_terminal_prints_and_nothing_is_asserted():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print" or name == "cli._terminal", name


def test_the_version_has_its_heading_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(dcgan.__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    declared = {re.match(r"[\w-]+", need)[0].lower().replace("-", "_") for need in project["dependencies"] + extras}
    names = {"PIL": "pillow", "sklearn": "scikit_learn", "yaml": "cyclopts"}  # cyclopts[yaml] brings it
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                roots = [(node.module or "").partition(".")[0]]
            for root in roots:
                known = root in sys.stdlib_module_names or root == "dcgan"
                assert known or names.get(root, root) in declared, f"{module} imports {root}"
