"""`dcgan visualize filters`, `features` and `dropout`."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from dcgan._allocator import keep_memory
from dcgan._choices import DatasetName
from dcgan._numbers import MAX_SEED
from dcgan.cli._arguments import expect_unconditional
from dcgan.cli._latents import expect_new_file, load_unconditional, save_picture
from dcgan.cli._options import FLAG, NATURAL, PICTURED, WORDS
from dcgan.cli._terminal import UsageError, exit_on_error, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dcgan.models import Discriminator, Generator

visualize = App(name="visualize", help="Look inside a model: filters, what they respond to, drawing without some.")

_BATCH_SIZE = 100
_MARGIN = 12  # pixels between a trained network and a random one


@visualize.command
def filters(
    model: str = "faces",
    *,
    out: Path = Path("filters.png"),
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Draw the filters of the discriminator's first layer, and those of a network with random weights beside them.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run; or Hub repository.
        out: Picture to write, a .png.
        force: Overwrite an existing file.
    """
    with exit_on_error():
        expect_new_file(out, (".png",), force=force)
        discriminator = _load_discriminator(model, "cpu")
        import torch

        from dcgan import images
        from dcgan._config import sides
        from dcgan.visualize import first_layer_filters, randomize

        blank = torch.zeros(2, discriminator.config["channels"], *sides(discriminator.config))
        networks = {"trained": discriminator, "random": randomize(discriminator, [blank])}
        blocks = []
        for name, network in networks.items():
            pictures = images.enlarge(images.to_uint8(first_layer_filters(network)), 24)
            blocks.append(_title(images.grid(pictures), name))
        save_picture(out, _side_by_side(blocks))
    say(f"{out}: {len(pictures)} filters")
    return 0


