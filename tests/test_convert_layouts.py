"""Reading files and recognising the networks in them."""

import os
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from original_networks import (
    AuthorsDiscriminator,
    AuthorsGenerator,
    add_prefix,
    assert_same_outputs,
    original_pair,
    save_authors_arrays,
    save_state,
)
from torch import nn

import dcgan.convert as convert_module
from dcgan import Generator
from dcgan.convert import convert


@pytest.mark.parametrize("layout", ["tutorial", "linear5"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "generator.module."]
)
def test_wrapper_prefixes_are_stripped(layout, prefix, tmp_path):
    g, _ = original_pair(layout)
    converted = convert([save_state(g, tmp_path / "g.pth", add_prefix(prefix))])
    assert_same_outputs(converted, tmp_path / "out", g, None)
    assert converted.discriminator is None


def test_wrappers_inside_the_network_are_stripped(tmp_path):
    g, _ = original_pair("tutorial")
    path = save_state(g, tmp_path / "g.pth", lambda s: {k.replace("main.", "main.module."): v for k, v in s.items()})
    assert_same_outputs(convert([path]), tmp_path / "out", g, None)


def test_averaged_data_parallel_model_is_read(tmp_path):
    g, _ = original_pair("tutorial")
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(g), use_buffers=True)
    assert {"n_averaged", "module.module.main.0.weight"} <= average.state_dict().keys()
    assert_same_outputs(convert([save_state(average, tmp_path / "g.pth")]), tmp_path / "out", g, None)


CHECKPOINTS = {
    "names of the tutorial": lambda g, d: {"epoch": 3, "netG": g, "netD": d, "loss": [0.5, 0.1]},
    "long names": lambda g, d: {"generator_state_dict": g, "discriminator_state_dict": d},
    "nested": lambda g, d: {"state": {"models": [d, g]}, "args": {"lr": 2e-4}},
    "tuple": lambda g, d: (g, d),
    "lightning": lambda g, d: {
        "state_dict": {
            **add_prefix("generator.")(g),
            **add_prefix("discriminator.module.")(d),
            "metric.inception.conv.weight": torch.zeros(3, 3),
        },
        "global_step": 7,
    },
}


