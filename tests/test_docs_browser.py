"""The page of the documentation that runs a generator in the browser, opened from disk in Chromium.

It is in site/ once `.ci/browser_page.py` and `zensical build --clean --strict` have run.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dcgan import Generator
from dcgan.explore import Models, View, draw
from dcgan.generate import pixels_of
from dcgan.latents import pick_latents, slerp
from dcgan.zoo import load_record

pytestmark = pytest.mark.browser

PAGE = Path(__file__).parents[1] / "site/browser/index.html"
PATIENCE = 120_000  # milliseconds, for machines that are busy
START = "#model=faces"  # the link to what the page shows first
LEVELS = 2  # of 255: weights of half precision, and other orders of sums
PIXELS = """canvas => {
    const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [image.height, image.width, [...image.data]];
}"""


@pytest.fixture(autouse=True, scope="module")
def _site():
    if not (PAGE.parents[1] / "assets/browser/runtime.js").is_file():
        pytest.skip("no built site with a model: .ci/browser_page.py && zensical build --clean --strict")


class Reader:
    """A reader's tab, what went wrong in it, and the schemes of what it asked for."""

    def __init__(self, browser, fragment="", *, page=PAGE, width=1280, script=None):
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.wrong = []
        self.schemes = set()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.schemes.add(request.url.partition(":")[0]))
        if script is not None:
            self.page.add_init_script(script)
        self.page.goto(f"{page.as_uri()}{fragment}", timeout=PATIENCE)

    def note(self, line):
        if line.type == "error" and not line.location["url"].endswith("/search.js"):  # the theme's, on servers only
            self.wrong.append(line.text)

    def wait_for(self, link):
        """Wait until the page shows what a link says."""
        self.page.locator(f"#browser[data-state=ready][data-link='{link}']").wait_for()
        self.page.wait_for_function("link => location.hash === link || !location.hash.includes('=')", arg=link)
        return self

    def follow(self, fragment, *, expected=None):
        """Follow a link to this page, as if it were typed; wait until it shows what that says."""
        self.page.evaluate("fragment => { location.hash = fragment }", fragment)
        self.page.locator(f"#browser[data-link='{expected or fragment}']").wait_for()

    def part(self, name):
        return self.page.locator(f"[data-part={name}]")

    def image(self, index):
        return self.part("grid").get_by_role("button").nth(index)

    def pixels(self, index=None):
        """Return the picture, or one of the images to choose from: uint8 (H, W, 3)."""
        canvas = self.part("picture") if index is None else self.image(index).locator("canvas")
        height, width, values = canvas.evaluate(PIXELS)
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def message(self):
        return self.part("message").inner_text()

    def leave(self):
        assert self.wrong == []
        assert self.schemes <= {"file", "blob"}
        self.page.context.close()


@pytest.fixture(scope="module")
def tab(chromium):
    """A tab that all tests share, since loading takes longest."""
    tab = Reader(chromium).wait_for(START)
    yield tab
    tab.leave()


@pytest.fixture
def reader(tab):
    tab.follow(START)
    yield tab
    assert tab.wrong == []


def levels_apart(ours, expected):
    """Return the largest difference of a picture (H, W, 3) from one that Python drew, uint8 (K, H, W)."""
    expected = np.broadcast_to(expected.numpy().transpose(1, 2, 0), ours.shape)
    return np.abs(ours.astype(int) - expected).max()


def drawn(model, z):
    generator = Generator.from_pretrained(load_record(model).folder)
    return pixels_of(generator, generator.sample(z=z))[0]


@pytest.mark.parametrize(
    ("model", "seed", "index"),
    [("faces", 7, 1), ("faces", 2**53 - 1, 255), ("faces", 7, 100_000), ("digits", 2**32, 256), ("cifar10", 3, 1)],
)
def test_a_seed_gives_the_image_that_it_gives_in_python(reader, model, seed, index):
    reader.follow(f"#model={model}&seed={seed}&centre={index}")
    assert levels_apart(reader.pixels(), drawn(model, pick_latents([(seed, index)], 100))) <= LEVELS
    assert levels_apart(reader.pixels(23), drawn(model, pick_latents([(seed, 23)], 100))) <= LEVELS


def test_a_link_gives_the_picture_that_it_gives_in_the_explorer(reader):
    reader.follow("#model=faces&seed=7&centre=2:12&ways=5&d0=-4.5&d1=3")
    view = View("faces", seed=7, centre="2:12", ways=5, d0=-4.5, d1=3)
    enlarged = draw(Models("faces"), view)
    assert enlarged.shape == (3, 384, 384)
    assert levels_apart(reader.pixels(), enlarged[:, ::6, ::6]) <= LEVELS


@pytest.mark.parametrize("share", [0.25, 1])
def test_the_walk_is_an_arc(reader, share):
    reader.follow(f"#model=digits&centre=3:5&to=9&at={share}")
    start, end = pick_latents([(3, 5), (0, 9)], 100)
    assert levels_apart(reader.pixels(), drawn("digits", slerp(start[None], end[None], share))) <= LEVELS


def test_a_slider_changes_the_picture_and_the_link_repeats_it(reader, chromium):
    first = reader.pixels()
    reader.page.get_by_label("Direction 1").press("End")
    reader.wait_for("#model=faces&d0=10")
    moved = reader.pixels()
    assert not np.array_equal(moved, first)
    again = Reader(chromium, "#model=faces&d0=10").wait_for("#model=faces&d0=10")
    assert np.array_equal(again.pixels(), moved)
    again.leave()
    reader.page.get_by_role("button", name="Back to 0").click()
    reader.wait_for(START)
    assert np.array_equal(reader.pixels(), first)


