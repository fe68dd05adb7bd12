"""Loading from and publishing to the Hub, with the real client against the server in `hub_server.py`."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
from hub_server import OWNER, READER, STRANGER, HubServer, client, digest
from huggingface_hub import ModelCard
from original_networks import TutorialGenerator, randomize_batchnorm, save_state

import dcgan
from dcgan import Discriminator, Generator
from dcgan.convert import convert
from dcgan.hub import model_card
from dcgan.hub._card import seal
from dcgan.recipe import Recipe

TINY = {"image_size": (16, 48), "channels": 1, "base_channels": 2}
PAIR = ["config.json", "model.safetensors"]


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


def files(folder, *networks):
    """Return the files of networks as a repository has them."""
    for network in networks:
        network.save_pretrained(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raised(outcome, kind, message):
    bases, said = outcome
    assert kind.__name__ in bases, outcome
    assert re.search(message, said), said


def test_revisions_and_the_cache(hub, tmp_path):
    old, new = Generator(latent_dim=5, **TINY), Generator(latent_dim=6, **TINY)
    first = hub.add("me/g", files(tmp_path / "old", old), tag="v1")
    hub.add("me/g", files(tmp_path / "new", new))
    home, steps = tmp_path / "home", {}
    steps["main"] = 'load("me/g")'
    steps["again"] = 'load("me/g")'
    steps["cached"] = 'load("me/g", local_files_only=True)'
    steps["tag"] = 'load("me/g", revision="v1")'
    steps["commit"] = f'load("me/g", revision="{first}")'
    steps["elsewhere"] = f'load("me/g", cache_dir="{tmp_path / "elsewhere"}")'
    steps["forced"] = 'load("me/g", force_download=True)'
    code = "load = dcgan.Generator.from_pretrained\n"
    code += "".join(f'result["{name}"] = digest({call})\n' for name, call in steps.items())
    ran = client(hub, code, home=home)
    assert ran.result == {name: digest(old if name in ("tag", "commit") else new) for name in steps}
    assert ran.stdout == ""
    assert hub.downloads() == 4 * PAIR  # main, tag, elsewhere and forced; the others are in the cache
    assert (tmp_path / "elsewhere/models--me--g").is_dir()

    hub.stop()
    code = f"""
load, empty = dcgan.Generator.from_pretrained, "{tmp_path / "empty"}"
result["down"] = digest(load("me/g"))
result["local"] = digest(load("me/g", local_files_only=True, revision="v1"))
result["forced"] = attempt(load, "me/g", force_download=True)
result["absent"] = attempt(load, "me/g", cache_dir=empty)
result["absent locally"] = attempt(load, "me/g", cache_dir=empty, local_files_only=True)
"""
    ran = client(hub, code, home=home)
    assert ran.stdout == ""
    assert (ran.result["down"], ran.result["local"]) == (digest(new), digest(old))
    raised(ran.result["forced"], OSError, r"me/g")
    raised(ran.result["absent"], FileNotFoundError, r"^there is no folder 'me/g'; .*me/g.*reached")
    raised(ran.result["absent locally"], FileNotFoundError, r"me/g.*cache")


def test_subfolders_of_a_repository(hub, tmp_path):
    generator, other, discriminator = Generator(latent_dim=5, **TINY), Generator(**TINY), Discriminator(**TINY)
    files(tmp_path / "saved", generator)
    hub.add("me/g", files(tmp_path / "saved", other))
    files(tmp_path / "saved/faces/ema", generator, discriminator)
    hub.add("me/g", files(tmp_path / "saved"))
    code = """
