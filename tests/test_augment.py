import pytest
import torch

from dcgan.augment import AUGMENTATIONS, augment


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(6, 3, 16, 16), (6, 1, 20, 36), (6, 4, 7, 9)])
def test_shape_and_type_stay_and_gradients_flow(name, shape):
    images = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    changed = augment(images, [name], rng())
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert not torch.equal(changed, images)
    changed.sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_decides_and_every_image_has_its_own_change(name):
    images = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1).contiguous()
    assert torch.equal(augment(images, [name], rng(1)), augment(images, [name], rng(1)))
    changed = augment(images, [name], rng(1))
    assert not torch.equal(changed, augment(images, [name], rng(2)))
    assert len({image.numpy().tobytes() for image in changed}) > 1


@pytest.mark.parametrize("name", ["translation", "shift"])
def test_images_move_by_up_to_an_eighth_and_zeros_or_their_edges_follow(name):
    images = torch.arange(1, 1 + 16 * 24, dtype=torch.float32).reshape(1, 1, 16, 24).expand(500, -1, -1, -1)
    moves = set()
    for image in augment(images, [name], rng())[:, 0]:
        found = image[8, 12].item() - 1
        y, x = int(found // 24) - 8, int(found % 24) - 12
        moves.add((y, x))
        expected = torch.zeros(16, 24)
        rows, columns = torch.arange(16), torch.arange(24)
        inside = ((rows + y >= 0) & (rows + y < 16))[:, None] & ((columns + x >= 0) & (columns + x < 24))[None]
        shifted = images[0, 0][(rows + y).clamp(0, 15)][:, (columns + x).clamp(0, 23)]
        expected[inside] = shifted[inside]
        assert torch.equal(image, expected if name == "translation" else shifted)
    assert {y for y, _ in moves} == set(range(-2, 3))
    assert {x for _, x in moves} == set(range(-3, 4))


def test_cutout_removes_one_rectangle_of_half_the_sides():
    images = torch.ones(300, 2, 16, 24)
    areas = set()
    for image in augment(images, ["cutout"], rng()):
        hole = image[0] == 0
        assert torch.equal(image[0], image[1])
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        area = len(rows) * len(columns)
        assert hole.sum() == area
        assert len(rows) <= 8
        assert len(columns) <= 12
        assert rows.diff().eq(1).all()
        areas.add(area)
    assert max(areas) == 8 * 12
    assert min(areas) >= 4 * 6 - 1


def test_color_keeps_what_its_definition_keeps():
    images = torch.rand(50, 3, 8, 8, dtype=torch.float64)
    changed = augment(images, ["color"], rng())
    # Saturation turns about the grey axis and contrast about the mean: the mean moves by brightness alone.
    shift = changed.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert shift.abs().max() <= 0.5
    assert shift.std() > 0.2
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    flat = augment(grey, ["color"], rng())
    torch.testing.assert_close(flat, flat.mean(dim=1, keepdim=True).expand_as(flat))


def test_none_is_none_and_unknown_names_are_refused():
    images = torch.rand(2, 3, 8, 8)
    assert augment(images, [], rng()) is images
    with pytest.raises(
        ValueError, match="augmentations must be among color, translation, shift, cutout, or functions, got 'crop'"
    ):
        augment(images, ["crop"], rng())
