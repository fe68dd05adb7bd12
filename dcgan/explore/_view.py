"""What the page shows, as functions of what its link says: nothing of a visitor is kept from one call to the next.

Shapes: N latents, Z latent length, P points of a walk, K channels, H×W image size.
"""

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias
from urllib.parse import urlencode

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcgan import _log, images, latents
from dcgan._config import sides
from dcgan._errors import InputError
from dcgan.generate import pixels_of
from dcgan.hub._client import WEIGHT_FILES
from dcgan.models import Generator
from dcgan.zoo import list_models, load_record

SHOWN = 24
"""Number of images of a seed that the page shows to choose from."""

RANDOM, REACH, TURNS = 4, 10.0, 3.0
"""Number of random directions, how far to go along one, and along that from B to C, which has a length of its own."""

MAX_NAMES, MAX_POINTS, MAX_STEPS = 16, 8, 24
"""Most images of a group, points of a walk, and steps from each to the next: what a visitor may ask for at once."""

_LONGEST = 4000  # characters of one value in a link
_LAST = 2**53 - 1  # the largest seed or index: beyond it, a browser's numbers skip some
_SIDE, _SMALL_SIDE = 384, 128  # pixels, to which an image, and one of many, are enlarged by whole numbers
_SEARCHES, _SEARCH_STEPS = 4, 200
_SAMPLES = 12  # of the pictures of a run's samples


_Told: TypeAlias = tuple[str, np.ndarray | None, list[Path]]


