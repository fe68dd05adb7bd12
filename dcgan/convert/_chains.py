"""Recognising generators and discriminators among the layers of a state dict, by order and shape.

A network of this family is a chain: each layer takes what the one before it makes. Names differ from program to
program and are hints only: a file of `torch.save` keeps the order in which a module's layers were defined, and numbers
give that of an `nn.Sequential`. Where neither makes a chain, the shapes alone decide, if they allow one order only.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise, zip_longest

import torch
from torch import Tensor

from dcgan._errors import InputError
from dcgan.models import Discriminator, Generator

NetworkClass = type[Generator] | type[Discriminator]

_WRAPPERS = {"module", "_orig_mod"}  # DataParallel and AveragedModel; torch.compile
_PARAMETERS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
# Names of whole networks: what stands beside one in a file is another, and not a part of it.
_ROLE = re.compile(r"gen|dis|critic|ema|online|av(e?ra?)?g|decod|(^|_)(net_?)?[gd](_|$)", re.IGNORECASE)
# Networks that stand beside a generator or a discriminator, and are no part of it.
_INDEPENDENT = re.compile(
    r"(net_?)?(g|d|gen|generator|dis|disc|discriminator|critic|ema|avg|average|metrics?|loss|inception|fid|lpips|vgg)(_\w+)?"
)
_EMBEDDING = re.compile(r"emb|label|class", re.IGNORECASE)
_MOST_STEPS = 10_000  # of a search for an order
_DEEPEST = 24  # components of a name


@dataclass(frozen=True)
class Layer:
    """A layer's name and its tensors by parameter name."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its weight, or of its running mean if it has none."""
        return tuple(self.tensors.get("weight", self.tensors.get("running_mean", torch.empty(0))).shape)

    def __str__(self) -> str:
        parameter = "weight" if "weight" in self.tensors else next(iter(self.tensors))
        return f"{self.name}.{parameter} {tuple(self.tensors[parameter].shape)}".lstrip(".")


@dataclass(frozen=True)
class Chain:
    """A recognised network.

    Args:
        network_class: `Generator` or `Discriminator`.
        layers: The convolutions and linear layers, in the order they are applied.
        norms: The normalisation after each of them; None where there is none.
        key: Where the file holds the network, such as "netG_ema"; empty if at the top.
        embeddings: Embeddings of labels beside it, which make a part of its latent.
    """

    network_class: NetworkClass
    layers: list[Layer]
    norms: list[Layer | None]
    key: str = ""
    embeddings: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        return f"a {self.network_class.__name__} of {', '.join(layer.name for layer in self.layers)}"


