"""Pictures of tensors and of a run's curves.

Shapes: N batch, K channels (1 grey, 3 colour, 4 colour and alpha), H height, W width.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import ceil, sqrt
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from dcgan._errors import InputError, MissingPackageError
from dcgan._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

VALUE_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
"""Range of a generator's images, by its `output`."""

# Colours that readers with any kind of colour blindness tell apart (Okabe and Ito, 2008).
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#00805D"
_GREY, _AMBER = "#595959", "#FBE8AE"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#999999",
    "xtick.labelcolor": "#333333",
    "ytick.color": "#999999",
    "ytick.labelcolor": "#333333",
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}
_LONG = 100  # a curve of so many values is smoothed


def to_uint8(images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Scale images of any shape from `value_range` to uint8, rounded and clipped."""
    low, high = value_range
    # In place after the first operation, since images are large and memory is the limit.
    return (images.float() - low).mul_(255 / (high - low)).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(
    images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scale uint8 images of any shape to `value_range`: the inverse of `to_uint8`."""
    low, high = value_range
    return images.to(dtype).div_(255 / (high - low)).add_(low)


def grid(images: Tensor, *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Arrange uint8 images `(N, K, H, W)` in rows, `gap` black pixels apart, as one image `(K, H', W')`.

    By default the grid is as square as possible.

    Raises:
        ValueError: If there is no image, or `columns` is below 1.
    """
    if not len(images):
        raise InputError("a grid needs at least one image")
    columns = ceil(sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    padded = pad(images, (0, gap, 0, gap, 0, 0, 0, -len(images) % columns))
    joined = rearrange(padded, "(rows columns) k h w -> k (rows h) (columns w)", columns=columns)
    return pad(joined, (gap, 0, gap, 0))


def enlarge(images: Tensor, side: int) -> Tensor:
    """Repeat the pixels of images `(N, K, H, W)` the least whole number of times that makes both sides `side` long."""
    factor = max(1, ceil(side / min(images.shape[2:])))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def caption(images: Tensor, texts: Sequence[str]) -> Tensor:
    """Write a line under each uint8 image `(N, K, H, W)`, white on black: `(N, K, H + 12, W)`.

    A line that is wider than its image is cut off; a small character is 6 pixels wide.

    Raises:
        ValueError: If there are not as many texts as images.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(texts) != len(images):
        raise InputError(f"there must be a text for each of {len(images)} images, got {len(texts)}")
    font, width = ImageFont.load_default_imagefont(), images.shape[3]
    lines = images.new_zeros(*images.shape[:2], 12, width)
    for line, text in zip(lines, texts, strict=True):
        canvas = Image.new("L", (width, 12))
        ImageDraw.Draw(canvas).text((max(0, (width - font.getlength(text)) // 2), 0), text, 255, font)
        line[:] = torch.from_numpy(np.array(canvas)).to(line)
    return torch.cat([images, lines], 2)


def encode_png(pixels: np.ndarray, *, level: int = 6) -> bytes:
    """Return a PNG of uint8 pixels `(H, W, K)`, K = 1, 3 or 4, compressed at `level` 0 to 9.

    For small images, level 1 takes half the time of level 6 and 2 % more space.
    """
    from PIL import Image

    buffer = BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()  # a view that outlives its buffer, as in a traceback, crashes Python 3.12.1


def save_png(path: str | PathLike[str], image: Tensor) -> None:
    """Write a uint8 image `(K, H, W)` to a PNG file, atomically.

    Raises:
        ValueError: If it has another shape or type.
    """
    if image.dtype != torch.uint8 or image.dim() != 3 or len(image) not in (1, 3, 4):
        raise InputError(f"image must be uint8 (1, 3 or 4, H, W), got {tuple(image.shape)} of {image.dtype}")
    pixels = rearrange(image, "k h w -> h w k").cpu().contiguous().numpy()
    with atomic_write(path) as file:
        file.write(encode_png(pixels))


def save_gif(
    path: str | PathLike[str], frames: Sequence[Path] | Tensor, *, seconds: float = 0.2, last: float = 2.0
) -> None:
    """Write a looping GIF, atomically.

    Args:
        path: File to write.
        frames: Image files of one size, or uint8 images `(N, K, H, W)`, at least one. Files share a palette; images
            have each their own, which takes longer and shows more shades.
        seconds: Duration of each frame but the last.
        last: Duration of the last frame, in seconds.
    """
    from PIL import Image

    if isinstance(frames, Tensor):
        pictures = [Image.fromarray(frame) for frame in _rgb_frames(frames)]
    else:
        pictures = _share_palette([Image.open(frame).convert("RGB") for frame in frames])
    milliseconds = [round(seconds * 1000)] * (len(pictures) - 1) + [round(last * 1000)]
    with atomic_write(path) as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
            optimize=False,
        )


def _share_palette(pictures: "list[Image.Image]") -> "list[Image.Image]":
    """Give pictures one palette, from a part of their pixels: one for each would take ten times as long."""
    from PIL import Image

    pixels = sum(picture.width * picture.height for picture in pictures)
    stride = max(1, round((pixels / 2**17) ** 0.5))
    chosen = np.concatenate([np.asarray(picture)[::stride, ::stride].reshape(-1, 3) for picture in pictures])
    palette = Image.fromarray(chosen[None]).quantize(256)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]


def save_video(path: str | PathLike[str], frames: Tensor, *, frames_per_second: int = 20) -> None:
    """Write an MP4 with H.264, which browsers and phones play, atomically.

    Args:
        path: File to write.
        frames: uint8 images `(N, K, H, W)`, at least one; the last row or column of an odd side is repeated, since
            colour is kept for every 2×2 pixels.
        frames_per_second: Number of frames shown in a second.

    Raises:
        ImportError: If the package av is missing.
    """
    expect_video_encoder()
    import av

    pixels = _rgb_frames(frames)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), "edge")
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as video:
        stream = video.add_stream("libx264", frames_per_second, options={"crf": "18"})  # hardly any visible loss
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        for frame in pixels:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        video.mux(stream.encode())
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def expect_video_encoder() -> None:
    """Check that the package is there that `save_video` encodes with.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import av  # noqa: F401 - only to see whether it can be imported
    except ImportError as error:
        raise MissingPackageError('writing a video needs av: pip install "dcgan[video]"') from error


def _rgb_frames(images: Tensor) -> np.ndarray:
    """Return uint8 images `(N, K, H, W)` as `(N, H, W, 3)`, without their alpha."""
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
        raise InputError(f"frames must be uint8 (N, 1, 3 or 4, H, W), got {tuple(images.shape)} of {images.dtype}")
    colour = images[:, :3].expand(-1, 3, -1, -1)
    return rearrange(colour, "n k h w -> n h w k").cpu().contiguous().numpy()


def save_curves(path: str | PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture of `draw_curves` as a PNG, atomically. Equal records give equal files.

    Args:
        path: File to write.
        records: As in `draw_curves`.

    Raises:
        ValueError: If there is no record.
    """
    pixels = draw_curves(records)
    with atomic_write(path) as file:
        file.write(encode_png(pixels))


def draw_curves(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Draw how a run went, as uint8 `(1160, 1800, 3)`.

    Its four panels are the losses, the outputs of D, the Fréchet distance with its best value, and the images per
    second, each over the step; steps at which training had collapsed are shaded. Long curves are pale, with their
    running mean on top. Values that are not finite are left out, and outliers run off the panel.

    Args:
        records: The lines of a run's `metrics.jsonl`, in order, at least one; each has `step`, and any of
            the other keys.

    Raises:
        ValueError: If there is no record.
    """
    if not records:
        raise InputError("curves need at least one record")
    with _quiet_matplotlib():
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):  # whatever style the program around has; it is restored
        figure = Figure(figsize=(9, 5.8), dpi=200)
        canvas: Any = FigureCanvasAgg(figure)
        panels = figure.subplots(2, 2, sharex=True)
        figure.subplots_adjust(left=0.055, right=0.972, bottom=0.085, top=0.94, wspace=0.15, hspace=0.22)
        losses, outputs, quality, speed = panels.flat
        _draw_losses(losses, records)
        _draw_outputs(outputs, records)
        _draw_quality(quality, records)
        _draw_speed(speed, records)
        _draw_steps(panels, records)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3]


def save_errors(path: str | PathLike[str], errors: Mapping[str, Sequence[float]]) -> None:
    """Draw errors over the steps of a search, on a logarithmic scale, as a PNG of 1200×700 pixels, atomically.

    Args:
        path: File to write.
        errors: The values of each curve, one per step from 0 on, by its name; names are shown for up to eight curves.

    Raises:
        ValueError: If there is no curve.
    """
    if not errors:
        raise InputError("there must be at least one curve of errors")
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with _quiet_matplotlib(), style.context(["default", _STYLE]):
        figure = Figure(figsize=(6, 3.5), dpi=200, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, values in errors.items():
            axes.plot(values, label=name, linewidth=1.4)
        axes.set(yscale="log", xlabel="step", ylabel="error", xlim=(0, None))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        if len(errors) <= 8:
            axes.legend()
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    with atomic_write(path) as file:
        file.write(encode_png(pixels))


@contextmanager
def _quiet_matplotlib() -> Iterator[None]:
    """Silence the warnings about its font cache, which it builds for seconds, or has to keep in another folder."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _draw_losses(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Losses")
    values = _draw_lines(axes, records, d_loss=("D", _BLUE), g_loss=("G", _VERMILION))
    axes.set_ylim(*_limits(values))


def _draw_outputs(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    values = _draw_lines(axes, records, d_real=("D(x)", _BLUE), d_fake=("D(G(z))", _VERMILION))
    if values.size and (values.min() < 0 or values.max() > 1):
        axes.set_title("Raw outputs of D")
        axes.set_ylim(*_limits(values))
    else:
        axes.set_title("Outputs of D")
        axes.set_ylim(0, 1)
        axes.axhline(0.5, color=_GREY, linewidth=0.7, linestyle=(0, (4, 4)), zorder=1)  # D cannot tell


def _draw_quality(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_title("Fréchet distance")
    steps, values = _series(records, "fd")
    steps, values = steps[values > 0], values[values > 0]
    if not values.size:
        _say_nothing(axes)
        return
    axes.plot(steps, values, color=_GREEN, linewidth=1.2, marker="o", markersize=3.5 if len(values) < _LONG else 1.5)
    best = int(values.argmin())
    axes.plot(
        steps[best],
        values[best],
        color=_GREEN,
        linestyle="",
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgewidth=1.5,
        label=f"lowest: {values[best]:.4g} at step {steps[best]:,}",
    )
    _draw_legend(axes)
    low, high = values.min() / 1.25, values.max() * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    locator = MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 8 * low else LogLocator(subs=(1, 2, 5))
    axes.set_yticks([tick for tick in locator.tick_values(low, high) if low <= tick <= high])  # 0 would be at the edge
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_speed(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Images per second")
    values = _draw_lines(axes, records, images_per_second=("", _GREY))
    axes.set_ylim(0, _limits(values)[1])


def _draw_lines(axes: "Axes", records: Sequence[Mapping[str, Any]], **curves: tuple[str, str]) -> np.ndarray:
    """Draw the values of some keys of the records, each with a label and a colour; return those that were drawn."""
    drawn = []
    for key, (label, colour) in curves.items():
        steps, values = _series(records, key)
        drawn.append(values)
        if len(values) >= _LONG:
            axes.plot(*_thin(steps, values), color=colour, alpha=0.25, linewidth=0.6)
            axes.plot(*_smooth(steps, values), color=colour, label=label, linewidth=1.6)
        elif len(values):
            axes.plot(steps, values, color=colour, label=label, linewidth=1.4, marker="o", markersize=2.5)
    every = np.concatenate(drawn)
    if every.size:
        _draw_legend(axes)
    else:
        _say_nothing(axes)
    return every


def _draw_legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)


def _say_nothing(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.yaxis.set_visible(False)


def _draw_steps(panels: np.ndarray, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in panels[-1]:  # which share the axis of those above
        axes.set_xlim(0, 1.02 * max(records[-1]["step"], 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("step")
    # A record tells of the steps since the one before.
    steps = np.array([0, *(record["step"] for record in records)])
    collapsed = np.array([False, *("collapse" in record for record in records), False])
    turns = steps[np.flatnonzero(np.diff(collapsed))]  # into a collapse, and out of it
    if not turns.size:
        return
    stretches = [(begin, end - begin) for begin, end in turns.reshape(-1, 2).tolist()]
    for axes in panels.flat:  # with an edge, so that the shortest stretch is seen
        shade = axes.broken_barh(stretches, (0, 1), transform=axes.get_xaxis_transform(), color=_AMBER, linewidth=0.8)
        shade.set_zorder(0)
    shade.set_label("collapse of training")
    axes.figure.legend(handles=[shade], loc="lower center", bbox_to_anchor=(0.52, -0.005))


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of the records that have a finite value of `key`."""
    pairs = [(record["step"], float(record[key])) for record in records if key in record]
    steps = np.array([step for step, _ in pairs], dtype=np.int64)
    values = np.array([value for _, value in pairs], dtype=np.float64)
    drawable = np.abs(values) < 1e30  # neither NaN nor infinite, nor so large that the axes overflow
    return steps[drawable], values[drawable]


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each of 1,000 stretches, which look the same and are soon drawn."""
    parts = np.array_split(np.arange(len(values)), min(1000, len(values)))
    kept = np.unique([part[extreme(values[part])] for part in parts for extreme in (np.argmin, np.argmax)])
    return steps[kept], values[kept]


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running mean over 2 % of the values, outliers clipped, at 400 of the steps or fewer."""
    values, radius = values.clip(*_limits(values)), len(values) // 100
    centres = np.unique(np.linspace(0, len(values) - 1, 400).round().astype(int))
    means = [values[max(centre - radius, 0) : centre + radius + 1].mean() for centre in centres]
    return steps[centres], np.array(means)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits of an axis that hide outliers: what is beyond the central 98 % by more than their range."""
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.01, 0.99])
    low, high = max(values.min(), 2 * low - high), min(values.max(), 2 * high - low)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - margin), float(high + margin)
