"""The page on a model, without a browser: what links say, what visitors may ask for, what is drawn, and the command."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from subprocess import PIPE
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from commands import said
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded
from small_runs import TINY, start_and_stop

from dcgan import Generator, _log, images, latents
from dcgan._errors import InputError
from dcgan.explore import Models, View, _view, draw, export_space
from dcgan.recipe import Recipe
from dcgan.run import Run
from dcgan.zoo import list_models, load_record

NAMES = st.integers(0, 999).map(str) | st.tuples(st.integers(0, 99), st.integers(0, 999)).map("{0[0]}:{0[1]}".format)
ON_BOARD = [name for name in list_models() if load_record(name).on_board]
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="no gradio: pip install gradio")
PICKS = st.lists(NAMES, max_size=3).map(",".join)
AMOUNTS = {name: st.floats(-10, 10) for name in ("d0", "d1", "d2", "d3")} | {"turn": st.floats(-3, 3)}
WHOLE = dict.fromkeys(("seed", "label", "ways"), st.integers(0, 2**53 - 1))
TEXTS = dict.fromkeys(("walk", "a", "b", "c"), PICKS)
VIEWS = st.builds(View, model=st.just("tiny"), centre=st.text(max_size=30), **AMOUNTS, **WHOLE, **TEXTS)


def save_vivid(folder, **options):
    """Save a small generator whose images differ: those of fresh weights are all grey."""
    generator = Generator(image_size=16, base_channels=4, **options).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(8)
    generator.save_pretrained(folder)
    return generator


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    save_vivid(folder)
    return Models(str(folder))


def query_of(view):
    return dict(parse_qsl(view.to_query(), keep_blank_values=True))


@given(VIEWS)
def test_a_link_says_all_of_a_view(view):
    assert View.from_query(query_of(view), model="other") == view


def test_a_link_says_no_more_than_it_must():
    assert View("faces", seed=7, centre="12", d0=1.5).to_query() == "model=faces&seed=7&centre=12&d0=1.5"
    assert View("faces", walk="7:1,2").to_query() == "model=faces&walk=7:1,2"
    assert View.from_query({}, model="faces") == View("faces")
    assert View.from_query({"__theme": "dark", "utm": "x"}, model="faces") == View("faces")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"d0": "nan"}, r"d0 must be from -10 to 10"),
        ({"d3": "1e999"}, r"d3 must be from -10 to 10"),
        ({"d1": "10.01"}, r"d1 must be from -10 to 10"),
        ({"turn": "-inf"}, r"turn must be from -3 to 3"),
        ({"d2": "far"}, r"d2 must be a number"),
        ({"seed": "-1"}, r"seed must be from 0 to 9007199254740991"),
        ({"seed": "9" * 30}, r"seed must be from 0 to 9007199254740991"),
        ({"seed": "9" * 5000}, r"seed must be a whole number"),
        ({"ways": "2.5"}, r"ways must be a whole number"),
        ({"label": ""}, r"label must be a whole number"),
        ({"centre": "1," * 3000}, r"a value must have at most 4000 characters"),
    ],
)
def test_a_hostile_link_is_refused(query, message):
    with pytest.raises(InputError, match=message):
        View.from_query(query, model="faces")


@pytest.mark.parametrize(
    "centre",
    [
        "",
        "x",
        "1;2",
        "-1",
        "1 - ",
        "1:2:3",
        "1" * 16,
        "\u0661",
        "../../etc/passwd",
        ",".join("1" * 17),
        "z.",
        "z.AAAA",
        "z.é",
    ],
)
def test_a_centre_that_is_none_is_refused_without_repeating_it(models, centre):
    with pytest.raises(InputError) as refused:
        draw(models, View("tiny", centre=centre))
    assert len(str(refused.value)) < 200
    assert "passwd" not in str(refused.value)


@settings(deadline=None, max_examples=30)
@given(view=VIEWS)
def test_any_view_is_drawn_or_refused(models, view):
    try:
        assert draw(models, view).shape == (3, 384, 384)
    except InputError:
        assert view.centre != "0" or view.turn  # a way from B to C, of which there are no images


def test_infinite_and_foreign_latents_are_refused(models):
    for z in (torch.full((100,), math.inf), torch.zeros(99), torch.full((100,), math.nan)):
        with pytest.raises(InputError, match="must be a latent of 100 numbers"):
            draw(models, View("tiny", centre=_view.write_latent(z)))


@pytest.mark.parametrize("name", ["../tiny", "/etc", "svhn", "nobody/nothing", "", "Faces", "tiny/../tiny", "."])
def test_visitors_choose_from_the_models_of_the_page_alone(models, name):
    with pytest.raises(InputError, match=f"this page has the models tiny, {', '.join(ON_BOARD)}, and no other"):
        draw(models, View(name))


def test_the_name_of_a_folder_does_not_tell_where_it_is(tmp_path, monkeypatch):
    Generator(image_size=16, base_channels=4).save_pretrained(tmp_path / "secret/faces")
    models = Models(str(tmp_path / "secret/faces"))
    assert (models.default, models.names) == ("./faces", ["./faces", *ON_BOARD])
    assert models.load("./faces").config["image_size"] == 16
    monkeypatch.chdir(tmp_path / "secret")
    assert models.load("faces").config["image_size"] == 64  # the one on board, whatever the working directory holds
    assert Models("mnist").names == ON_BOARD


def image_of(models, z):
    generator = models.load("tiny")
    return images.enlarge(images.to_uint8(generator.sample(z=z[None])), 384)[0]


def test_the_centre_is_an_image_a_sum_or_a_latent(models):
    z = latents.seeded_latents(20, 100, seed=7)
    other = latents.seeded_latents(5, 100, seed=1)[4]
    assert image_of(models, z[12]).float().std() > 5
    assert not torch.equal(image_of(models, z[12]), image_of(models, z[11]))
    assert torch.equal(draw(models, View("tiny", seed=7, centre="12")), image_of(models, z[12]))
    assert torch.equal(draw(models, View("tiny", seed=3, centre="7:12")), image_of(models, z[12]))
    result = torch.stack([z[1:3].mean(0), -z[5], other]).sum(0)
    assert torch.equal(draw(models, View("tiny", seed=7, centre="1, 2 - 5+1:4")), image_of(models, result))
    rounded = _view.write_latent(z[0])
    assert torch.equal(draw(models, View("tiny", centre=rounded)), image_of(models, z[0].half().float()))


def test_sliders_go_along_directions_of_length_one(models):
    generator = models.load("tiny")
    start = _view._place(generator, View("tiny", centre="3"))
    moved = [_view._place(generator, View("tiny", centre="3", **{f"d{i}": 2.5})) - start for i in range(4)]
    assert torch.allclose(torch.stack(moved).norm(dim=1), torch.full((4,), 2.5), atol=1e-5)
    both = _view._place(generator, View("tiny", centre="3", d0=2.5, d1=2.5)) - start
    assert torch.allclose(both, moved[0] + moved[1], atol=1e-5)
    other = _view._place(generator, View("tiny", centre="3", d0=2.5, ways=1)) - start
    assert abs(torch.dot(other, moved[0])) / 2.5**2 < 0.5


def test_the_way_from_b_to_c_ends_at_a_less_b_plus_c(models):
    view = View("tiny", a="1,2", b="3", c="4,5", centre="1,2", turn=1)
    assert (draw(models, view).int() - draw(models, View("tiny", centre=_view.write_sum(view))).int()).abs().max() <= 1
    corner = _view.draw_sum(models, view)[:, 2 + 192 + 12 + 2 :, 2 + 192 + 2 :][:, :192, :192]
    result = draw(models, View("tiny", centre=_view.write_sum(view)))[:, ::2, ::2]
    assert (corner.int() - result.int()).abs().max() <= 1  # four at once round differently
    with pytest.raises(InputError, match="needs at least one image in each"):
        draw(models, View("tiny", b="3", turn=1))
    with pytest.raises(InputError, match="A, B and C need at least one image each"):
        _view.draw_sum(models, View("tiny", a="1", b="3"))


def test_a_walk_has_an_image_for_each_step_and_its_ends_are_the_chosen(models):
    frames = _view.draw_walk(models, View("tiny", walk="1,2,3"), 4)
    assert frames.shape == (9, 3, 128, 128)
    assert torch.equal(frames[8], draw(models, View("tiny", centre="3"))[:, ::3, ::3])
    for walk, steps in (("", 4), ("1", 4), ("1,2,3,4,5,6,7,8,9", 4), ("1,2", 0), ("1,2", 25)):
        with pytest.raises(InputError, match="a walk"):
            _view.draw_walk(models, View("tiny", walk=walk), steps)


def test_the_latent_of_an_image_of_the_model_draws_it_again(models, tmp_path, monkeypatch):
    monkeypatch.setattr(_view, "_SEARCH_STEPS", 40)
    target = models.load("digits").sample(1, seed=5)
    images.save_png(tmp_path / "image.png", images.to_uint8(target)[0])
    both, centre, error = _view.find(models, View("digits"), str(tmp_path / "image.png"))
    assert both.shape == (2, 1, 128, 128)
    assert error < 0.5 * (models.load("digits").sample(1, seed=6) - target).square().mean()
    assert torch.equal(draw(models, View("digits", centre=centre))[:, ::3, ::3], both[1])


@pytest.mark.parametrize("content", [b"", b"these are words", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_answered_by_a_sentence(models, tmp_path, content):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match="this file cannot be read as an image: "):
        _view.find(models, View("tiny"), str(tmp_path / "image.png"))


def test_a_conditional_model_draws_the_class_of_the_link(tmp_path):
    generator = save_vivid(tmp_path / "classes", num_classes=3)
    models = Models(str(tmp_path / "classes"))
    z = latents.seeded_latents(1, 100, seed=0)
    expected = images.enlarge(images.to_uint8(generator.sample(z=z, labels=2)), 384)[0]
    assert torch.equal(draw(models, View("classes", label=2)), expected)
    assert not torch.equal(draw(models, View("classes", label=1)), expected)
    with pytest.raises(InputError, match="label"):
        draw(models, View("classes", label=3))


def test_what_is_known_of_a_model_is_told(tmp_path, models):
    text, curves, samples = models.tell("faces")
    assert "portraits" in text
    assert (curves, samples) == (None, [])
    run = start_and_stop(TINY.replace(steps=6), tmp_path / "run")
    card = (run / "README.md").read_text(
        encoding="utf-8"
    ) + "![spy](https://example.org/p.png) <img src='//example.org'>"
    (run / "README.md").write_text(card, encoding="utf-8")
    text, curves, samples = Models(str(run)).tell("run")
    assert text.startswith("- **step**: 6\n- **health**: ")
    assert "\n# run\n" in text
    assert "16×16 images" in text
    assert not [word for word in ("example.org", str(tmp_path), "root:", "from_pretrained") if word in text]
    assert np.array_equal(curves, images.draw_curves(_log.read(run / "metrics.jsonl")))
    assert [path.name for path in samples] == [f"step-{step:06d}.png" for step in (0, 5, 6)]


def test_a_run_that_goes_on_is_followed(tmp_path):
    run = start_and_stop(TINY.replace(steps=6), tmp_path / "run")
    models = Models(str(run))
    before, drawn, (text, *_) = models.stamp("run"), draw(models, View("run")), models.tell("run")
    assert models.stamp("run") == before
    with closing(Run.resume(run, Recipe.from_yaml((run / "recipe.yaml").read_text()).replace(steps=12))) as resumed:
        for _ in resumed.train():
            pass
    assert models.stamp("run") != before
    assert not torch.equal(draw(models, View("run")), drawn)
    assert "**step**: 6" in text
    assert "**step**: 12" in models.tell("run")[0]
    assert models.stamp("digits") is None


@needs_gradio
def test_the_page_calls_no_other_host_and_gives_away_no_file():
    """In a process of its own, since Gradio leaves event loops open."""
    code = """
