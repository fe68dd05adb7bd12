"""Conditional networks: their arithmetic, their labels, their training, from tensors to the command line."""

import contextlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in PyTorch
from PIL import Image
from small_runs import TINY, computed, start_and_stop
from torch import nn

from dcgan import Discriminator, Generator, Trainer, cli, data
from dcgan.convert import write_tutorial
from dcgan.ema import estimate_batchnorm_statistics
from dcgan.export import export_onnx
from dcgan.generate import sample_grid, write_grid
from dcgan.images import grid, to_uint8
from dcgan.latents import derive_seed, seeded_latents
from dcgan.run import Run, load_generator

CLASSES = 3
VARIANTS = {
    "conv stem, 4x4": {},
    "linear stem, 5x5, units": {"stem": "linear", "stem_norm": "unit", "kernel_size": 5, "bias": True},
    "two layers per stage": {"convs_per_stage": 2, "kernel_size": 3},
    "two layers per stage, 4x4": {"convs_per_stage": 2},
    "resized": {"upsample": "resize", "image_size": (16, 48)},
    "layer norm, three stages": {"norm": "layer", "stages": 3, "image_size": 32, "activation": "leaky-relu"},
    "wide images": {"image_size": (8, 24), "stages": 2, "channels": 1, "stem": "linear"},
}


def build(network_class, variant="conv stem, 4x4", **overrides):
    arguments = {"image_size": 16, "base_channels": 4, "num_classes": CLASSES, **VARIANTS[variant], **overrides}
    arguments = {"latent_dim": 5, **arguments} if network_class is Generator else arguments
    if network_class is Discriminator:
        arguments = {name: value for name, value in arguments.items() if name not in ("stem_norm", "upsample")}
    torch.manual_seed(0)
    network = network_class(**arguments)
    # Weights of a size that makes every layer count, and norms other than the identity.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(network, n=6):
    config = network.config
    if isinstance(network, Generator):
        return torch.randn(n, config["latent_dim"])
    size = config["image_size"]
    return torch.randn(n, config["channels"], *((size, size) if isinstance(size, int) else size))


def with_maps(h, labels):
    """Append one-hot labels by hand, number by number."""
    extra = torch.zeros(len(h), CLASSES, *h.shape[2:], dtype=h.dtype)
    for row, label in enumerate(labels.tolist()):
        extra[row, label] = 1
    return torch.cat([h, extra], 1)