@visualize.command
def features(
    model: str = "faces",
    *,
    stage: str | None = None,
    feature: Annotated[tuple[int, ...], WORDS] = (0, 1, 2, 3, 4, 5),
    patches: Annotated[int, PICTURED] = 6,
    data: DatasetName | None = None,
    root: Path | None = None,
    number: Annotated[int, Parameter(name=["--number", "-n"]), PICTURED] = 2000,
    out: Path = Path("features.png"),
    seed: Annotated[int, NATURAL] = 0,
    force: Annotated[bool, FLAG] = False,
    device: str = "auto",
) -> int:
    """Draw what features of the discriminator respond to most, and which pixels make them respond (Figure 5).

    Each feature has a row: the patches of images that it responds to most, from the strongest on, no two of one image,
    then the guided backpropagation of these responses; and beside them the same for a network with random weights.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run; or Hub repository.
        stage: Stage whose features to draw, such as 8x8; by default the last one.
        feature: Numbers of the features.
        patches: Number of patches for each feature.
        data: Dataset to find the patches in, by default samples of the model itself; folder if --root is given.
        root: Folder that holds the dataset, or the folder of images.
        number: Number of images to look at: the first ones of the seed, or some spread over the dataset.
        out: Picture to write, a .png.
        seed: Seed of the samples.
        force: Overwrite an existing file.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        expect_new_file(out, (".png",), force=force)
        keep_memory()
        import torch

        from dcgan._build import select_device
        from dcgan.visualize import Stage, randomize

        discriminator = _load_discriminator(model, select_device(device))
        name = stage or [*discriminator.blocks][-1]
        if name not in discriminator.blocks:
            raise UsageError(f"--stage must be one of {', '.join(discriminator.blocks)}, got {name!r}")
        if data is None and root is None:
            pixels = _sample(load_unconditional(model, device), number, seed)
        else:
            pixels = _load_data(discriminator, data or "folder", root, number)
        if len(pixels) < patches:
            raise UsageError(f"--patches {patches} needs as many images, got {len(pixels)}")
        value_range = _value_range(model)
        width = Stage(discriminator, name)(_batches(discriminator, pixels[:1], value_range)[0]).shape[1]
        if wrong := [number for number in feature if not 0 <= number < width]:
            raise UsageError(f"--feature must be from 0 to {width - 1} at stage {name}, got {wrong[0]}")
    with exit_on_error(running=True):
        chosen = torch.tensor(feature)
        batches = _batches(discriminator, pixels, value_range)
        networks = {"trained": discriminator, "random": randomize(discriminator, batches[:10])}
        blocks = [
            _title(_draw_responses(Stage(network, name), batches, value_range, chosen, patches), f"{label}, {name}")
            for label, network in networks.items()
        ]
        save_picture(out, _side_by_side(blocks))
    say(f"{out}: features {', '.join(map(str, feature))} of {width} at stage {name}, over {len(pixels)} images")
    return 0


@visualize.command
def dropout(
    model: str = "faces",
    *,
    marks: Path,
    stage: str | None = None,
    number: Annotated[int, Parameter(name=["--number", "-n"]), PICTURED] = 16,
    out: Path = Path("dropout.png"),
    seed: Annotated[int, NATURAL] = 0,
    force: Annotated[bool, FLAG] = False,
    device: str = "auto",
) -> int:
    """Draw images with and without the features that draw an object, which you mark in a few others (Figure 6).

    A logistic regression tells the marked positions from others by the activations of a stage, and features with
    positive weights are dropped.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        marks: Where the object is in images of the seed: a .csv file with the columns index, left, top, right and
            bottom, in pixels, one line for each box; or a folder of masks, 000012.png for image 12, white where it is.
        stage: Stage of the generator whose features to drop, such as 16x16; by default the second-highest.
        number: Number of new images to draw; they are those after the last marked one.
        out: Picture to write, a .png: the images above the same ones without the features.
        seed: Seed of the images.
        force: Overwrite an existing file.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    with exit_on_error():
        expect_new_file(out, (".png",), force=force)
        if not marks.exists():
            raise UsageError(f"--marks must be a .csv file of boxes or a folder of masks, {marks} does not exist")
        generator = load_unconditional(model, device)
        import torch

        from dcgan import images
        from dcgan._config import sides
        from dcgan.latents import pick_latents
        from dcgan.visualize import drop_features, feature_weights, layer_output

        names = [*generator.blocks]
        name = stage or names[max(0, len(names) - 2)]
        if name not in names:
            raise UsageError(f"--stage must be one of {', '.join(names)}, got {name!r}")
        layer = generator.blocks[name]
        indices, masks = (_read_masks if marks.is_dir() else _read_boxes)(marks, sides(generator.config))
        if not 0 <= min(indices) <= max(indices) <= MAX_SEED:
            raise UsageError(
                f"{marks} must mark images of an index in [0, 2**63), got {min(indices)} to {max(indices)}"
            )

        latent_dim, distribution = generator.config["latent_dim"], generator.config["latent"]
        z = pick_latents([(seed, index) for index in indices], latent_dim, distribution=distribution)
        maps = layer_output(generator, layer, z.to(next(generator.parameters()).device))
        dropped = feature_weights(maps, masks) > 0
    with exit_on_error(running=True):
        start = max(indices) + 1
        before = _sample(generator, number, seed, start)
        with drop_features(layer, dropped):
            after = _sample(generator, number, seed, start)
        save_picture(out, images.grid(images.enlarge(torch.cat([before, after]), 64), columns=number))
    say(f"{out}: images {start} to {start + number - 1} of seed {seed}")
    say(f"{int(dropped.sum())} of {len(dropped)} features of stage {name} dropped, by marks on {len(indices)} images")
    return 0


def _load_discriminator(model: str, device: "torch.device | str") -> "Discriminator":
    from dcgan.models import Discriminator

    discriminator = Discriminator.from_pretrained(model, device=device)
    expect_unconditional(discriminator, model)
    return discriminator


def _sample(generator: "Generator", n: int, seed: int, start: int = 0) -> "Tensor":
    from dcgan.generate import sample_uint8

    return sample_uint8(generator, n, seed=seed, start=start)


def _load_data(discriminator: "Discriminator", name: DatasetName, root: Path | None, number: int) -> "Tensor":
    """Return images spread over a dataset, which may be sorted by class, as uint8 `(N, K, H, W)`."""
    import numpy as np

    from dcgan import data
    from dcgan._config import sides

    size, channels = sides(discriminator.config), discriminator.config["channels"]
    images = data.load(name, root=root, image_size=size, channels=channels, cache=False)  # to decode only what is drawn
    try:
        return images.batch(np.linspace(0, len(images) - 1, min(number, len(images))).astype(int))
    except data.BadImages as error:
        file, reason = error.failures[0]
        raise UsageError(f"{file} {reason}") from error


