"""Looking inside networks: against perturbed pixels, a backward pass by hand, and maps made by hand."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from networks import randomize_batchnorms
from PIL import Image
from torch import nn

import dcgan.visualize
from dcgan import Discriminator, Generator, cli
from dcgan.visualize import (
    ReceptiveField,
    Stage,
    box_masks,
    crop,
    drop_features,
    feature_weights,
    first_layer_filters,
    guided_backprop,
    layer_output,
    normalize,
    randomize,
    receptive_field,
    strongest_responses,
)

NETWORKS = {
    "tutorial": {"image_size": 16},
    "rectangle": {"image_size": (16, 24)},
    "svhn": {"image_size": 16, "kernel_size": 5, "stem": "linear"},
    "imagenet32": {"image_size": 16, "kernel_size": 3, "convs_per_stage": 2},
    "relu": {"image_size": 16, "activation": "relu", "bias": True},
}


def discriminator(name):
    return randomize_batchnorms(Discriminator(base_channels=2, channels=1, **NETWORKS[name]))


def pools():
    dilated = nn.Conv2d(2, 3, 3, padding="same", dilation=2)
    strided = nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0))
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1), dilated, nn.AvgPool2d(2), nn.LeakyReLU(), strided]
    return nn.Sequential(*layers).double().eval()


def bounds_by_perturbation(stage, image):
    """For each position `(h, w)`, top, left, bottom and right of the pixels that change any feature there."""
    height, width = image.shape[1:]
    pixels = torch.arange(height * width)
    changed = torch.zeros(())
    for amount in (100.0, -100.0):
        perturbed = image.repeat(height * width, 1, 1, 1)
        perturbed[pixels, :, pixels // width, pixels % width] += amount
        with torch.no_grad():
            changed = changed + (stage(perturbed) != stage(image[None])).any(1)
    changed = changed.bool().view(height, width, *changed.shape[1:])
    rows, columns = changed.any(1), changed.any(0)
    index = torch.arange(max(height, width))
    tops, lefts = rows.int().argmax(0), columns.int().argmax(0)
    bottoms = (rows * (1 + index[:height, None, None])).amax(0)
    rights = (columns * (1 + index[:width, None, None])).amax(0)
    return torch.stack([tops, lefts, bottoms, rights], -1)


@pytest.mark.parametrize("name", [*NETWORKS, "pools"])
def test_a_receptive_field_is_what_perturbed_pixels_reach(name):
    image = torch.randn(1, *((16, 24) if name == "rectangle" else (16, 16)), dtype=torch.float64)
    stages = [pools()] if name == "pools" else []
    if not stages:
        network = discriminator(name)
        stages = [Stage(network, key) for key in network.blocks]
    for stage in stages:
        field, bounds = receptive_field(stage, image[None]), bounds_by_perturbation(stage, image)
        height, width = image.shape[1:]
        for row in range(bounds.shape[0]):
            for column in range(bounds.shape[1]):
                top, left = field.corner(row, column)
                bottom, right = min(top + field.size[0], height), min(left + field.size[1], width)
                assert bounds[row, column].tolist() == [max(top, 0), max(left, 0), bottom, right], (row, column)


def test_receptive_fields_of_the_tutorial_are_known():
    network = Discriminator(image_size=64, base_channels=2)
    fields = [receptive_field(Stage(network, name), torch.zeros(1, 3, 64, 64)) for name in network.blocks]
    assert [field.size for field in fields] == [(4, 4), (10, 10), (22, 22), (46, 46)]
    assert [field.stride[0] for field in fields] == [2, 4, 8, 16]
    assert [field.offset[0] for field in fields] == [-1, -3, -7, -15]


def test_a_branch_of_another_resolution_is_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.shortcut = nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 1, 2)

        def forward(self, x):
            return self.main(x) + self.shortcut(x)

    with pytest.raises(ValueError, match="one after the other, but a map of 8x8 follows one of 4x4"):
        receptive_field(Branches(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="one after the other"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2)), torch.zeros(1, 1, 8, 8))


def guided_by_hand(network, images, stage, features, rows, columns):
    """Springenberg's backward pass, written out for our discriminators."""
    inputs, before, blocks = images, [], []
    for name, block in network.blocks.items():
        conv = F.conv2d(inputs, block.conv.weight, block.conv.bias, block.conv.stride, block.conv.padding)
        before.append(block.norm(conv) if hasattr(block, "norm") else conv)
        inputs = F.leaky_relu(before[-1], slope(network))
        blocks.append(block)
        if name == stage:
            break
    gradient = torch.zeros_like(inputs)
    gradient[torch.arange(len(images)), features, rows, columns] = 1
    for block, values in zip(reversed(blocks), reversed(before), strict=True):
        gradient = gradient.clamp(min=0) * torch.where(values > 0, 1.0, slope(network))
        if hasattr(block, "norm"):
            norm = block.norm
            gradient = gradient * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        gradient = F.conv_transpose2d(gradient, block.conv.weight, None, block.conv.stride, block.conv.padding)
    return gradient