def plain(layer, h):
    """Compute a layer as torch's functions do, whatever form its class has."""
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(h, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(h, layer.weight, layer.bias, layer.stride, layer.padding)
    return layer(h)


def reference(network, x, labels):
    """Run the layers one by one, after labels are appended to what each block gets."""
    h = x
    for block in [*network.blocks.values(), network.head]:
        h = with_maps(h, labels)
        for layer in block:
            h = plain(layer, h)
    return h.flatten() if isinstance(network, Discriminator) else h


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_labels_join_the_input_of_every_layer_as_constant_maps(network_class, variant, channels_last):
    network = build(network_class, variant).double()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    x, labels = inputs(network).double(), torch.tensor([0, 2, 1, 1, 0, 2])
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    expected = reference(network, x, labels)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((expected * weights).sum(), list(network.parameters()))
    result = network(x, labels)
    torch.testing.assert_close(result, expected)
    own = torch.autograd.grad((result * weights).sum(), list(network.parameters()))
    for a, b in zip(own, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert not torch.equal(network(x, (labels + 1) % CLASSES), result)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_keep_the_memory_format_that_convolutions_compute_in(variant):
    network = build(Discriminator, variant).to(memory_format=torch.channels_last)
    images = inputs(network).to(memory_format=torch.channels_last)
    seen = []
    for block in network.blocks.values():
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(images, torch.zeros(6, dtype=torch.int64))
    assert len(seen) == len(network.blocks)
    maps = seen[1:] if network.config["channels"] == 1 else seen  # a grey image has both formats, and keeps neither
    assert maps
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def test_the_authors_network_by_hand():
    """The shapes of every layer of a conditional 5×5 network: 10 channels more in each, as in the authors' code."""
    options = {"image_size": 28, "channels": 1, "kernel_size": 5, "stem": "linear", "num_classes": 10}
    generator, discriminator = Generator(**options), Discriminator(**options)
    shapes = {name: tuple(p.shape) for name, p in generator.named_parameters() if p.dim() > 1}
    assert shapes == {
        "blocks.7x7.linear.weight": (128 * 7 * 7, 100 + 10),
        "blocks.14x14.conv.weight": (128 + 10, 64, 5, 5),
        "head.conv.weight": (64 + 10, 1, 5, 5),
    }
    shapes = {name: tuple(p.shape) for name, p in discriminator.named_parameters() if p.dim() > 1}
    assert shapes == {
        "blocks.14x14.conv.weight": (64, 1 + 10, 5, 5),
        "blocks.7x7.conv.weight": (128, 64 + 10, 5, 5),
        "head.linear.weight": (1, (128 + 10) * 7 * 7),
    }


def test_features_and_probability_take_labels():
    network = build(Discriminator).eval()
    images, labels = inputs(network), torch.tensor([0, 1, 2, 0, 1, 2])
    features = network.features(images, labels)
    assert {name: tuple(value.shape) for name, value in features.items()} == {"8x8": (6, 4, 8, 8), "4x4": (6, 8, 4, 4)}
    assert not torch.equal(features["8x8"], network.features(images, labels.flip(0))["8x8"])
    assert torch.equal(network.probability(images, labels), network(images, labels).sigmoid())


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_labels_are_checked(network_class):
    network = build(network_class)
    x, labels = inputs(network, 2), torch.tensor([0, 2])
    name = network_class.__name__
    with pytest.raises(ValueError, match=rf"labels \(2,\) are needed: this {name} is conditional on 3 classes"):
        network(x)
    with pytest.raises(TypeError, match=r"labels must be torch.int64, got torch.float32"):
        network(x, labels.float())
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        network(x, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3"):
        network(x, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got -1"):
        network(x, torch.tensor([-1, 2]))
    unconditional = build(network_class, num_classes=None)
    with pytest.raises(ValueError, match=f"labels are for conditional networks, but this {name} has no num_classes"):
        unconditional(x, labels)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        network_class(num_classes=0)
    with pytest.raises(TypeError, match="num_classes must be a whole number, got 2.5"):
        network_class(num_classes=2.5)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_no_classes_are_the_network_without_the_argument(network_class):
    torch.manual_seed(3)
    without = network_class(image_size=16, base_channels=4)
    torch.manual_seed(3)
    none = network_class(image_size=16, base_channels=4, num_classes=None)
    assert none.config == without.config
    for a, b in zip(none.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_saved_networks_keep_their_classes_and_older_files_have_none(network_class, tmp_path):
    network = build(network_class).eval()
    network.save_pretrained(tmp_path)
    loaded = network_class.from_pretrained(tmp_path)
    x, labels = inputs(network, 2), torch.tensor([1, 2])
    assert loaded.config["num_classes"] == CLASSES
    assert torch.equal(loaded(x, labels), network(x, labels))

    build(network_class, num_classes=None).save_pretrained(tmp_path)
    path = tmp_path / network_class.subfolder / "config.json"
    config = json.loads(path.read_text())
    del config["num_classes"]  # as in files of 0.3 and before
    path.write_text(json.dumps(config))
    assert network_class.from_pretrained(tmp_path).config["num_classes"] is None


def test_samples_have_the_classes_that_were_asked_for():
    generator = build(Generator).eval()
    z = torch.randn(40, 5)
    with torch.no_grad():
        in_turn = generator(z, torch.arange(40) % CLASSES)
        of_one = generator(z, torch.full((40,), 2))
        listed = generator(z, torch.tensor([0, 0, 1, 2] * 10))
    torch.testing.assert_close(generator.sample(z=z), in_turn)
    torch.testing.assert_close(generator.sample(z=z, labels=2, batch_size=7), of_one)
    torch.testing.assert_close(generator.sample(z=z, labels=[0, 0, 1, 2] * 10, batch_size=7), listed)
    torch.testing.assert_close(generator.sample(z=z, labels=torch.tensor([0, 0, 1, 2] * 10)), listed)
    torch.testing.assert_close(torch.cat(list(generator.sample_batches(z=z, labels=2, batch_size=9))), of_one)


def test_an_image_of_a_seed_has_one_class_whatever_the_start_and_batch():
    generator = build(Generator).eval()
    whole = generator.sample(50, seed=4)
    torch.testing.assert_close(generator.sample(13, seed=4, start=20, batch_size=5), whole[20:33])
    assert not torch.allclose(generator.sample(13, seed=4, start=20, labels=0), whole[20:33])


def test_classes_come_in_turn_up_to_the_last_image_of_a_seed():
    generator = build(Generator).eval()
    start = 2**64 - 5
    labels = [(start + i) % CLASSES for i in range(4)]
    torch.testing.assert_close(
        generator.sample(4, seed=4, start=start), generator.sample(4, seed=4, start=start, labels=labels)
    )


def test_labels_of_samples_are_checked():
    generator = build(Generator).eval()
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 7"):
        generator.sample(4, seed=0, labels=7)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(2,\)"):
        generator.sample(4, seed=0, labels=[1, 2])
    with pytest.raises(TypeError, match="labels must be torch.int64, got torch.float32"):
        generator.sample(2, seed=0, labels=[0.5, 1.0])
    with pytest.raises(ValueError, match="labels are for conditional networks, but this Generator has no num_classes"):
        build(Generator, num_classes=None).sample(4, labels=1)


def plain_loop(generator, discriminator, batches):
    """The tutorial's loop with labels, and a penalty on the logits of real images."""
    criterion = nn.BCEWithLogitsLoss()
    adams = [torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (generator, discriminator)]
    for step, (real, labels) in enumerate(batches):
        rng = torch.Generator().manual_seed(derive_seed(0, step, 1))
        fake = generator(torch.randn(len(real), 5, generator=rng, dtype=real.dtype), labels)
        discriminator.zero_grad()
        on_real, on_fake = discriminator(real, labels), discriminator(fake.detach(), labels)
        loss = criterion(on_real, torch.ones_like(on_real)) + criterion(on_fake, torch.zeros_like(on_fake))
        (loss + discriminator(real, labels).square().mean()).backward()
        adams[1].step()
        generator.zero_grad()
        on_fake = discriminator(fake, labels)
        criterion(on_fake, torch.ones_like(on_fake)).backward()
        adams[0].step()


def pair(**overrides):
    return build(Generator, **overrides).double(), build(Discriminator, **overrides).double()


def labelled_batches(n=4):
    return [(torch.rand(6, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.randint(CLASSES, (6,))) for _ in range(n)]


@pytest.mark.parametrize("form", [tuple, list, lambda batch: {"image": batch[0], "label": batch[1].to(torch.uint8)}])
def test_the_trainer_uses_the_labels_of_the_batch(form):
    batches = labelled_batches()
    expected = pair()
    plain_loop(*expected, batches)
    penalty = lambda logits, real, _fake, _rng: logits(real).square().mean()  # noqa: E731
    trainer = Trainer(*pair(), lr=2e-4, penalties=[penalty])
    for batch in batches:
        trainer.step(form(batch))
    for network, reference in zip((trainer.generator, trainer.discriminator), expected, strict=True):
        for own, other in zip(network.state_dict().values(), reference.state_dict().values(), strict=True):
            torch.testing.assert_close(own, other)


def test_a_resumed_conditional_trainer_repeats_the_unbroken_one():
    batches = labelled_batches(6)
    unbroken, first, second = (Trainer(*pair(), gradient_penalty=1.0, lr=2e-4) for _ in range(3))
    for batch in batches:
        unbroken.step(batch)
    for batch in batches[:3]:
        first.step(batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[3:]:
        second.step(batch)
    for own, other in zip(second.ema.state_dict().values(), unbroken.ema.state_dict().values(), strict=True):
        assert torch.equal(own, other)


def test_the_trainer_trains_any_conditional_modules():
    class Sum(nn.Module):
        def __init__(self, width, out):
            super().__init__()
            self.config = {"num_classes": CLASSES, "latent_dim": 4}
            self.linear, self.embedding, self.seen = nn.Linear(width, out), nn.Embedding(CLASSES, out), []

        def forward(self, x, labels):
            self.seen.append(labels.tolist())
            out = self.linear(x.flatten(1)) + self.embedding(labels)
            return out.view(-1, 1, 2, 2) if out.shape[1] == 4 else out

    generator, discriminator = Sum(4, 4), Sum(4, 1)
    Trainer(generator, discriminator, lr=1e-3, ema_decay=None).step((torch.rand(3, 1, 2, 2), torch.tensor([2, 0, 1])))
    assert generator.seen == [[2, 0, 1]]
    assert discriminator.seen == [[2, 0, 1]] * 3


def test_unconditional_networks_leave_labels_aside():
    images, labels = labelled_batches(1)[0]
    results = []
    for batch in (images, (images, labels)):
        trainer = Trainer(*pair(num_classes=None), lr=2e-4)
        trainer.step(batch)
        results.append(list(trainer.generator.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_labels_of_a_batch_are_required_and_checked():
    trainer = Trainer(*pair(), lr=2e-4)
    images, labels = labelled_batches(1)[0]
    for batch, found in [
        (images, "got 0 of them, in a Tensor of images alone"),
        ((images, labels.double()), r"got 0 of them, in a tuple of \(6, 3, 16, 16\) of torch.float64, \(6,\) of"),
        ((images, labels[:3]), "got 0 of them, in a tuple"),
        ([images, labels, labels], "got 2 of them, in a list"),
        ({"image": images}, "got 0 of them, in a dict"),
    ]:
        with pytest.raises(
            TypeError, match=r"a batch must be \(images, labels\), with one tensor of labels \(6,\).*" + found
        ):
            trainer.step(batch)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3"):
        trainer.step((images, torch.full((6,), 3)))
    assert trainer.steps == 0
    with pytest.raises(ValueError, match="both networks must have the same num_classes, got 3 and None"):
        Trainer(build(Generator), build(Discriminator, num_classes=None), lr=2e-4)


def test_statistics_are_estimated_of_several_inputs():
    generator = build(Generator)
    z, labels = torch.randn(64, 5), torch.arange(64) % CLASSES
    estimate_batchnorm_statistics(generator, zip(z.split(32), labels.split(32), strict=True))
    stem = generator.blocks["4x4"]
    maps = [
        stem.conv(with_maps(part[:, :, None, None], of)) for part, of in zip(z.split(32), labels.split(32), strict=True)
    ]
    expected = torch.stack([h.mean((0, 2, 3)) for h in maps]).mean(0)
    torch.testing.assert_close(stem.norm.running_mean, expected)


@pytest.mark.gpu
def test_a_captured_step_takes_the_labels_of_each_batch():
    results = []
    for mode in ("off", "graph"):
        networks = [network.float().cuda() for network in pair()]
        trainer = Trainer(*networks, lr=2e-4, compile=mode)
        torch.manual_seed(1)
        for images, labels in labelled_batches(8):
            trainer.step((images.float().cuda(), labels))
        results.append(torch.cat([p.detach().flatten() for p in trainer.generator.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_onnx_takes_labels_as_a_second_input(network_class, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network = build(network_class).eval()
    session = onnxruntime.InferenceSession(export_onnx(network, tmp_path / "network.onnx"))
    first = "z" if network_class is Generator else "image"
    assert [tensor.name for tensor in session.get_inputs()] == [first, "labels"]
    for n in (1, 5):
        x, labels = inputs(network, n), torch.arange(n) % CLASSES
        (result,) = session.run(None, {first: x.numpy(), "labels": labels.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), network(x, labels).detach(), rtol=1e-4, atol=1e-5)


def test_the_tutorials_format_has_no_labels(tmp_path):
    with pytest.raises(ValueError, match="the tutorial's Generator has num_classes None, not 3"):
        write_tutorial(Generator(num_classes=3), tmp_path / "tutorial.pth")


def test_batches_come_with_the_labels_of_their_images():
    pixels = torch.arange(30, dtype=torch.uint8)[:, None, None].expand(30, 4, 4)
    images = data.from_dataset([(pixels[i].numpy(), 100 - i) for i in range(30)])
    batches = data.Batches(images, 8, seed=1, flip=True, start=2)
    for (batch, labels), alone, _ in zip(batches.with_labels(), batches, range(9), strict=False):
        assert torch.equal(batch, alone)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, 100 - batch[:, 0, 0, 0].long())
    with pytest.raises(ValueError, match="the images of fake have no labels"):
        data.Batches(data.load("fake", image_size=8, cache=False), 2).with_labels()


CONDITIONAL = TINY.replace(conditional=True, eval_every=7)


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    return start_and_stop(CONDITIONAL, tmp_path_factory.mktemp("conditional") / "run")


def test_a_conditional_run_learns_from_the_labels_of_its_images(conditional_run):
    from sklearn.datasets import load_digits

    seen = {}
    with contextlib.closing(
        Run.start(CONDITIONAL.replace(steps=8, augment=()), conditional_run.parent / "watched")
    ) as run:
        assert run.trainer.generator.config["num_classes"] == run.trainer.discriminator.config["num_classes"] == 10

        def watch(_, args):
            images, labels = args
            if not images.requires_grad and images.grad_fn is None:  # the real ones
                seen.update(
                    (image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
                )

        run.trainer.discriminator.register_forward_pre_hook(watch)
        list(run.train())
    images = data.load("digits", image_size=16, channels=1)
    target = load_digits().target
    pixels = images.batch(np.arange(len(images))).float() / 127.5 - 1
    known = {image.numpy().tobytes(): int(label) for image, label in zip(pixels, target, strict=True)}
    matched = [known[content] == label for content, label in seen.items() if content in known]
    assert len(matched) > 1000
    assert all(matched)


def test_a_resumed_conditional_run_repeats_the_unbroken_one(conditional_run, tmp_path):
    folder = start_and_stop(CONDITIONAL, tmp_path / "run", stop=9)
    with contextlib.closing(Run.resume(folder)) as run:
        list(run.train())
    assert computed(folder) == computed(conditional_run)
    load_generator(folder, "best").sample(3, seed=0, labels=9)


def test_the_grid_of_a_run_has_a_row_for_each_class(conditional_run):
    generator = Generator.from_pretrained(conditional_run)
    z = seeded_latents(3, 100, seed=0)
    rows = [generator.sample(z=z, labels=label) for label in range(10)]
    expected = grid(to_uint8(torch.cat(rows)), columns=3)
    own = sample_grid(generator, 36, seed=0)
    assert own.shape == expected.shape
    assert (own.int() - expected.int()).abs().max() <= 1
    few = sample_grid(generator, 4, seed=0)
    assert (few.int() - grid(to_uint8(torch.cat([row[:1] for row in rows[:4]])), columns=1).int()).abs().max() <= 1
    with Image.open(conditional_run / "samples/step-000019.png") as picture:
        assert picture.size == (18 + 2, 9 * 18 + 2)  # TINY asks for nine images: nine classes, one of each


def generate(*arguments, capsys, code=0):
    assert cli.main(["generate", *map(str, arguments)]) == code
    return capsys.readouterr().err


def test_generate_takes_a_label(conditional_run, tmp_path, capsys):
    generator = Generator.from_pretrained(conditional_run)
    for name, arguments, labels in [("seven", ["--label", 7], 7), ("turn", [], None)]:
        generate(conditional_run, "-n", 12, "--out", tmp_path / name, *arguments, capsys=capsys)
        expected = to_uint8(generator.sample(12, seed=0, labels=labels))
        for i in range(12):
            with Image.open(tmp_path / name / f"{i:06d}.png") as picture:
                assert np.abs(np.asarray(picture).astype(int) - expected[i, 0].numpy()).max() <= 1
    assert "--label must be from 0 to 9" in generate(
        conditional_run, "--label", 10, "--out", tmp_path / "x", capsys=capsys, code=2
    )
    build(Generator, num_classes=None).save_pretrained(tmp_path / "plain")
    error = generate(tmp_path / "plain", "--label", 1, "--out", tmp_path / "x", capsys=capsys, code=2)
    assert "--label is for conditional models" in error
    assert not (tmp_path / "x").exists()


def test_a_written_grid_has_a_column_for_each_class_in_turn(tmp_path):
    generator = build(Generator).eval()
    for labels, columns in [(None, 3), (1, 4)]:
        write_grid(generator, tmp_path / "grid.png", 14, labels=labels, seed=2)
        with Image.open(tmp_path / "grid.png") as picture:
            assert picture.width == columns * 18 + 2


@pytest.fixture
def classes_on_disk(tmp_path):
    root = tmp_path / "pets"
    for number, name in enumerate(["cat", "dog", "fish"]):
        (root / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (80 * number, i, 0)).save(root / name / f"{i}.png")
    return root


def test_a_folder_of_each_class_trains_a_conditional_pair(classes_on_disk, tmp_path):
    recipe = CONDITIONAL.replace(data="folder", root=classes_on_disk, batch_size=8, steps=2, eval_every=None)
    folder = start_and_stop(recipe.replace(cache_dir=tmp_path / "cache"), tmp_path / "run")
    assert Generator.from_pretrained(folder).config["num_classes"] == 3
    again = start_and_stop(recipe.replace(generator=str(folder), cache=False), tmp_path / "again")
    assert Generator.from_pretrained(again).config["num_classes"] == 3
    with pytest.raises(ValueError, match="the generator of .* has num_classes 3, and the run needs num_classes None"):
        Run.start(recipe.replace(conditional=False, generator=str(folder)), tmp_path / "other")
    with pytest.raises(ValueError, match="the generator of .* has num_classes 3, and the run needs num_classes 10"):
        Run.start(CONDITIONAL.replace(channels=3, generator=str(folder)), tmp_path / "other")
    with pytest.raises(ValueError, match="data must be one of the labelled sets digits, .*, got 'fake'"):
        Run.start(CONDITIONAL.replace(data="fake"), tmp_path / "other")
    (classes_on_disk / "loose.png").write_bytes((classes_on_disk / "cat/0.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"must hold a folder of images for each class, but .* holds the image loose.png"
    ):
        Run.start(recipe, tmp_path / "other")


@pytest.mark.parametrize("command", ["walk", "arithmetic", "features", "visualize filters", "visualize features"])
def test_commands_for_models_without_classes_refuse_others(command, conditional_run, tmp_path, capsys):
    out = ["--out", str(tmp_path / ("x" if command == "features" else "x.png"))]
    assert cli.main([*command.split(), str(conditional_run), *out]) == 2
    assert "run is conditional on 10 classes: this command is for models without classes" in capsys.readouterr().err
