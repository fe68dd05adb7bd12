import json

import pytest
import torch
from torch import nn

from dcgan import Discriminator, Generator, cli
from dcgan.bench import WORKS, benchmark, table
from dcgan.bench._contender import Dcgan, Tutorial, tutorial_networks

TINY = {"image_size": 16, "channels": 1, "base_channels": 2, "batch_size": 4, "samples": 70, "repeats": 1}


@pytest.fixture(scope="module")
def report():
    return benchmark(**TINY)


def test_every_work_of_both_sides_is_timed_and_the_machine_is_named(report):
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"].keys() >= {"device", "processor", "threads", "python", "torchvision", "date"}
    for work in WORKS:
        if work != "start":
            result = report[work]
            assert result["beside_seconds"] > 0
            assert result["ratio"] == result["beside_seconds"] / result["dcgan_seconds"]
    assert report["start"].keys() == {"import_seconds", "help_seconds"}
    assert all(0 < seconds < 60 for seconds in report["start"].values())
    for side in ("tutorial", "dcgan"):
        assert 2**26 < report["facts"][side]["memory"] < 2**36
    assert report["facts"]["dcgan"]["matmul"] > 1e9


def test_the_table_shows_all_of_it(report):
    text = table(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(WORKS) + 1  # a head, and two rows for the start
    assert torch.__version__ in text
    assert "Peak of memory" in text


def test_the_operations_of_a_step_are_those_of_the_networks():
    # 2.48 GFLOP an image at 64x64, by counting: shared by three passes of D and two of its gradients, and one of G.
    generator, discriminator = tutorial_networks(image_size=64, channels=3, base_channels=64)

    def products(network, x):
        total = 0
        for layer in network:
            y = layer(x)
            if isinstance(layer, nn.ConvTranspose2d):
                total += x.numel() * layer.weight[0].numel()
            elif isinstance(layer, nn.Conv2d):
                total += y.numel() * layer.weight[0].numel()
            x = y
        return total

    with torch.no_grad():
        g = products(generator.eval(), torch.randn(1, 100, 1, 1))
        d = products(discriminator.eval(), torch.randn(1, 3, 64, 64))
    assert 2.3e9 < 2 * (3 * g + 9 * d) < 2.7e9


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_tutorials_plain_networks_are_the_ones_we_name_after_it(size):
    shape = {"image_size": size, "channels": 3, "base_channels": 2}
    for plain, kind in zip(tutorial_networks(**shape), (Generator, Discriminator), strict=True):
        ours = kind(**shape)
        assert [value.shape for value in plain.state_dict().values()] == [v.shape for v in ours.state_dict().values()]
        ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
        x = torch.randn(3, 100, 1, 1) if kind is Generator else torch.randn(3, 3, size, size)
        torch.testing.assert_close(ours(x).flatten(), plain(x).flatten(), rtol=1e-4, atol=1e-5)


def test_both_sides_train_the_same_steps(tmp_path):
    setting = {**TINY, "architecture": "tutorial", "precision": "fp32", "compile": "auto", "device": "cpu"}
    setting |= {"folder": str(tmp_path), "images": 8, "latent_dim": 100}
    sides = [kind(setting) for kind in (Tutorial, Dcgan)]
    for side in sides:
        before = [parameter.clone() for parameter in side.generator.parameters()]
        assert side.step() == side.turns * 4
        assert all(not torch.equal(a, b) for a, b in zip(before, side.generator.parameters(), strict=True))
        assert side.sample() == 70


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"works": ("step", "dance")}, "works must be among step, .*, got 'dance'"),
    ],
)
def test_mistakes_are_said(changed, message):
    with pytest.raises(ValueError, match=message):
        benchmark(**{**TINY, **changed})


def test_a_side_that_fails_is_said_and_ends_the_benchmark(capfd):
    with pytest.raises(RuntimeError, match="a side of the benchmark ended with exit code 1"):
        benchmark(**{**TINY, "image_size": 48, "works": ("step",)})
    assert "image_size must be a power of two, at least 16, got 48" in capfd.readouterr().err


def test_the_command_prints_json_of_the_works_asked_for(capsys):
    tiny = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cli.main(["bench", *tiny, "--device", "cpu", "--work", "load", "sample", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == {"machine", "setting", "load", "sample", "facts"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_timed_too(precision):
    report = benchmark(**TINY, precision=precision, device="cuda")
    assert report["machine"]["device"] == torch.cuda.get_device_name()
