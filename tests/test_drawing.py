"""Pictures and tables of networks: against hooks, torch's own count of operations, and the parameters themselves."""

import copy
import importlib.util
import math
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcgan import Discriminator, Generator, cli, drawing
from dcgan.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
CASES = {
    **{name: {"architecture": name} for name in ARCHITECTURES},
    "paper at 128": {"architecture": "paper", "image_size": 128, "base_channels": 8},
    "kernel 3": {"kernel_size": 3, "base_channels": 8, "image_size": 32},
    "28x28": {"image_size": 28, "channels": 1, "base_channels": 8},
    "rectangle": {"image_size": (48, 80), "base_channels": 8, "kernel_size": 5},
    "conditional": {"num_classes": 10, "channels": 1, "image_size": 32, "base_channels": 16},
    "conditional, linear": {"num_classes": 7, "image_size": 32, "base_channels": 8, "stem": "linear"},
    "resize": {"upsample": "resize", "image_size": (32, 64), "base_channels": 8, "convs_per_stage": 2},
    "to a pixel": {"image_size": 16, "stages": 4, "base_channels": 4, "max_channels": 16, "bias": True},
    "large": {"image_size": 256, "base_channels": 4, "max_channels": 16, "norm": "layer", "output": "sigmoid"},
    "instance": {"image_size": 32, "base_channels": 8, "norm": "instance", "activation": "leaky-relu"},
    "no norm": {"image_size": 16, "base_channels": 8, "norm": "none", "stem_activation": False, "stem": "linear"},
}


@cache
def build(kind, case):
    arguments = dict(CASES[case])
    architecture = arguments.pop("architecture", "tutorial")
    if kind is Discriminator:
        for name in ("upsample", "output", "stem_activation"):
            arguments.pop(name, None)
    return kind.from_architecture(architecture, **arguments).eval()


def inputs_of(network):
    config = network.config
    size = config["image_size"]
    sides = (size, size) if isinstance(size, int) else size
    shape = (config["latent_dim"],) if "latent_dim" in config else (config["channels"], *sides)
    given = [torch.zeros(1, *shape)]
    if config["num_classes"]:
        given.append(torch.zeros(1, dtype=torch.int64))
    return given


@cache
@torch.no_grad()
def shapes_by_hooks(network):
    """Return the shapes `(C, H, W)` of the input, and of what the blocks and the head give, in order."""
    found = []

    def record(module, args, output):
        found.append((*output.shape[1:], 1, 1)[:3])

    given = inputs_of(network)
    handles = [block.register_forward_hook(record) for block in (*network.blocks.values(), network.head)]
    network(*given)
    for handle in handles:
        handle.remove()
    return [(*given[0].shape[1:], 1, 1)[:3], *found]


def in_plain_form(network):
    """Return a copy whose convolutions compute as torch's own, which its count of operations knows."""
    network = copy.deepcopy(network)
    for module in network.modules():
        for plain in (nn.Conv2d, nn.ConvTranspose2d):
            if isinstance(module, plain):
                module.__class__ = plain
    return network


def texts(group, **attributes):
    found = [text for text in group.iter(f"{SVG}text") if attributes.items() <= text.attrib.items()]
    return [text.text for text in found]


both = pytest.mark.parametrize("kind", [Generator, Discriminator])
each = pytest.mark.parametrize("case", CASES)


@both
@each
def test_sizes_and_parameters_are_those_of_the_network(kind, case):
    network = build(kind, case)
    stages = drawing.stages(network)
    assert [stage.shape for stage in stages] == shapes_by_hooks(network)
    assert [stage.name for stage in stages[1:-1]] == list(network.blocks)
    assert sum(stage.parameters for stage in stages) == sum(value.numel() for value in network.parameters())