def test_a_click_makes_an_image_the_centre_or_the_end_of_the_walk(reader):
    reader.image(13).click()
    reader.wait_for("#model=faces&centre=0:13")
    assert np.array_equal(reader.pixels(), reader.pixels(13))
    reader.page.get_by_role("radio", name="the end of the walk").check()
    reader.image(4).click()
    reader.page.get_by_role("radio", name="the centre").check()
    reader.page.get_by_label("Walk to the end").press("End")
    reader.wait_for("#model=faces&centre=0:13&to=0:4&at=1")
    assert np.abs(reader.pixels().astype(int) - reader.pixels(4)).max() <= 1  # the arc ends there up to rounding
    assert reader.image(4).get_attribute("aria-label") == "Image 4, the end of the walk"


def test_the_keyboard_is_enough(reader):
    reader.part("next").focus()
    for key in ("Tab", "Tab", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "Enter"):  # 12 images in a row
        reader.page.keyboard.press(key)
    reader.wait_for("#model=faces&centre=0:11")
    reader.part("seed").focus()
    for key in ("Control+a", "8", "Tab", "Enter"):
        reader.page.keyboard.press(key)
    reader.wait_for("#model=faces&seed=9&centre=0:11")
    reader.part("play").focus()
    reader.page.keyboard.press("Space")
    assert reader.part("play").inner_text() == "Pause"
    reader.page.keyboard.press("Space")


def test_the_walk_plays_until_it_is_stopped(reader):
    first = reader.pixels()
    reader.page.get_by_role("button", name="Play").click()
    reader.page.wait_for_function("document.querySelector('[data-part=at]').value > 0.1")
    reader.page.get_by_role("button", name="Pause").click()
    reader.page.wait_for_function("location.hash === document.getElementById('browser').dataset.link")
    assert re.search(r"#model=faces&at=(0\.\d+|1)$", reader.page.url)
    kept, address = reader.pixels(), reader.page.url
    assert not np.array_equal(kept, first)
    reader.page.wait_for_timeout(300)
    assert np.array_equal(reader.pixels(), kept)
    assert reader.page.url == address


def test_another_model_is_loaded_when_it_is_chosen(chromium):
    reader = Reader(chromium).wait_for(START)
    assert reader.page.evaluate("Object.keys(dcganFiles.weights)") == ["faces"]
    reader.page.get_by_label("Model").select_option("digits")
    reader.wait_for("#model=digits")
    assert reader.pixels().shape == (32, 32, 3)
    assert re.search(r"onnxruntime-web [\d.]+, \d\.\d MB; digits, \d\.\d MB", reader.part("facts").inner_text())
    reader.leave()


@pytest.mark.parametrize(
    ("fragment", "complaint"),
    [
        ("#model=../secrets", "model must be one of"),
        ("#model=constructor", "model must be one of"),
        ("#seed=1e999", "seed must be a whole number up to 9007199254740991"),
        ("#centre=<b>", "centre must be INDEX or SEED:INDEX"),
        ("#d0=NaN", "d0 must be a number from -10 to 10"),
        ("#at=1.01", "at must be a number from 0 to 1"),
    ],
)
def test_a_wrong_link_is_answered_and_the_page_shown(reader, fragment, complaint):
    reader.follow("#model=faces&seed=3")
    reader.follow(fragment, expected=START)
    assert reader.message().startswith(f"This link cannot be followed: {complaint}")
    reader.part("next").click()
    reader.wait_for("#model=faces&seed=1")
    assert reader.part("message").is_hidden()


def test_links_to_headings_are_not_taken_for_pictures(reader):
    reader.follow("#model=faces&seed=3")
    reader.page.get_by_role("link", name="What it loads").first.click()
    reader.page.wait_for_url(re.compile("#what-it-loads$"))
    assert reader.part("message").is_hidden()
    assert reader.part("seed").input_value() == "3"


def test_a_browser_without_webassembly_is_told(chromium):
    reader = Reader(chromium, script="delete window.WebAssembly")
    reader.page.get_by_text("The model cannot run here: this browser lacks WebAssembly").wait_for()
    reader.leave()


@pytest.mark.parametrize(
    ("missing", "complaint"), [("runtime", "was built without"), ("faces", r"faces\.js could not be loaded")]
)
def test_a_missing_file_is_told(chromium, tmp_path, missing, complaint):
    for part in ("browser", "assets"):
        shutil.copytree(PAGE.parents[1] / part, tmp_path / part)
    (tmp_path / f"assets/browser/{missing}.js").unlink()
    reader = Reader(chromium, page=tmp_path / "browser/index.html")
    reader.page.get_by_text(re.compile(f"The model cannot run here: .*{complaint}")).wait_for()
    assert reader.part("grid").is_hidden()
    assert reader.wrong == ["Failed to load resource: net::ERR_FILE_NOT_FOUND"]
    reader.page.context.close()


def test_the_page_fits_a_phone(reader):
    reader.page.set_viewport_size({"width": 390, "height": 844})
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert reader.part("picture").bounding_box()["width"] > 300
    reader.page.set_viewport_size({"width": 1280, "height": 900})
