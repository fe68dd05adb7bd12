"""Networks for other runtimes."""

import os
from pathlib import Path

import torch

from dcgan._files import atomic_write
from dcgan.hub._pretrained import Pretrained
from dcgan.models import Generator, eval_mode


def export_onnx(network: Pretrained, path: str | os.PathLike[str]) -> Path:
    """Write a network in evaluation mode as ONNX, for batches of any size; return its path.

    A generator maps `z` `(N, Z)` to `image` `(N, K, H, W)`, a discriminator `image` to `logit` `(N,)`. The file holds
    everything and is replaced whole or not at all.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        RuntimeError: If torch exports nothing.
    """
    try:
        import onnx  # noqa: F401 - torch imports both, and says less when they are missing
        import onnxscript  # noqa: F401 - likewise
    except ImportError as error:
        raise ImportError("exporting to ONNX needs onnx and onnxscript: pip install 'dcgan[onnx]'") from error

    inputs, outputs = ("z", "image") if isinstance(network, Generator) else ("image", "logit")
    like = next(network.parameters())
    example = example_input(network).to(like)
    with eval_mode(network), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[inputs],
            output_names=[outputs],
            dynamic_shapes=({0: torch.export.Dim("N")},),
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


def example_input(network: Pretrained) -> torch.Tensor:
    """Return a batch of two inputs of the right shape; two, since a batch of one would be taken for a constant."""
    if isinstance(network, Generator):
        return torch.zeros(2, network.config["latent_dim"])
    size = network.config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(2, network.config["channels"], height, width)