@dataclass(frozen=True)
class View:
    """What a link to the page says. Equal views give equal pictures, bit for bit, on one machine.

    Args:
        model: Name of a model.
        seed: Seed of the images to choose from, and of images that are named without one.
        label: Class of all images, for a conditional model.
        centre: Image in the middle: a sum such as `7:12`, or `3,17,1:40 - 5,9 + 8`, of means of images, each an index
            or SEED:INDEX; or a latent as `write_latent` returns it.
        ways: Seed of the random directions.
        d0: How far to go from the centre along the first random direction, from -10 to 10; latents have length 10 if
            they are a hundred numbers of N(0, 1). `d1` to `d3` are the others.
        turn: How far to go along the direction from the mean of `b` to that of `c`, in multiples of it, from -3 to 3.
        walk: Images to walk through.
        a: Images to start from in `a - b + c`.
        b: Images to subtract.
        c: Images to add.

    Raises:
        ValueError: If a value is none of these.
    """

    model: str
    seed: int = 0
    label: int = 0
    centre: str = "0"
    ways: int = 0
    d0: float = 0.0
    d1: float = 0.0
    d2: float = 0.0
    d3: float = 0.0
    turn: float = 0.0
    walk: str = ""
    a: str = ""
    b: str = ""
    c: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type is str and not isinstance(getattr(self, field.name), str):
                raise InputError(f"{field.name} must be text")
            try:
                value = field.type(getattr(self, field.name))  # type: ignore[operator]  # a class
            except (TypeError, ValueError, OverflowError):
                kind = "a whole number" if field.type is int else "a number"
                raise InputError(f"{field.name} must be {kind}") from None
            object.__setattr__(self, field.name, value)
        for name in ("seed", "label", "ways"):
            if not 0 <= getattr(self, name) <= _LAST:
                raise InputError(f"{name} must be from 0 to {_LAST}")
        for name, limit in {"d0": REACH, "d1": REACH, "d2": REACH, "d3": REACH, "turn": TURNS}.items():
            if not abs(getattr(self, name)) <= limit:  # which NaN is not either
                raise InputError(f"{name} must be from {-limit:g} to {limit:g}")
        if any(len(value) > _LONGEST for value in vars(self).values() if isinstance(value, str)):
            raise InputError(f"a value must have at most {_LONGEST} characters")

    def to_query(self) -> str:
        """Return the part of a link after the question mark: the model, and what differs from the defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return urlencode(changed, safe=":,")

    @classmethod
    def from_query(cls, query: Mapping[str, str], *, model: str) -> "View":
        """Read a link's parameters; others than those of a view are left out, as hosts of pages add their own.

        Raises:
            ValueError: If a value cannot be read or is out of range.
        """
        given: dict[str, Any] = {field.name: query[field.name] for field in fields(cls) if field.name in query}
        return cls(**{"model": model, **given})


class Models:
    """The models that the page may show: the given one, and those that come with the package.

    A visitor names one of `names`; nothing else is ever loaded, so that a page on a public host opens no other folder.

    Args:
        model: Name of a model, folder of a run or of a saved generator, or Hub repository.

    Attributes:
        default: The name of `model`: itself, or the last part of a folder's path, which is nobody's business.
        names: All names.

    Raises:
        ValueError: If `model` cannot be loaded; also FileNotFoundError and whatever else `from_pretrained` raises.
    """

    def __init__(self, model: str):
        on_board = {name: load_record(name).folder for name in list_models() if load_record(name).on_board}
        self._places: dict[str, str | Path] = {**on_board}
        path = Path(model).expanduser()
        self.default = model
        if (path / "config.json").is_file():
            name = path.resolve().name
            self.default = f"./{name}" if name in list_models() else name
            self._places = {self.default: path, **on_board}
        elif model not in on_board:
            self._places = {model: model, **on_board}
        self.names = list(self._places)
        self._generators: dict[str, tuple[int, Generator]] = {}
        self._told: dict[str, tuple[tuple[int, ...], _Told]] = {}
        self._lock, self._drawing = Lock(), Lock()
        self.load(self.default)

    def load(self, name: str) -> Generator:
        """Return the generator of that name; of a run that is training, as it was last saved.

        Raises:
            ValueError: If it is none of `names`.
        """
        if name not in self._places:
            raise InputError(f"this page has the models {', '.join(self.names)}, and no other")
        with self._lock:
            written = self._written(name)  # before it is read, so that a later file is taken for a new one
            if name not in self._generators or self._generators[name][0] != written:
                self._generators[name] = written, Generator.from_pretrained(self._places[name], dtype=torch.float32)
            return self._generators[name][1]

    def _written(self, name: str) -> int:
        """Return when the weights of a model were written; 0 if they are not in a folder."""
        folder = self.folder(name)
        files = [] if folder is None else [path for path in (folder / file for file in WEIGHT_FILES) if path.exists()]
        return max((path.stat().st_mtime_ns for path in files), default=0)

    def tell(self, name: str) -> _Told:
        """Return what is known of a model: a text in Markdown, and of a run the picture of its curves and its samples.

        The picture is uint8 `(H, W, 3)`. It is drawn once for all visitors, until the run writes something new.
        """
        stamp = self.stamp(name)
        if stamp is None:
            return _tell(self, name)
        with self._drawing:  # which Matplotlib does for one at a time
            if name not in self._told or self._told[name][0] != stamp:
                self._told[name] = stamp, _tell(self, name)
            return self._told[name][1]

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Return what changes when a run's weights, log or samples do; None if a model is not a run's."""
        folder = self.folder(name)
        if folder is None or not (folder / "recipe.yaml").is_file():
            return None
        others = (folder / "metrics.jsonl", folder / "samples")
        return (self._written(name), *(path.stat().st_mtime_ns for path in others if path.exists()))

    def folder(self, name: str) -> Path | None:
        """Return the folder of a model, if it is in one."""
        place = self._places[name]
        return place if isinstance(place, Path) else None


def draw(models: Models, view: View) -> Tensor:
    """Return the picture that a link stands for: uint8 `(K, H, W)`, enlarged by a whole number."""
    generator = models.load(view.model)
    return images.enlarge(_pixels(generator, view, _place(generator, view)[None]), _SIDE)[0]


def draw_seed(models: Models, view: View) -> Tensor:
    """Return the first `SHOWN` images of the seed: uint8 `(N, K, H, W)`."""
    generator = models.load(view.model)
    config = generator.config
    z = latents.seeded_latents(SHOWN, config["latent_dim"], seed=view.seed, distribution=config["latent"])
    return images.enlarge(_pixels(generator, view, z), _SMALL_SIDE)


def draw_walk(models: Models, view: View, steps: int) -> Tensor:
    """Return the images of a walk through those that are chosen, uint8 `(N, K, H, W)`, with `steps` to the next.

    Raises:
        ValueError: If fewer than two are chosen or more than `MAX_POINTS`, or `steps` is not from 1 to `MAX_STEPS`.
    """
    generator = models.load(view.model)
    picks = read_picks(view.walk, view.seed) if view.walk.strip() else []
    if not 2 <= len(picks) <= MAX_POINTS:
        raise InputError(f"a walk goes through 2 to {MAX_POINTS} images, and {len(picks)} are chosen")
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"a walk has 1 to {MAX_STEPS} steps from each image to the next")
    way = latents.slerp if generator.config["latent"] == "normal" else latents.lerp
    path = latents.walk(_picked(generator, picks), int(steps), interpolate=way)
    return images.enlarge(_pixels(generator, view, path), _SMALL_SIDE)


