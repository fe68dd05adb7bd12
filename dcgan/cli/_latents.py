"""`dcgan walk`, `dcgan arithmetic` and `dcgan project`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from dcgan._allocator import keep_memory
from dcgan._numbers import MAX_PICTURED, brief
from dcgan.cli._arguments import expect_new, expect_unconditional, load_generator
from dcgan.cli._options import COUNT, FLAG, NATURAL, PICTURED
from dcgan.cli._terminal import UsageError, exit_on_error, progress_bar, say, say_table

if TYPE_CHECKING:
    from torch import Tensor

    from dcgan.models import Generator

_SIDE = 64  # pixels: smaller images are enlarged, for their captions and on a screen
_FRAMES_PER_SECOND = 20


def walk(
    model: str = "faces",
    *,
    points: Annotated[int, PICTURED] = 9,
    through: str | None = None,
    start_group: Annotated[str | None, Parameter(name="--from")] = None,
    end_group: Annotated[str | None, Parameter(name="--to")] = None,
    steps: Annotated[int, PICTURED] = 10,
    interpolation: Literal["slerp", "lerp"] | None = None,
    strip: Annotated[bool, FLAG] = False,
    out: Path = Path("walk.png"),
    seed: Annotated[int, NATURAL] = 0,
    force: Annotated[bool, FLAG] = False,
    device: str = "auto",
) -> int:
    """Walk through the latent space from image to image (Figure 4), or along a direction (Figure 8).

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        points: Number of images to walk through: the first ones of the seed.
        through: Images to walk through instead, such as 3,17,1:40, the last of which is image 40 of seed 1; or a .npy
            file of latents, as dcgan project writes it. dcgan arithmetic MODEL draws a sheet to choose from.
        start_group: With --to, do not walk from image to image, but move each along the direction from the mean of
            these images to that of others.
        end_group: Images at the other end of this direction.
        steps: Number of steps from each image to the next; or along the direction, from its opposite to itself.
        interpolation: Way from one image to the next; by default slerp, along an arc, for normal latents, and lerp, in
            a straight line, for uniform ones.
        strip: Draw a .png in a single row, instead of one row from each image to the next.
        out: Picture to write, a .png; or animation, a .gif or an .mp4, which returns to its beginning.
        seed: Seed of the latents.
        force: Overwrite an existing file.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        expect_new_file(out, (".png", ".gif", ".mp4"), force=force)
        if (start_group is None) != (end_group is None):
            raise UsageError("--from and --to are the two ends of a direction: give both")
        if start_group and interpolation:
            raise UsageError("--interpolation is the way from image to image: omit it with --from and --to")
        generator = load_unconditional(model, device)
        import torch
        from einops import rearrange

        from dcgan import images, latents

        if out.suffix == ".mp4":
            images.expect_video_encoder()
        chosen = _read_latents(generator, through, seed) if through else _first(generator, points, seed)
        if len(chosen) < 2 and not start_group:
            raise UsageError("a walk needs at least two images, got one: --points or --through, or --from and --to")
        if len(chosen) * steps > MAX_PICTURED:
            raise UsageError(
                f"a walk has at most {MAX_PICTURED:,} images, got {len(chosen):,} with {steps:,} steps each"
            )
        if start_group and end_group:
            ends = [_read_latents(generator, text, seed) for text in (start_group, end_group)]
            if torch.allclose(ends[0].mean(0), ends[1].mean(0), rtol=0, atol=1e-6):
                raise UsageError(f"--from and --to must differ, got {start_group} and {end_group}, which are the same")
            path = latents.shift(chosen, latents.direction(*ends), torch.linspace(-1, 1, steps + 1))
        else:
            name = interpolation or ("slerp" if generator.config["latent"] == "normal" else "lerp")
            way = {"slerp": latents.slerp, "lerp": latents.lerp}[name]
            path = latents.walk(chosen, steps, interpolate=way)[None]
    with exit_on_error(running=True):
        rows, columns = path.shape[:2]
        pixels = images.enlarge(_draw(generator, path.flatten(0, 1)), _SIDE)
        if out.suffix == ".png" and rows == 1 and not strip:
            pixels = torch.cat([pixels[start : start + steps + 1] for start in range(0, columns - 1, steps)])
            save_picture(out, images.grid(pixels, columns=steps + 1))
        elif out.suffix == ".png":
            save_picture(out, images.grid(pixels, columns=columns))
        else:
            moments = rearrange(pixels, "(rows columns) k h w -> columns rows k h w", rows=rows)
            frames = torch.stack([images.grid(moment, gap=0) for moment in moments])
            _save_loop(out, torch.cat([frames, frames[1:-1].flip(0)]))
    say(f"{out}: {rows * columns} images, through {len(chosen)}")
    return 0