def slope(network):
    return 0.0 if network.config["activation"] == "relu" else network.config["slope"]


@pytest.mark.parametrize("name", ["tutorial", "relu"])
def test_guided_backpropagation_is_that_by_hand(name):
    network = discriminator(name)
    images = torch.randn(5, 1, 16, 16, dtype=torch.float64)
    index = torch.arange(5)

    def plain_gradient(stage, features, rows, columns):
        return torch.func.grad(lambda x: network.features(x)[stage][index, features, rows, columns].sum())(images)

    for stage, maps in network.features(images).items():
        position = [torch.randint(n, (5,)) for n in maps.shape[1:]]  # feature, row and column
        before = plain_gradient(stage, *position)
        guided = guided_backprop(Stage(network, stage), images, *position)
        torch.testing.assert_close(guided, guided_by_hand(network, images, stage, *position))
        torch.testing.assert_close(plain_gradient(stage, *position), before)  # no hooks are left behind
    assert not torch.allclose(guided, before)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_guided_backpropagation_works_without_gradients_around_it_and_keeps_modes():
    network = Discriminator(image_size=16, base_channels=2).train()
    network.requires_grad_(requires_grad=False)
    zeros = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        guided = guided_backprop(Stage(network, "8x8"), torch.randn(2, 3, 16, 16), zeros, zeros, zeros)
    assert guided.abs().amax((1, 2, 3)).min() > 0
    assert all(module.training for module in network.modules())


def test_networks_without_activations_or_stages_are_refused():
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"needs nn.ReLU or nn.LeakyReLU modules, Conv2d has none"):
        guided_backprop(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8), zero, zero, zero)
    with pytest.raises(ValueError, match="stage must be one of 8x8, 4x4, got '2x2'"):
        Stage(Discriminator(image_size=16, base_channels=2), "2x2")(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("sizes", [[40], [7, 20, 13], [1] * 40, [39, 1]])
def test_the_strongest_responses_are_those_of_a_sort(sizes):
    maps = torch.randn(40, 3, 4, 5)
    found = strongest_responses(nn.Identity(), maps.split(sizes), 6)
    peaks = maps.amax((2, 3))
    for feature in range(3):
        order = peaks[:, feature].argsort(descending=True)[:6]
        assert torch.equal(found.images[feature], order)
        assert torch.equal(found.values[feature], peaks[order, feature])
    features = torch.arange(3)[:, None].expand(3, 6)
    assert torch.equal(maps[found.images, features, found.rows, found.columns], found.values)


def test_too_few_images_are_refused():
    for k, message in [(3, "there must be at least k = 3 images, got 2"), (0, "k must be at least 1, got 0")]:
        with pytest.raises(ValueError, match=message):
            strongest_responses(nn.Identity(), [torch.zeros(2, 1, 4, 4)], k)


def test_patches_are_cut_out_and_moved_into_the_image():
    images = torch.arange(60.0).view(1, 1, 6, 10).repeat(3, 1, 1, 1)
    rows, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 4])
    patches = crop(images, rows, columns, ReceptiveField((3, 4), (2, 2), (-1, -1)))
    corners = [(0, 0), (1, 3), (3, 6)]  # the first was at (-1, -1), the last at (3, 7)
    for patch, image, (top, left) in zip(patches, images, corners, strict=True):
        assert torch.equal(patch, image[:, top : top + 3, left : left + 4])
    assert torch.equal(crop(images, rows, columns, ReceptiveField((9, 99), (2, 2), (-3, -50))), images)