def group_layers(state: Mapping[str, Tensor], *, ordered: bool) -> tuple[list[Layer], bool]:
    """Group a state dict by layer; return the layers, and whether they are in the order they were defined in.

    Args:
        state: Tensors by name; wrappers such as `module.` are removed from the names.
        ordered: Whether the tensors are. If not, the layers are sorted by their numbers, if they have any.

    Raises:
        ValueError: If a layer is there twice, with and without a wrapper.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        *owners, parameter = name.split(".")
        # A layer that is wrapped alone may be scaled by its wrapper, as with an equalised learning rate.
        parts = [part for part in owners[:-1] if part not in _WRAPPERS]
        parts += [part for part in owners[-1:] if part not in _WRAPPERS or (part == "module" and parts)]
        if parameter == "n_averaged":  # AveragedModel's counter
            continue
        layer = layers.setdefault(".".join(parts), {})
        if parameter in layer:
            raise InputError(f"it contains {name} twice, with and without {' or '.join(sorted(_WRAPPERS))}")
        layer[parameter] = tensor.detach()
    names = list(layers)
    if not ordered:
        siblings: dict[str, set[str]] = {}
        for name in names:
            parts = name.split(".")
            for i, part in enumerate(parts):
                siblings.setdefault(".".join(parts[:i]), set()).add(part)
        ordered = all(len(parts) == 1 or all(map(str.isdigit, parts)) for parts in siblings.values())
        names.sort(key=lambda name: [(int(part) if part.isdigit() else -1, part) for part in name.split(".")])
    return [Layer(name, layers[name]) for name in names], ordered


def find_chains(
    layers: list[Layer], *, ordered: bool, depth: int = 0
) -> tuple[list[Chain], list[tuple[list[Layer], str]]]:
    """Find the networks among the layers of a state dict: all of it, or parts by the components of the names.

    Returns:
        The networks, and the layers that belong to none, with the reason.

    Raises:
        ValueError: If layers beside a network may be a part of it.
    """
    result = _recognise(layers, ordered=ordered)
    if isinstance(result, Chain):
        return [replace(result, key=".".join(layers[0].name.split(".")[:depth]))], []
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.name.split(".")[: depth + 1]), []).append(layer)
    chains: dict[str, list[Chain]] = {}
    rest: dict[str, list[tuple[list[Layer], str]]] = {}
    if len(layers) > 1 and depth < _DEEPEST:
        for name, group in groups.items():
            chains[name], rest[name] = find_chains(group, ordered=ordered, depth=depth + 1)
    if not any(chains.values()):
        parts = [part for name, group in groups.items() if len(group) > 2 for part in rest[name]]
        return [], parts if len(parts) > 1 or (parts and len(groups) == 1) else [(layers, result)]
    found = [chain for group in chains.values() for chain in group]
    if all(_ROLE.search(name.rpartition(".")[2]) for name, group in chains.items() if group):
        return found, [part for group in rest.values() for part in group]
    if len(found) > 1:
        raise InputError(
            f"cannot tell which of {', '.join(chain.key for chain in found)} is the network, or if they are one"
        )
    for name in (name for name in groups if rest[name]):
        if not _is_embedding(groups[name], found[0]):
            raise InputError(
                f"recognised a {found[0].network_class.__name__} in {found[0].key}, but cannot tell what "
                f"{describe(rest[name][0][0])} beside it does"
            )
        found = [replace(found[0], embeddings=(*found[0].embeddings, groups[name][0]))]
    return found, []


def describe(layers: list[Layer]) -> str:
    """List the names and shapes of layers."""
    more = f" and {len(layers) - 8} more" if len(layers) > 8 else ""
    return (", ".join(map(str, layers[:8])) or "a file without weights") + more


def chain_of_arrays(arrays: list[Tensor]) -> Chain | str:
    """Recognise the paper authors' arrays: weights, and the gains and shifts of normalisations; or say why not.

    Theano convolves where PyTorch correlates, so kernels are flipped; linear weights are (in, out).
    """
    layers: list[Layer] = []
    for number, array in enumerate(arrays, 1):
        if array.dim() == 1 and layers and layers[-1].tensors["weight"].dim() == 1 and "bias" not in layers[-1].tensors:
            layers[-1].tensors["bias"] = array
        else:
            weight = array.flip(2, 3) if array.dim() == 4 else array.T if array.dim() == 2 else array
            layers.append(Layer(f"{number:02d}", {"weight": weight}))
    for layer in layers:
        if len(layer.shape) == 1:  # until they are estimated
            gain = layer.tensors["weight"]
            layer.tensors.update(running_mean=torch.zeros_like(gain), running_var=torch.ones_like(gain))
    return _recognise(layers, ordered=True, adjacent=False)


def _is_embedding(layers: list[Layer], chain: Chain) -> bool:
    """Whether this is an embedding of labels short enough to be a part of the generator's latent."""
    [layer, *others] = layers
    alone = not others and layer.tensors.keys() == {"weight"} and len(layer.shape) == 2
    if chain.network_class is not Generator or not alone or not _EMBEDDING.search(layer.name):
        return False
    return layer.shape[1] < _ends(Generator, chain.layers[0])[0]