def arithmetic(
    model: str = "faces",
    expression: str = "",
    *,
    number: Annotated[int, Parameter(name=["--number", "-n"]), PICTURED] = 64,
    out: Path = Path("arithmetic.png"),
    seed: Annotated[int, NATURAL] = 0,
    force: Annotated[bool, FLAG] = False,
    device: str = "auto",
) -> int:
    """Add and subtract what images show (Figure 7): means of groups of them, as in "3,17,40 - 5,9,12 + 8,11,1:30".

    The picture has a row for each group, with its mean last, and beside them the result, in the middle of eight
    variations of it. Without an expression, it is a numbered sheet of images, to choose them from.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        expression: Groups of images, joined by + and -, in quotes. An image is its index, or SEED:INDEX.
        number: Number of images on the sheet.
        out: Picture to write, a .png.
        seed: Seed of images that are named without one.
        force: Overwrite an existing file.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        expect_new_file(out, (".png",), force=force)
        terms = _read_expression(expression)
        generator = load_unconditional(model, device)
        from dcgan import images

        groups = [(sign, text.split(","), _read_latents(generator, text, seed)) for sign, text in terms]
    with exit_on_error(running=True):
        if groups:
            save_picture(out, _draw_arithmetic(generator, groups))
            say(f"{out}: {' '.join(f'{sign} {len(names)}' for sign, names, _ in groups)} images")
            return 0
        sheet = _draw(generator, _first(generator, number, seed))
        captions = [str(index) for index in range(number)]
        save_picture(out, images.grid(images.caption(images.enlarge(sheet, _SIDE), captions)))
    say(f"{out}: images 0 to {number - 1} of seed {seed}; next, with numbers of your choice:")
    say(f'  dcgan arithmetic {model} "0,1,2 - 3,4,5 + 6,7,8" --out result.png')
    return 0


def project(
    model: str,
    *files: Path,
    steps: Annotated[int, COUNT] = 300,
    starts: Annotated[int, PICTURED] = 4,
    out: Path = Path("projection"),
    seed: Annotated[int, NATURAL] = 0,
    force: Annotated[bool, FLAG] = False,
    device: str = "auto",
) -> int:
    """Find the latents whose images come closest to real ones.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        files: Images of any size, which are scaled to cover that of the model and cropped to the centre.
        steps: Number of steps of the search.
        starts: Number of latents to start from, for each image; the best end is kept.
        out: Folder to write to: pairs.png, the images above what was found; errors.png, the error over the steps; and
            latents.npy, which dcgan walk --through takes.
        seed: Seed of the latents to start from.
        force: Overwrite existing files.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        if not files:
            raise UsageError("project needs at least one image file after the model")
        if len(files) * starts > MAX_PICTURED:
            raise UsageError(f"--starts times the number of files must be at most {MAX_PICTURED:,}, got {starts:,}")
        pairs, errors, found = (out / name for name in ("pairs.png", "errors.png", "latents.npy"))
        for path in (pairs, errors, found):
            expect_new_file(path, (path.suffix,), force=force)
        generator = load_unconditional(model, device)
        import numpy as np
        import torch

        from dcgan import images, latents

        pixels = _decode(files, generator)
        value_range = images.VALUE_RANGES[generator.config["output"]]
        like = next(generator.parameters())
        targets = images.from_uint8(pixels, value_range).to(like)
        first = _first(generator, starts, seed).to(like)
        out.mkdir(parents=True, exist_ok=True)
    with exit_on_error(running=True):
        with progress_bar("searching", "step") as progress:
            result = latents.project(generator, targets, first, steps=steps, progress=progress)
        drawn = images.to_uint8(result.images, value_range).cpu()
        images.save_png(pairs, images.grid(images.enlarge(torch.cat([pixels, drawn]), _SIDE), columns=len(files)))
        shown = [path.name for path in files]
        if len(set(shown)) < len(shown):
            shown = [str(path) for path in files]
        images.save_errors(errors, dict(zip(shown, result.errors.T.tolist(), strict=True)))
        with found.open("wb") as file:
            np.save(file, result.z.cpu().numpy())
    rows = [(name, f"{e[0]:.4f}", f"{e[-1]:.4f}") for name, e in zip(shown, result.errors.T.tolist(), strict=True)]
    say_table([("image", "first error", "last error"), *rows])
    say(f"\n{pairs}, {errors}, {found}")
    return 0


def expect_new_file(path: Path, suffixes: tuple[str, ...], *, force: bool) -> None:
    """Refuse a file to write that has another suffix or exists."""
    if path.suffix not in suffixes:
        *others, last = suffixes
        raise UsageError(f"--out must end in {', '.join(others)}{' or ' if others else ''}{last}, got {path}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder")
    expect_new(path, force=force)


def load_unconditional(model: str, device: str) -> "Generator":
    """Load the generator of a model, which must not be conditional, onto a device, by its name or `auto`."""
    keep_memory()
    from dcgan._build import select_device

    generator = load_generator(model, select_device(device))
    expect_unconditional(generator, model)
    return generator


def save_picture(path: Path, picture: "Tensor") -> None:
    """Write a uint8 image `(K, H, W)` as a PNG, in a new folder if need be."""
    from dcgan import images

    path.parent.mkdir(parents=True, exist_ok=True)
    images.save_png(path, picture)