def test_normalized_pictures_reach_one_and_keep_zero():
    images = torch.tensor([[[[0.0, -4.0], [2.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert normalize(images).flatten(1).tolist() == [[0.0, -1.0, 0.5, 0.25], [0.0] * 4]


def test_first_layer_filters_are_weights():
    network = Discriminator(image_size=16, base_channels=5)
    filters = first_layer_filters(network)
    weight = network.blocks["8x8"].conv.weight.detach()
    assert filters.shape == (5, 3, 4, 4)
    assert filters.abs().amax((1, 2, 3)).tolist() == [1.0] * 5
    torch.testing.assert_close(filters * weight.abs().amax((1, 2, 3), keepdim=True), weight)
    with pytest.raises(ValueError, match="network must have an nn.Conv2d among its modules, Linear has none"):
        first_layer_filters(nn.Linear(2, 2))


def test_a_random_network_is_new_and_normalised_for_its_images():
    network = discriminator("tutorial").float()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    batches = [torch.randn(20, 1, 16, 16) for _ in range(3)]
    new, same, other = (randomize(network, batches, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    weights = [each.blocks["4x4"].conv.weight for each in (network, new, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not any(torch.equal(a, b) for a, b in [(weights[0], weights[1]), (weights[1], weights[3])])
    assert weights[1].std().item() == pytest.approx(0.02, rel=0.3)
    normalised = torch.cat([layer_output(new, new.blocks["4x4"].norm, batch) for batch in batches])
    assert normalised.mean((0, 2, 3)).abs().max() < 0.05
    assert normalised.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.25)


def test_the_output_of_a_layer_is_recorded():
    network = discriminator("tutorial").train()
    images = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    output = layer_output(network, network.blocks["8x8"], images)
    assert network.training
    assert torch.equal(output, network.eval().features(images)["8x8"])
    with pytest.raises(ValueError, match="layer must be a part of the network that it calls; ReLU was not called"):
        layer_output(network, nn.ReLU(), images)


def test_boxes_become_masks():
    masks = box_masks([(1, 0, 2, 3, 4), (1, 4, 0, 5, 1), (2, 0, 0, 5, 4)], 3, (4, 5))
    rows = ["".join("#" if cell else "." for cell in row) for row in masks.flatten(0, 1)]
    assert rows == [
        ".....",
        ".....",
        ".....",
        ".....",
        "....#",
        ".....",
        "###..",
        "###..",
        "#####",
        "#####",
        "#####",
        "#####",
    ]
    for box in [(3, 0, 0, 1, 1), (0, 2, 0, 2, 1), (0, 0, 0, 6, 1), (0, 0, -1, 1, 1)]:
        with pytest.raises(ValueError, match=re.escape(f"within 3 images of 4x5, got {box}")):
            box_masks([box], 3, (4, 5))


def test_a_regression_finds_the_features_of_marked_positions():
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[:, 4:8, 8:14] = True  # cells of 4×4 pixels: the second is marked in half, which counts
    masks[0, 12:16, 0:1] = True  # a quarter, which does not
    inside = torch.zeros(4, 1, 4, 4)
    inside[:, :, 1, 2:] = 1
    inside[:, :, 1, 3] = 1
    maps = torch.cat([inside, 1 - inside, 0.01 * torch.rand(4, 1, 4, 4), torch.zeros(4, 1, 4, 4)], 1)
    weights = feature_weights(maps, masks)
    assert weights[0] > 0.5
    assert weights[1] < -0.5
    assert weights[2:].abs().max() < 0.1
    assert weights[0].item() == pytest.approx(-weights[1].item(), rel=1e-2)  # they tell the same, the other way around
    assert torch.equal(weights, feature_weights(maps, masks))


def test_marks_that_tell_nothing_are_refused():
    maps, masks = torch.rand(2, 3, 4, 4), torch.zeros(2, 16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="masks must mark some of the 32 positions of the maps, but not all, got 0"):
        feature_weights(maps, masks)
    with pytest.raises(ValueError, match="but not all, got 32"):
        feature_weights(maps, ~masks)
    with pytest.raises(ValueError, match=r"of the same images, got \(2, 3, 4, 4\) and \(1, 16, 16\)"):
        feature_weights(maps, masks[:1])


def test_exactly_the_chosen_maps_are_dropped():
    generator = Generator(image_size=32, base_channels=4, latent_dim=8).eval()
    layer, z = generator.blocks["8x8"], torch.randn(3, 8)
    dropped = torch.tensor([True, False] * 4)
    before, image = layer_output(generator, layer, z), generator(z)
    with drop_features(layer, dropped):
        after = layer_output(generator, layer, z)
        assert not torch.equal(generator(z), image)
    assert before[:, dropped].abs().amax((0, 2, 3)).min() > 0
    assert (after[:, dropped] == 0).all()
    assert torch.equal(after[:, ~dropped], before[:, ~dropped])
    assert torch.equal(generator(z), image)


@pytest.mark.parametrize("n", [3, 40])  # a large number of samples is drawn by a copy with other layers
def test_samples_are_drawn_without_the_dropped_maps(n):
    generator = randomize_batchnorms(Generator(image_size=32, base_channels=4, latent_dim=8))
    z = torch.randn(n, 8, dtype=torch.float64)
    layer = generator.blocks["16x16"]
    with torch.no_grad():
        expected = z
        for block in generator.blocks.values():
            expected = block(expected)
            if block is layer:
                expected[:, :2] = 0
        expected = generator.head(expected)
    with drop_features(layer, torch.tensor([True, True, False, False])):
        torch.testing.assert_close(generator.sample(z=z), expected)


def test_another_number_of_features_is_refused_and_leaves_no_hook():
    layer = nn.Conv2d(1, 3, 1)
    expected = pytest.raises(ValueError, match=r"dropped must have shape \(3,\), got \(2,\)")
    with expected, drop_features(layer, torch.tensor([True, False])):
        layer(torch.zeros(1, 1, 2, 2))
    assert layer(torch.zeros(1, 1, 2, 2)).shape == (1, 3, 2, 2)


# The command


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    Generator(image_size=(16, 24), base_channels=4, latent_dim=8).save_pretrained(folder)
    Discriminator(image_size=(16, 24), base_channels=4).save_pretrained(folder)
    return folder


def visualize(capsys, *arguments, code=0):
    assert cli.main(["visualize", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return " ".join((err if code else out).split())


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_filters_are_drawn_beside_random_ones(small, capsys):
    assert visualize(capsys, "filters", small) == "filters.png: 4 filters"
    picture = pixels("filters.png")
    block = 2 + 2 * 26  # two by two, each enlarged to 24 pixels
    assert picture.shape == (block + 12, 2 * block + 12, 3)
    expected = first_layer_filters(Discriminator.from_pretrained(small))
    expected = ((expected + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(picture[2:26:6, 2:26:6] - expected[0]).max() <= 1
    assert np.abs(picture[28:52:6, 28:52:6] - expected[3]).max() <= 1
    random = picture[2:26:6, block + 14 : block + 38 : 6]
    assert np.abs(random - expected[0]).max() > 20


def test_features_of_samples_are_drawn(small, capsys):
    out = visualize(capsys, "features", small, "-n", 30, "--feature", 3, 0, "--patches", 3, "--stage", "8x12")
    assert out == "features.png: features 3, 0 of 4 at stage 8x12, over 30 images"
    assert pixels("features.png").shape == (2 * 26 + 2 + 12, 2 * (6 * 26 + 2) + 12, 3)


def test_a_discriminator_sees_images_in_the_range_of_its_generator(tmp_path, capsys, monkeypatch):
    options = {"image_size": 16, "base_channels": 4}
    generator = Generator(latent_dim=8, output="sigmoid", **options)
    generator.save_pretrained(tmp_path / "sigmoid")
    Discriminator(**options).save_pretrained(tmp_path / "sigmoid")
    seen = []
    strongest = dcgan.visualize.strongest_responses

    def recorded(stage, batches, k):
        seen.extend(batches)
        return strongest(stage, batches, k)

    monkeypatch.setattr(dcgan.visualize, "strongest_responses", recorded)
    visualize(capsys, "features", tmp_path / "sigmoid", "-n", 6, "--feature", 0, "--patches", 2)
    torch.testing.assert_close(seen[0], generator.eval().sample(6, seed=0), rtol=0, atol=0.6 / 255)


def test_features_are_found_in_a_dataset(small, capsys):
    out = visualize(
        capsys, "features", small, "--data", "fake", "-n", 30, "--feature", 5, 0, "--patches", 3, "--stage", "4x6"
    )
    assert out == "features.png: features 5, 0 of 8 at stage 4x6, over 30 images"
    picture = pixels("features.png")
    assert picture.shape == (2 * 32 + 2 + 12, 2 * (6 * 32 + 2) + 12, 3)  # patches of 10×10 pixels, enlarged three times

    from dcgan import data

    fake = data.load("fake", image_size=(16, 24), cache=False)
    images = fake.batch(np.linspace(0, len(fake) - 1, 30).astype(int)).float() / 127.5 - 1
    stage = Stage(Discriminator.from_pretrained(small), "4x6")
    maps = stage(images)[:, 5]
    best = int(maps.amax((1, 2)).argmax())
    position = int(maps[best].argmax())
    row, column = torch.tensor([position // 6]), torch.tensor([position % 6])
    field = ReceptiveField((10, 10), (4, 4), (-3, -3))
    patch = crop(images[best : best + 1], row, column, field)
    guided = guided_backprop(stage, images[best : best + 1], torch.tensor([5]), row, column)
    for left, expected in ((2, patch), (2 + 3 * 32, normalize(crop(guided, row, column, field)))):
        drawn = picture[2:32:3, left : left + 30 : 3]
        assert np.abs(drawn - ((expected[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()).max() <= 1


def test_features_of_the_model_on_board_are_found_in_real_faces(real_data, capsys):
    root = real_data / "faces"
    out = visualize(capsys, "features", "faces", "--root", root, "-n", 12, "--patches", 2, "--feature", 0, 9)
    assert out == "features.png: features 0, 9 of 256 at stage 4x4, over 12 images"


def test_boxes_and_masks_drop_the_same_features(small, tmp_path, capsys):
    (tmp_path / "boxes.csv").write_text("index,left,top,right,bottom\n3,0,0,12,8\n7, 12, 8, 24, 16\n")
    (tmp_path / "masks").mkdir()
    for index, box in ((3, (0, 0, 12, 8)), (7, (12, 8, 24, 16))):
        mask = Image.new("RGB", (24, 16))
        mask.paste((255, 255, 255), box)
        mask.save(tmp_path / f"masks/{index:06d}.png")
    said = [
        visualize(capsys, "dropout", small, "--marks", marks, "-n", 5, "--out", f"{marks}.png")
        for marks in ("boxes.csv", "masks")
    ]
    assert re.fullmatch(
        r"boxes.csv.png: images 8 to 12 of seed 0 [1-7] of 8 features of stage 4x6 dropped, by marks on 2 images",
        said[0],
    )
    assert said[1] == said[0].replace("boxes.csv", "masks")
    picture = pixels("boxes.csv.png")
    assert np.array_equal(picture, pixels("masks.png"))
    generator = Generator.from_pretrained(small)
    expected = ((generator.sample(5, seed=0, start=8) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(picture[2:66:4, 2:98:4] - expected[0]).max() <= 1
    maps = layer_output(generator, generator.blocks["4x6"], seeded(3, 7))
    dropped = feature_weights(maps, box_masks([(0, 0, 0, 12, 8), (1, 12, 8, 24, 16)], 2, (16, 24))) > 0
    with drop_features(generator.blocks["4x6"], dropped):
        expected = ((generator.sample(5, seed=0, start=8) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(picture[68:132:4, 2:98:4] - expected[0]).max() <= 1


def seeded(*indices):
    from dcgan.latents import pick_latents

    return pick_latents([(0, index) for index in indices], 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("filters MODEL --out a.gif", "--out must end in .png, got a.gif"),
        ("features MODEL --stage 2x3", "--stage must be one of 8x12, 4x6, got '2x3'"),
        ("features MODEL --feature 8 -n 9", "--feature must be from 0 to 7 at stage 4x6, got 8"),
        ("features MODEL -n 5", "--patches 6 needs as many images, got 5"),
        ("features MODEL --root broken", "broken/a.jpg is not in a supported format"),
        ("features MODEL --root nowhere", "nowhere must be a folder of images, but does not exist"),
        (
            "dropout MODEL --marks nothing",
            "--marks must be a .csv file of boxes or a folder of masks, nothing does not",
        ),
        ("dropout MODEL --marks empty", "empty has no masks, such as 000012.png for image 12"),
        ("dropout MODEL --marks large", "000001.png must be 16x24 pixels, as the images are, got 4x4"),
        ("dropout MODEL --marks words.csv", "words.csv must have the line index,left,top,right,bottom, then whole num"),
        ("dropout MODEL --marks head.csv", "head.csv has no boxes"),
        ("dropout MODEL --marks box.csv", "box.csv must have the line index,left,top,right,bottom, then whole numbers"),
        ("dropout MODEL --marks far.csv", r"each box must be .* within 1 images of 16x24, got \(0, 0, 0, 25, 4\)"),
        (
            "dropout MODEL --marks late.csv",
            r"late.csv must mark images of an index in \[0, 2\*\*63\), got 4 to 18446744073709551615",
        ),
        ("dropout MODEL --marks far.csv --stage 16x24", "--stage must be one of 4x6, 8x12, got '16x24'"),
    ],
)
def test_mistakes_are_named(small, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "large").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.jpg").write_text("these are words")
    Image.new("L", (4, 4)).save(tmp_path / "large/000001.png")
    (tmp_path / "words.csv").write_text("index,left\n1,two\n")
    (tmp_path / "head.csv").write_text("index,left,top,right,bottom\n")
    (tmp_path / "box.csv").write_text("2,17,20,48,29\n")
    (tmp_path / "far.csv").write_text("index,left,top,right,bottom\n4,0,0,25,4\n")
    (tmp_path / "late.csv").write_text(f"index,left,top,right,bottom\n4,0,0,4,4\n{2**64 - 1},0,0,4,4\n")
    words = [str(small) if word == "MODEL" else word for word in arguments.split()]
    assert re.search(message, visualize(capsys, *words, code=2))
    assert not list(tmp_path.glob("*.png"))