G, D = dcgan.Generator.from_pretrained, dcgan.Discriminator.from_pretrained
result["root"] = digest(G("me/g"))
result["generator"] = digest(G("me/g", subfolder="faces/ema"))
result["discriminator"] = digest(D("me/g", subfolder="faces\\\\ema"))
result["pair"] = [digest(network) for network in dcgan.from_pretrained("me/g", subfolder="faces/ema")]
result["absent"] = attempt(D, "me/g", subfolder="faces")
result["outside"] = attempt(G, "me/g", subfolder="../ema")
"""
    ran = client(hub, code, home=tmp_path / "home")
    assert ran.result["root"] == digest(other)
    assert (ran.result["generator"], ran.result["discriminator"]) == (digest(generator), digest(discriminator))
    assert ran.result["pair"] == [digest(generator), digest(discriminator)]
    inner = [f"faces/ema/{name}" for name in (*PAIR, *(f"discriminator/{name}" for name in PAIR))]
    assert hub.downloads() == [*PAIR, *inner]
    raised(ran.result["absent"], FileNotFoundError, r"has no Discriminator: faces/discriminator/config.json is missing")
    raised(ran.result["outside"], ValueError, r"^subfolder must be a relative path without '\.\.'.*got '../ema'")


def test_a_model_of_the_zoo_that_is_too_large_for_the_package_comes_from_the_hub(hub, tmp_path):
    old, new = Generator(latent_dim=5, **TINY), Generator(latent_dim=6, **TINY)
    discriminator = Discriminator(**TINY)
    commit = hub.add("us/large", files(tmp_path / "old", old, discriminator))
    hub.add("us/large", files(tmp_path / "new", new))
    code = f"""
from dcgan import zoo

facts = dict.fromkeys(("description", "licence", "data", "terms", "source"), "") | {{"figures": {{}}}}
record = zoo.Model("large", image_size=[16, 48], channels=1, repository="us/large", revision="{commit}", **facts)
zoo._records = lambda: {{"large": record}}
generator, discriminator = dcgan.from_pretrained("large")
result["networks"] = digest(generator), digest(discriminator)
result["cached"] = digest(dcgan.Generator.from_pretrained("large", local_files_only=True))
result["on board"] = record.on_board
import dcgan.cli