def is_neighbour(layers: list[Layer], key: str, chain: Chain) -> bool:
    """Whether layers beside a network may make its input, or take its output: then it is a part of a larger one.

    A vector that a generator takes may be anybody's: only maps are compared.
    """
    weights = [layer for layer in layers if len(layer.shape) in (2, 4)]
    # What they are called where their names part from the network's.
    theirs = f"{key}.{layers[0].name}".lstrip(".").split(".") if layers else []
    name = next((part for part, own in zip_longest(theirs, chain.key.split(".")) if part != own), None) or ""
    if not weights or _INDEPENDENT.fullmatch(name.lower()):
        return False
    first, last = chain.layers[0], chain.layers[-1]
    taken, made = _ends(chain.network_class, first)[0], _ends(chain.network_class, last)[1]
    before = weights[-1].shape
    feeds = len(first.shape) == 4 and (taken in before[:2] or (len(before) == 2 and before[0] % taken == 0))
    return feeds or (chain.network_class is Generator and len(weights[0].shape) == 4 and made in weights[0].shape[:2])


def _recognise(layers: list[Layer], *, ordered: bool, adjacent: bool = True) -> Chain | str:
    """Recognise a network of which these are all the layers, or say why they are none."""
    if odd := next(filter(None, map(_find_oddity, layers)), None):
        return odd
    weights = [layer for layer in layers if len(layer.shape) > 1]
    norms = [layer for layer in layers if len(layer.shape) == 1]
    if len(weights) < 2:
        return "a network has at least two convolutions or linear layers"
    refusals: list[tuple[int, str]] = []
    for by_shape in (False, True) if ordered else (True,):
        chains: list[Chain] = []
        for network_class in (Generator, Discriminator):
            for order in _orders_by_shape(network_class, weights) if by_shape else [weights]:
                try:
                    chains.append(_fit(network_class, order, layers, norms, ordered=ordered, adjacent=adjacent))
                except _UnfitError as error:
                    # The file's own order explains better than another one, and what fits further, better than less.
                    refusals.append((error.progress - by_shape * len(layers), str(error)))
        if any(chain.layers == weights[::-1] and chain.network_class is Generator for chain in chains):
            return "it may be an encoder or a classifier, or a Generator whose layers are stored backwards"
        if chains:
            return chains[0] if len(chains) == 1 else f"it may be {' or '.join(map(str, chains))}"
    if not ordered and len({layer.shape for layer in weights}) < len(weights):
        return "neither the names nor the shapes tell the order of its layers, of which some have equal shapes"
    return max(refusals, key=lambda refusal: refusal[0], default=(0, "in no order do its layers fit together"))[1]


def _find_oddity(layer: Layer) -> str | None:
    if unknown := sorted(layer.tensors.keys() - _PARAMETERS):
        return f"{layer.name}.{unknown[0]} belongs to no convolution, linear layer or BatchNorm".lstrip(".")
    if len(layer.shape) not in (1, 2, 4) or 0 in layer.shape:
        return f"{layer} is no convolution of images, linear layer or BatchNorm"
    if layer.name.rpartition(".")[2] == "module":
        return f"{layer} is wrapped by itself, by something that may scale it, such as an equalised learning rate"
    if any(tensor.numel() == 0 for tensor in layer.tensors.values()):
        return f"{layer} has an empty tensor"
    for name, tensor in layer.tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            return f"{layer.name}.{name} is sparse, or without numbers"
        if name != "num_batches_tracked" and not tensor.is_floating_point():
            return f"{layer.name}.{name} is {tensor.dtype}, and no floating-point numbers"
        if not tensor.float().isfinite().all():
            return f"{layer.name}.{name} holds NaN or infinity"
    if (variance := layer.tensors.get("running_var")) is not None and variance.min() < 0:
        return f"{layer.name}.running_var is negative"
    return None


