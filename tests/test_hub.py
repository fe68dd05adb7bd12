"""Networks as files: what is written, what is read back, and what is refused."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dcgan
from dcgan import Discriminator, Generator

TINY = {"image_size": (16, 48), "channels": 1, "base_channels": 2}


@pytest.fixture
def saved(tmp_path):
    generator, discriminator = Generator(latent_dim=6, **TINY), Discriminator(**TINY)
    generator(torch.randn(4, 6))  # statistics other than the initial ones
    generator.save_pretrained(tmp_path)
    discriminator.save_pretrained(tmp_path)
    return tmp_path, generator, discriminator


def test_a_pair_comes_back_as_it_was_and_ready_for_use(saved):
    folder, *networks = saved
    for loaded, original in zip(dcgan.from_pretrained(folder), networks, strict=True):
        assert loaded.config == original.config
        assert not loaded.training
        assert all(p.requires_grad for p in loaded.parameters())
        for name, value in original.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(Generator.from_pretrained(str(folder)).sample(3, seed=0), networks[0].sample(3, seed=0))


def test_weights_that_may_not_be_read_are_not_called_missing(saved, monkeypatch):
    folder, *_ = saved
    real = Path.open  # root may read every file

    def refuse(path, *arguments, **options):
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*model\.safetensors'"):
        Generator.from_pretrained(folder)


def test_the_folder_of_a_discriminator_alone_is_told(tmp_path):
    Discriminator(image_size=16, base_channels=4).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"by the folder of its generator, {re.escape(str(tmp_path))}$"):
        Discriminator.from_pretrained(tmp_path / "discriminator")


def test_a_state_is_told_by_its_run(tmp_path):
    state = tmp_path / "run/state/step-000020.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    (tmp_path / "run/recipe.yaml").touch()
    for path in (state, state.parent):
        with pytest.raises(
            OSError, match=f"holds states of the run {re.escape(str(tmp_path / 'run'))}: .* --step 20` does$"
        ):
            Generator.from_pretrained(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_unless_they_are_asked_for(saved, value):
    folder, generator, _ = saved
    with torch.no_grad():
        generator.head.conv.weight[0, 0, 0, 0] = value
    generator.save_pretrained(folder)  # with its checksum
    message = r"model\.safetensors holds weights that are not finite, in head\.conv\.weight, .*verify=False loads them"
    with pytest.raises(ValueError, match=message):
        dcgan.from_pretrained(folder)
    loaded, _ = dcgan.from_pretrained(folder, verify=False)
    torch.testing.assert_close(loaded.head.conv.weight, generator.head.conv.weight, equal_nan=True)


def test_files_are_where_the_hub_has_them(saved):
    folder, generator, _ = saved
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = ("config.json", "model.safetensors")
    assert files == {*names, *(f"discriminator/{name}" for name in names)}
    written = {"class": "Generator", "dcgan": dcgan.__version__, **generator.config}
    assert json.loads((folder / "config.json").read_text()) == written


def test_loading_draws_no_random_numbers_and_takes_device_and_dtype(saved):
    folder, *_ = saved
    before = torch.get_rng_state()
    generator = Generator.from_pretrained(folder, dtype=torch.float64, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in generator.parameters()} == {torch.float64}


def test_a_saved_network_in_channels_last_is_the_same_network(saved, tmp_path):
    _, generator, _ = saved
    generator.to(memory_format=torch.channels_last).save_pretrained(tmp_path / "again")
    loaded = Generator.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in generator.state_dict().items())
    # The layouts add in another order.
    torch.testing.assert_close(loaded.sample(2, seed=1), generator.sample(2, seed=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config.json must hold a JSON object, got list"),
        (
            lambda f: (f / "config.json").write_text('{"sise": 3}'),
            r"config.json does not describe a Generator: .*'sise'",
        ),
        (lambda f: (f / "config.json").write_text('{"kernel_size": 9}'), r"kernel_size must be one of 3, 4, 5, got 9"),
        (
            lambda f: edit(f / "config.json", base_channels=4),
            r"misshapen blocks.4x12.conv.weight \(6, 4, 4, 12\) instead of \(6, 8,",
        ),
        (lambda f: (f / "config.json").write_text('{"class": "Discriminator"}'), r"a Discriminator, not a Generator"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), r"is not a complete safetensors file"),
        (lambda f: truncate(f / "model.safetensors"), r"is not a complete safetensors file"),
        (lambda f: rename_key(f / "model.safetensors"), r"missing head.conv.weight; unexpected head.weight"),
    ],
)
def test_misfits_are_refused_with_reasons(saved, spoil, message):
    folder, *_ = saved
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)  # as other tools write it: without the configuration inside
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(folder)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_save_that_was_cut_between_its_files_is_the_new_network(saved, caplog):
    folder, *_ = saved
    old = (folder / "config.json").read_bytes()
    other = Generator(latent_dim=3, **TINY)
    other.save_pretrained(folder)
    (folder / "config.json").write_bytes(old)
    loaded = Generator.from_pretrained(folder)
    assert loaded.config == other.config
    assert torch.equal(loaded.sample(2, seed=0), other.sample(2, seed=0))
    (record,) = caplog.records
    assert "using the configuration inside" in record.message
    assert "misshapen blocks.4x12.conv.weight" in record.message


def test_an_edited_configuration_is_followed_and_the_difference_logged(saved, caplog):
    folder, generator, _ = saved
    edit(folder / "config.json", latent="uniform", norm_eps=1e-3)
    loaded = Generator.from_pretrained(folder)
    assert loaded.config == generator.config | {"latent": "uniform", "norm_eps": 1e-3}
    (record,) = caplog.records
    assert "config.json, which differs from the copy in model.safetensors: norm_eps, latent" in record.message
    assert not torch.allclose(loaded.sample(2, seed=0), generator.sample(2, seed=0))


def test_fields_that_are_left_out_take_their_defaults(saved, caplog):
    folder, generator, _ = saved
    config = json.loads((folder / "config.json").read_text())
    for name in ("norm_eps", "dcgan", "class"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    assert Generator.from_pretrained(folder).config == generator.config
    assert not caplog.records


def test_arguments_of_a_later_version_are_refused_by_name(saved):
    folder, *_ = saved
    weights = folder / "model.safetensors"
    edit(folder / "config.json", attention=True, heads=4, dcgan="9.0.0")
    save_file(load_file(weights), weights, {"config": (folder / "config.json").read_text()})
    version = re.escape(dcgan.__version__)
    message = (
        r"config.json does not describe a Generator: unknown arguments 'attention', 'heads'; "
        rf"the file was written by dcgan 9.0.0, and this is {version}$"
    )
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(folder)
    # The older configuration inside the weights is no excuse to leave an argument out.
    config = json.loads((folder / "config.json").read_text())
    known = {name: value for name, value in config.items() if name not in ("attention", "heads")}
    save_file(load_file(weights), weights, {"config": json.dumps(known)})
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(folder)


def test_an_unknown_argument_in_a_file_without_a_version_is_refused_by_name(saved):
    folder, *_ = saved
    path = folder / "discriminator" / "config.json"
    config = json.loads(path.read_text())
    del config["dcgan"]
    path.write_text(json.dumps(config | {"latent_dim": 6}))
    message = (
        r"discriminator.config.json does not describe a Discriminator: unknown argument 'latent_dim'; "
        rf"the file does not name the version of dcgan that wrote it, and this is {re.escape(dcgan.__version__)}\. "
        r"If it is another program's, `dcgan convert` may convert its folder or repository"
    )
    with pytest.raises(ValueError, match=message):
        Discriminator.from_pretrained(folder)


def test_files_of_version_0_1_load_as_they_did(tmp_path):
    folder = shutil.copytree(Path(__file__).parent / "data/generator-0.1", tmp_path / "saved")
    expected = load_file(folder / "images.safetensors")["images"]
    generator = Generator.from_pretrained(folder)
    assert generator.config["latent"] == "uniform"
    torch.testing.assert_close(generator.sample(4, seed=7), expected, rtol=0, atol=1e-6)


def test_a_flipped_bit_in_the_weights_is_found_wherever_it_is(saved):
    folder = saved[0]
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")  # behind the header
    for position in (start, start + 1, (start + len(whole)) // 2, len(whole) - 1):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            weights.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"model\.safetensors is damaged: .*verify=False loads them"):
                Generator.from_pretrained(folder)
            Generator.from_pretrained(folder, verify=False)


def test_weights_that_another_program_wrote_anew_load(saved):
    folder = saved[0]
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    state = load_file(weights)
    changed = {name: tensor + 1 for name, tensor in state.items()}
    save_file(dict(reversed(state.items())), weights, metadata)  # the same weights
    Generator.from_pretrained(folder)
    save_file(changed, weights)  # without our checksum
    loaded = Generator.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in changed.items())
    save_file(changed, weights, metadata)  # with the one of other weights
    with pytest.raises(ValueError, match="is damaged"):
        Generator.from_pretrained(folder)
    loaded = dcgan.from_pretrained(folder, verify=False)[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in changed.items())


def test_writing_over_the_files_does_not_change_a_loaded_network(saved):
    folder, *_ = saved
    loaded = Generator.from_pretrained(folder)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    Generator(latent_dim=6, **TINY).save_pretrained(folder / "other")
    weights = folder / "model.safetensors"
    shutil.copyfile(folder / "other/model.safetensors", weights)  # in place, as most programs write
    weights.write_bytes(b"\0" * weights.stat().st_size)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


LOADER = """
import os, sys
from dcgan import Generator
generator = Generator.from_pretrained(sys.argv[1])
os.truncate(sys.argv[1] + "/model.safetensors", 0)
print(generator.sample(2, seed=0).isfinite().all().item())
"""


def test_truncating_the_file_does_not_harm_a_loaded_network(tmp_path):
    Generator(image_size=16, base_channels=16).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", LOADER, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("device", ["meta", None])
def test_loading_does_not_depend_on_default_devices_and_types(saved, device):
    folder, generator, _ = saved
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device(device or "cpu"):
            loaded = Generator.from_pretrained(folder)
            double = Generator.from_pretrained(folder, dtype=torch.float64)
    finally:
        torch.set_default_dtype(default)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert torch.equal(loaded.sample(3, seed=0), generator.sample(3, seed=0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_file_is_kept(tmp_path, dtype):
    Generator(latent_dim=6, **TINY).to(dtype).save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.blocks["4x12"].norm.num_batches_tracked.dtype == torch.int64


# Subclasses


class Plain(Generator):
    pass


class Buffered(Generator):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("grid", torch.arange(5), persistent=False)
        self.latent_mean = torch.zeros(3)


class Blobs(Generator):
    def __init__(self, n_blobs=3, **kwargs):
        super().__init__(**kwargs)
        self.n_blobs = n_blobs


class RecordedBlobs(Blobs):
    def __init__(self, n_blobs=3, *, scale=1.0, **kwargs):
        super().__init__(n_blobs, **kwargs)
        self.config |= {"n_blobs": n_blobs, "scale": scale}


class Small(Generator):
    def __init__(self):
        super().__init__(image_size=16, base_channels=2)


def test_subclasses_are_loaded_with_their_arguments_and_buffers(tmp_path):
    for network in (Plain(**TINY), Buffered(**TINY), RecordedBlobs(5, scale=2.0, **TINY)):
        network.save_pretrained(tmp_path)
        loaded = type(network).from_pretrained(tmp_path)
        assert loaded.config == network.config
        assert torch.equal(loaded.sample(2, seed=0), network.sample(2, seed=0))
    assert loaded.n_blobs == 5
    Buffered(**TINY).save_pretrained(tmp_path)
    assert Buffered.from_pretrained(tmp_path).grid.tolist() == [0, 1, 2, 3, 4]


class InheritedBlobs(Blobs):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


REMEDY = r"Record it in __init__, after super\(\).__init__\(\): self.config\[\"n_blobs\"\] = n_blobs"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Blobs, rf"^Blobs cannot be saved: its constructor takes n_blobs, which its config does not hold. {REMEDY}$"),
        (InheritedBlobs, "InheritedBlobs cannot be saved: its constructor takes n_blobs"),
        (Small, r"Small cannot be saved: its config holds .*image_size.* Accept \*\*kwargs in __init__"),
    ],
)
def test_a_network_that_could_not_be_rebuilt_is_not_saved(tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        network().save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


# Where the files are


def test_weights_that_are_not_finite_are_saved_with_a_warning(tmp_path, caplog):
    generator = Generator(image_size=16, base_channels=4)
    generator.save_pretrained(tmp_path)
    assert not caplog.messages
    generator.head.conv.weight.data[0] = torch.nan
    generator.save_pretrained(tmp_path)
    assert caplog.messages == ["saving a Generator whose head.conv.weight is not finite (NaN or infinity)"]


@pytest.mark.parametrize("subfolder", ["faces", "faces/ema", "./faces/ema/", "faces\\ema"])
def test_networks_are_found_in_a_subfolder(saved, subfolder, tmp_path_factory):
    _, *networks = saved
    folder = tmp_path_factory.mktemp("several")
    for network in networks:
        network.save_pretrained(folder / subfolder.replace("\\", "/"))
        loaded = type(network).from_pretrained(folder, subfolder=subfolder)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    for network, loaded in zip(networks, dcgan.from_pretrained(folder, subfolder=subfolder), strict=True):
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"has no Generator: .*other.config.json is missing"):
        Generator.from_pretrained(folder, subfolder="other")


@pytest.mark.parametrize(
    "subfolder", ["..", "faces/../..", "/faces", "C:/faces", "C:faces", "\\\\server\\share", "..\\faces"]
)
def test_a_subfolder_cannot_lead_out_of_its_folder(saved, subfolder):
    folder, *_ = saved
    with pytest.raises(ValueError, match=r"^subfolder must be a relative path without '\.\.'.*got "):
        Generator.from_pretrained(folder, subfolder=subfolder)


def same(name_or_path, generator):
    images = Generator.from_pretrained(name_or_path).sample(4, seed=0)
    return torch.equal(images, generator.sample(4, seed=0))


def test_relative_paths_the_home_directory_and_any_name(saved, monkeypatch, tmp_path_factory):
    _, generator, _ = saved
    folder = tmp_path_factory.mktemp("base")
    monkeypatch.chdir(folder)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder / "home"))
    generator.save_pretrained("models/mine")
    assert same("models/mine", generator)
    assert same(Path("models", "..", "models", "mine"), generator)
    generator.save_pretrained("~/mine")
    assert same("~/mine", generator)
    assert (folder / "home/mine/config.json").is_file()
    assert not Path("~").exists()
    for name in ("two words", "Модель 模型 ü", "a'b [1] {x} %s"):
        assert generator.save_pretrained(folder / name) == folder / name
        assert same(name, generator)
    with pytest.raises(FileNotFoundError, match="there is no folder '~nobody-there/mine'"):
        Generator.from_pretrained("~nobody-there/mine")


def test_a_snapshot_of_the_hub_with_links_into_its_blobs(saved, tmp_path_factory):
    folder, generator, _ = saved
    snapshot = tmp_path_factory.mktemp("models--me--g") / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        shutil.copyfile(folder / name, snapshot.parents[1] / "blobs" / f"{number:040}")
        try:
            (snapshot / name).symlink_to(Path("../../blobs", f"{number:040}"))
        except OSError as error:
            pytest.skip(f"no symbolic links: {error}")
    assert same(snapshot, generator)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clone_of_a_repository(saved, tmp_path_factory):
    folder, generator, _ = saved
    clone = tmp_path_factory.mktemp("clones") / "g"
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "core.autocrlf=false"]
    for command in (["init", "-q", "."], ["add", "."], ["commit", "-q", "-m", "Add"], ["clone", "-q", ".", str(clone)]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    assert same(clone, generator)


def test_a_clone_without_git_lfs_is_recognised(saved):
    folder, *_ = saved
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 13000\n"
    (folder / "model.safetensors").write_text(pointer, newline="\n")
    with pytest.raises(
        ValueError, match=r"model.safetensors is a Git LFS pointer, not the weights: .*without Git LFS.*`git lfs pull`"
    ):
        Generator.from_pretrained(folder)


@contextmanager
def unprivileged():
    """Do without the rights of root, whom permissions do not bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs the permissions of POSIX")
