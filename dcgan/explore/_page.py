"""The page: its layout in Gradio, whose handlers are the functions of a view.

Imported only where Gradio is needed, which takes seconds; it reads annotations, so they stand here as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from dcgan import images
from dcgan._errors import DcganError, InputError, MissingPackageError
from dcgan.explore import _view
from dcgan.explore._view import Models, View

if TYPE_CHECKING:
    from PIL.Image import Image

_FRAMES_PER_SECOND = 20
_FOLLOW_SECONDS = 3  # between two looks at the files of a run
_CACHE_SECONDS = 3600  # how long what was shown or uploaded stays on disk, while the page is served
_SHOW_LINK = "query => { history.replaceState(null, '', '?' + query); return location.href }"
_NEWS = 6  # picture, link, images, text, curves, samples
_ROLES = {"the centre": "centre", "the walk": "walk", "A": "a", "B": "b", "C": "c"}


def build_page(models: Models, *, follow: bool = False) -> gr.Blocks:
    """Return the layout of the page and its handlers; with `follow`, it looks for what a run writes."""
    page = gr.Blocks(title="dcgan", analytics_enabled=False, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS))
    with page:
        controls = _controls(models)
        handlers = _Handlers(models)
        with gr.Row():
            for name in ("model", "seed", "label"):
                controls[name].render()
        with gr.Row():
            with gr.Column(min_width=320):
                roles = gr.Radio(list(_ROLES), value=next(iter(_ROLES)), label="A click on an image chooses it for")
                shown = gr.Gallery(
                    label="Images of the seed",
                    show_label=False,
                    columns=3,  # as many as a phone has room for
                    height=440,
                    format="png",
                    allow_preview=False,
                    buttons=[],
                )
            with gr.Column(min_width=320):
                picture = gr.Image(
                    label="Centre, moved along the directions",
                    show_label=False,
                    alt_text="the centre, moved along the directions",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
            with gr.Column(min_width=320):
                for name in ("d0", "d1", "d2", "d3", "turn"):
                    controls[name].render()
                with gr.Row():
                    back = gr.Button("Sliders to zero", size="sm", min_width=120)
                    other = gr.Button("Other directions", size="sm", min_width=120)
        with gr.Row():
            for name in ("centre", "ways"):
                controls[name].render()
            link = gr.Textbox(label="Link to this picture", interactive=False, max_lines=1, buttons=["copy"])
        query = gr.Textbox(visible="hidden", container=False)
        inputs, drawn = list(controls.values()), [picture, query]
        everything = [*inputs, *drawn]
        _add_walk(controls, handlers)
        _add_sum(controls, handlers, everything)
        _add_search(controls, handlers, everything)
        with gr.Tab("The model"):
            facts = gr.Markdown()
            curves = gr.Image(
                label="Curves",
                alt_text="curves of the training",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
            )
            samples = gr.Gallery(label="Samples", columns=3, format="png", object_fit="contain", buttons=[])
        about = [facts, curves, samples]

        page.load(handlers.open, None, [*everything, shown, *about])
        controls["model"].input(handlers.choose_model, controls["model"], [*everything, shown, *about])
        gr.on(
            [controls["seed"].submit, controls["seed"].blur, controls["label"].input],
            handlers.show_seed,
            inputs,
            [*drawn, shown],
            trigger_mode="always_last",
        )
        shown.select(handlers.choose, [roles, *inputs], everything)
        sliders = [controls[name] for name in ("d0", "d1", "d2", "d3", "turn")]
        texts = [controls[name] for name in ("centre", "ways", "walk", "a", "b", "c")]
        gr.on(
            [slider.input for slider in sliders] + [event for text in texts for event in (text.submit, text.blur)],
            handlers.show,
            inputs,
            drawn,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        back.click(handlers.go_back, inputs, everything, show_progress="hidden")
        other.click(handlers.take_other_ways, inputs, everything, show_progress="hidden")
        query.change(None, query, link, js=_SHOW_LINK)
        if follow:
            seen = gr.State()
            timer = gr.Timer(_FOLLOW_SECONDS)
            timer.tick(handlers.look, [seen, controls["model"]], seen, show_progress="hidden")
            # In a call of its own, which takes the controls as they are now.
            seen.change(handlers.show_news, inputs, [*drawn, shown, *about], show_progress="hidden")
    return page


def _add_walk(controls: dict[str, Any], handlers: "_Handlers") -> None:
    with gr.Tab("Walk"):
        controls["walk"].render()
        steps = gr.Slider(1, _view.MAX_STEPS, value=10, step=1, label="Steps from each image to the next")
        start = gr.Button("Walk", variant="primary")
        with gr.Row():
            film = gr.Image(
                label="Film",
                alt_text="a film of the walk",
                type="filepath",
                height=320,
                scale=1,
                interactive=False,
                buttons=[],
                visible=False,
            )
            strip = gr.Gallery(
                label="Strip", format="png", height=320, scale=3, preview=True, buttons=[], visible=False
            )
        files = gr.File(label="Download", file_count="multiple", interactive=False, visible=False)
        start.click(handlers.walk, [steps, *controls.values()], [film, strip, files])


def _add_sum(controls: dict[str, Any], handlers: "_Handlers", everything: list[Any]) -> None:
    with gr.Tab("A - B + C"), gr.Row():
        with gr.Column(min_width=320):
            for name in ("a", "b", "c"):
                controls[name].render()
            add = gr.Button("Compute", variant="primary")
            centre = gr.Button("Make the result the centre")
        with gr.Column(min_width=320):
            sums = gr.Image(
                label="Means and result",
                show_label=False,
                alt_text="the means of A, B and C, and the result",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                visible=False,
            )
        add.click(handlers.add, [*controls.values()], sums)
        centre.click(handlers.centre_on_sum, [*controls.values()], everything)


def _add_search(controls: dict[str, Any], handlers: "_Handlers", everything: list[Any]) -> None:
    with gr.Tab("Your image"), gr.Row():
        with gr.Column(min_width=320):
            file = gr.File(label="Image, which stays on the machine of this page", file_types=["image"])
            search = gr.Button("Find the latent that draws it best", variant="primary")
            centre = gr.Button("Make what was found the centre")
        with gr.Column(min_width=320):
            pair = gr.Gallery(
                label="Yours, and the closest", columns=2, height=320, format="png", buttons=[], visible=False
            )
        found = gr.Textbox(visible="hidden", container=False)
        search.click(handlers.find, [file, *controls.values()], [pair, found], concurrency_limit=1)
        centre.click(handlers.centre_on, [found, *controls.values()], everything)


def _controls(models: Models) -> dict[str, Any]:
    """Return the input of each field of a view, in their order, not placed yet."""

    def amount(label: str, limit: float) -> gr.Slider:
        return gr.Slider(-limit, limit, value=0, step=0.1, label=label, render=False)

    def picks(label: str, info: str | None = None) -> gr.Textbox:
        return gr.Textbox(label=label, info=info, max_lines=1, render=False)

    return {
        "model": gr.Dropdown(models.names, value=models.default, label="Model", render=False),
        "seed": gr.Number(0, label="Seed", precision=0, minimum=0, render=False),
        "label": gr.Dropdown([0], value=0, label="Class", allow_custom_value=True, visible=False, render=False),
        "centre": picks("Centre", "an image, INDEX or SEED:INDEX, or a sum such as 3,17 - 5,9 + 8,11"),
        "ways": gr.Number(0, label="Seed of the random directions", precision=0, minimum=0, render=False),
        **{f"d{i}": amount(f"Random direction {i + 1}", _view.REACH) for i in range(_view.RANDOM)},
        "turn": amount("Direction from B to C", _view.TURNS),
        "walk": picks("Images to walk through", f"2 to {_view.MAX_POINTS}, each INDEX or SEED:INDEX, with commas"),
        "a": picks("A", "images of which the mean is taken, such as smiling women"),
        "b": picks("B", "their means are subtracted, such as women who do not smile"),
        "c": picks("C", "and added, such as men who do not smile"),
    }


class _Handlers:
    """What the page answers, each from the values of all controls, so that sessions share nothing."""

    def __init__(self, models: Models):
        self.models = models

    def open(self, request: gr.Request) -> list[Any]:
        try:
            return self._everything(View.from_query(dict(request.query_params), model=self.models.default))
        except DcganError as error:
            gr.Warning(f"This link cannot be followed: {error}.")
            return self._everything(View(self.models.default))

    def choose_model(self, name: str) -> list[Any]:
        with _answers():
            return self._everything(View(name))

    def show_seed(self, *values: Any) -> list[Any]:
        with _answers():
            view = View(*values)
            return [*self._picture(view), _to_pil(_view.draw_seed(self.models, view))]

    def show(self, *values: Any) -> list[Any]:
        with _answers():
            return self._picture(View(*values))

    def choose(self, event: gr.SelectData, role: str, *values: Any) -> list[Any]:
        with _answers():
            view = View(*values)
            name, field = f"{view.seed}:{event.index}", _ROLES[role]
            if field == "centre":
                return self._centred(view, name)
            before = getattr(view, field).strip()
            chosen: dict[str, Any] = {field: f"{before},{name}" if before else name}
            return self._controls_and_picture(replace(view, **chosen))

    def go_back(self, *values: Any) -> list[Any]:
        with _answers():
            view = View(*values)
            return self._centred(view, view.centre)

    def take_other_ways(self, *values: Any) -> list[Any]:
        with _answers():
            view = View(*values)
            return self._controls_and_picture(replace(view, ways=view.ways + 1))

    def centre_on_sum(self, *values: Any) -> list[Any]:
        with _answers():
            view = View(*values)
            return self._centred(view, _view.write_sum(view))

    def centre_on(self, centre: str, *values: Any) -> list[Any]:
        with _answers():
            if not centre:
                raise InputError("nothing has been found yet: choose a file and search first")
            return self._centred(View(*values), centre)

    def walk(self, steps: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        with _answers():
            frames = _view.draw_walk(self.models, View(*values), steps)
        loop = torch.cat([frames, frames[1:-1].flip(0)])
        with TemporaryDirectory() as folder:  # which Gradio has copied from when this goes on after the yield
            files = [Path(folder, "walk.gif")]
            images.save_gif(files[0], loop, seconds=1 / _FRAMES_PER_SECOND, last=1 / _FRAMES_PER_SECOND)
            with suppress(MissingPackageError):
                images.save_video(Path(folder, "walk.mp4"), loop, frames_per_second=_FRAMES_PER_SECOND)
                files.append(Path(folder, "walk.mp4"))
            paths = [str(file) for file in files]
            yield (
                gr.Image(paths[0], visible=True),
                gr.Gallery(_to_pil(frames), visible=True),
                gr.File(paths, visible=True),
            )

    def add(self, *values: Any) -> gr.Image:
        with _answers():
            return gr.Image(_to_pil(_view.draw_sum(self.models, View(*values))[None])[0], visible=True)

    def find(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - where Gradio looks for it
        file: str | None = None,
        *values: Any,
    ) -> tuple[gr.Gallery, str]:
        with _answers():
            if file is None:
                raise InputError("choose an image first")
            both, centre, error = _view.find(
                self.models, View(*values), file, lambda done, steps: progress((done, steps), unit="steps")
            )
        captioned = zip(_to_pil(both), ["yours", f"error {error:.4f}"], strict=True)
        return gr.Gallery(list(captioned), visible=True), centre

    def look(self, seen: Any, model: str) -> Any:
        """Return what tells whether a run that is training has written something since the last look, `seen`."""
        try:
            stamp = self.models.stamp(model)
        except (DcganError, OSError):  # being written
            stamp = None
        now = [model, *(stamp or ())]
        return gr.skip() if stamp is None or now == seen else now

    def show_news(self, *values: Any) -> list[Any]:
        try:
            view = View(*values)
            return [*self._picture(view), _to_pil(_view.draw_seed(self.models, view)), *self._about(view.model)]
        except (DcganError, OSError):  # half-typed or half-written: the next look finds better
            return [gr.skip()] * _NEWS

    def _about(self, model: str) -> list[Any]:
        text, curves, samples = self.models.tell(model)
        captioned = [(_open(path), f"step {path.stem[5:].lstrip('0') or 0}") for path in samples]
        return [
            text,
            gr.Image(curves, visible=curves is not None),
            gr.Gallery(captioned, visible=bool(samples)),
        ]

    def _picture(self, view: View) -> list[Any]:
        return [_to_pil(_view.draw(self.models, view)[None])[0], view.to_query()]

    def _controls_and_picture(self, view: View) -> list[Any]:
        return [*astuple(view), *self._picture(view)]

    def _centred(self, view: View, centre: str) -> list[Any]:
        return self._controls_and_picture(replace(view, centre=centre, d0=0, d1=0, d2=0, d3=0, turn=0))

    def _everything(self, view: View) -> list[Any]:
        values = dict(zip((field.name for field in fields(view)), astuple(view), strict=True))
        picture, shown = self._picture(view), _to_pil(_view.draw_seed(self.models, view))
        classes = self.models.load(view.model).config["num_classes"]
        values["label"] = gr.Dropdown(list(range(classes or 1)), value=view.label, visible=classes is not None)
        return [*values.values(), *picture, shown, *self._about(view.model)]


@contextmanager
def _answers() -> Iterator[None]:
    """Show the library's refusals as a sentence on the page; other errors are bugs, and are logged."""
    try:
        yield
    except DcganError as error:
        message = str(error)
        raise gr.Error(f"{message[:1].upper()}{message[1:]}.", title="Not possible", print_exception=False) from error


def _to_pil(pixels: Tensor) -> list["Image"]:
    """Return uint8 images `(N, K, H, W)` as those of Pillow, of which Gradio makes PNGs."""
    from PIL import Image

    arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(np.squeeze(image, 2) if image.shape[2] == 1 else image) for image in arrays]


def _open(path: Path) -> "Image":
    from PIL import Image

    with Image.open(path) as image:
        return image.copy()
