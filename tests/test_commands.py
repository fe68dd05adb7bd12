"""The commands around checkpoints and timings, as a user types them."""

import re

import pytest
import torch
from commands import said
from references import Tutorial, copy_in_order

from dcgan import Discriminator, Generator
from dcgan.recipe import list_recipes


@pytest.fixture
def folder(tmp_path):
    Generator(image_size=64, base_channels=2).save_pretrained(tmp_path / "model")
    Discriminator(image_size=64, base_channels=2).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_tutorials_checkpoint_is_converted_and_back(folder, tmp_path, capsys):
    theirs = Tutorial.generator(c=2)
    file, back = tmp_path / "netG.pth", tmp_path / "back.pth"
    assert f"written to {file}" in said(capsys, "convert", "--to", "tutorial", folder, file)
    copy_in_order_from_file(file, theirs)
    out = said(capsys, "convert", file, tmp_path / "converted", "--latent", "uniform", "--verbose")
    assert "main.3.weight (16, 8, 4, 4) is blocks.8x8.conv, normalised by main.4" in out
    assert "a Generator: image_size 64, channels 3, base_channels 2" in out
    assert "latent uniform (given)" in out
    converted = Generator.from_pretrained(tmp_path / "converted")
    z = torch.randn(3, 100)
    torch.testing.assert_close(converted(z), theirs.eval()(z), rtol=0, atol=1e-6)
    said(capsys, "convert", tmp_path / "converted", back, "--to", "tutorial")
    assert torch.load(back, weights_only=True).keys() == torch.load(file, weights_only=True).keys()

    said(capsys, "convert", "--to", "tutorial", folder, tmp_path / "netD.pth", "--discriminator")
    said(capsys, "convert", tmp_path / "netD.pth", tmp_path / "d")
    assert Discriminator.from_pretrained(tmp_path / "d").config["base_channels"] == 2


def copy_in_order_from_file(file, network):
    state = torch.load(file, weights_only=True)
    holder = torch.nn.Module()
    holder.state_dict = lambda: state
    copy_in_order(holder, network)


def test_existing_files_are_not_overwritten_without_force(folder, tmp_path, capsys):
    file = tmp_path / "netG.pth"
    said(capsys, "convert", "--to", "tutorial", folder, file)
    assert f"{file} exists: --force" in said(capsys, "convert", "--to", "tutorial", folder, file, code=2)
    said(capsys, "convert", "--to", "tutorial", folder, file, "--force")
    before = (folder / "model.safetensors").read_bytes()
    assert "config.json exists: --force" in said(capsys, "convert", file, folder, code=2)
    (folder / "config.json").rename(folder / "other.json")
    assert "discriminator/config.json exists: --force" in said(capsys, "convert", file, folder, code=2)
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_export_is_called_what_it_is(folder, tmp_path, capsys):
    message = f"export writes ONNX: the file's name must end in .onnx, got {tmp_path / 'g.pt'}"
    assert message in said(capsys, "export", folder, tmp_path / "g.pt", code=2)


def test_mistakes_of_conversion_are_reported(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert "needs at least one path to read, then the path to write" in said(capsys, "convert", out, code=2)
    for missing in (tmp_path / "nothing.pth", "nowhere/nothing.pth", "nothing.pth"):
        assert f"there is no file {missing}" in said(capsys, "convert", missing, out, code=2)
    torch.save({"net.0.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    assert "it holds net.0.weight (3,)" in said(capsys, "convert", tmp_path / "odd.pth", out, code=2)
    assert not out.exists()


def test_networks_are_exported(folder, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    for extra in ((), ("--discriminator",)):
        path = tmp_path / f"network{len(extra)}.onnx"
        assert f"{path} (" in said(capsys, "export", folder, path, *extra)
        assert path.stat().st_size > 1000
    assert "exists: --force" in said(capsys, "export", folder, path, code=2)


def test_files_are_not_folders_of_networks(folder, tmp_path, capsys):
    (tmp_path / "netG.pth").write_bytes(b"")
    for command in (("generate", tmp_path / "netG.pth"), ("train", "--generator", tmp_path / "netG.pth")):
        assert "netG.pth out` converts what other programs wrote" in said(capsys, *command, code=2)
    weights = folder / "model.safetensors"
    assert f"its folder is {folder}" in said(capsys, "generate", weights, code=2)
    with pytest.raises(ValueError, match="name_or_path must be a folder or a repository's name, got an empty one"):
        Generator.from_pretrained("")


def test_recipes_are_listed_with_what_they_are(capsys):
    lines = said(capsys, "recipes").splitlines()
    table = [re.split(r"  +", line) for line in lines[: lines.index("")]]
    assert table[0] == ["name", "networks", "image size", "width", "batch", "length", "what it is"]
    digits = ["digits", "tutorial", "32x32x1", "32", "64", "1,000 steps"]
    svhn = ["paper-svhn", "svhn", "32x32x3", "64", "64", "200 epochs", "the paper's SVHN model (Table 2)"]
    assert (table[1][:6], table[11]) == (digits, svhn)
    assert [row[0] for row in table[1:]] == list(list_recipes())
    starts = {line.index(row[-1]) for line, row in zip(lines, table, strict=False)}
    assert len(starts) == 1  # the last column is aligned, as the others are then
    assert "  dcgan train --recipe mnist" in lines
    for line in lines[lines.index("next:") + 1 :]:
        assert line.split()[:3] == ["dcgan", "train", "--recipe"]
        said(capsys, *line.split()[1:4], "--print-recipe")


def test_a_benchmark_that_cannot_run_is_refused(capsys):
    assert "--batch-size must be at least 2, got -3" in said(capsys, "bench", "--batch-size", -3, code=2)


def test_a_run_announces_itself_and_shows_its_figures(tmp_path, monkeypatch, capsys):
    from dcgan.cli._train import _summarize

    monkeypatch.chdir(tmp_path)
    tiny = ("--image-size", 16, "--base-channels", 2, "--batch-size", 8, "--steps", 2)
    out = said(capsys, "train", *tiny)
    for text in ("data      digits: 1,797 images 16x16x1, packed in ", "MiB)", "networks  tutorial: gen", "next:"):
        assert text in out
    record = {"step": 2, "d_loss": 0.5, "g_loss": 1.25, "d_real": 0.75, "d_fake": 0.25, "images_per_second": 99.6}
    assert _summarize(record) == "D 0.500  G 1.250  D(x) 0.750  D(G(z)) 0.250  100 img/s"
