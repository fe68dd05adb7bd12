"""Draw the diagrams of the documentation: the published networks, the step, and the curves of healthy and dead runs.

python examples/diagrams.py docs/assets [RUNS]

The curves take three short runs on the digits, of a minute or two each; with RUNS, a folder, they stay there, and a run
that is there already is drawn as it is.
"""

import sys
import tempfile
from html import escape
from pathlib import Path

import numpy as np

from dcgan import Discriminator, Generator, cli, drawing, images, list_architectures

GREY, G, D = "#808080", "#D55E00", "#0072B2"
MINUS = "\N{MINUS SIGN}"
RUNS = {
    "healthy": ("Healthy", ""),
    "won": ("D has won", "--loss minimax --lr 2e-4 --no-augment"),
    "swinging": ("G swings", "--beta1 0.9 --no-augment"),
}
OPTIONS = "--image-size 32 --base-channels 16 --steps 300 --log-every 5 --eval-every 50 --save-every 300 --device cpu"


def draw_networks(folder: Path) -> None:
    for name in list_architectures():
        networks = (network.from_architecture(name) for network in (Generator, Discriminator))
        drawing.save_svg(folder / f"network-{name}.svg", *networks)


def draw_step() -> str:
    """Draw one step of the algorithm as SVG."""
    parts = [
        _heading(24, "1. Generate", "as many images as there are real ones"),
        *(_box(8, 38, "z", GREY), _arrow(76, 53), _box(100, 38, "G", G), _arrow(168, 53), _box(192, 38, "fake", GREY)),
        _heading(108, "2. Train D", "on both batches, which pass through it separately"),
        *(_box(8, 122, "real", GREY), _arrow(76, 137), _box(100, 122, "D", D), _arrow(168, 137)),
        *(_box(8, 162, "fake", GREY), _arrow(76, 177), _box(100, 162, "D", D), _arrow(168, 177)),
        *(_text(196, 142, "D(x)"), _text(196, 182, "D(G(z))"), _bracket(254, 137, 177)),
        *(_text(270, 154, f"{MINUS} log D(x)"), _text(270, 171, f"{MINUS} log(1 {MINUS} D(G(z)))")),
        _back(134, 192, 320, "gradient: D moves"),
        _heading(258, "3. Train G", "against the new D, which is frozen, on the same images"),
        *(_box(8, 272, "z", GREY), _arrow(76, 287), _box(100, 272, "G", G), _arrow(168, 287)),
        *(_box(192, 272, "fake", GREY), _arrow(260, 287), _box(284, 272, "D", D, frozen=True), _arrow(352, 287)),
        *(_text(380, 292, f"{MINUS} log D(G(z))"), _back(134, 302, 420, "gradient, through D: G moves")),
        _heading(368, "4. Average", "the weights of G into a copy that is sampled and saved"),
        *(_box(8, 382, "G", G), _arrow(76, 397), _box(100, 382, "average", G, frozen=True)),
    ]
    title = "One step of training"
    described = (
        "1. Generate: z goes through G, which gives fake images. 2. Train D: real and fake images go through it "
        "separately; the loss is log D(x) + log(1 - D(G(z))), negated, and its gradient moves D. 3. Train G: the same "
        "fake images go through the new D, which is frozen; the loss is log D(G(z)), negated, and its gradient goes "
        "back through D and moves G. 4. Average: the weights of G move their average."
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 424" width="480" height="424" role="img" '
        'font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="13" '
        f'fill="currentColor"><title>{title}</title><desc>{escape(described)}</desc>'
        "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e6e6e6}}</style>"
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8Z" fill="currentColor"/></marker></defs>{"".join(parts)}</svg>\n'
    )


def _heading(y: int, name: str, text: str) -> str:
    return (
        f'<text x="8" y="{y}"><tspan font-weight="600">{name}</tspan> '
        f'<tspan font-size="12" fill-opacity="0.85">{text}</tspan></text>'
    )


def _box(x: int, y: int, text: str, colour: str, *, frozen: bool = False) -> str:
    dashes, opacity = (' stroke-dasharray="4 3"', 0.08) if frozen else ("", 0.35)
    return (
        f'<rect x="{x}" y="{y}" width="68" height="30" rx="4" fill="{colour}" fill-opacity="{opacity}" '
        f'stroke="{colour}" stroke-width="1.5"{dashes}/>{_text(x + 34, y + 20, text, anchor="middle")}'
    )


def _text(x: int, y: int, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _arrow(x: int, y: int) -> str:
    return f'<path d="M{x + 2} {y}h20" stroke="currentColor" marker-end="url(#end)"/>'


def _bracket(x: int, top: int, bottom: int) -> str:
    return f'<path d="M{x} {top}h5v{bottom - top}h-5" stroke="currentColor" fill="none"/>'


def _back(to: int, y: int, start: int, text: str) -> str:
    """Draw the way of a gradient, below the boxes that it goes back through."""
    return (
        f'<path d="M{start} {y - 3}v17H{to}v-12" stroke="currentColor" stroke-dasharray="2 3" fill="none" '
        f'marker-end="url(#end)"/><text x="{(start + to) // 2}" y="{y + 27}" text-anchor="middle" '
        f'font-size="11">{text}</text>'
    )


def draw_curves(path: Path, runs: Path) -> None:
    """Train what is not there yet, and draw the runs side by side."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dcgan import _log

    with rc_context(images._STYLE):  # noqa: SLF001 - as the curves of a run are drawn
        figure = Figure(figsize=(10, 6.2), dpi=200)
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(3, len(RUNS), sharex=True)
        figure.subplots_adjust(left=0.045, right=0.985, bottom=0.12, top=0.875, wspace=0.15, hspace=0.32)
        for column, (name, (title, options)) in zip(panels.T, RUNS.items(), strict=True):
            folder = runs / name
            if not (folder / "metrics.jsonl").exists():
                train("--data", "digits", *OPTIONS.split(), "--out", str(folder), *options.split())
            records = _log.read(folder / "metrics.jsonl")
            draws = (images._draw_losses, images._draw_outputs, images._draw_quality)  # noqa: SLF001
            for draw, axes in zip(draws, column, strict=True):
                draw(axes, records)
            images._draw_steps(column[:, None], records)  # noqa: SLF001
            column[2].set_title("Distance")  # shorter, for its legend is long
            left = column[0].get_position().x0
            figure.text(left, 0.965, title, fontsize=11, fontweight="bold")
            figure.text(left, 0.935, options or "automatic rate, shift", fontsize=8, color="#595959")
        canvas.draw()
        path.write_bytes(images.encode_png(np.asarray(canvas.buffer_rgba())[:, :, :3]))


def train(*options: str) -> None:
    if code := cli.main(["train", *options]):
        sys.exit(code)


def draw_all(folder: Path, runs: Path) -> None:
    draw_networks(folder)
    (folder / "step.svg").write_text(draw_step(), encoding="utf-8", newline="\n")
    draw_curves(folder / "curves-dead.png", runs)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        draw_all(Path(sys.argv[1]), Path(sys.argv[2] if sys.argv[2:] else temporary))
