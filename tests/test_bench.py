import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from dcgan import Discriminator, Generator, cli
from dcgan.bench import _COMPARISONS, SUITE, WORKLOADS, benchmark, table
from dcgan.bench._contender import Dcgan, Tutorial, tutorial_networks

TINY = {"image_size": 16, "channels": 1, "base_channels": 2, "batch_size": 4, "samples": 70, "repeats": 1}


@pytest.fixture(scope="module")
def report():
    return benchmark(**TINY, workloads=("step", "load"))


@pytest.mark.slow
def test_every_workload_is_timed_and_the_machine_is_described():
    report = benchmark(**TINY)
    assert len(table(report).splitlines()) > len(WORKLOADS)
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"].keys() >= {"device", "processor", "threads", "python", "torchvision", "date"}
    for workload in WORKLOADS:
        if workload != "start":
            result = report[workload]
            assert result["baseline_seconds"] > 0
            assert result["ratio"] == result["baseline_seconds"] / result["dcgan_seconds"]
    assert report["start"].keys() == {"import_seconds", "help_seconds"}
    assert all(seconds > 0 for seconds in report["start"].values())
    for contender in ("tutorial", "dcgan"):
        assert 2**26 < report["profile"][contender]["peak_memory"] < 2**36
    assert report["profile"]["dcgan"]["matmul_flops"] > 0


def test_every_workload_has_a_comparison():
    assert {*_COMPARISONS, "start"} == set(WORKLOADS)
    assert {workload for settings in SUITE for workload in settings.get("workloads", ())} <= set(WORKLOADS)


def test_the_table_shows_every_result(report):
    text = table(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2  # a head, and a row for each workload
    assert rows[0] == "| workload | compared with | unit | baseline | dcgan | ratio |"
    assert torch.__version__ in text
    assert "Peak memory: tutorial " in text


WITHOUT_RESOURCE = """
import sys
sys.modules["resource"] = None  # as on Windows
from dcgan.bench import _contender
import torch
print(_contender.peak_memory(torch.device("cpu")))
"""


def test_peak_memory_is_optional_where_the_system_does_not_report_it(report):
    command = [sys.executable, "-c", WITHOUT_RESOURCE]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "None\n"
    profile = {name: {**values, "peak_memory": None} for name, values in report["profile"].items()}
    assert "Peak memory: tutorial not available, dcgan not available." in table({**report, "profile": profile})


def test_floating_point_operations_of_a_step_match_the_networks():
    # 2.48 GFLOP per image at 64x64: three passes of D with two of its gradients, and one pass of G.
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
def test_the_plain_tutorial_networks_equal_our_tutorial_architecture(size):
    shape = {"image_size": size, "channels": 3, "base_channels": 2}
    for plain, network_class in zip(tutorial_networks(**shape), (Generator, Discriminator), strict=True):
        ours = network_class(**shape)
        assert [value.shape for value in plain.state_dict().values()] == [v.shape for v in ours.state_dict().values()]
        ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
        x = torch.randn(3, 100, 1, 1) if network_class is Generator else torch.randn(3, 3, size, size)
        torch.testing.assert_close(ours(x).flatten(), plain(x).flatten(), rtol=1e-4, atol=1e-5)


def test_both_contenders_train_and_sample(tmp_path):
    settings = {**TINY, "architecture": "tutorial", "precision": "fp32", "compile": "auto", "device": "cpu"}
    settings |= {"folder": str(tmp_path), "images": 8, "latent_dim": 100}
    for contender in (Tutorial(settings), Dcgan(settings)):
        before = [parameter.clone() for parameter in contender.generator.parameters()]
        assert contender.step() == contender.steps_per_run * 4
        assert all(not torch.equal(a, b) for a, b in zip(before, contender.generator.parameters(), strict=True))
        assert contender.sample() == 70


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"workloads": ("step", "dance")}, "workloads must be among step, .*, got 'dance'"),
    ],
)
def test_invalid_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        benchmark(**{**TINY, **changed})


def test_a_failing_contender_ends_the_benchmark(capfd):
    with pytest.raises(RuntimeError, match="a contender of the benchmark ended with exit code 1"):
        benchmark(**{**TINY, "image_size": 48, "workloads": ("step",)})
    assert "image_size must be a power of two, at least 16, got 48" in capfd.readouterr().err


def test_the_command_prints_json_of_the_requested_workloads(capsys):
    tiny = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cli.main(["bench", *tiny, "--device", "cpu", "--workload", "load", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == {"machine", "settings", "load", "profile"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_benchmark_on_a_gpu(precision):
    report = benchmark(**TINY, precision=precision, device="cuda")
    assert report["machine"]["device"] == torch.cuda.get_device_name()