result["verified"] = dcgan.cli.main(["models", "--verify"])
"""
    result = client(hub, code, home=tmp_path / "home").result
    assert result["networks"] == [digest(old), digest(discriminator)]
    assert (result["cached"], result["on board"], result["verified"]) == (digest(old), False, 0)


NO_CONNECTION = """
import socket
tried, slept = [], []
def refuse(*arguments, **_):
    tried.append(str(arguments))
    raise OSError("refused by the test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
time.sleep = slept.append
"""


def test_offline_only_the_cache_is_asked(hub, tmp_path):
    generator, home = Generator(latent_dim=5, **TINY), tmp_path / "home"
    commit = hub.add("me/g", files(tmp_path / "saved", generator), tag="v1")
    hub.add("me/other", files(tmp_path / "saved"))
    code = 'load = dcgan.Generator.from_pretrained\nfor revision in (None, "v1"): load("me/g", revision=revision)\n'
    client(hub, code, home=home)
    hub.log.clear()
    code = f"""
{NO_CONNECTION}
load = dcgan.Generator.from_pretrained
result["cached"] = [digest(load("me/g", revision=revision)) for revision in (None, "v1", "{commit}")]
result["absent"] = attempt(load, "me/other")
result["half"] = attempt(dcgan.from_pretrained, "me/g")
result["revision"] = attempt(load, "me/g", revision="v2")
result["cache_dir"] = attempt(load, "me/g", cache_dir="{tmp_path / "empty"}")
result["forced"] = attempt(load, "me/g", force_download=True)
result["push"] = attempt(load("me/g").push_to_hub, "me/new")
result["tried"], result["slept"] = tried, slept
"""
    ran = client(hub, code, home=home, HF_HUB_OFFLINE="1", HF_TOKEN=OWNER)
    assert (ran.result["tried"], ran.result["slept"], hub.log) == ([], [], [])
    assert ran.stdout == ""
    assert ran.result["cached"] == 3 * [digest(generator)]
    for case, absent in {
        "absent": "Generator of me/other",
        "half": "Discriminator of me/g",
        "revision": "Generator of me/g",
        "cache_dir": "Generator of me/g",
    }.items():
        raised(
            ran.result[case],
            FileNotFoundError,
            rf"; the {absent} on the Hub is not in the cache, and HF_HUB_OFFLINE forbids",
        )
    raised(ran.result["forced"], ValueError, r"force_download=True.*offline mode")
    raised(ran.result["push"], OSError, r"offline mode is enabled.*HF_HUB_OFFLINE")

    code = f"""
{NO_CONNECTION}
load = dcgan.Generator.from_pretrained
result["cached"] = digest(load("me/g", revision="v1", local_files_only=True))
result["absent"] = attempt(load, "me/other", local_files_only=True)
result["tried"], result["slept"] = tried, slept
"""
    ran = client(hub, code, home=home)
    assert (ran.result["tried"], ran.result["slept"]) == ([], [])
    assert ran.result["cached"] == digest(generator)
    raised(
        ran.result["absent"],
        FileNotFoundError,
        r"me/other on the Hub is not in the cache, and local_files_only=True forbids",
    )


@pytest.mark.parametrize("slash", [pytest.param("", marks=pytest.mark.slow), "/"])
def test_a_mirror_is_found_through_the_environment(tmp_path, slash):
    generator = Generator(latent_dim=5, **TINY)
    generator.save_pretrained(tmp_path / "saved")
    code = f"""
generator = dcgan.Generator.from_pretrained("{tmp_path / "saved"}")
result["url"] = generator.push_to_hub("me/new")
result["loaded"] = digest(dcgan.Generator.from_pretrained("me/new"))
"""
    with HubServer(prefix="/artifacts/mirror") as hub:
        ran = client(hub, code, home=tmp_path / "home", HF_ENDPOINT=f"{hub.url}{slash}", HF_TOKEN=OWNER)
        assert ran.result["loaded"] == digest(generator)
        assert ran.result["url"] == f"{hub.url}/me/new/commit/{hub.repos['me/new'].refs['main']}"
        # Requests name who asks, since the Hub's statistics are by library; the client's own `file_exists` does not.
        requests = [r for r in hub.log if not r.path.startswith("/lfs/") and not r.path.endswith("README.md")]
        assert {request.method for request in requests} == {"GET", "HEAD", "POST"}
        anonymous = [r for r in requests if not r.agent.startswith(f"dcgan/{dcgan.__version__}; hf_hub/")]
        assert not anonymous


G, D = "Generator.from_pretrained", "Discriminator.from_pretrained"
REFUSALS = {
    "no repository": (f'{G}, "me/none"', FileNotFoundError, r"'me/none'.*no repository.*private.*token"),
    "no repository for us": (f'{G}, "me/none", token="{STRANGER}"', FileNotFoundError, r"me/none.*token"),
    "no such name": (f'{G}, "a/b/c"', FileNotFoundError, r"no folder 'a/b/c'"),
    "no token": (f'{G}, "me/private"', FileNotFoundError, r"me/private.*token"),
    "another's token": (f'{G}, "me/private", token="{STRANGER}"', FileNotFoundError, r"me/private.*token"),
    "wrong token": (f'{G}, "me/g", token="hf_wrong"', PermissionError, r"me/g.*token"),
    "not logged in": (f'{G}, "me/g", token=True', PermissionError, r"me/g.*(token|log)"),
    "gated, no token": (f'{G}, "me/gated"', PermissionError, r"me/gated.* is gated: request access on its page"),
    "gated, not let in": (
        f'{G}, "me/gated", token="{STRANGER}"',
        PermissionError,
        r"me/gated.* is gated: request access on its page",
    ),
    "no revision": (f'{G}, "me/g", revision="v9"', FileNotFoundError, r"me/g.*no revision 'v9'"),
    "no commit": (f'{G}, "me/g", revision="{"0" * 40}"', FileNotFoundError, r"me/g.*no revision '0{40}'"),
    "no files": (f'{G}, "me/empty"', FileNotFoundError, r"me/empty has no Generator: config.json is missing$"),
    "no discriminator": (f'{D}, "me/g"', FileNotFoundError, r"me/g has no Discriminator: discriminator/config.json"),
    "half a pair": ('from_pretrained, "me/g"', FileNotFoundError, r"me/g has no Discriminator: discriminator/config"),
    "a pickle": (
        f'{G}, "me/pickled"',
        FileNotFoundError,
        r"me/pickled.*model.safetensors is missing.*`dcgan convert me/pickled/pytorch_model.bin out`",
    ),
    "a script's file": (
        f'{G}, "me/script"',
        FileNotFoundError,
        r"me/script.*`dcgan convert me/script/netG_epoch_24.pth out`",
    ),
    "contradiction": (f'{G}, "me/g", local_files_only=True, force_download=True', ValueError, r"local_files_only"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return what each call raises that asks for something that is not there, or not for everyone."""
    folder = tmp_path_factory.mktemp("refusals")
    generator = Generator(latent_dim=5, **TINY)
    whole = files(folder / "saved", generator)
    code = "".join(f"result[{name!r}] = attempt(dcgan.{call})\n" for name, (call, _, _) in REFUSALS.items())
    # Last, as what is in the cache needs no token.
    code += f'result["private"] = digest(dcgan.{G}("me/private", token="{OWNER}"))\n'
    code += f'result["gated"] = digest(dcgan.{G}("me/gated", token="{OWNER}"))\n'
    with HubServer() as hub:
        hub.add("me/g", whole)
        hub.add("me/private", whole, private=True)
        hub.add("me/gated", whole, gated=True)
        hub.add("me/empty", {"README.md": b"# Nothing yet"})
        hub.add("me/pickled", {"config.json": whole["config.json"], "pytorch_model.bin": b"\x80\x02"})
        hub.add("me/script", {"README.md": b"# A tutorial", "netG_epoch_24.pth": b"\x80\x02"})
        ran = client(hub, code, home=folder / "home")
        assert ran.stdout == ""
        # A token goes to the Hub, not to the hosts that it sends its clients to.
        assert {request.token for request in hub.log if "/resolve/" in request.path} > {OWNER}
        assert {request.token for request in hub.log if request.path.startswith("/cdn/")} == {None}
    assert ran.result["private"] == ran.result["gated"] == digest(generator)
    return ran.result


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_available_is_explained(refusals, case):
    _, kind, message = REFUSALS[case]
    raised(refusals[case], kind, message)


def test_downloads_that_fail(hub, tmp_path):
    generator, other = Generator(latent_dim=5, **TINY), Generator(latent_dim=6, **TINY)
    whole = files(tmp_path / "saved", generator)
    weights = whole["model.safetensors"]
    names = ["cut", "resumed", "busy", "limited", "slow", "broken", "short", "garbage", "moving"]
    for name in names:
        hub.add(f"me/{name}", whole)
    hub.fail("me/cut/model", cut=100, times=6)  # as often as the client tries
    hub.fail("me/resumed/model", cut=1500)
    hub.fail("me/busy/resolve", method="HEAD", status=503, times=3)
    hub.fail("me/limited/model", status=429, times=2)
    hub.fail("me/slow/resolve", method="HEAD", delay=1.2)
    hub.fail("me/slow/model", delay=1.2)
    hub.fail("me/broken/model", status=500)
    hub.fail("me/short/model", body=weights[:-1])
    hub.fail("me/garbage/model", body=bytes(len(weights)))
    hub.fail("me/moving/resolve", then=lambda: hub.add("me/moving", files(tmp_path / "other", other)))
    code = f"""
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 512  # what it keeps of a file that is cut off
load = dcgan.Generator.from_pretrained
for name in {names}:
    cache = f"{tmp_path}/{{name}}"  # of its own, as the files are the same
    for turn in ("first", "offline", "second"):
        try:
            outcome = digest(load(f"me/{{name}}", cache_dir=cache, local_files_only=turn == "offline"))
        except Exception as error:
            outcome = attempt(lambda: (_ for _ in ()).throw(error))
        result[f"{{name}} {{turn}}"] = outcome
result["healed"] = digest(load("me/garbage", cache_dir=f"{tmp_path}/garbage", force_download=True))
"""
    ran = client(hub, code, home=tmp_path / "home", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert ran.stdout == ""
    for name in ("resumed", "busy", "limited", "slow"):
        assert [ran.result[f"{name} {turn}"] for turn in ("first", "offline", "second")] == 3 * [digest(generator)], (
            name
        )
    assert [r.range for r in hub.log if "me/resumed/model" in r.path] == [None, "bytes=1024-"]
    for name in ("cut", "broken", "short"):
        raised(ran.result[f"{name} first"], OSError, rf"me/{name}")
        raised(ran.result[f"{name} offline"], FileNotFoundError, rf"me/{name}")  # nothing half loaded is kept
        assert ran.result[f"{name} second"] == digest(generator)
    for turn in ("first", "offline", "second"):
        raised(ran.result[f"garbage {turn}"], ValueError, r"model.safetensors is not a complete safetensors file")
    assert ran.result["healed"] == digest(generator)
    # Both files are of the commit that was pushed between their downloads.
    assert [ran.result[f"moving {turn}"] for turn in ("first", "offline", "second")] == 3 * [digest(other)]


def test_push(hub, tmp_path):
    generator, other, discriminator = Generator(latent_dim=5, **TINY), Generator(**TINY), Discriminator(**TINY)
    for name, network in {"g": generator, "other": other, "d": discriminator}.items():
        network.save_pretrained(tmp_path / name)
    hub.add("me/public", {"README.md": b"# Mine"})
    hub.fail("/lfs/", method="PUT", status=503)  # the client tries again
    code = f"""
G, D = dcgan.Generator, dcgan.Discriminator
g, other, d = (kind.from_pretrained(f"{tmp_path}/{{name}}") for kind, name in ((G, "g"), (G, "other"), (D, "d")))
result["first"] = g.push_to_hub("me/new", private=True, commit_message="First light")
result["loaded"] = digest(G.from_pretrained("me/new"))
result["second"] = d.push_to_hub("me/new")
result["pair"] = [digest(network) for network in dcgan.from_pretrained("me/new")]
result["third"] = other.push_to_hub("me/new")
result["updated"] = [digest(network) for network in dcgan.from_pretrained("me/new")]
result["old"] = digest(G.from_pretrained("me/new", revision=result["first"].split("/")[-1]))
result["same"] = other.push_to_hub("me/new")
g.push_to_hub("me/public")
result["stranger"] = attempt(g.push_to_hub, "me/public", token="{STRANGER}")
result["wrong token"] = attempt(g.push_to_hub, "me/public", token="hf_wrong")
result["bad name"] = attempt(g.push_to_hub, "a/b/c")
del os.environ["HF_TOKEN"]
result["no token"] = attempt(g.push_to_hub, "me/third")
result["no token, there"] = attempt(g.push_to_hub, "me/public")
result["hidden"] = attempt(g.push_to_hub, "me/new")
result["given token"] = g.push_to_hub("me/fourth", token="{OWNER}")
"""
    ran = client(hub, code, home=tmp_path / "home", HF_TOKEN=OWNER)
    assert ran.stdout == ""
    new, public = hub.repos["me/new"], hub.repos["me/public"]
    assert ran.result["loaded"] == ran.result["old"] == digest(generator)
    assert ran.result["pair"] == [digest(generator), digest(discriminator)]
    assert ran.result["updated"] == [digest(other), digest(discriminator)]
    urls = [ran.result[name] for name in ("first", "second", "third")]
    assert urls == [
        f"{hub.url}/me/new/commit/{oid}" for oid in list(new.commits)[1:]
    ]  # one commit each, none for "same"
    assert ran.result["same"] == urls[-1]
    assert new.messages == ["initial commit", "First light", "Upload Discriminator", "Upload Generator"]
    assert (new.private, hub.repos["me/fourth"].private) == (True, False)
    assert set(new.files) == {".gitattributes", "README.md", *PAIR, *(f"discriminator/{name}" for name in PAIR)}
    card = ModelCard(new.files["README.md"].decode(), ignore_metadata_errors=False)
    assert card.data.library_name == "dcgan"
    assert 'Generator.from_pretrained("me/new")' in card.text
    assert public.files["README.md"] == b"# Mine"
    assert set(public.files) == {"README.md", *PAIR}
    assert json.loads(public.files["config.json"])["class"] == "Generator"
    assert "me/third" not in hub.repos

    for case in ("stranger", "wrong token", "no token", "no token, there", "hidden"):
        name = {"no token": "me/third", "hidden": "me/new"}.get(case, "me/public")
        raised(ran.result[case], PermissionError, rf"{name}.*token")
    raised(ran.result["bad name"], ValueError, r"a/b/c")


def run_folder(folder):
    """Write what a run leaves behind, without training it."""
    networks = Generator(**TINY), Discriminator(**TINY)
    local = Recipe(data="folder", root=folder / "private", generator=str(folder), cache_dir=folder, steps=3)
    content = files(folder, *networks) | {"recipe.yaml": local.to_yaml().encode(), "metrics.jsonl": b'{"step": 3}\n'}
    card = seal(model_card(f"./{folder.name}", networks[0].config, licence="mit"))
    for name, data in (content | {"README.md": card.encode(), "samples/step-000003.png": b"a picture"}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("state/step-000003.pt", ".lock", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not to be published")
    return networks


def test_the_command_publishes_a_run_without_what_is_private(hub, tmp_path):
    generator, discriminator = run_folder(tmp_path / "run")
    edited = tmp_path / "edited"
    shutil.copytree(tmp_path / "run", edited)
    card = (edited / "README.md").read_text()
    (edited / "README.md").write_text(card.replace("A deep", "My deep").replace("license: mit\n", ""))
    generator.save_pretrained(tmp_path / "plain")
    code = f"""
from dcgan import cli
result["codes"] = [cli.main(["push", f"{tmp_path}/{{name}}", f"me/{{name}}"]) for name in ("run", "edited", "plain")]
result["codes"] += [cli.main(["push", "{tmp_path}/run", "me/hidden", "--private"])]
result["loaded"] = [digest(network) for network in dcgan.from_pretrained("me/run")]
"""
    ran = client(hub, code, home=tmp_path / "home", HF_TOKEN=OWNER)
    assert ran.result == {"codes": 4 * [0], "loaded": [digest(generator), digest(discriminator)]}
    run = hub.repos["me/run"]
    published = {".gitattributes", "README.md", "recipe.yaml", "metrics.jsonl", "samples/step-000003.png"}
    assert run.files.keys() == published | {*PAIR, *(f"discriminator/{name}" for name in PAIR)}
    assert run.messages == ["initial commit", "Upload with dcgan push"]
    assert not any(str(tmp_path).encode() in content for content in run.files.values())
    recipe = Recipe.from_yaml(run.files["recipe.yaml"].decode())
    assert recipe == Recipe(data="folder", root=Path("private"), generator="run", steps=3)

    text = run.files["README.md"].decode()
    assert text == model_card("me/run", generator.config, licence="mit")
    assert "Written by dcgan" not in text
    theirs = hub.repos["me/edited"].files["README.md"].decode()
    assert theirs == text.replace("me/run", "me/edited").replace("A deep", "My deep").replace("license: mit\n", "")
    assert hub.repos["me/plain"].files.keys() == {".gitattributes", "README.md", *PAIR}
    assert [hub.repos[name].private for name in ("me/run", "me/hidden")] == [False, True]
    lines = ran.stdout.splitlines()
    assert lines[0] == f"8 files in {hub.url}/me/run/commit/{run.refs['main']}"
    assert [line for line in lines if "licence" in line] == 2 * [
        "the card states no licence: add a line such as `license: mit` at the top of README.md, and push again"
    ]


def test_without_a_network_the_command_says_so_at_once(hub, tmp_path):
    hub.stop()
    code = """
import contextlib, io
from dcgan import cli
with contextlib.redirect_stderr(io.StringIO()) as said:
    result["code"] = cli.main(["generate", "org/nosuch", "-n", "1"])
result["said"] = said.getvalue()
"""
    ran = client(hub, code, home=tmp_path / "home")
    assert ran.result["code"] == 2
    assert ran.result["said"].startswith(
        "dcgan: there is no folder 'org/nosuch'; the Generator of org/nosuch on the Hub"
    )
    assert ran.result["said"].count("\n") == 1
    assert "Retry" not in ran.stderr  # as the Hub's client logs five times, over half a minute


def test_the_command_checks_all_that_it_needs_before_it_creates_anything(hub, tmp_path):
    run_folder(tmp_path / "run")
    for name in ("halved", "damaged"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    (tmp_path / "halved/discriminator/model.safetensors").unlink()
    weights = tmp_path / "damaged/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (tmp_path / "empty").mkdir()
    mistakes = {
        ("missing", "me/g"): "there is no folder missing",
        ("empty", "me/g"): "empty has no Generator: empty/config.json is missing",
        ("halved", "me/g"): "discriminator/model.safetensors is missing",
        ("damaged", "me/g"): "is not a complete safetensors file",
        ("run", "g"): "a repository has a name such as organisation/name, got 'g'",
        ("run", "me/a/b"): "Repo id must be in the form",
    }
    code = f"""
import contextlib, io
from dcgan import cli
os.chdir("{tmp_path}")
def push(*arguments):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return cli.main(["push", *arguments]), said.getvalue()
result["mistakes"] = [push(*arguments) for arguments in {list(mistakes)}]
os.environ["HF_TOKEN"] = "hf_wrong"
result["wrong"] = push("run", "me/g")
os.environ["HF_TOKEN"] = "{STRANGER}"
result["stranger"] = push("run", "me/g")
os.environ["HF_TOKEN"] = "{READER}"
result["reader"] = push("run", "me/g")
del os.environ["HF_TOKEN"]
result["none"] = push("run", "me/g")
"""
    result = client(hub, code, home=tmp_path / "home", HF_TOKEN=OWNER).result
    for (code, said), message in zip(result["mistakes"], mistakes.values(), strict=True):
        assert (code, message in said) == (2, True), said
    assert result["none"] == [2, "dcgan: publishing needs a token, but none is stored: log in with `hf auth login`\n"]
    assert (result["reader"][0], "needs a token that may write" in result["reader"][1]) == (2, True)
    assert (result["wrong"][0], "me/g on the Hub refuses access with this token" in result["wrong"][1]) == (2, True)
    assert (result["stranger"][0], "me/g on the Hub refuses access" in result["stranger"][1]) == (1, True)
    assert hub.repos == {}


def test_pushes_that_fail_commit_nothing(hub, tmp_path):
    Generator(latent_dim=5, **TINY).save_pretrained(tmp_path / "g")
    hub.add("me/g", {"README.md": b"# Mine"})
    faults = {"/api/repos/create": ("POST", 500), "/preupload/": ("POST", 400), "/commit/": ("POST", 500)}
    for path, (method, status) in faults.items():
        hub.fail(path, method=method, status=status)
    hub.fail("/lfs/", method="PUT", status=403)
    code = f"""
g = dcgan.Generator.from_pretrained("{tmp_path / "g"}")
result = [attempt(g.push_to_hub, "me/g") for _ in range({len(faults) + 1})]
"""
    ran = client(hub, code, home=tmp_path / "home", HF_TOKEN=OWNER)
    assert not any(fault.times for fault in hub.faults)
    for outcome in ran.result:
        raised(outcome, OSError, r"me/g")
    assert hub.repos["me/g"].messages == ["Add"]

    hub.stop()
    code = f'result["down"] = attempt(dcgan.Generator.from_pretrained("{tmp_path / "g"}").push_to_hub, "me/g")\n'
    ran = client(hub, code, home=tmp_path / "home", HF_TOKEN=OWNER)
    raised(ran.result["down"], OSError, r"me/g.*reached")


STOCK = """
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

class Stock(nn.Module, PyTorchModelHubMixin):
    def __init__(self, *, {arguments}):
        super().__init__()
        ours = dcgan.Generator({passed})
        self.blocks, self.head = ours.blocks, ours.head
"""


def test_repositories_of_the_stock_mixin_and_ours_are_the_same(hub, tmp_path):
    generator = Generator(latent_dim=5, **TINY)
    hub.add("me/ours", files(tmp_path / "saved", generator))
    defaults = Generator().config
    arguments = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
    code = STOCK.format(arguments=arguments, passed=", ".join(f"{name}={name}" for name in defaults))
    code += f"""
load, folder = dcgan.Generator.from_pretrained, "{tmp_path / "stock"}"
result["ours"] = digest(Stock.from_pretrained("me/ours", strict=True))
stock = Stock(latent_dim=7, image_size=(16, 48), channels=1, base_channels=2, norm="layer")
stock.push_to_hub("me/stock", token="{OWNER}")
stock.save_pretrained(folder)
result["theirs"] = [digest(stock), digest(load("me/stock")), digest(load(folder))]
"""
    ran = client(hub, code, home=tmp_path / "home")
    assert ran.result["ours"] == digest(generator)
    assert len(set(ran.result["theirs"])) == 1


CONVERT = """
from dcgan.convert import convert
from dcgan.hub import model_card
from dcgan.hub._card import seal
from dcgan.recipe import Recipe

def converted(*files, **options):
    result = convert(files, **options)
    return digest(result.generator), list(result.notes)
"""


def test_a_pickle_of_another_program_is_converted_at_a_pinned_commit(hub, tmp_path):
    old, new = (randomize_batchnorm(TutorialGenerator(name=name)) for name in ("main", "net"))
    first = hub.add("me/theirs", {"pytorch_model.bin": save_state(old, tmp_path / "a.bin").read_bytes()})
    config = b'{"latent_dim": 6, "ngf": 4}'
    content = {"config.json": config, "pytorch_model.bin": save_state(new, tmp_path / "b.bin").read_bytes()}
    second = hub.add("me/theirs", content)
    hub.add("me/script", dict.fromkeys(("runs/netG.pth", "runs/netG_ema.pth"), content["pytorch_model.bin"]))
    hub.add("me/contradiction", content | {"config.json": b'{"latent_dim": 9, "ngf": 4}'})
    hub.add("me/dangerous", {"netG.pth": pickle.dumps(print)})
    code = f"""{CONVERT}
result["new"] = converted("me/theirs")
result["old"] = converted("me/theirs", revision="{first}")
result["several"] = attempt(converted, "me/script")
result["one"] = converted("me/script/runs/netG.pth")
result["none"] = attempt(converted, "me/script/runs/netD.pth")
result["absent"] = attempt(converted, "me/nothing")
result["contradiction"] = attempt(converted, "me/contradiction")
result["dangerous"] = attempt(converted, "me/dangerous")
result["refused"] = attempt(dcgan.Generator.from_pretrained, "me/theirs")
"""
    ran = client(hub, code, home=tmp_path / "home")
    expected = [digest(convert([tmp_path / name]).generator) for name in ("a.bin", "b.bin")]
    assert [ran.result["old"][0], ran.result["new"][0]] == expected
    assert ran.result["one"][0] == expected[1]
    for name, commit in (("old", first), ("new", second)):
        pinned = f"me/theirs: pytorch_model.bin of commit {commit}; this revision reads the same again"
        assert ran.result[name][1][0] == pinned
    files = "it holds runs/netG.pth, runs/netG_ema.pth"
    raised(ran.result["several"], FileNotFoundError, f"pass one file of me/script, as me/script/FILE: {files}")
    raised(ran.result["none"], FileNotFoundError, f"pass one file of me/script, as me/script/FILE: {files}")
    raised(ran.result["absent"], FileNotFoundError, "no repository me/nothing on the Hub")
    raised(ran.result["contradiction"], ValueError, "weights have latent_dim 6, and its config.json latent_dim 9")
    raised(ran.result["dangerous"], ValueError, "netG.pth .*builtins.print|netG.pth is damaged")
    raised(ran.result["refused"], FileNotFoundError, "`dcgan convert me/theirs/pytorch_model.bin out` converts")
