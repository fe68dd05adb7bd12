"""The zoo: every record against its files, and models of others, fetched from a server that may fail."""

import dataclasses
import errno
import hashlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from original_networks import (
    AuthorsDiscriminator,
    AuthorsGenerator,
    TutorialDiscriminator,
    TutorialGenerator,
    save_authors_arrays,
    save_state,
)
from PIL import Image
from safetensors.torch import load_file

import dcgan
from dcgan import Discriminator, Generator, cli, convert, zoo
from dcgan.generate import sample_uint8
from dcgan.images import grid
from dcgan.metrics import frechet_distance, image_features
from dcgan.zoo import Model, RemoteFile, _fetch

OURS = [name for name in zoo.list_models() if zoo.load_record(name).on_board]
OTHERS = [name for name in zoo.list_models() if name not in OURS]
GALLERY = Path(__file__).parents[1] / "docs/assets"
CHECKPOINTS = os.environ.get("DCGAN_TEST_CHECKPOINTS", Path(__file__).parents[2] / "shared/checkpoints")


def test_ours_come_first():
    assert dcgan.list_models() == OURS + OTHERS
    assert sorted(OURS) == OURS != []
    with pytest.raises(ValueError, match=r"model must be one of cifar10, digits, .*, got 'cats'"):
        zoo.load_record("cats")


@pytest.mark.parametrize("name", OURS)
def test_a_model_on_board_is_what_its_record_says(name):
    record = zoo.load_record(name)
    files = {path.relative_to(record.folder).as_posix(): path for path in record.folder.rglob("*.safetensors")}
    assert {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()} == record.sha256
    generator, discriminator = dcgan.from_pretrained(name)
    assert next(generator.parameters()).dtype == torch.float32
    assert generator.config["image_size"] == discriminator.config["image_size"] == record.image_size
    assert generator.sample(1, seed=0).shape[1] == record.channels
    assert load_file(record.folder / "model.safetensors")["head.conv.weight"].dtype == torch.float16

    reference = {key: value.double() for key, value in load_file(record.folder / "reference.safetensors").items()}
    few = record.figures["distance_of_few"]
    features = image_features(sample_uint8(generator, few["samples"], seed=7))
    distance = frechet_distance(features, (reference["mean"], reference["covariance"]))
    assert abs(distance - few["mean"]) <= few["spread"]
    noise = torch.randint(0, 256, (few["samples"], record.channels, 32, 32), dtype=torch.uint8)
    assert frechet_distance(image_features(noise), (reference["mean"], reference["covariance"])) > 10 * few["mean"]


@pytest.mark.parametrize("name", OURS)
def test_the_pictures_of_a_model_are_its_first_samples_none_chosen(name):
    generator = Generator.from_pretrained(name)
    pictures = [(zoo.load_record(name).folder / "samples.png", 32, 8), (GALLERY / f"{name}.png", 64, 16)]
    for path, count, columns in pictures:
        drawn = grid(sample_uint8(generator, count, seed=0), columns=columns)
        shown = torch.from_numpy(np.array(Image.open(path).convert("L" if len(drawn) == 1 else "RGB")))
        difference = shown.reshape(*drawn.shape[1:], -1).int() - drawn.permute(1, 2, 0).int()
        assert difference.abs().max() <= 2  # another machine may round otherwise


def section_of(name):
    """Return what the gallery says of a model on board."""
    text = (GALLERY.parent / "models.md").read_text(encoding="utf-8")
    return text.partition(f"\n### {name}\n")[2].partition("\n#")[0]


@pytest.mark.parametrize("name", OURS)
def test_the_gallery_says_what_the_record_of_a_model_does(name):
    record, section = zoo.load_record(name), section_of(name)
    assert f"| Fréchet distance | {record.figures['distance'].partition(' (')[0]}: 2,000 samples" in section
    assert f"{record.training['steps']:,} steps of {record.training['batch_size']} images" in section
    assert f"{record.training['minutes']} minutes" in section