@pytest.mark.parametrize("shape", CHECKPOINTS)
@pytest.mark.parametrize("layout", ["tutorial", "biased", "linear5"])
def test_checkpoint_with_both_networks_gives_both(shape, layout, tmp_path):
    g, d = original_pair(layout)
    torch.save(CHECKPOINTS[shape](g.state_dict(), d.state_dict()), tmp_path / "last.ckpt")
    converted = convert([tmp_path / "last.ckpt"])
    assert_same_outputs(converted, tmp_path / "out", g, d)
    if shape == "lightning":
        assert any("ignored metric.inception.conv.weight (3, 3)" in note for note in converted.notes)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoint_with_a_network_and_its_optimiser(key, tmp_path):
    g, _ = original_pair("tutorial")
    optimizer = torch.optim.Adam(g.parameters())
    g(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    torch.save({key: g.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "c.pt")
    assert_same_outputs(convert([tmp_path / "c.pt"]), tmp_path / "out", g, None)


def test_key_selects_one_of_several_networks(tmp_path):
    (g, d), (averaged, _) = original_pair("tutorial"), original_pair("tutorial")
    state = {"netG": g.state_dict(), "netG_ema": averaged.state_dict(), "netD": d.state_dict()}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"found 2 Generators, pass one file or the key of one: .*c.pt, netG; .*netG_ema"
    ):
        convert([tmp_path / "c.pt"])
    with pytest.raises(ValueError, match=r"keys must be among 'netD', 'netG', 'netG_ema', got 'ema'"):
        convert([tmp_path / "c.pt"], keys=["ema"])
    assert_same_outputs(convert([tmp_path / "c.pt"], keys=["netG_ema"]), tmp_path / "out", averaged, d)

    torch.save({**state, "netD_ema": d.state_dict()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="found 2 Discriminators"):
        convert([tmp_path / "c.pt"], keys=["netG_ema"])
    assert_same_outputs(convert([tmp_path / "c.pt"], keys=["netG", "netD"]), tmp_path / "out", g, d)


def test_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    g, _ = original_pair("biased")
    save_file(g.state_dict(), tmp_path / "g.safetensors")
    assert_same_outputs(convert([tmp_path / "g.safetensors"]), tmp_path / "out", g, None)


def test_files_from_before_pytorch_1_6_and_0_4(tmp_path):
    g, d = original_pair("tutorial")
    state = {name: tensor for name, tensor in g.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "g.pth", _use_new_zipfile_serialization=False)
    converted = convert([tmp_path / "g.pth", save_state(d, tmp_path / "d.pth")])
    assert_same_outputs(converted, tmp_path / "out", g, d)
    counts = [
        {v.item() for k, v in net.state_dict().items() if "num_batches" in k}
        for net in (converted.generator, converted.discriminator)
    ]
    assert counts == [{0}, {7}]


class NormalisedFirstLayer(nn.Module):
    """A discriminator whose first layer is normalised too, so that its places are those of a generator."""

    def __init__(self):
        super().__init__()
        layers = []
        for c_in, c_out in pairwise((3, 4, 8, 16, 32)):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(32, 1, 4))


def test_unknown_layout_is_reported_with_its_shapes(tmp_path):
    message = (
        r"f.pth: recognised no network, since it has 4 normalisations, and would need one after every layer but the "
        r"first and the last; it holds main.0.weight \(4, 3, 4, 4\), main.1.weight \(4,\), .* and 1 more"
    )
    with pytest.raises(ValueError, match=message):
        convert([save_state(NormalisedFirstLayer(), tmp_path / "f.pth")])
    torch.save({"epoch": 3, "lr": torch.tensor(1.0)}, tmp_path / "e.pth")
    with pytest.raises(ValueError, match=r"e.pth: recognised no network, since it has no layers"):
        convert([tmp_path / "e.pth"])


def test_network_with_additional_layers_is_refused(tmp_path):
    g, _ = original_pair("tutorial")
    g.label = nn.Embedding(10, 6)
    message = r"g.pth: recognised a Generator in main, but cannot tell what label.weight \(10, 6\) beside it does"
    with pytest.raises(ValueError, match=message):
        convert([save_state(g, tmp_path / "g.pth")])


def test_own_files_are_refused(tmp_path):
    Generator(image_size=16, base_channels=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors is already a network of this library"):
        convert([tmp_path / "model.safetensors"])
    with pytest.raises(ValueError, match=r"is already a network of this library"):
        convert([tmp_path])


def test_duplicate_layer_is_refused(tmp_path):
    g, _ = original_pair("tutorial")
    with pytest.raises(ValueError, match=r"g.pth: it contains module.main.0.weight twice, with and without"):
        convert([save_state(g, tmp_path / "g.pth", lambda state: {**state, **add_prefix("module.")(state)})])


def test_pickled_module_is_refused_with_a_remedy(tmp_path):
    network = NormalisedFirstLayer()
    for new in (True, False):
        torch.save(network, tmp_path / "netG.pth", _use_new_zipfile_serialization=new)
        message = (
            r"netG.pth contains a pickled module or other Python objects \(.*NormalisedFirstLayer.*\), "
            r".* torch.save\(network.state_dict"
        )
        with pytest.raises(ValueError, match=message):
            convert([tmp_path / "netG.pth"])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_zip(path, evil):
    torch.save({"netG": evil}, path)


def save_legacy(path, evil):
    torch.save({"netG": evil}, path, _use_new_zipfile_serialization=False)


def save_pickle(path, evil):
    path.write_bytes(pickle.dumps(evil))


def save_object_array(path, evil):
    with path.open("wb") as file:
        np.save(file, np.array([evil], dtype=object))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.pth", save_zip),
        ("a.pth", save_legacy),
        ("a.pth", save_pickle),
        ("a.safetensors", save_pickle),
        ("a.jl_01.npy", save_object_array),
        ("a.jl_01.npy", save_pickle),
    ],
)
def test_pickles_are_never_executed(name, write, tmp_path):
    write(tmp_path / name, Malicious(tmp_path / "pwned"))
    with pytest.raises(ValueError, match=name):
        convert([tmp_path / name])
    assert not (tmp_path / "pwned").exists()


