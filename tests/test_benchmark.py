import pytest
import torch

from dcgan.benchmark import benchmark, table

TINY = {"image_size": 16, "channels": 1, "base_channels": 2, "batch_size": 4, "repeats": 2}


def test_both_sides_are_timed_and_the_machine_is_named():
    report = benchmark(**TINY)
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"].keys() >= {"device", "processor", "threads", "python", "torchvision", "date"}
    for work in ("step", "sample", "load", "load_file"):
        result = report[work]
        assert result["tutorial_seconds"] > 0
        assert result["ratio"] == result["tutorial_seconds"] / result["dcgan_seconds"]
    text = table(report)
    assert "| training step |" in text
    assert "| sampling |" in text
    assert torch.__version__ in text


def test_at_least_one_round_is_needed():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        benchmark(**{**TINY, "repeats": 0})


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_timed_too(precision):
    report = benchmark(**TINY, precision=precision, device="cuda")
    assert report["machine"]["device"] == torch.cuda.get_device_name()