@pytest.mark.parametrize("name", OURS)
def test_the_card_of_a_model_says_what_its_record_does(name):
    record = zoo.load_record(name)
    card = (record.folder / "README.md").read_text(encoding="utf-8")
    training = record.training
    for fact in (record.data, record.terms, record.licence, record.figures["distance"], training["recipe"].rstrip()):
        assert fact in card
    for key in ("command", "machine", "minutes", "seed", "images", "versions", "half_precision"):
        assert f"{training[key]}" in card
    assert f'Generator.from_pretrained("{name}")' in card
    assert all(digest in card for digest in record.sha256.values())
    assert "![Generated images](samples.png)" in card
    assert not re.search(r"(?<![\w.:/])/[\w.]+/", card)  # no path of the machine that trained it
    assert training["images"] == training["steps"] * training["batch_size"]
    assert min(training["curve"].values()) * 3 > training["curve"][max(training["curve"])]  # no collapse at the end


@pytest.mark.parametrize("name", OURS)
def test_three_seeds_of_a_model_end_near_each_other(name):
    record, section = zoo.load_record(name), section_of(name)
    seeds = record.training["distance_by_seed"]
    assert len(seeds) >= 3
    assert f"{seeds[record.training['seed']]:.2f}" == record.figures["distance"].partition(" (")[0]
    assert max(seeds.values()) < 2 * min(seeds.values())
    others = " and ".join(f"{seeds[seed]:.2f}" for seed in sorted(seeds) if seed != record.training["seed"])
    assert f"; {others} with seeds 1 and 2" in section
    assert all(
        f"{distance:.2f} with seed {seed}" in (record.folder / "README.md").read_text(encoding="utf-8")
        for seed, distance in seeds.items()
    )


@pytest.mark.parametrize("name", OTHERS)
def test_the_table_of_others_says_what_the_record_of_a_model_does(name):
    record, text = zoo.load_record(name), (GALLERY.parent / "models.md").read_text(encoding="utf-8")
    cells = [cell.strip() for cell in text.partition(f"\n| `{name}` |")[2].partition("\n")[0].split("|")]
    what, _, licence, terms, figure = cells[:5]
    _, height, width = record.shape
    assert f"{height}×{width}" in what
    assert licence.lower() == record.licence
    assert terms.partition(", ")[2] == record.terms
    assert figure == next((f"{key} {value.partition(',')[0]}" for key, value in record.figures.items()), "")


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_others_names_its_source_and_terms(name):
    record = zoo.load_record(name)
    for file in record.files:
        assert urlsplit(file.url).scheme == "https"
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", file.sha256)
        fixed = re.search(r"/[0-9a-f]{40}/|/releases/download/|-[0-9a-f]{8}\.pth$", file.url)
        assert fixed, "an address that may change"
    assert record.licence
    assert record.terms
    assert record.notice
    assert record.source


def test_names_folders_and_repositories_are_told_apart(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    [name, *_] = OURS
    expected = Generator.from_pretrained(name)
    Path(name).mkdir()  # which holds no network
    (Path(name) / "notes.txt").write_text("mine")
    assert Generator.from_pretrained(name).config == expected.config
    assert f"{name} is the model of the zoo: the folder of that name here holds no network" in caplog.text
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        Generator.from_pretrained(f"./{name}")
    Generator(image_size=16, base_channels=2).save_pretrained(name)
    assert Generator.from_pretrained(name).config["image_size"] == 16
    assert "is the folder of that name here, and not the model of the zoo" in caplog.text
    assert Generator.from_pretrained(Path(name)).config["image_size"] == 16
    for load in (Discriminator.from_pretrained, dcgan.from_pretrained):  # not one network from here, one from there
        with pytest.raises(FileNotFoundError, match="has no Discriminator"):
            load(name)
    shutil.rmtree(name)
    Path(name).write_text("a file of that name")
    assert Generator.from_pretrained(name).config == expected.config
    with pytest.raises(FileNotFoundError, match=rf"no folder 'cats', and no model of that name: {name}, "):
        Generator.from_pretrained("cats")


# Models of others, as a server on the loopback interface has them.


class Server:
    """Serves `files` by path. What `answer` returns, if anything, is a status, or the number of bytes to send."""

    def __init__(self):
        self.files, self.asked, self.answer = {}, [], lambda path: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                content, answer = outer.files.get(self.path), outer.answer(self.path)
                if content is None or answer == 404:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:answer])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Server() as server:
        monkeypatch.setenv("DCGAN_ZOO_MIRROR", f"http://127.0.0.1:{server.http.server_port}/mirror/")
        monkeypatch.setenv("DCGAN_CACHE", str(tmp_path / "cache"))
        yield server