import json
from dataclasses import fields
from fastapi.testclient import TestClient
from dcgan.explore import Models, View, _page, _server

models = Models("digits")
client = TestClient(_server.build_app(models))
page = client.get("/")
paths = ["/gradio_api/file=/etc/passwd", "/gradio_api/file=dcgan/../pyproject.toml"]
files = [("a.png", bytes(10**6)), ("b.png", bytes(22 * 10**6))]
print(json.dumps({
    "controls": list(_page._controls(models)) == [field.name for field in fields(View)],
    "policy": page.headers["content-security-policy"],
    "codes": [page.status_code, *(client.get(path).status_code for path in paths)],
    "analytics": client.get("/config").json()["analytics_enabled"],
    "fonts": "fonts.g" in page.text,
    "uploads": [client.post("/gradio_api/upload", files={"files": file}).status_code for file in files],
}))
"""
    told = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert told["controls"]
    assert told["policy"].startswith("default-src 'self' ")
    assert told["codes"][0] == 200
    assert set(told["codes"][1:]) <= {403, 404}
    assert told["analytics"] is False
    assert told["fonts"] is False
    assert told["uploads"] == [200, 413]


@needs_gradio
@pytest.mark.parametrize("guarded", [True, False])
def test_a_call_reads_no_file_but_one_that_was_uploaded(tmp_path, guarded):
    """With the guard, and where Gradio's own rule is alone."""
    (tmp_path / "secret.png").write_bytes(encoded("png"))
    code = f"""
import json, sys
from fastapi.testclient import TestClient
from dcgan.explore import Models, _server

if not {guarded}:
    _server._names_uploads_only = lambda body: True
secret, upload = sys.argv[1:]
view = ["digits", 0, 0, "0", 0, 0, 0, 0, 0, 0, "", "", "", ""]


def answer(function, data):
    call = {{"data": data, "fn_index": function, "session_hash": "s"}}
    joined = client.post("/gradio_api/queue/join", json=call)
    if joined.status_code != 200:
        return joined.status_code
    lines = client.get("/gradio_api/queue/data", params={{"session_hash": "s"}}).text.splitlines()
    told = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    return next(message["success"] for message in told if message["msg"] == "process_completed")


with _server._own_folder(), TestClient(_server.build_app(Models("digits"))) as client:
    names = {{function["api_name"]: function["id"] for function in client.get("/config").json()["dependencies"]}}
    mine = client.post("/gradio_api/upload", files={{"files": ("a.png", open(upload, "rb"))}}).json()[0]
    answers = {{}}
    for path in (mine, secret, "x.png", "https://example.org/a.png", chr(0), None):
        file = {{"path": path, "url": "http://127.0.0.1:9/a.png", "meta": {{"_type": "gradio.FileData"}}}}
        answers[path] = answer(names["find"], [file, *view]), answer(names["go_back"], [*view[:10], file, *view[11:]])
    print(json.dumps(list(answers.values())))
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "secret.png"), str(tmp_path / "secret.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (found, _), *others = json.loads(done.stdout.splitlines()[-1])
    assert found is True
    expected = {400} if guarded else {False}
    assert {answer for pair in others[: 5 if guarded else 1] for answer in pair} == expected


@needs_gradio
def test_a_page_for_this_machine_answers_no_other_site():
    code = """
