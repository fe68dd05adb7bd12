"""The page as a visitor has it, in Chromium: what it shows, what its links repeat, and what it asks of other hosts.

DCGAN_SCREENSHOTS names the folder that the picture of the documentation is written to.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from small_runs import TINY, start_and_stop

from dcgan import Generator
from dcgan.explore import export_space

pytestmark = pytest.mark.browser

PATIENCE = 120_000  # milliseconds, for machines that are busy


@contextmanager
def served(*command, **environment):
    """Start a process that serves a page; yield its address."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory):
    """Serve the page of a tiny run; its address."""
    run = start_and_stop(TINY, tmp_path_factory.mktemp("runs") / "tiny")
    with served("-m", "dcgan", "explore", run, "--port", "0") as process:
        yield process.stdout.readline().split()[0]


class Visit:
    """A visitor's page, and what went wrong on it."""

    def __init__(self, browser, url, width=1280):
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.wrong = []
        self.hosts = set()
        self.page.on("console", lambda line: line.type == "error" and self.wrong.append(line.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url, timeout=PATIENCE)
        self.picture = self.page.get_by_alt_text("the centre, moved along the directions")
        self.picture.wait_for()

    def source(self):
        return self.picture.get_attribute("src")

    def pixels(self):
        """Return the file of the picture that is shown."""
        return self.page.request.get(self.source()).body()

    @contextmanager
    def changing(self):
        """Wait for the picture to become another one."""
        before = self.source()
        yield
        self.page.wait_for_function("([image, src]) => image.src !== src", arg=[self.picture.element_handle(), before])

    def slider(self, name):
        return self.page.get_by_label(f"range slider for {name}")

    def image(self, number):
        return self.page.get_by_label(f"Thumbnail {number} of 24")

    def choose(self, number, role):
        self.page.get_by_role("radio", name=role, exact=True).check()
        self.image(number).click()

    def leave(self, *, wrong=()):
        assert self.wrong == list(wrong)
        assert self.hosts - {""} == {urlsplit(self.page.url).netloc}
        self.page.context.close()


@pytest.fixture
def visit(chromium, page_of_a_run):
    visit = Visit(chromium, page_of_a_run)
    yield visit
    visit.leave()


def test_a_slider_changes_the_picture_and_the_link_repeats_it(visit, chromium, page_of_a_run):
    assert Image.open(BytesIO(visit.pixels())).size == (384, 384)
    with visit.changing():
        visit.slider("Random direction 1").press("ArrowRight")
    with visit.changing():
        visit.slider("Random direction 1").press("PageUp")
    visit.page.wait_for_function("location.search.includes('d0=')")
    visit.page.wait_for_load_state("networkidle")
    again = Visit(chromium, visit.page.url)
    assert again.page.url == visit.page.url
    assert again.pixels() == visit.pixels()
    assert Visit(chromium, page_of_a_run).pixels() != visit.pixels()
    again.leave()


def test_an_image_becomes_the_centre_by_mouse_and_by_keyboard(visit):
    with visit.changing():
        visit.image(13).click()
    visit.page.wait_for_url(re.compile("centre=0:12"))
    with visit.changing():
        visit.image(4).focus()
        visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(re.compile("centre=0:3"))
    with visit.changing():
        visit.page.get_by_role("textbox", name="Centre").fill("7:1,7:2 - 3 + 4")
        visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(re.compile("centre=7:1,7:2"))


def test_a_walk_is_a_film_to_download(visit):
    for number in (2, 5):
        visit.choose(number, "the walk")
        visit.page.wait_for_url(re.compile(f"walk=.*0:{number - 1}"))
    visit.page.get_by_role("button", name="Walk", exact=True).click()
    visit.page.get_by_label("Thumbnail 11 of 11").first.wait_for()
    with visit.page.expect_download() as download:
        visit.page.get_by_role("link", name=re.compile("KB")).first.click()
    assert download.value.suggested_filename == "walk.gif"
    film = Image.open(BytesIO(download.value.path().read_bytes()))
    assert (film.format, film.n_frames, film.size) == ("GIF", 20, (128, 128))


def test_sums_and_the_way_from_b_to_c(visit):
    for number, role in ((1, "A"), (2, "A"), (3, "B"), (4, "C")):
        visit.choose(number, role)
        visit.page.wait_for_url(re.compile(f"{role.lower()}=[0-9:,]*0:{number - 1}"))
    with visit.changing():
        visit.slider("Direction from B to C").press("End")
    visit.page.get_by_role("tab", name="A - B + C").click()
    visit.page.get_by_role("button", name="Compute").click()
    visit.page.get_by_alt_text("the means of A, B and C").wait_for()
    with visit.changing():
        visit.page.get_by_role("button", name="Make the result the centre").click()


def test_an_upload_is_searched_for_and_a_wrong_one_is_answered(visit, tmp_path):
    (tmp_path / "words.png").write_text("these are words, not pixels")
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "orange.png")
    visit.page.get_by_role("tab", name="Your image").click()
    search = visit.page.get_by_role("button", name="Find the latent")
    search.click()
    visit.page.get_by_text("Choose an image first").wait_for()
    upload = visit.page.locator("input[type=file]").last
    upload.set_input_files(tmp_path / "words.png")
    visit.page.get_by_text("words", exact=False).first.wait_for()
    search.click()
    visit.page.get_by_text("This file cannot be read as an image").first.wait_for()
    visit.page.get_by_role("button", name="Clear").first.click()
    upload.set_input_files(tmp_path / "orange.png")
    visit.page.get_by_text("orange", exact=False).first.wait_for()
    search.click()
    visit.page.get_by_text(re.compile(r"^error 0\.\d{4}$")).wait_for()
    with visit.changing():
        visit.page.get_by_role("button", name="Make what was found the centre").click()
    visit.page.wait_for_url(re.compile("centre=z"))