def _value_range(model: str) -> tuple[float, float]:
    """Return the range of the images that a discriminator has seen, which is that of its generator's."""
    from dcgan.images import VALUE_RANGES
    from dcgan.models import Generator

    try:
        return VALUE_RANGES[Generator.from_pretrained(model).config["output"]]
    except FileNotFoundError:  # of a discriminator alone
        return VALUE_RANGES["tanh"]


def _batches(network: "nn.Module", pixels: "Tensor", value_range: tuple[float, float]) -> "list[Tensor]":
    """Return images in batches as a discriminator takes them, on its device."""
    import torch

    from dcgan.images import from_uint8

    device = next(network.parameters()).device
    return [from_uint8(batch.contiguous(), value_range).to(device) for batch in torch.split(pixels, _BATCH_SIZE)]


def _draw_responses(
    stage: "nn.Module", batches: "list[Tensor]", value_range: tuple[float, float], chosen: "Tensor", patches: int
) -> "Tensor":
    """Return a row for each feature, its patches and their guided backpropagation, as one picture `(K, H, W)`."""
    import torch
    from einops import rearrange

    from dcgan import images
    from dcgan.visualize import crop, guided_backprop, normalize, receptive_field, strongest_responses

    found = strongest_responses(stage, batches, patches)
    chosen = chosen.to(found.images.device)
    index, rows, columns = (each[chosen].flatten() for each in (found.images, found.rows, found.columns))
    field = receptive_field(stage, batches[0])
    seen = torch.cat(batches)[index]  # (F·k, K, H, W)
    gradients = guided_backprop(stage, seen, chosen.repeat_interleave(patches), rows, columns)
    shown = images.from_uint8(images.to_uint8(crop(seen, rows, columns, field), value_range))
    pictures = [shown, normalize(crop(gradients, rows, columns, field))]
    both = rearrange(torch.stack(pictures), "two (f k) c h w -> (f two k) c h w", k=patches)
    return images.grid(images.enlarge(images.to_uint8(both), 24), columns=2 * patches).cpu()


def _title(picture: "Tensor", text: str) -> "Tensor":
    from dcgan.images import caption

    return caption(picture[None], [text])[0]


def _side_by_side(pictures: "list[Tensor]") -> "Tensor":
    import torch
    from torch.nn.functional import pad

    return torch.cat([pad(picture, (0, _MARGIN)) for picture in pictures], 2)[..., :-_MARGIN]


def _read_boxes(path: Path, image_size: tuple[int, int]) -> "tuple[list[int], Tensor]":
    """Return the indices of the images that have boxes, and their masks `(N, H, W)`."""
    from dcgan.visualize import box_masks

    columns = ("index", "left", "top", "right", "bottom")
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = csv.reader(file, skipinitialspace=True)
            header = next(rows, [])
            places = [header.index(column) for column in columns]
            boxes = [[int(row[place]) for place in places] for row in rows if row]
        except (IndexError, ValueError, csv.Error) as error:
            raise UsageError(f"{path} must have the line {','.join(columns)}, then whole numbers: {error}") from error
    if not boxes:
        raise UsageError(f"{path} has no boxes")
    indices = sorted({box[0] for box in boxes})
    numbered = [(indices.index(index), left, top, right, bottom) for index, left, top, right, bottom in boxes]
    return indices, box_masks(numbered, len(indices), image_size)


def _read_masks(folder: Path, image_size: tuple[int, int]) -> "tuple[list[int], Tensor]":
    """Return the indices of the images that have masks, and these `(N, H, W)`."""
    import numpy as np
    import torch
    from PIL import Image

    paths = sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())
    if not paths:
        raise UsageError(f"{folder} has no masks, such as 000012.png for image 12")
    masks = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("L"))
        if pixels.shape != image_size:
            (height, width), got = image_size, pixels.shape
            raise UsageError(f"{path} must be {height}x{width} pixels, as the images are, got {got[0]}x{got[1]}")
        masks.append(torch.from_numpy(pixels) >= 128)
    return [int(path.stem) for path in paths], torch.stack(masks)
