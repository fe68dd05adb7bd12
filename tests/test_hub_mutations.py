"""Broken and hostile files: every one is refused with a reason, and none takes more memory than the file itself."""

import json
import multiprocessing
import os
import signal
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from dcgan import Discriminator, Generator

TINY = {"image_size": 16, "channels": 1, "base_channels": 2, "latent_dim": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of config.json and of a model.safetensors without the configuration inside."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    Generator(**TINY).save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    return (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()


def header(change):
    """A mutation of the JSON header: `change` gets the dictionary, and may return another object or raw bytes."""

    def mutate(weights):
        (length,) = struct.unpack("<Q", weights[:8])
        entries = json.loads(weights[8 : 8 + length])
        changed = change(entries)
        changed = entries if changed is None else changed
        encoded = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(encoded)) + encoded + weights[8 + length :]

    return mutate


HEAD = "head.conv.weight"
WEIGHTS = {
    "empty": lambda w: b"",
    "seven bytes": lambda w: w[:7],
    "length only": lambda w: w[:8],
    "half the header": lambda w: w[:100],
    "last byte missing": lambda w: w[:-1],
    "half the data": lambda w: w[: len(w) * 3 // 4],
    "garbage behind": lambda w: w + b"\0" * 8,
    "zeros": lambda w: b"\0" * len(w),
    "ones": lambda w: b"\xff" * len(w),
    "text": lambda w: b"<!DOCTYPE html><html>Not found</html>",
    "a pickle": lambda w: b"\x80\x04\x95" + w,
    "header length 0": lambda w: struct.pack("<Q", 0) + w[8:],
    "header length 1": lambda w: struct.pack("<Q", 1) + w[8:],
    "header length past the end": lambda w: struct.pack("<Q", len(w)) + w[8:],
    "header of 100 MB": lambda w: struct.pack("<Q", 100_000_001) + w[8:],
    "header of 2**63": lambda w: struct.pack("<Q", 2**63) + w[8:],
    "header of 2**64 - 1": lambda w: struct.pack("<Q", 2**64 - 1) + w[8:],
    "not JSON": header(lambda e: b"{" + b"x" * 50),
    "not UTF-8": header(lambda e: b'{"\xff\xfe": 1}'),
    "a list": header(lambda e: [e]),
    "null": header(lambda e: b"null"),
    "nested a thousand deep": header(lambda e: b"[" * 1000 + b"]" * 1000),
    "no tensors": header(lambda e: {}),
    "offset out of the file": header(lambda e: e[HEAD].update(data_offsets=[0, 2**40])),
    "offsets the wrong way round": header(lambda e: e[HEAD].update(data_offsets=e[HEAD]["data_offsets"][::-1])),
    "negative offset": header(lambda e: e[HEAD].update(data_offsets=[-1, 5])),
    "offset of text": header(lambda e: e[HEAD].update(data_offsets=["0", "5"])),
    "overlapping tensors": header(lambda e: e[HEAD].update(data_offsets=e["blocks.4x4.conv.weight"]["data_offsets"])),
    "no offsets": header(lambda e: e[HEAD].pop("data_offsets") and None),
    "unknown type": header(lambda e: e[HEAD].update(dtype="F99")),
    "no type": header(lambda e: e[HEAD].pop("dtype") and None),
    "shape of another volume": header(lambda e: e[HEAD].update(shape=[2, 1, 4, 5])),
    "shape that overflows": header(lambda e: e[HEAD].update(shape=[2**62, 2**62, 4, 4])),
    "negative shape": header(lambda e: e[HEAD].update(shape=[-2, -1, 4, 4])),
    "shape turned": header(lambda e: e[HEAD].update(shape=[1, 2, 4, 4])),
    "shape flattened": header(lambda e: e[HEAD].update(shape=[32])),
    "halves for floats": header(lambda e: e[HEAD].update(dtype="F16", shape=[2, 2, 4, 4])),
    "integers for floats": header(lambda e: e[HEAD].update(dtype="I32")),
    "renamed tensor": header(lambda e: e.update(other=e.pop(HEAD))),
    "numbers as metadata": header(lambda e: e.update(__metadata__={"config": 3})),
    "broken configuration inside": header(lambda e: e.update(__metadata__={"config": "{"})),
    "a deep configuration inside": header(lambda e: e.update(__metadata__={"config": "[" * 100_000})),
    "eight bits for floats": lambda w: save(
        {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in load(w).items()}
    ),
    "NaN at the end": lambda w: w[:-4] + b"\xff" * 4,
    "infinity at the end": lambda w: w[:-4] + b"\x00\x00\x80\x7f",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_broken_weights_are_refused(name, files, tmp_path):
    config, weights = files
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS[name](weights))
    with pytest.raises(
        ValueError, match=r"model.safetensors (is not a complete safetensors|does not fit|must hold|holds)"
    ):
        Generator.from_pretrained(tmp_path)


def test_the_files_are_good_as_they_are(files, tmp_path):
    for name, data in zip(("config.json", "model.safetensors"), files, strict=True):
        (tmp_path / name).write_bytes(data)
    original = Generator.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(header(lambda e: None)(files[1]))
    rewritten = Generator.from_pretrained(tmp_path)  # the mutating itself breaks nothing
    assert torch.equal(original.sample(2, seed=0), rewritten.sample(2, seed=0))


CONFIGS = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "nested a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "unknown argument": {"attention": True},
    "unknown class": {"class": "Transformer"},
    "a discriminator": {"class": "Discriminator"},
    "class of another type": {"class": ["Generator"]},
    "size of text": {"image_size": "16"},
    "size of nothing": {"image_size": []},
    "size of sizes": {"image_size": [[16, 16], 16]},
    "negative size": {"image_size": -16},
    "size of a fraction": {"image_size": 16.0},
    "size not a number": {"image_size": float("nan")},
    "width of an object": {"base_channels": {}},
    "width of a billion": {"base_channels": 10**9},
    "a million classes": {"num_classes": 10**6},
    "a million channels": {"channels": 10**6},
    "width beyond 64 bits": {"base_channels": 10**40},
    "latents of an exabyte": {"latent_dim": 2**60},
    "a huge size": {"image_size": 2**30},
    "a huge size beyond 64 bits": {"image_size": 2**200},
    "a billion stages": {"stages": 10**9},
    "unknown norm": {"norm": "spectral"},
    "norm of a list": {"norm": ["batch"]},
    "epsilon of text": {"norm_eps": "1e-5"},
    "truth of a number": {"bias": 1},
    "another shape": {"base_channels": 3},
    "another kernel": {"kernel_size": 3},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_broken_configurations_are_refused_and_cost_no_memory(name, files, tmp_path):
    resource = pytest.importorskip("resource", reason="Unix only")
    config, weights = files
    change = CONFIGS[name]
    data = change if isinstance(change, bytes) else json.dumps(json.loads(config) | change).encode()
    (tmp_path / "config.json").write_bytes(data)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"config.json|a Generator"):
        Generator.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10  # kibibytes


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_few_bytes_changed_are_refused_or_harmless(data, files, tmp_path_factory):
    """Bytes of a tensor may change its values; all others are refused, or leave a network of this very kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name, content in zip(("config.json", "model.safetensors"), files, strict=True):
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(0, 3))):
            # Headers are the small and delicate part.
            place = data.draw(st.integers(0, min(len(changed) - 1, 1500)) | st.integers(0, len(changed) - 1))
            changed[place] = data.draw(st.integers(0, 255))
        cut = data.draw(st.none() | st.integers(0, len(changed)))
        (folder / name).write_bytes(bytes(changed[:cut] if data.draw(st.booleans()) else changed))
    try:
        network = Generator.from_pretrained(folder)
    except ValueError:
        return
    shapes = {name: tensor.shape for name, tensor in Generator(**network.config).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in network.state_dict().items()}


# Saving


def save_and_die(folder, arguments, operation):
    """Save a network in a process that kills itself at its nth file operation; exit 0 if there are fewer."""
    count = 0

    def hook(event, args):
        nonlocal count
        if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(folder) in str(args[0]):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    network = Generator(**arguments)
    sys.addaudithook(hook)
    network.save_pretrained(folder)


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_network_or_the_new(tmp_path):
    old = {**TINY, "kernel_size": 3}
    seen = set()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcgan.models", "safetensors.torch"])
    for operation in range(1, 40):
        Generator(**old).save_pretrained(tmp_path)
        saver = context.Process(target=save_and_die, args=(tmp_path, TINY, operation))
        saver.start()
        saver.join(60)
        kernel = Generator.from_pretrained(tmp_path).config["kernel_size"]
        assert kernel in (3, 4)
        seen.add((kernel, saver.exitcode))
        if saver.exitcode == 0:
            break
    assert {(3, -signal.SIGKILL), (4, -signal.SIGKILL), (4, 0)} == seen


def save_with_little_room(folder):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        Generator(**{**TINY, "base_channels": 32}).save_pretrained(folder)
    except OSError as error:
        if "model.safetensors" in str(error):
            sys.exit(7)
    sys.exit(8)


def test_a_full_disk_leaves_the_old_network(tmp_path):
    Generator(**TINY).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    saver = multiprocessing.get_context("forkserver").Process(target=save_with_little_room, args=(tmp_path,))
    saver.start()
    saver.join(60)
    assert saver.exitcode == 7
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_do_not_lead_out_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("../x", "a/../../x", "/etc/x", "a//b", "a/b/c", "~/x", "a\\..\\b", "https://example.org/a", "\0"):
        with pytest.raises(FileNotFoundError, match="and it is not a valid repository name"):
            Discriminator.from_pretrained(name, cache_dir="cache")
    assert not any(Path().iterdir())


def test_a_folder_of_pickles_is_pointed_to_convert(tmp_path):
    (tmp_path / "netG_epoch_24.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"`dcgan convert .*netG_epoch_24.pth out` converts"):
        Generator.from_pretrained(tmp_path)
