"""The trainer beside other people's tools, as docs/embedding.md shows it."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.utils import parametrizations

from dcgan import Discriminator, Generator, Trainer

TINY = {"image_size": 16, "channels": 1, "base_channels": 4}


def networks(seed=1, **arguments):
    torch.manual_seed(seed)
    return Generator(latent_dim=6, **TINY, **arguments), Discriminator(**TINY)


def batches(count, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(8, 1, 16, 16, generator=rng) * 2 - 1 for _ in range(count)]


def tensors(trainer):
    networks = trainer.generator, trainer.discriminator, trainer.ema
    return [tensor for network in networks for tensor in network.state_dict().values()]


def snapshot(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network, before):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def faded(images, rng):
    """An augmentation that can be imported, as pickles need it."""
    return images * torch.rand(len(images), 1, 1, 1, generator=rng)


def saved(trainer):
    file = io.BytesIO()
    torch.save(trainer, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer)), saved])
def test_a_copy_goes_on_as_the_original_and_apart_from_it(copied):
    reals = batches(6)
    trainer = Trainer(*networks(), augmentations=["translation", faded], max_grad_norm=1.0)
    trainer.fit(reals[:2], 2)
    twin = copied(trainer)
    before = [tensor.clone() for tensor in tensors(twin)]
    expected = [trainer.step(real) for real in reals[2:]]
    assert all(map(torch.equal, tensors(twin), before))
    assert [twin.step(real) for real in reals[2:]] == expected
    assert all(map(torch.equal, tensors(twin), tensors(trainer)))


def test_a_trainer_is_sent_to_a_spawned_process():
    trainer = Trainer(*networks())
    trainer.step(batches(1)[0])
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        state = pool.apply(train, (copy.deepcopy(trainer), batches(3)))
    trainer.fit(batches(3), 4)
    other = Trainer(*networks())
    other.load_state_dict(state)
    assert all(map(torch.equal, tensors(trainer), tensors(other)))


def train(trainer, reals):
    torch.set_num_threads(1)
    trainer.fit(reals, 4)
    return trainer.state_dict()


def test_parameter_groups_and_schedulers_set_the_rates():
    generator, discriminator = networks()
    adam = torch.optim.Adam(
        [{"params": generator.blocks.parameters(), "lr": 1e-4}, {"params": generator.head.parameters(), "lr": 0.0}]
    )
    trainer = Trainer(generator, discriminator, g_optimizer=adam)
    scheduler = torch.optim.lr_scheduler.LinearLR(trainer.g_optimizer, 1.0, 0.0, total_iters=2)
    head, blocks = snapshot(generator.head), snapshot(generator.blocks)
    for real in batches(2):
        trainer.step(real)
        scheduler.step()
    assert not changed(generator.head, head)
    assert changed(generator.blocks, blocks) == {name for name in blocks}  # noqa: C416
    blocks = {name: parameter.detach().clone() for name, parameter in generator.blocks.named_parameters()}
    trainer.step(batches(1)[0])  # at a rate of 0
    assert all(torch.equal(parameter, blocks[name]) for name, parameter in generator.blocks.named_parameters())


def test_frozen_layers_stay_as_they_are(caplog):
    generator, discriminator = networks()
    discriminator.blocks["8x8"].requires_grad_(requires_grad=False)
    discriminator.blocks["4x4"].requires_grad_(requires_grad=False).eval()
    before = snapshot(discriminator)
    Trainer(generator, discriminator).fit(batches(2), 2)
    assert changed(discriminator, before) == {"head.conv.weight"}
    assert not any(parameter.requires_grad for parameter in discriminator.blocks.parameters())
    assert not caplog.records


def test_the_average_keeps_the_statistics_of_frozen_layers():
    generator, discriminator = networks()
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
        norm.running_var.fill_(3.0)
    trainer = Trainer(generator, discriminator, ema_decay=0.0)  # the average is the generator
    trainer.fit(batches(2), 2)
    z = torch.randn(4, generator.config["latent_dim"])
    averaged = trainer.averaged()
    with torch.no_grad():
        torch.testing.assert_close(averaged(z), copy.deepcopy(generator).eval()(z))
    norms[0].train()  # and no other
    first = next(name for name, module in generator.named_modules() if module is norms[0])
    estimated = trainer.averaged()
    after = {name: norm for name, norm in estimated.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    changed_norms = {name for name, norm in after.items() if (norm.running_var != 3.0).any()}
    assert changed_norms == {first}


def test_adapters_are_trained_and_merged(caplog):
    peft = pytest.importorskip("peft")
    pairs, reals = [], batches(3)
    for network in networks(upsample="resize"):
        convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        assert len(convolutions) >= 2
        pairs.append(peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=convolutions)))
    before = [snapshot(network) for network in pairs]
    caplog.clear()
    trainer = Trainer(*pairs)
    trainer.fit(reals[:2], 2)
    assert not caplog.records
    for network, state in zip(pairs, before, strict=True):
        parameters = {name for name, _ in network.named_parameters()}
        updated = changed(network, state) & parameters
        assert updated
        assert updated == {name for name in parameters if ".lora_" in name}

    resumed = copy.deepcopy(trainer.state_dict())
    expected = trainer.step(reals[2])
    trainer.load_state_dict(resumed)
    assert trainer.step(reals[2]) == expected
    z = torch.randn(3, 6)
    with torch.no_grad():
        images = pairs[0].eval()(z)
        merged = pairs[0].merge_and_unload()
    assert type(merged) is Generator
    torch.testing.assert_close(merged.sample(z=z), images)


def test_parametrised_layers_are_trained():
    generator, discriminator = networks()
    for module in list(discriminator.modules()):
        if isinstance(module, nn.Conv2d):
            parametrizations.spectral_norm(module)
    trainer = Trainer(generator, discriminator, loss="hinge")
    trainer.fit(batches(30), 30)
    norm = torch.linalg.matrix_norm(discriminator.blocks["8x8"].conv.weight.flatten(1), 2).item()
    assert abs(norm - 1) < 0.05
    state = copy.deepcopy(trainer.state_dict())
    expected = trainer.step(batches(1)[0])
    trainer.load_state_dict(state)
    assert trainer.step(batches(1)[0]) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler itself
def test_compiled_networks_compute_the_same():
    reals = batches(3)
    plain = Trainer(*networks())
    in_place, wrapped = networks(), networks()
    for network in in_place:
        network.compile(backend="eager")
    trainers = [Trainer(*in_place), Trainer(*(torch.compile(network, backend="eager") for network in wrapped))]
    for real in reals:
        expected = plain.step(real)
        for trainer in trainers:
            for name, value in trainer.step(real).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert trainers[0].state_dict()["generator"].keys() == plain.state_dict()["generator"].keys()
    assert trainers[0].ema.sample(2, seed=0).shape == (2, 1, 16, 16)
    assert all(name.startswith("_orig_mod.") for name in trainers[1].state_dict()["generator"])
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the average of each draws with its own weights
        expected = plain.ema.eval()(z)
        for trainer in trainers:
            torch.testing.assert_close(trainer.ema.eval()(z), expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(trainer.generator.eval()(z), expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_restore_everything_or_are_noticed(tmp_path, caplog):
    reals = batches(5)
    trainer = Trainer(*networks())
    trainer.fit(reals[:3], 3)
    dcp.save({"gan": trainer}, checkpoint_id=tmp_path)

    dcp.load({"gan": Trainer(*networks(seed=7))}, checkpoint_id=tmp_path)
    for name in ("g_optimizer", "d_optimizer"):
        assert f"is of step 3, but has no moments of the {name}" in caplog.text
    caplog.clear()
    resumed = Trainer(*networks(seed=7))
    resumed.step(reals[4])
    dcp.load({"gan": resumed}, checkpoint_id=tmp_path)
    for each in (trainer, resumed):
        each.fit(iter(reals[3:]), 5)
    assert all(map(torch.equal, tensors(trainer), tensors(resumed)))
    assert not [record for record in caplog.records if record.name.startswith("dcgan")]
