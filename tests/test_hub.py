import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dcgan
from dcgan import Discriminator, Generator
from dcgan._files import atomic_write

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


def test_files_are_where_the_hub_has_them(saved):
    folder, generator, _ = saved
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    parts = ("config.json", "model.safetensors")
    assert files == {*parts, *(f"discriminator/{part}" for part in parts)}
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
    assert torch.equal(Generator.from_pretrained(tmp_path / "again").sample(2, seed=1), generator.sample(2, seed=1))


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
            lambda f: widen(f / "config.json"),
            r"misshapen blocks.4x12.conv.weight \(6, 4, 4, 12\) instead of \(6, 8,",
        ),
        (lambda f: (f / "config.json").write_text('{"class": "Discriminator"}'), r"a Discriminator, not a Generator"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), r"is not a whole safetensors file"),
        (lambda f: truncate(f / "model.safetensors"), r"is not a whole safetensors file"),
        (lambda f: rename_key(f / "model.safetensors"), r"missing head.conv.weight; unexpected head.weight"),
    ],
)
def test_what_does_not_fit_is_refused_with_reasons(saved, spoil, message):
    folder, *_ = saved
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)  # as other tools write it: without the configuration inside
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(folder)


def test_a_save_that_was_cut_between_its_files_is_the_new_network(saved, caplog):
    folder, *_ = saved
    old = (folder / "config.json").read_bytes()
    other = Generator(latent_dim=3, **TINY)
    other.save_pretrained(folder)
    (folder / "config.json").write_bytes(old)
    loaded = Generator.from_pretrained(folder)
    assert loaded.config == other.config
    assert "is not what the weights beside it were saved with" in caplog.text


def test_arguments_of_a_later_version_are_refused_by_name(saved):
    folder, generator, _ = saved
    generator.config["attention"] = True
    generator.save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"unexpected keyword argument 'attention'; it was written by dcgan .*, and this"
    ):
        Generator.from_pretrained(folder)


def widen(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_channels": 4}))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def rename_key(path):
    state = load_file(path)
    state["head.weight"] = state.pop("head.conv.weight")
    save_file(state, path)


def test_missing_files_and_names_are_told(saved, tmp_path):
    folder, *_ = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no Generator: .*model.safetensors is missing"):
        Generator.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere', nor can it be a repository's name"):
        Generator.from_pretrained(tmp_path / "nowhere")


WRITER = """
import sys
from pathlib import Path
from dcgan._files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"new" * 1000)
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout.readline() == "half\n"
        writer.kill()
    assert path.read_bytes() == b"old"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new")
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_networks_of_one_kind_share_nothing(saved):
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