def publish(server, monkeypatch, path, name="theirs", *, digits=64, size=True, **fields):
    """Serve files as a model of somebody else's, and put it into the registry; return its record."""
    files = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        content = file.read_bytes()
        server.files[f"/mirror/example.org/v1/{file.name}"] = content
        digest = hashlib.sha256(content).hexdigest()[:digits]
        files.append(RemoteFile(f"https://example.org/v1/{file.name}", digest, len(content) if size else None))
    facts = {"description": "noise", "image_size": 64, "channels": 3, "licence": "mit", "data": "CATS", "terms": "none"}
    record = Model(name=name, figures={}, source="somebody", notice="(c)", files=tuple(files), **facts, **fields)
    monkeypatch.setattr(zoo, "_records", lambda: {name: record})
    return record


@pytest.fixture
def theirs(server, monkeypatch, tmp_path):
    network = TutorialGenerator()
    publish(server, monkeypatch, save_state(network, tmp_path / "netG.pth"))
    return network


def test_a_model_is_fetched_once_and_its_terms_are_said(server, theirs, caplog):
    generator = Generator.from_pretrained("theirs")
    z = torch.randn(3, 6)
    torch.testing.assert_close(generator(z), theirs.eval()(z), rtol=0, atol=1e-6)
    assert "theirs is by somebody, under the licence mit; it was trained on CATS, none. (c)" in caplog.text
    caplog.clear()
    server.files.clear()  # and there is no network
    assert torch.equal(Generator.from_pretrained("theirs")(z), generator(z))
    assert torch.equal(Generator.from_pretrained("theirs", local_files_only=True)(z), generator(z))
    assert (server.asked, caplog.records) == (["/mirror/example.org/v1/netG.pth"], [])
    with pytest.raises(FileNotFoundError, match="has no Discriminator"):
        Discriminator.from_pretrained("theirs")
    with pytest.raises(OSError, match=r"127.0.0.1.*netG.pth could not be downloaded: .*404.*DCGAN_ZOO_MIRROR"):
        Generator.from_pretrained("theirs", force_download=True)
    assert torch.equal(Generator.from_pretrained("theirs")(z), generator(z))  # the old one is still there


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_training_checkpoint_of_any_age_and_name_will_do(zipped, server, monkeypatch, tmp_path):
    network, discriminator = TutorialGenerator(), TutorialDiscriminator()
    states = {"epoch": 5, "netG_state_dict": network.state_dict(), "netD_state_dict": discriminator.state_dict()}
    torch.save(states, tmp_path / "weights.tar", _use_new_zipfile_serialization=zipped)
    publish(server, monkeypatch, tmp_path / "weights.tar")
    generator, _ = dcgan.from_pretrained("theirs")
    z = torch.randn(3, 6)
    torch.testing.assert_close(generator(z), network.eval()(z), rtol=0, atol=1e-6)


def test_the_colours_of_mmgeneration_are_reversed(server, monkeypatch, tmp_path):
    name = "dcgan_celeba-cropped_64_published"
    folder = Path(CHECKPOINTS, "foreign/mmgen")
    if not folder.is_dir():
        pytest.skip(f"no checkpoints in {folder}")
    publish(server, monkeypatch, folder / f"{name}.pth", digits=8, size=False)
    outputs = {key: torch.from_numpy(array) for key, array in np.load(folder / f"{name}.npz").items()}
    z = next(array for key, array in outputs.items() if key.startswith("z"))
    generator = Generator.from_pretrained("theirs")
    torch.testing.assert_close(generator(z), outputs["images"].flip(1), rtol=0, atol=2e-6)