def _fit(
    network_class: NetworkClass,
    order: list[Layer],
    layers: list[Layer],
    norms: list[Layer],
    *,
    ordered: bool,
    adjacent: bool,
) -> Chain:
    _expect_chain(network_class, order)
    pairs = _pair_norms(network_class, order, norms, ordered=ordered)
    if adjacent:
        _expect_adjacent(order, pairs)
    if ordered and adjacent:
        _expect_interleaved(layers, order, pairs)
    normalised = [layer for layer, norm in zip(order, pairs, strict=True) if norm and len(layer.shape) == 4]
    if len({"bias" in layer.tensors for layer in normalised}) == 2:
        lacking = next(layer.name for layer in normalised if "bias" not in layer.tensors)
        raise _UnfitError(len(order), f"{lacking} has no bias, but others of its normalised layers have")
    return Chain(network_class, order, pairs)


class _UnfitError(Exception):
    """Layers are not the network they were taken for: from which on, and why."""

    def __init__(self, progress: int, reason: str):
        super().__init__(reason)
        self.progress = progress


def _ends(network_class: NetworkClass, layer: Layer) -> tuple[int, int]:
    """Return how many channels, or units, a layer takes and makes."""
    first, second = layer.shape[:2]
    # Transposed convolutions are (in, out, k, k), and all else is (out, in, ...).
    return (first, second) if network_class is Generator and len(layer.shape) == 4 else (second, first)


def _follows(network_class: NetworkClass, before: Layer, after: Layer) -> bool:
    """Whether a layer takes what another makes; between a linear layer and a map, any number of pixels per channel."""
    made, taken = _ends(network_class, before)[1], _ends(network_class, after)[0]
    if len(before.shape) == len(after.shape):
        return len(before.shape) == 4 and made == taken
    return made % taken == 0 if network_class is Generator else taken % made == 0


def _orders_by_shape(network_class: NetworkClass, weights: list[Layer]) -> list[list[Layer]]:
    """Return up to two orders in which each layer takes what the one before it makes; none if two have one shape."""
    if len({layer.shape for layer in weights}) < len(weights):
        return []
    steps = count()

    def extend(order: list[Layer], rest: list[Layer]) -> Iterator[list[Layer]]:
        if not rest:
            yield order
        for layer in rest:
            if next(steps) < _MOST_STEPS and (not order or _follows(network_class, order[-1], layer)):
                yield from extend([*order, layer], [other for other in rest if other is not layer])

    return list(islice(extend([], weights), 2))


def _expect_chain(network_class: NetworkClass, order: list[Layer]) -> None:
    linear = 0 if network_class is Generator else len(order) - 1
    if network_class is Generator and _ends(network_class, order[0])[0] == 1:  # a discriminator backwards
        raise _UnfitError(0, f"{order[0]} takes latents of one number")
    for i, layer in enumerate(order):
        if len(layer.shape) == 2 and i != linear:
            raise _UnfitError(i, f"{layer} is a linear layer in the middle of convolutions")
        taken, made = _ends(network_class, layer)
        if i and not _follows(network_class, order[i - 1], layer):
            before = _ends(network_class, order[i - 1])[1]
            other = network_class is Generator and len(layer.shape) == 4 and before % made == 0 and i > 0
            kind = "; as a plain convolution it would fit, and a transposed one is needed" if other else ""
            raise _UnfitError(i, f"{layer} takes {taken} channels, but {order[i - 1]} makes {before}{kind}")
        if (bias := layer.tensors.get("bias")) is not None and bias.shape != (made,):
            raise _UnfitError(i, f"{layer} makes {made} channels, but its bias is {tuple(bias.shape)}")
    if network_class is Discriminator and _ends(network_class, order[-1])[1] != 1:
        raise _UnfitError(len(order) - 1, f"{order[-1]} is last, and would need to make one logit")


