"""Building one of our networks from the layers of another program's."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor

from dcgan._errors import InputError
from dcgan.convert._chains import Chain
from dcgan.convert._configs import infer_config
from dcgan.convert._statistics import follow_statistics, lacks_statistics
from dcgan.hub._pretrained import CONFIG, expect_fit
from dcgan.models import Discriminator, Generator

Network = TypeVar("Network", Generator, Discriminator)

# Programs that read pictures as OpenCV does, so that their networks make and take blue, green and red.
_BGR_PROGRAMS = {"mmgeneration"}
# Programs whose critics are low for real images.
_REVERSED_CRITICS = {"wassersteingan"}
_TWO_CLASSES = (
    "two classes of rasbt's have these names: for the one of deeplearning-models, with ReLU and LeakyReLU(0.2), pass "
    "slope 0.2; for the one of stat453, with LeakyReLU(0.01) in both networks, activation leaky-relu and slope 0.01"
)
# What other programs call arguments of ours in their configurations.
_CONFIG_NAMES = {"latent_dim": "latent_dim", "image_size": "image_size", "num_channels": "channels"}


@dataclass(frozen=True)
class Found:
    """A network found in a file.

    Args:
        location: The file and the key within it, for messages.
        layout: "authors" for the paper authors' arrays, the name of a known program, or "plain".
        chain: Its layers.
        known: Arguments that its weights do not show, and its program does.
        config: What a configuration of the program says about it.
    """

    location: str
    layout: str
    chain: Chain
    known: dict[str, Any]
    config: dict[str, Any]


def build(
    network_class: type[Network],
    found: Found,
    image_size: int | Sequence[int] | None,
    options: dict[str, Any],
    notes: list[str],
    lines: list[str],
) -> Network:
    """Build a network and load its weights.

    Args:
        network_class: Its class.
        found: What was found in the file.
        image_size: Side, or (height, width), to expect.
        options: Arguments that weights do not show; None for what is to be assumed.
        notes: Gets what was inferred, assumed, filled in and ignored.
        lines: Gets a line on each layer.

    Raises:
        ValueError: If the class cannot express the network, or its weights leave it open.
    """
    name = f"{found.location}: a {network_class.__name__}"
    chain: Chain = found.chain
    given = {k: v for k, v in options.items() if v is not None}
    hidden = {k: signature(network_class).parameters[k].default for k in options}
    network: Any
    try:
        if found.layout == "rasbt" and "slope" not in given:
            raise InputError(_TWO_CLASSES)
        inferred = infer_config(chain, image_size, authors=found.layout == "authors")
        _expect_config(inferred, found.config)
        if "stem_activation" in hidden:
            hidden["stem_activation"] = chain.norms[0] is not None or inferred["norm"] == "none"
        hidden |= found.known | given
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            network = network_class(**inferred, **hidden).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}, but {error}") from error
    remarks: list[str]
    state, remarks, described = _match_tensors(chain, network)
    expect_fit(state, network.state_dict(), f"{name} does not fit {inferred}")
    network.load_state_dict(state)
    conventions = _follow_conventions(network, found.layout)
    notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in inferred.items() if v is not None))
    if network_class is Generator and not lacks_statistics(network, found.layout):
        fixed = given.keys() | ({"activation"} if "slope" in given else set())
        network, changes, evidence = follow_statistics(network, fixed, skip_stem=chain.norms[0] is None)
        remarks = evidence + remarks
        hidden = {k: v for k, v in hidden.items() if k not in changes}
    if network.config["activation"] == "relu":
        hidden.pop("slope")
    why = dict.fromkeys(found.known, f" (as in {found.layout})") | dict.fromkeys(given, " (given)")
    assumed = ", ".join(f"{k} {v}{why.get(k, '')}" for k, v in hidden.items())
    remarks = [f"not shown by the weights, so assumed: {assumed}", _describe_assumptions(chain), *remarks]
    remarks += conventions
    tensors = [tensor for layer in (*chain.layers, *filter(None, chain.norms)) for tensor in layer.tensors.values()]
    if dtypes := {tensor.dtype for tensor in tensors} - {torch.float32, torch.int64}:
        remarks.append(f"converted {', '.join(sorted(map(str, dtypes)))} to float32")
    notes += [f"{found.location}: {note}" for note in remarks]
    lines += described
    result: Network = network.eval()
    return result


@torch.no_grad()
def _follow_conventions(network: Generator | Discriminator, layout: str) -> list[str]:
    """Let a network of another program mean by its images and logits what ours do; return a note on each change."""
    notes: list[str] = []
    head: Any = network.head
    first: Any = next(iter(network.blocks.values()))
    if layout in _BGR_PROGRAMS and network.config["channels"] == 3:
        conv = head.conv if isinstance(network, Generator) else first.conv
        # A transposed convolution has its outputs where the discriminator's convolution has its inputs.
        conv.weight.copy_(conv.weight.flip(1))
        if isinstance(network, Generator) and conv.bias is not None:
            conv.bias.copy_(conv.bias.flip(0))
        notes.append(f"channels reversed: {layout} reads pictures as BGR, and these networks are for RGB")
    if layout in _REVERSED_CRITICS and isinstance(network, Discriminator):
        for parameter in head.conv.parameters():
            parameter.neg_()
        notes.append(f"sign reversed: the critic of {layout} is low for real images, and ours are high")
    return notes


def _match_tensors(chain: Chain, network: Any) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the tensors under our names, notes on those that are missing or ignored, and a line on each layer."""
    state: dict[str, Tensor] = {}
    notes: list[str] = []
    lines: list[str] = []
    blocks = [*((f"blocks.{name}", block) for name, block in network.blocks.items()), ("head", network.head)]
    for layer, norm, (name, block) in zip(chain.layers, chain.norms, blocks, strict=True):
        parts = dict(block.named_children())
        kind = "conv" if "conv" in parts else "linear"
        fresh = parts[kind].state_dict()
        state |= {f"{name}.{kind}.{k}": v for k, v in (fresh | layer.tensors).items()}  # fresh biases are zero
        lines.append(f"{layer} is {name}.{kind}" + (f", normalised by {norm.name}" if norm else ""))
        if "norm" not in parts:
            continue
        fresh = parts["norm"].state_dict()
        fresh["weight"].fill_(1.0 if norm else (1 + parts["norm"].eps) ** 0.5)  # x / sqrt(1 + eps) · sqrt(1 + eps)
        state |= {f"{name}.norm.{k}": v for k, v in (fresh | (norm.tensors if norm else {})).items()}
        if norm is None:
            notes.append(
                f"{layer.name} is not normalised, so its normalisation is an identity here, until it is trained"
            )
    without = [layer.name for layer in chain.layers if "bias" not in layer.tensors]
    if network.config["bias"] and without:
        notes.append(f"biases of zero for {', '.join(without)}")
    notes += [
        f"ignored {layer}, an embedding of labels: {layer.shape[1]} of the {network.config['latent_dim']} numbers of a "
        "latent are a label's row of it, joined to the others as in the original; `sample` draws them as noise"
        for layer in chain.embeddings
    ]
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return floats, notes, lines


def _describe_assumptions(chain: Chain) -> str:
    """Say how the layers are assumed to be put together, which shapes do not show."""
    generator = chain.network_class is Generator
    stem = chain.layers[0 if generator else -1]
    halves, last = ("doubles", "first") if generator else ("halves", "last")
    parts = [f"each but the {last} {halves} the sides exactly"]
    parts.append("normalises before its activation" if any(chain.norms) else "no normalisation without weights")
    if len(stem.shape) == 2:
        parts.append(f"the units of {stem.name} are channels, rows, columns")
    if len({layer.shape for layer in chain.layers}) < len(chain.layers):
        parts.append("layers of one shape follow each other as in the file")
    return "and of its layers: " + ", ".join(parts)


def _expect_config(inferred: dict[str, Any], config: dict[str, Any]) -> None:
    """Check what another program's configuration says against the weights."""
    for theirs, ours in _CONFIG_NAMES.items():
        if ours in inferred and config.get(theirs, inferred[ours]) != inferred[ours]:
            raise InputError(f"its weights have {ours} {inferred[ours]}, and its {CONFIG} {theirs} {config[theirs]!r}")