def test_the_malicious_pickle_works_when_unpickled(tmp_path):
    save_zip(tmp_path / "a.pth", Malicious(tmp_path / "pwned"))
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_the_authors_pickle_is_never_opened(tmp_path):
    save_pickle(tmp_path / "a.jl", Malicious(tmp_path / "pwned"))
    with pytest.raises(FileNotFoundError, match=r"has no numbered arrays a.jl_01.npy"):
        convert([tmp_path / "a.jl"])
    save_authors_arrays(tmp_path / "a.jl", AuthorsGenerator())
    assert convert([tmp_path / "a.jl"]).generator is not None
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_truncated_file_is_reported(part, new, tmp_path):
    path = tmp_path / "netG.pth"
    torch.save(original_pair("tutorial")[0].state_dict(), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"netG.pth is damaged or not a file of torch.save"):
        convert([path])


def test_invalid_and_missing_files_are_reported(tmp_path):
    for name, content, message in (
        ("a.pth", b"<html>not found</html>", "a.pth is damaged or not a file of torch.save"),
        ("b.safetensors", b"rubbish", "b.safetensors is damaged or not a safetensors file"),
        ("c_01.npy", b"", "c_01.npy is damaged or not an array of numbers"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            convert([tmp_path / name])
    for name in ("missing.pth", "missing.safetensors", "missing.jl", "missing_01.npy"):
        with pytest.raises(FileNotFoundError, match="missing"):
            convert([tmp_path / name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no numbered arrays NAME_01.npy"):
        convert([tmp_path / "empty"])


def test_authors_arrays_are_found_from_folder_pickle_or_array(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_BATCHES", 1)
    save_authors_arrays(tmp_path / "200_gen_params.jl", AuthorsGenerator())
    save_authors_arrays(tmp_path / "200_discrim_params.jl", AuthorsDiscriminator())
    folder = convert([tmp_path])
    assert folder.layouts == {"Generator": "authors", "Discriminator": "authors"}
    named = convert([tmp_path / "200_gen_params.jl", tmp_path / "200_discrim_params.jl_03.npy"])
    for ours, again in ((folder.generator, named.generator), (folder.discriminator, named.discriminator)):
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())
    assert any("statistics estimated from 1 batches of 128 normal latents" in note for note in folder.notes)
    assert any("statistics estimated from 128 generated images in batches of 128" in note for note in folder.notes)
    assert convert([tmp_path], latent="uniform").generator.config["latent"] == "uniform"


def test_incomplete_authors_arrays_are_refused(tmp_path):
    save_authors_arrays(tmp_path / "g.jl", AuthorsGenerator())
    (tmp_path / "g.jl_10.npy").unlink()
    with pytest.raises(
        ValueError, match=r"g.jl: recognised no network of the paper's authors: it has 3 normalisations"
    ):
        convert([tmp_path / "g.jl"])
    (tmp_path / "g.jl_04.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"g.jl_NN.npy: numbers 4 are missing"):
        convert([tmp_path / "g.jl"])
    save_authors_arrays(tmp_path / "g.jl", AuthorsGenerator())
    np.save(tmp_path / "g.jl_02.npy", np.array(["text"]))
    with pytest.raises(ValueError, match=r"g.jl_02.npy is damaged or not an array of numbers"):
        convert([tmp_path / "g.jl"])


def test_arrays_of_any_byte_order_and_memory_order(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_BATCHES", 1)
    network = AuthorsGenerator()
    expected = convert([save_authors_arrays(tmp_path / "g.jl", network)]).generator.state_dict()
    for i, array in enumerate(network.params, 1):
        np.save(tmp_path / f"g.jl_{i:02d}.npy", np.asfortranarray(array.numpy().astype(">f4")))
    again = convert([tmp_path / "g.jl"]).generator.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