import json
from fastapi.testclient import TestClient
from dcgan.explore import Models, _server

models = Models("digits")
pages = [TestClient(_server.build_app(models, local=local), "http://localhost:7860") for local in (True, False)]
own, foreign = "http://localhost:7860", "http://example.org"
headers = [{}, {"Host": "[::1]:7860"}, {"Origin": own}, {"Host": "example.org"}, {"Host": "[x"}, {"Origin": foreign}]
headers.append({"Host": "example.org:7860", "Origin": "http://example.org:7860"})
headers.append({"Origin": "http://[x"})
file = {"files": ("a.png", b"x")}
codes = [[page.post("/gradio_api/upload", files=file, headers=h).status_code for h in headers] for page in pages]
print(json.dumps(codes))
print(json.dumps(pages[0].post("/gradio_api/queue/join", content=bytes(2**21)).status_code))
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert json.loads(told[-2]) == [[200, 200, 200, 400, 400, 403, 400, 403], [200] * 8]
    assert json.loads(told[-1]) == 400


@needs_gradio
def test_a_space_has_what_the_hub_asks_for(tmp_path, models, capsys):
    said(capsys, "explore", "digits", "--export-space", tmp_path / "space")
    assert sorted(path.name for path in (tmp_path / "space").iterdir()) == ["README.md", "app.py", "requirements.txt"]
    head = (tmp_path / "space/README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: gradio" in head
    assert f"sdk_version: {version('gradio')}" in head
    assert "app_file: app.py" in head
    assert 'serve("digits", host="0.0.0.0"' in (tmp_path / "space/app.py").read_text(encoding="utf-8").replace("'", '"')
    with pytest.raises(InputError, match="is written to a new or empty folder"):
        export_space("digits", tmp_path / "space")


@needs_gradio
def test_a_space_of_a_folder_holds_its_weights(tmp_path):
    Generator(image_size=16, base_channels=4).save_pretrained(tmp_path / "ours")
    export_space(str(tmp_path / "ours"), tmp_path / "space")
    assert Generator.from_pretrained(tmp_path / "space/ours").config["image_size"] == 16
    compile((tmp_path / "space/app.py").read_text(encoding="utf-8"), "app.py", "exec")


def test_without_gradio_the_command_names_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "dcgan[explore]"' in said(capsys, "explore", "digits", code=2)
    assert 'pip install "dcgan[explore]"' in said(capsys, "explore", "digits", "--export-space", "space", code=2)


@needs_gradio
def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = said(capsys, "explore", "digits", "--port", port, code=2)
    assert message == f"dcgan: --host 127.0.0.1 --port {port}: Address already in use\n"


@needs_gradio
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here"], "nothing-here"),
        (["digits", "--port", "70000"], "65535"),
        (["digits", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: "),
    ],
)
def test_mistakes_are_answered(capsys, offline, arguments, message):
    assert message in said(capsys, "explore", *arguments, code=2)


@needs_gradio
def test_a_folder_without_weights_is_refused(capsys, tmp_path):
    Generator(image_size=16, base_channels=4).save_pretrained(tmp_path / "half")
    (tmp_path / "half/model.safetensors").unlink()
    assert "model.safetensors" in said(capsys, "explore", tmp_path / "half", code=2)


@needs_gradio
def test_the_page_of_a_training_run_ends_with_it_however_it_ends(tmp_path):
    """Under torchrun's variables, since the page is none of its processes."""
    start_and_stop(TINY.replace(steps=6), tmp_path / "run")
    code = f"""
import logging, time
from pathlib import Path
from dcgan.cli._watch import page

logging.basicConfig(level=logging.INFO)
with page(Path({str(tmp_path / "run")!r})):
    time.sleep(1000)
"""
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none", "BROWSER": "true"}
    training = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | torchrun, stderr=subprocess.PIPE, text=True
    )
    with training:
        address = next(line for line in training.stderr if "watch it at" in line).split(":")[-1]
        wait_for(int(address), answers=True)
        training.kill()
    wait_for(int(address), answers=False)


def test_the_page_ends_even_if_its_server_does_not():
    code = """
import faulthandler, signal, sys, time
from dcgan import explore
from dcgan.cli import _watch

faulthandler.dump_traceback_later(100, exit=True)

def serve(*_, **__):
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
    print("serves", flush=True)
    while True:
        time.sleep(0.01)

explore.serve, _watch._SECONDS_TO_END = serve, 4
sys.argv[1:] = ["run"]
_watch.main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout.readline() == "serves\n"
        assert process.communicate()[0] == "interrupted\n"
    assert process.returncode == 0


def wait_for(port, *, answers):
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            found = True
        except OSError:
            found = False
        if found == answers:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)