def _pair_norms(
    network_class: NetworkClass, order: list[Layer], norms: list[Layer], *, ordered: bool
) -> list[Layer | None]:
    """Return the normalisation after each layer: all but the ends have one, or none has; a stem may lack it."""
    hidden = order[:-1] if network_class is Generator else order[1:-1]
    if network_class is Generator and norms and len(norms) == len(hidden) - 1:
        if "bias" not in order[0].tensors:
            raise _UnfitError(len(order), f"{order[0].name} has neither a normalisation nor a bias")
        hidden = hidden[1:]
    if norms and len(norms) != len(hidden):
        places = "but the last" if network_class is Generator else "but the first and the last"
        raise _UnfitError(
            len(order), f"it has {len(norms)} normalisations, and would need one after every layer {places}"
        )
    _expect_statistics(norms, len(order))
    widths = [{_ends(network_class, layer)[1]} for layer in hidden if norms]
    if norms and len(order[0].shape) == 2 and hidden[0] is order[0]:
        widths[0].add(_ends(network_class, order[1])[0])  # per channel; above, per unit
    if not ordered or any(norm.shape[0] not in width for norm, width in zip(norms, widths, strict=True)):
        by_width = {norm.shape[0]: norm for norm in norms}
        if len(by_width) < len(norms):
            raise _UnfitError(len(order), "some of its normalisations are equally wide, and nothing tells their order")
        norms = [by_width[next(iter(width & by_width.keys()), 0)] for width in widths if width & by_width.keys()]
        if len(norms) < len(widths):
            raise _UnfitError(len(order), f"its normalisations, {sorted(by_width)} wide, do not fit its layers")
    after = {layer.name: norm for layer, norm in zip(hidden, norms, strict=False)}
    return [after.get(layer.name) for layer in order]


def _expect_statistics(norms: list[Layer], progress: int) -> None:
    for norm in norms:
        names = norm.tensors.keys() - {"num_batches_tracked"}
        if "running_mean" not in names and "running_var" not in names:
            kind = "it is an instance, group or layer norm, or a BatchNorm saved without its buffers"
            raise _UnfitError(progress, f"{norm.name} has no running statistics: {kind}")
        if names not in ({"running_mean", "running_var"}, _PARAMETERS - {"num_batches_tracked"}):
            raise _UnfitError(progress, f"{norm.name} has only {', '.join(sorted(names))} of a BatchNorm")


def _expect_adjacent(order: list[Layer], norms: list[Layer | None]) -> None:
    """Check that the names do not show something between a layer and its normalisation, or layers that are missing."""
    parents = [layer.name.rpartition(".")[0] for layer in order]
    for layer, norm, parent in zip(order, norms, parents, strict=True):
        if norm is None:
            continue
        block, _, number = norm.name.rpartition(".")
        place = layer.name.rpartition(".")[2]
        apart = block == parent and number.isdigit() and place.isdigit() and int(number) != int(place) + 1
        if (apart and len(layer.shape) == 4) or (block != parent and parents.count(block) == 1):
            raise _UnfitError(
                len(order), f"{norm.name} does not directly follow {layer.name}, which it would normalise"
            )
    numbers = [int(part) for part in order[0].name.split(".") if part.isdigit()]
    if numbers and numbers[0] > 2:
        raise _UnfitError(len(order), f"layers before {order[0].name} are missing")
    if not any(norms) and len(set(parents)) == 1:
        places = [int(place) for layer in order if (place := layer.name.rpartition(".")[2]).isdigit()]
        if any(after - before > 2 for before, after in pairwise(places[:-1])):
            room = "the numbers of its layers leave room for normalisations without weights"
            raise _UnfitError(len(order), f"{room}, such as InstanceNorm, between them")


def _expect_interleaved(layers: list[Layer], order: list[Layer], norms: list[Layer | None]) -> None:
    """Check that each normalisation is defined right after its layer, unless all are defined after all layers."""
    place = {layer.name: i for i, layer in enumerate(layers)}
    own = [place[norm.name] for norm in norms if norm]
    if not own or min(own) > max(place[layer.name] for layer in order):
        return
    for layer, norm in zip(order, norms, strict=True):
        if norm and place[norm.name] != place[layer.name] + 1:
            raise _UnfitError(len(order), f"{norm.name} is not defined right after {layer.name}, its layer")
