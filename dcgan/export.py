"""Export of networks to other runtimes."""

import os
import re
from importlib.metadata import version
from pathlib import Path

import torch

from dcgan._config import sides
from dcgan._errors import MissingPackageError
from dcgan._files import atomic_write
from dcgan._modules import eval_mode
from dcgan.hub._pretrained import Pretrained
from dcgan.models import Generator


def export_onnx(network: Pretrained, path: str | os.PathLike[str]) -> Path:
    """Export a network in evaluation mode to ONNX, for batches of any size; return the path of the file.

    A generator maps `z` `(N, Z)` to `image` `(N, K, H, W)`, a discriminator `image` to `logit` `(N,)`; conditional ones
    have `labels`, int64 `(N,)`, as a second input, whose range is not checked. The file includes the weights and is
    written atomically.

    Raises:
        ImportError: If onnx or onnxscript is not installed, or onnxscript is older than 0.7.1.
        RuntimeError: If `torch.onnx.export` returns no program.
    """
    _expect_exporter()
    input_name, output_name = ("z", "image") if isinstance(network, Generator) else ("image", "logit")
    inputs = {input_name: example_input(network)}
    if network.config.get("num_classes") is not None:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64, device=inputs[input_name].device)
    with eval_mode(network), torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("N")}, {0: torch.export.Dim.AUTO})[: len(inputs)],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(program.model_proto.SerializeToString())
    return target


def _expect_exporter() -> None:
    remedy = 'pip install "dcgan[onnx]"'
    try:
        import onnx  # noqa: F401 - torch imports both, and says less when they are missing
        import onnxscript  # noqa: F401 - likewise
    except ImportError as error:
        raise MissingPackageError(f"exporting to ONNX needs onnx and onnxscript: {remedy}") from error
    installed = version("onnxscript")
    if [int(part) for part in re.findall(r"\d+", installed)[:3]] < [0, 7, 1]:
        # Earlier ones mistake pixel_unshuffle, the discriminator's first layer, for another order of channels.
        raise MissingPackageError(f"onnxscript {installed} exports discriminators that give wrong results: {remedy}")


def example_input(network: Pretrained) -> torch.Tensor:
    """Return a batch of two zero inputs, `(2, Z)` or `(2, K, H, W)`, on the weights' device and of their type.

    Two, since `torch.export` treats a batch size of one as a constant.
    """
    weight = next(network.parameters())
    if isinstance(network, Generator):
        return weight.new_zeros(2, network.config["latent_dim"])
    return weight.new_zeros(2, network.config["channels"], *sides(network.config))