def test_arrays_and_the_first_digits_of_a_hash_will_do(server, monkeypatch, tmp_path):
    monkeypatch.setattr(convert, "_BATCHES", 1)
    (tmp_path / "arrays").mkdir()
    theirs = AuthorsGenerator()
    save_authors_arrays(tmp_path / "arrays/g.jl", theirs)
    save_authors_arrays(tmp_path / "arrays/d.jl", AuthorsDiscriminator())
    publish(server, monkeypatch, tmp_path / "arrays", digits=8, size=False)
    generator, _ = dcgan.from_pretrained("theirs")
    expected = convert.convert([tmp_path / "arrays"]).generator
    z = torch.randn(2, 5)
    assert torch.equal(generator(z), expected(z))


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (404, OSError, "netG.pth could not be downloaded: .*404"),
        (1000, OSError, r"netG.pth gave 1,000 of [\d,]+ bytes: it ended early"),  # the connection is cut
    ],
)
def test_what_fails_leaves_nothing_and_can_be_tried_again(server, theirs, answer, kind, message, tmp_path):
    server.answer = lambda _: answer
    with pytest.raises(kind, match=message):
        Generator.from_pretrained("theirs")
    assert not list((tmp_path / "cache/zoo").iterdir())
    server.answer = lambda _: None
    assert Generator.from_pretrained("theirs").config["base_channels"] == 4