def _first(generator: "Generator", n: int, seed: int) -> "Tensor":
    """Return the first latents of a seed `(n, Z)`."""
    from dcgan.latents import seeded_latents

    return seeded_latents(n, generator.config["latent_dim"], seed=seed, distribution=generator.config["latent"])


def _read_latents(generator: "Generator", text: str, seed: int) -> "Tensor":
    """Return the latents that `3,17,1:40` or the name of a file stands for, `(N, Z)`."""
    from dcgan.latents import pick_latents

    latent_dim = generator.config["latent_dim"]
    if text.endswith(".npy"):
        return _load_latents(Path(text), latent_dim)
    picks = []
    for name in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,20}):)?(\d{1,20})\s*", name)
        if match is None:
            raise UsageError(f"an image is an index or SEED:INDEX, and several are joined by commas; got {brief(text)}")
        picks.append((seed if match[1] is None else int(match[1]), int(match[2])))
    return pick_latents(picks, latent_dim, distribution=generator.config["latent"])


def _load_latents(path: Path, latent_dim: int) -> "Tensor":
    import numpy as np
    import torch

    try:
        array = torch.from_numpy(np.load(path, allow_pickle=False))
    except OSError:
        raise
    except Exception as error:  # ValueError, EOFError, SyntaxError, TokenError, TypeError, ... of a damaged header
        raise UsageError(f"{path} is not a whole .npy file of an array of numbers") from error
    if array.dim() != 2 or array.shape[1] != latent_dim:
        raise UsageError(f"{path} must hold latents (N, {latent_dim}), got {tuple(array.shape)}")
    if array.is_complex():
        raise UsageError(f"{path} must hold real numbers, got complex ones")
    latents = array.float()
    if not latents.isfinite().all():
        raise UsageError(f"{path} must hold finite numbers, got NaN or infinite ones")
    return latents


def _read_expression(text: str) -> list[tuple[str, str]]:
    """Return each group of `3,17 - 5,9 + 8` with its sign."""
    if not text.strip():
        return []
    first, *others = re.split(r"([+-])", text)
    signs, groups = ["+", *others[::2]], [first, *others[1::2]]
    if not first.strip():
        raise UsageError(f'an expression begins with a group that is added, as in "0,1 - 2,3 + 4,5"; got {text!r}')
    return list(zip(signs, groups, strict=True))


def _draw(generator: "Generator", latents: "Tensor") -> "Tensor":
    """Return the images of latents as uint8 `(N, K, H, W)`, on the CPU."""
    from dcgan.generate import pixels_of

    return pixels_of(generator, generator.sample(z=latents))


def _draw_arithmetic(generator: "Generator", groups: list[tuple[str, list[str], "Tensor"]]) -> "Tensor":
    """Return a picture as in Figure 7: `(K, H, W)`."""
    import torch
    from torch.nn.functional import pad

    from dcgan import images
    from dcgan.latents import combine_means, jitter

    def draw(latents: "Tensor", captions: list[str]) -> "Tensor":
        return images.caption(images.enlarge(_draw(generator, latents), _SIDE), captions)

    columns = max(len(names) for _, names, _ in groups)
    rows = []
    for sign, names, latents in groups:
        row = draw(torch.cat([latents, latents.mean(0, keepdim=True)]), [*names, f"{sign} mean"])
        blank = row.new_zeros(columns - len(names), *row.shape[1:])
        rows.append(torch.cat([row[:-1], blank, row[-1:]]))
    left = images.grid(torch.cat(rows), columns=columns + 1)
    result = combine_means(
        [latents for sign, _, latents in groups if sign == "+"],
        [latents for sign, _, latents in groups if sign == "-"],
    )
    around = jitter(result, 8)
    nine = torch.cat([around[:4], result[None], around[4:]])
    right = images.grid(draw(nine, ["", "", "", "", "result", "", "", "", ""]), columns=3)
    height = max(left.shape[1], right.shape[1])
    return torch.cat([pad(side, (0, gap, 0, height - side.shape[1])) for side, gap in ((left, 16), (right, 0))], 2)


def _save_loop(path: Path, frames: "Tensor") -> None:
    from dcgan import images

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        images.save_gif(path, frames, seconds=1 / _FRAMES_PER_SECOND, last=1 / _FRAMES_PER_SECOND)
    else:
        images.save_video(path, frames, frames_per_second=_FRAMES_PER_SECOND)


def _decode(files: tuple[Path, ...], generator: "Generator") -> "Tensor":
    """Read image files as uint8 `(N, K, H, W)` of the shape that a generator draws."""
    import torch

    from dcgan._config import sides
    from dcgan.data._decoding import Decoder
    from dcgan.data._sources import source_of_files

    source = source_of_files([str(file) for file in files])
    decoded = Decoder(source, sides(generator.config), generator.config["channels"], "crop")(range(len(files)))
    if decoded.failures:
        raise UsageError("; ".join(f"{file} {reason}" for file, reason in decoded.failures))
    return torch.from_numpy(decoded.images).permute(0, 3, 1, 2)
