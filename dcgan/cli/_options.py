"""The options of a recipe, built from its fields, and option types that cyclopts lacks."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import UNSET, App, ArgumentCollection, Group, Parameter, Token
from cyclopts.config import Dict
from cyclopts.validators import Number

from dcgan._choices import AugmentationName, LoggerName
from dcgan._errors import InputError
from dcgan._numbers import MAX_COUNT, MAX_PICTURED, MAX_SEED, brief
from dcgan.cli._terminal import UsageError, exit_on_error
from dcgan.recipe import Recipe, field_lines, find_recipe, parse_image_size, read_fields, to_plain, upgrade_fields


def _read_size(_: Any, tokens: Sequence[Token]) -> int | tuple[int, int]:
    return parse_image_size("x".join(token.value for token in tokens))  # a list in a file is a token per side


def _read_integer(_: Any, tokens: Sequence[Token]) -> int:
    word = tokens[0].value
    try:
        number = int(word)  # cyclopts itself would round 2.5
    except ValueError:
        raise InputError(f"expected a whole number, got {brief(word)}") from None
    if not -MAX_SEED <= number <= MAX_SEED:
        raise InputError(f"expected a whole number below 2**63, got {brief(number)}")
    return number


def _read_integer_or_none(_: Any, tokens: Sequence[Token]) -> int | None:
    return None if tokens[0].value.lower() in ("none", "null") else _read_integer(_, tokens)


def _read_step(_: Any, tokens: Sequence[Token]) -> int | str:
    return "best" if tokens[0].value == "best" else _read_integer(_, tokens)


FLAG = Parameter(negative=())
INTEGER = Parameter(converter=_read_integer)
COUNT = Parameter(converter=_read_integer, validator=Number(gte=1, lte=MAX_COUNT))
PICTURED = Parameter(converter=_read_integer, validator=Number(gte=1, lte=MAX_PICTURED))
STEP = Parameter(converter=_read_step, metavar="STEP")
NATURAL = Parameter(converter=_read_integer, validator=Number(gte=0))
SIZE = Parameter(converter=_read_size, n_tokens=1, negative=(), metavar="SIZE")
WORDS = Parameter(consume_multiple=True, negative=(), show_default=False)

# What cyclopts cannot derive from the type of a field.
_PARAMETERS: dict[Any, Parameter] = {
    int: INTEGER,
    int | None: Parameter(converter=_read_integer_or_none),
    int | tuple[int, int] | None: SIZE,
    tuple[str, ...]: WORDS,
    tuple[LoggerName, ...]: Parameter(consume_multiple=True, negative_iterable="no-", show_default=False),
    tuple[AugmentationName, ...] | None: Parameter(consume_multiple=True, negative_iterable="no-", negative_none=""),
}
# The sections of --help, each by the first of its fields.
_SECTIONS = {"data": "Data", "architecture": "Networks", "steps": "Training", "log_every": "Run"}


def _annotate_fields() -> type:
    hints, group, annotated = get_type_hints(Recipe), Group(), []
    for index, field in enumerate(fields(Recipe)):
        if field.name in _SECTIONS:
            group = Group(_SECTIONS[field.name], sort_key=index)
        hint = hints[field.name]
        options = (Parameter(group=group), _PARAMETERS.get(hint, Parameter()))
        annotated.append((field.name, Annotated[hint, *options], field.default))
    namespace = {"__doc__": Recipe.__doc__, "__module__": __name__}  # by default, make_dataclass names another
    return make_dataclass("RecipeOptions", annotated, bases=(Recipe,), kw_only=True, frozen=True, namespace=namespace)


if TYPE_CHECKING:
    RecipeOptions = Recipe
else:
    RecipeOptions = _annotate_fields()  # a recipe whose fields are annotated for the command line


def read_recipe_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take options that the command line does not give from --recipe, or from the recipe of --resume or --from."""
    given = {
        argument.name.removeprefix("--").replace("-", "_"): str(
            token.value if token.implicit_value is UNSET else token.implicit_value
        )
        for argument in arguments
        for token in argument.tokens[-1:]
    }
    with exit_on_error():
        path = _find_recipe_file(given)
        values = {} if path is None else _load_recipe_file(path)
        replaced = _replaced_fields(given, values)
        values = {name: value for name, value in values.items() if name not in replaced}
        decisive = {name: given[name] for name in ("data", "root", "architecture") if name in given}
        values = upgrade_fields(values | decisive)
        if path is not None and "from" in given:
            values |= dict.fromkeys(("generator", "discriminator"), str(_newest_state(path.parent)))
    Dict(to_plain(values), source=str(path), use_commands_as_keys=False)(app, commands, arguments)


def _replaced_fields(given: dict[str, str], values: dict[str, Any]) -> set[str]:
    """Return the fields of a file that an option of another name replaces."""
    replaced = set()
    if {"steps", "epochs"} & given.keys():  # either replaces the length in the file, whichever that is
        replaced |= {"steps", "epochs"}
    if "resume" not in given and {"data"} <= given.keys() & values.keys() and given["data"] != values["data"]:
        replaced |= {"root", "classes"}  # which are those of the file's dataset
    if "cache_dir" in given:
        replaced |= {"cache"}
    if given.get("cache") == "False":
        replaced |= {"cache_dir"}
    return replaced


def _find_recipe_file(given: dict[str, str]) -> Path | None:
    runs = [name for name in ("resume", "from") if name in given]
    sources = [name for name in ("recipe", "config") if name in given]
    networks = [name for name in ("architecture", "generator", "discriminator") if name in given]
    if len(runs) > 1:
        raise UsageError("--resume continues a run, and --from starts a new one: give one of them")
    if runs and sources:
        raise UsageError(f"--{runs[0]} uses the recipe of its run: omit --{' and --'.join(sources)}")
    if "from" in given and networks:
        raise UsageError(f"--from takes both networks of its run: omit --{' and --'.join(networks)}")
    if len(sources) > 1:
        raise UsageError("--config is the older spelling of --recipe: give one of them")
    if not runs:
        if "config" in given:
            return find_recipe(Path(given["config"]))  # which is never a name
        return find_recipe(given["recipe"]) if sources else None
    if not given[runs[0]]:
        raise UsageError(f"--{runs[0]} takes the folder of a run, got ''")
    path = Path(given[runs[0]], "recipe.yaml")
    if not path.is_file():
        from dcgan._run_folder import describe_missing

        raise UsageError(describe_missing(path.parent))
    return path


def _newest_state(folder: Path) -> Path:
    from dcgan.checkpoint import list_states

    if not (states := list_states(folder / "state")):
        raise UsageError(f"{folder} has no state to start from: its folder state is empty or missing")
    return states[-1]


def _load_recipe_file(path: Path) -> dict[str, Any]:
    try:
        return read_fields(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


@contextmanager
def locate_errors(resume: Path | None, options: Recipe) -> Iterator[None]:
    """Name the line of the recipe of a resumed run that sets the option which an error refuses."""
    try:
        yield
    except UsageError as error:
        path = Path(resume or "", "recipe.yaml")
        named = re.search(r"--([a-z][a-z0-9-]+)", str(error))
        if resume is None or named is None or str(path) in str(error):
            raise
        name, text = named[1].replace("-", "_"), path.read_bytes()
        if name not in (values := read_fields(text)) or values[name] != getattr(options, name):
            raise
        raise UsageError(f"{error} ({path}: line {field_lines(text)[name]})") from error