@pytest.mark.parametrize("error", [ssl.SSLError(1, "bad record mac"), OSError(113, "No route to host")], ids=str)
def test_a_network_that_fails_on_the_way_is_no_full_disk(error, theirs, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", Mock(side_effect=error))
    with pytest.raises(OSError, match=r"netG.pth could not be downloaded: .*DCGAN_ZOO_MIRROR"):
        Generator.from_pretrained("theirs")


def test_a_disk_that_cannot_be_written_is_no_network(theirs, monkeypatch):
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr("torch.hub.download_url_to_file", Mock(side_effect=error))
    with pytest.raises(OSError, match=r"Read-only file system; DCGAN_CACHE names another folder"):
        Generator.from_pretrained("theirs")


def test_a_pair_is_downloaded_again_once(server, monkeypatch, tmp_path):
    states = {"netG": TutorialGenerator().state_dict(), "netD": TutorialDiscriminator().state_dict()}
    torch.save(states, tmp_path / "weights.tar")
    publish(server, monkeypatch, tmp_path / "weights.tar")
    dcgan.from_pretrained("theirs", force_download=True)
    assert len(server.asked) == 1


def test_a_silent_server_is_given_up(server, theirs, monkeypatch):
    monkeypatch.setattr("dcgan.zoo._fetch._SECONDS_OF_SILENCE", 0.05)
    answered = threading.Event()
    server.http.handle_error = lambda *_: None  # the client is gone when it answers
    server.answer = lambda _: answered.wait(20) and None
    with pytest.raises(OSError, match=r"netG.pth could not be downloaded: .*timed out"):
        Generator.from_pretrained("theirs")
    answered.set()
    assert socket.getdefaulttimeout() is None


def test_another_file_under_the_address_is_refused(server, theirs, tmp_path, monkeypatch):
    other = save_state(TutorialGenerator(), tmp_path / "other.pth").read_bytes()
    server.files["/mirror/example.org/v1/netG.pth"] = other
    with pytest.raises(ValueError, match="netG.pth is not the file that it was, or was damaged on the way"):
        Generator.from_pretrained("theirs")
    publish(server, monkeypatch, save_authors_arrays(tmp_path / "g.jl", AuthorsGenerator()).with_name("g.jl_01.npy"))
    with pytest.raises(ValueError, match="recognised no network of the paper's authors"):
        Generator.from_pretrained("theirs")
    assert not list((tmp_path / "cache/zoo").iterdir())


def in_child(work):
    """Run `work` in a forked process; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_a_full_disk_leaves_nothing(theirs, tmp_path):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(OSError, match=r"File too large; DCGAN_CACHE names another folder: '.*cache.zoo'"):
            _fetch.fetch(zoo.load_record("theirs"))

    process = in_child(work)
    process.join()
    assert process.exitcode == 0
    assert not list((tmp_path / "cache/zoo").iterdir())


def test_what_a_kill_left_goes_after_a_day_and_not_what_is_being_fetched(theirs, tmp_path):
    for name in (".fetching-dead", ".fetching-alive"):
        (tmp_path / "cache/zoo" / name).mkdir(parents=True)
    os.utime(tmp_path / "cache/zoo/.fetching-dead", (0, 0))
    Generator.from_pretrained("theirs")
    left = {path.name.partition("-")[2] for path in (tmp_path / "cache/zoo").iterdir()}
    assert {"alive"} < left
    assert "dead" not in left


def test_a_model_of_the_zoo_is_at_one_commit(theirs):
    with pytest.raises(ValueError, match="theirs is a model of the zoo, at one commit, but revision is 'v1'"):
        Generator.from_pretrained("theirs", revision="v1")


def test_the_command_verifies_hashes_downloads_and_shapes(server, theirs, monkeypatch, tmp_path, capsys):
    right = zoo.load_record("theirs")
    ours = publish_ours(tmp_path / "board", monkeypatch)
    wrong = dataclasses.replace(right, name="wrong", channels=1)
    gone = dataclasses.replace(right, name="gone", files=(RemoteFile("https://example.org/gone.pth", "00" * 32),))
    monkeypatch.setattr(zoo, "_records", lambda: {model.name: model for model in (ours, right, wrong, gone)})
    assert cli.main(["models", "--verify"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["ours: as it was, and draws (1, 16, 16)", "theirs: as it was, and draws (3, 64, 64)"]
    assert "wrong: it draws (3, 64, 64), not (1, 64, 64)" in err
    assert "gone: " in err
    assert "dcgan: 2 of 4 models could not be verified: wrong, gone" in err
    (tmp_path / "board/ours/model.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(zoo, "_records", lambda: {"ours": ours})
    assert cli.main(["models", "--verify"]) == 1
    assert "model.safetensors is not the file that it was" in capsys.readouterr().err


def publish_ours(folder, monkeypatch):
    """Put a model on board; return its record."""
    Generator(image_size=16, channels=1, base_channels=2).save_pretrained(folder / "ours")
    monkeypatch.setattr(zoo, "WEIGHTS", folder)
    digest = hashlib.sha256((folder / "ours/model.safetensors").read_bytes()).hexdigest()
    facts = {"description": "noise", "licence": "mit", "data": "", "terms": "", "figures": {}, "source": "us"}
    return Model("ours", image_size=16, channels=1, sha256={"model.safetensors": digest}, **facts)


def test_two_processes_at_once_put_one_model(theirs, tmp_path):
    processes = [in_child(lambda: _fetch.fetch(zoo.load_record("theirs"))) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    [folder] = (tmp_path / "cache/zoo").iterdir()
    assert folder.name.startswith("theirs-")
    assert Generator.from_pretrained("theirs", local_files_only=True).config["latent_dim"] == 6


def test_a_damaged_cache_is_fetched_again(server, theirs, tmp_path):
    expected = Generator.from_pretrained("theirs").sample(1, seed=0)
    [folder] = (tmp_path / "cache/zoo").iterdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        assert torch.equal(Generator.from_pretrained("theirs").sample(1, seed=0), expected)
    assert len(server.asked) == 3
    assert list((tmp_path / "cache/zoo").iterdir()) == [folder]


def test_a_mirror_that_is_no_address_is_named(theirs, monkeypatch):
    monkeypatch.setenv("DCGAN_ZOO_MIRROR", "mirror.example.org")
    with pytest.raises(ValueError, match="DCGAN_ZOO_MIRROR must begin with http:// or https://, got 'mirror.exa"):
        Generator.from_pretrained("theirs")


def test_downloads_can_be_forbidden(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="theirs is not in .*cache.zoo, and downloading it is forbidden"):
        Generator.from_pretrained("theirs")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match="theirs is not in .*cache.zoo, and downloading it is forbidden"):
        Generator.from_pretrained("theirs", local_files_only=True)


@pytest.mark.parametrize("name", ["svhn"])
def test_the_authors_svhn_model_is_fetched_as_the_record_has_it(name, server, monkeypatch, caplog):
    folder = Path(CHECKPOINTS, name)
    if not folder.is_dir():
        pytest.skip(f"no checkpoints in {folder}")
    monkeypatch.setattr(convert, "_BATCHES", 1)
    record = zoo.load_record(name)
    for file in record.files:
        parts = urlsplit(file.url)
        server.files[f"/mirror/{parts.netloc}{parts.path}"] = (folder / Path(parts.path).name).read_bytes()
    caplog.set_level(logging.WARNING)
    generator, discriminator = dcgan.from_pretrained(name)
    assert "svhn is by Radford, Metz and Chintala" in caplog.text
    assert generator.config == Generator.from_architecture("svhn").config
    assert discriminator.config == Discriminator.from_architecture("svhn").config
    assert generator.sample(2, seed=0).isfinite().all()