def test_the_run_is_told_of_and_other_models_are_there(visit):
    visit.page.get_by_role("tab", name="The model").click()
    visit.page.get_by_text("16×16 images").wait_for()
    visit.page.get_by_alt_text("curves of the training").wait_for()
    visit.page.get_by_text("step 19", exact=True).wait_for()
    visit.page.get_by_label("Model", exact=True).click()
    with visit.changing():
        visit.page.get_by_role("option", name="digits").click()
    visit.page.wait_for_url(re.compile("model=digits"))


@pytest.mark.parametrize("query", ["model=../secrets", "d0=NaN", "seed=1e999&centre=<b>", "centre=z.AAAA"])
def test_a_wrong_link_is_answered_and_the_page_shown(chromium, page_of_a_run, query):
    visit = Visit(chromium, f"{page_of_a_run}/?{query}")
    visit.page.get_by_text("This link cannot be followed").wait_for()
    assert urlsplit(visit.page.url).query == "model=tiny"
    visit.leave()


def test_visitors_do_not_disturb_each_other(chromium, page_of_a_run):
    first, second = (Visit(chromium, page_of_a_run) for _ in range(2))
    with first.changing():
        first.image(3).click()
    with second.changing():
        second.image(6).click()
    assert first.pixels() != second.pixels()
    kept = first.source()
    with second.changing():
        second.slider("Random direction 2").press("End")
    assert first.source() == kept
    assert "d1" not in first.page.url
    first.leave()
    second.leave()


def test_a_conditional_model_has_a_chooser_of_classes(chromium, tmp_path):
    generator = Generator(image_size=16, channels=1, base_channels=4, num_classes=3)
    generator.save_pretrained(tmp_path / "classes")
    with served("-m", "dcgan", "explore", tmp_path / "classes", "--port", "0") as process:
        visit = Visit(chromium, process.stdout.readline().split()[0])
        visit.page.get_by_label("Class", exact=True).click()
        with visit.changing():
            visit.page.get_by_role("option", name="2").click()
        visit.page.wait_for_url(re.compile("label=2"))
        visit.leave()


def test_a_space_serves_the_model_that_is_in_it(chromium, tmp_path, unused_port):
    Generator(image_size=16, base_channels=4).save_pretrained(tmp_path / "ours")
    export_space(str(tmp_path / "ours"), tmp_path / "space")
    shutil.rmtree(tmp_path / "ours")
    with served(tmp_path / "space/app.py", GRADIO_SERVER_PORT=str(unused_port)) as process:
        wait_for_port(unused_port, process)
        visit = Visit(chromium, f"http://127.0.0.1:{unused_port}")
        assert urlsplit(visit.page.url).query == "model=ours"
        visit.leave()


@pytest.fixture
def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for_port(port, process):
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the page does not start")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desk_and_a_phone(chromium, page_of_a_run, width, tmp_path):
    visit = Visit(chromium, f"{page_of_a_run}/?model=faces&seed=7&centre=7:7&d0=1.5", width)
    visit.page.wait_for_load_state("networkidle")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.wait_for_function("[...document.images].every(image => image.complete || image.loading === 'lazy')")
    folder = Path(os.environ.get("DCGAN_SCREENSHOTS", tmp_path))
    name = "explore.png" if width == 1280 else "explore-phone.png"
    visit.page.screenshot(path=folder / name, full_page=True)
    assert Image.open(BytesIO((folder / name).read_bytes())).width == width
    visit.leave()


def test_a_watched_run_is_followed_until_it_ends(chromium, tmp_path):
    small = [
        "--image-size",
        "16",
        "--base-channels",
        "4",
        "--steps",
        "100000",
        "--log-every",
        "20",
        "--save-every",
        "20",
    ]
    with served("-m", "dcgan", "train", "--watch", *small, "--out", tmp_path / "run", BROWSER="true") as training:
        address = next(found[0] for line in training.stdout if (found := re.search(r"http://\S+", line)))
        visit = Visit(chromium, address)
        visit.page.get_by_role("tab", name="The model").click()
        step = visit.page.get_by_role("listitem").filter(has_text=re.compile(r"^step: "))
        with visit.changing():
            before = step.inner_text()
        visit.page.wait_for_function("([item, text]) => item.innerText !== text", arg=[step.element_handle(), before])
        visit.leave()
        training.send_signal(signal.SIGINT)
        assert training.wait(60) == 130
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", urlsplit(address).port)):
        pass