@both
@each
def test_multiplications_are_half_of_the_operations_that_torch_counts(kind, case):
    network = build(kind, case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        in_plain_form(network)(*inputs_of(network))
    assert 2 * sum(stage.multiplications for stage in drawing.stages(network)) == counter.get_total_flops()


def test_multiplications_of_the_tutorial_by_hand():
    counts = [stage.multiplications for stage in drawing.stages(Generator(base_channels=64))]
    hidden = [side**2 * 4**2 * wide * wide // 2 for side, wide in ((4, 512), (8, 256), (16, 128))]
    assert counts == [0, 100 * 512 * 4 * 4, *hidden, 32**2 * 4**2 * 64 * 3]


@both
@each
def test_the_picture_tells_sizes_channels_and_kernels(kind, case):
    network = build(kind, case)
    picture = ET.fromstring(drawing.draw(network))
    (group,) = picture.findall(f"{SVG}g")
    labels = network.config["num_classes"] or 0
    more = f" + {labels}" if labels else ""
    sizes, channels = [], []
    for index, (channel, height, width) in enumerate(shapes := shapes_by_hooks(network)):
        last = index == len(shapes) - 1
        if (kind is Generator and index == 0) or (kind is Discriminator and last):
            sizes.append(f"{channel}{'' if last else more}")
            channels.append("logit" if last else "z")
        else:
            sizes.append(f"{height}×{width}")
            channels.append(f"× {channel}{'' if last else more}")
    heading, *captions = texts(group, **{"font-weight": "600"})
    assert heading == kind.__name__
    assert captions == sizes
    assert texts(group, **{"font-weight": "400"}) == channels

    kernels = []
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            kernels.append("2× larger")
        elif isinstance(module, nn.Linear):
            kernels.append("linear")
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            enlarged = kernels[-1:] == ["2× larger"]
            kernels.append("{}×{}".format(*module.kernel_size))
            kernels += [] if enlarged else [f"stride {module.stride[0]}"]
    assert texts(group, **{"font-size": "11"}) == kernels


@both
@each
def test_boxes_grow_with_the_root_of_sides_and_channels_inside_the_picture(kind, case):
    network = build(kind, case)
    picture = ET.fromstring(drawing.draw(network))
    _, _, width, height = map(float, picture.get("viewBox").split())
    corners = [
        [tuple(map(float, corner.split(","))) for corner in polygon.get("points").split()]
        for polygon in picture.iter(f"{SVG}polygon")
    ]
    assert all(0 <= x <= width and 0 <= y <= height for polygon in corners for x, y in polygon)

    shapes = shapes_by_hooks(network)
    labels = network.config["num_classes"]
    boxes = [group for group in picture.iter(f"{SVG}g") if len(group.findall(f"{SVG}polygon")) == 3]
    if labels:
        *boxes, last = [box for box in boxes if box.get("fill") != "#00805D"], boxes[-1]
        boxes = boxes[0]
        assert last is boxes[-1]  # nothing is appended to the output
    assert len(boxes) == len(shapes)
    longest = max(max(shape[1:]) for shape in shapes)
    for box, (channels, high, wide) in zip(boxes, shapes, strict=True):
        front, top, _ = (
            [tuple(map(float, corner.split(","))) for corner in polygon.get("points").split()] for polygon in box
        )
        scale = 88 / math.sqrt(longest)
        assert front[3][1] - front[0][1] == pytest.approx(scale * math.sqrt(high), abs=0.11)
        assert front[1][0] - front[0][0] == pytest.approx(max(2.0, 1.4 * math.sqrt(channels)), abs=0.11)
        assert top[1][0] - top[0][0] == pytest.approx(0.45 * scale * math.sqrt(wide), abs=0.11)


def test_labels_have_boxes_of_their_own():
    network = build(Generator, "conditional")
    picture = ET.fromstring(drawing.draw(network))
    green = [group for group in picture.iter(f"{SVG}g") if group.get("fill") == "#00805D"]
    assert len(green) == len(network.blocks) + 1


def test_two_networks_are_drawn_below_each_other_with_a_description():
    networks = [build(kind, "svhn") for kind in (Generator, Discriminator)]
    picture = ET.fromstring(drawing.draw(*networks))
    assert len(picture.findall(f"{SVG}g")) == 2
    assert picture.get("role") == "img"
    assert picture.find(f"{SVG}title").text == "Generator and Discriminator"
    described = picture.find(f"{SVG}desc").text
    assert "Generator, 1.45 million parameters" in described
    assert "linear, BatchNorm, ReLU: 256 channels of 4x4;" in described
    assert described.endswith("linear: logit.")
    with pytest.raises(ValueError, match="a picture needs at least one network"):
        drawing.draw()


@both
@each
def test_a_notebook_shows_the_picture_and_the_rows_of_the_table(kind, case):
    network = build(kind, case)
    page = ET.fromstring(network._repr_html_())  # every tag is closed
    cells = [tuple(cell.text or "" for cell in row) for row in page.iter("tr")]
    assert cells == drawing.table(network)
    assert cells[0] == drawing.HEADINGS
    assert cells[-1][-2] == f"{sum(value.numel() for value in network.parameters()):,}"
    assert page.find(f"{SVG}svg") is not None
    assert "<style" not in network._repr_html_()  # which would change the page around it


def test_names_are_escaped():
    class Odd(Generator):
        pass

    Odd.__name__ = "<b>&\"'"
    network = Odd(image_size=16, base_channels=2)
    page = ET.fromstring(network._repr_html_())
    assert page.find(f"{SVG}svg/{SVG}title").text == Odd.__name__


def test_nothing_is_called_or_changed():
    network = Generator(image_size=16, base_channels=2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.apply(lambda module: module.register_forward_hook(lambda *_: pytest.fail("called")))
    network._repr_html_()
    assert network.training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_spectral_norm_is_seen_through_and_other_layers_are_refused():
    plain = Discriminator(image_size=16, base_channels=2)
    network = copy.deepcopy(plain)
    nn.utils.parametrizations.spectral_norm(network.blocks["8x8"].conv)
    assert drawing.draw(network) == drawing.draw(plain)
    network.head = nn.Sequential(network.head.conv, nn.MaxPool2d(1))
    with pytest.raises(ValueError, match="the layers of the network must be plain ones, got a MaxPool2d"):
        drawing.draw(network)
    assert network._repr_html_() is None


def committed(name):
    return (ROOT / "docs/assets" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Upsample(size=(8, 8)),
        nn.Upsample(scale_factor=1.5),
        nn.Upsample(scale_factor=(2.0, 2.0)),
    ],
)
def test_layers_of_other_kinds_of_sizes_are_refused(layer):
    discriminator = Discriminator(image_size=16, base_channels=4)
    discriminator.blocks["8x8"] = nn.Sequential(layer)
    with pytest.raises(ValueError, match="must be"):
        drawing.stages(discriminator)
    assert discriminator._repr_html_() is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pictures_of_the_documentation_are_what_is_drawn_now(name, tmp_path):
    path = tmp_path / "drawn.svg"
    drawing.save_svg(path, build(Generator, name), build(Discriminator, name))
    assert path.read_text(encoding="utf-8") == committed(f"network-{name}.svg")


def test_the_diagram_of_the_step_is_what_is_drawn_now():
    path = ROOT / "examples/diagrams.py"
    spec = importlib.util.spec_from_file_location("diagrams", path)
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    ET.fromstring(diagrams.draw_step())
    assert diagrams.draw_step() == committed("step.svg")


def test_the_command_prints_the_tables_and_writes_the_picture(tmp_path, capsys):
    networks = [kind(image_size=16, base_channels=4) for kind in (Generator, Discriminator)]
    for network in networks:
        network.save_pretrained(tmp_path / "saved")
    path = tmp_path / "new/picture.svg"
    assert cli.main(["show", str(tmp_path / "saved"), "--out", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.islower() and " " not in line] == ["generator", "discriminator"]
    for network in networks:
        for row in drawing.table(network):
            assert [word for cell in row for word in cell.split()] in [line.split() for line in lines]
    assert len({len(line) for line in lines if line.startswith(("stage", "total"))}) == 2  # aligned on the right
    assert lines[-1] == f"{path}: generator and discriminator"
    drawing.save_svg(tmp_path / "other.svg", *networks)
    assert path.read_bytes() == (tmp_path / "other.svg").read_bytes()

    assert cli.main(["show", str(tmp_path / "saved"), "--out", str(path)]) == 2
    assert f"{path} exists: --force overwrites it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_the_command_shows_the_one_network_that_there_is(kind, tmp_path, capsys):
    kind(image_size=16, base_channels=4).save_pretrained(tmp_path)
    assert cli.main(["show", str(tmp_path)]) == 0
    assert re.findall(r"^(generator|discriminator)$", capsys.readouterr().out, re.MULTILINE) == [kind.__name__.lower()]


def test_the_command_shows_architectures_and_recipes(capsys):
    assert cli.main(["show", "--architecture", "svhn"]) == 0
    of_architecture = capsys.readouterr().out
    assert cli.main(["show", "--recipe", "paper-svhn"]) == 0
    assert capsys.readouterr().out == of_architecture
    assert "1,446,976" in of_architecture
    assert "1,033,664" in of_architecture