def test_a_read_only_folder(saved):
    source, generator, _ = saved
    assert same(source, generator)  # imports what loading needs, which only root may read where root installed it
    with tempfile.TemporaryDirectory() as base:  # the parents of tmp_path are its owner's alone
        Path(base).chmod(0o755)
        folder = shutil.copytree(source, Path(base, "mine"))
        for path in (folder / "discriminator", folder, Path(base)):
            path.chmod(0o555)
        try:
            with unprivileged():
                assert same(folder, generator)
                with pytest.raises(PermissionError, match="mine"):
                    generator.save_pretrained(folder)
        finally:
            for path in (Path(base), folder, folder / "discriminator"):
                path.chmod(0o755)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def rename_key(path):
    state = load_file(path)
    state["head.weight"] = state.pop("head.conv.weight")
    save_file(state, path)


def test_missing_files_and_folders_are_named(saved, tmp_path):
    folder, *_ = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no Generator: .*model.safetensors is missing"):
        Generator.from_pretrained(folder)
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder '.*nowhere', and it is not a valid repository name"
    ):
        Generator.from_pretrained(tmp_path / "nowhere")


def test_networks_loaded_from_the_same_files_share_nothing(saved):
    folder, *_ = saved
    one, other = Generator.from_pretrained(folder), Generator.from_pretrained(folder)
    one.train()
    one.config["image_size"][0] = 0
    for parameter in one.parameters():
        parameter.data.zero_()
    one.blocks["4x12"].register_forward_hook(lambda *_: pytest.fail("called on another network"))
    del one.blocks["8x24"]
    assert other.config["image_size"] == [16, 48]
    assert not other.training
    assert other.sample(1, seed=0).any()
    third = Generator.from_pretrained(folder)
    assert torch.equal(third.sample(2, seed=0), other.sample(2, seed=0))
    assert third.config == other.config