def draw_sum(models: Models, view: View) -> Tensor:
    """Return the means of A, B and C and the sum A - B + C (Figure 7) as one picture: uint8 `(K, H', W')`.

    Raises:
        ValueError: If one of the groups is empty.
    """
    generator = models.load(view.model)
    texts = [write_sum(view), view.a, view.b, view.c]
    result, *groups = (_latent(generator, text, view.seed) for text in texts)
    z = torch.stack([*groups, result])
    pixels = images.enlarge(_pixels(generator, view, z), _SIDE // 2)
    return images.grid(images.caption(pixels, ["A", "B", "C", "A - B + C"]), columns=2)


def write_sum(view: View) -> str:
    """Return `a - b + c` as a centre.

    Raises:
        ValueError: If one of the groups is empty.
    """
    if not (view.a.strip() and view.b.strip() and view.c.strip()):
        raise InputError("A, B and C need at least one image each: choose where a click adds it, and click on some")
    return f"{view.a} - {view.b} + {view.c}"


def find(
    models: Models, view: View, file: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Tensor, str, float]:
    """Find the latent whose image comes closest to that of a file.

    Returns:
        The image of the file and what was found, uint8 `(2, K, H, W)`; the latent, as a centre; and the mean squared
        difference of both, on the scale of the generator's images.

    Raises:
        ValueError: If the file cannot be read as an image.
    """
    from dcgan.data._decoding import Decoder
    from dcgan.data._sources import source_of_files

    generator = models.load(view.model)
    config = generator.config
    decoder = Decoder(source_of_files([file]), sides(config), config["channels"], "crop", max_pixels=2**26)
    decoded = decoder([0])
    if decoded.failures:
        raise InputError(f"this file cannot be read as an image: {decoded.failures[0][1]}")
    pixels = torch.from_numpy(decoded.images).permute(0, 3, 1, 2)
    targets = images.from_uint8(pixels, images.VALUE_RANGES[config["output"]])
    starts = latents.seeded_latents(_SEARCHES, config["latent_dim"], seed=view.seed, distribution=config["latent"])
    network = _OfClass(generator, _label(generator, view))
    found = latents.project(network, targets, starts, steps=_SEARCH_STEPS, progress=progress)
    centre = write_latent(found.z[0])
    drawn = _pixels(generator, view, _latent(generator, centre, view.seed)[None])
    return images.enlarge(torch.cat([pixels, drawn]), _SMALL_SIDE), centre, float(found.errors[-1, 0])


def read_picks(text: str, seed: int) -> list[tuple[int, int]]:
    """Return the images that `3,17,1:40` names, as pairs of seed and index.

    Raises:
        ValueError: If it is no such list, or one of more than `MAX_NAMES`.
    """
    picks = []
    for name in text.split(",", MAX_NAMES):
        match = re.fullmatch(r"\s*(?:([0-9]{1,15}):)?([0-9]{1,15})\s*", name)
        if match is None:
            raise InputError(
                "an image is an index or SEED:INDEX, and several are joined by commas, as in 3,17,1:40; "
                f"there may be up to {MAX_NAMES}"
            )
        picks.append((seed if match[1] is None else int(match[1]), int(match[2])))
    if len(picks) > MAX_NAMES:
        raise InputError(f"there may be up to {MAX_NAMES} images in a group")
    return picks


def write_latent(z: Tensor) -> str:
    """Return a latent `(Z,)`, rounded to half precision, as a centre."""
    return "z." + base64.urlsafe_b64encode(z.cpu().numpy().astype("<f2").tobytes()).decode().rstrip("=")


def _tell(models: Models, name: str) -> _Told:
    """Return what `Models.tell` does. The curves are drawn from the log: while a run trains, its picture is older."""
    folder = models.folder(name)
    if name in list_models():
        record = load_record(name)
        facts = {"draws": record.description, "trained on": record.data, "terms of the data": record.terms}
        facts |= {"licence": record.licence, "from": record.source, "notice": record.notice}
        facts |= {key: value for key, value in record.figures.items() if isinstance(value, str)}
        facts |= {key: str(record.training[key]) for key in ("command", "machine") if key in record.training}
        text = _itemize({key: value for key, value in facts.items() if value})
    elif folder is not None and (folder / "README.md").is_file():
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        text = _publish(card, name)
    else:
        text = _itemize(models.load(name).config)
    if folder is None or not (records := _log.read(folder / "metrics.jsonl")):
        return text, None, []
    figures = {record["step"]: record["fd"] for record in records if "fd" in record}
    progress = {"step": records[-1]["step"]} | _log.summarize(records, figures)
    text = f"{_itemize(progress)}\n\n{text}"
    samples = sorted((folder / "samples").glob("step-*.png"))
    count = min(len(samples), _SAMPLES)
    chosen = [samples[round(i * (len(samples) - 1) / max(count - 1, 1))] for i in range(count)]  # the first to the last
    return text, images.draw_curves(records), chosen


def _itemize(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{key}**: {value}" for key, value in facts.items())


def _publish(card: str, name: str) -> str:
    """Return what any visitor may read of a card: no code or recipe, which name folders, and no picture."""
    card = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    card = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    card = re.sub(r"^# .*$", f"# {name}", card, count=1, flags=re.MULTILINE)
    card = re.sub(r"!\[[^\]]*\]\([^)]*\)|<[^>]*>", "", card)
    sections = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    return "".join(part for part in sections if not part.startswith(("## Architecture", "## Recipe")))


class _OfClass(nn.Module):
    """A generator for the images of one class, as a function of latents alone."""

    def __init__(self, generator: Generator, label: int | None):
        super().__init__()
        self.generator, self.label = generator, label

    def forward(self, z: Tensor) -> Tensor:
        labels = None if self.label is None else torch.full((len(z),), self.label)
        image: Tensor = self.generator(z, labels)
        return image


def _label(generator: Generator, view: View) -> int | None:
    return None if generator.config["num_classes"] is None else view.label


def _pixels(generator: Generator, view: View, z: Tensor) -> Tensor:
    return pixels_of(generator, generator.sample(z=z, labels=_label(generator, view)))


def _picked(generator: Generator, picks: Sequence[tuple[int, int]]) -> Tensor:
    config: Mapping[str, Any] = generator.config
    return latents.pick_latents(picks, config["latent_dim"], distribution=config["latent"])


def _latent(generator: Generator, text: str, seed: int) -> Tensor:
    """Return the latent `(Z,)` that a centre stands for."""
    if text.startswith("z."):
        return _read_latent(text, generator.config["latent_dim"])
    first, *others = re.split(r"([+-])", text, maxsplit=MAX_NAMES)
    terms = zip(["+", *others[::2]], [first, *others[1::2]], strict=True)
    groups = [(sign, _picked(generator, read_picks(names, seed))) for sign, names in terms]
    plus, minus = ([group for sign, group in groups if sign == wanted] for wanted in "+-")
    return latents.combine_means(plus, minus)


def _read_latent(text: str, latent_dim: int) -> Tensor:
    try:
        encoded = base64.b64decode(text[2:] + "=" * (-(len(text) - 2) % 4), altchars=b"-_", validate=True)
        values = torch.from_numpy(np.frombuffer(encoded, "<f2").astype(np.float32))
    except ValueError:  # no base64, or not a whole number of numbers
        values = torch.empty(0)
    if values.shape != (latent_dim,) or not values.isfinite().all():
        raise InputError(
            f"a centre that begins with z. must be a latent of {latent_dim} numbers, as this page writes it"
        )
    return values


def _place(generator: Generator, view: View) -> Tensor:
    """Return the latent `(Z,)` of a view: its centre, moved along the directions."""
    z = _latent(generator, view.centre, view.seed)
    amounts = torch.tensor([view.d0, view.d1, view.d2, view.d3])
    config = generator.config
    if amounts.any():
        seed = latents.derive_seed(view.ways, 1)  # other latents than the images of this seed
        ways = latents.seeded_latents(RANDOM, config["latent_dim"], seed=seed, distribution=config["latent"])
        scale = 1 if config["latent"] == "normal" else math.sqrt(1 / 3)  # the standard deviation of each number
        z = z + amounts * scale @ normalize(ways)
    if view.turn:
        if not (view.b.strip() and view.c.strip()):
            raise InputError("the way from B to C needs at least one image in each of them")
        groups = [_picked(generator, read_picks(text, view.seed)) for text in (view.b, view.c)]
        z = latents.shift(z[None], latents.direction(*groups), torch.tensor([view.turn]))[0, 0]
    return z
