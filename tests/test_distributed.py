"""Several processes train one pair of networks. Each process checks its own side; the first failure is raised here."""

import copy

import pytest
import torch
import torch.distributed as dist
from processes import run_in_processes
from torch import nn

from dcgan import Discriminator, Generator, Trainer
from dcgan.latents import derive_seed
from dcgan.losses import LOSSES

TINY = {"image_size": 16, "channels": 1, "base_channels": 4}
STEPS = 4


def networks(norm, seed=1):
    torch.manual_seed(seed)
    return Generator(latent_dim=6, norm=norm, **TINY).double(), Discriminator(norm=norm, **TINY).double()


def joint_batches(processes):
    rng = torch.Generator().manual_seed(2)
    return [torch.rand(4 * processes, 1, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(STEPS)]


def tensors(trainer):
    return [
        tensor
        for network in (trainer.generator, trainer.discriminator, trainer.ema)
        for tensor in [*network.parameters(), *network.buffers()]
    ]


def expect_the_same_everywhere(trainer):
    for tensor in tensors(trainer):
        first = tensor.detach().double().clone()
        dist.broadcast(first, src=0)
        assert torch.equal(tensor.double(), first)


def equal_to_one_process(rank, processes, references, in_shards):
    """N processes with parts of a batch do what one does with all of it, whatever weights they start from."""
    for options, expected in references:
        trainer = Trainer(*networks("none", seed=1 + rank), **options)
        for batch in joint_batches(processes):
            trainer.step(batch.chunk(processes)[rank])
            expect_the_same_everywhere(trainer)
        for ours, one in zip(tensors(trainer), expected, strict=True):
            torch.testing.assert_close(ours, one, rtol=0, atol=1e-10)

    with_batchnorm(rank, processes, in_shards)
    wrapped(rank, processes)
    with_other_parts(rank, processes)
    drawing_apart(rank)
    of_other_shapes(rank)


def with_batchnorm(rank, processes, expected):
    """Each process normalises its own images; statistics, weights and resumed runs stay the same in all."""
    trainer = Trainer(*networks("batch", seed=1 + rank), max_grad_norm=1.0)
    state = None
    for step, batch in enumerate(joint_batches(processes)):
        trainer.step(batch.chunk(processes)[rank])
        expect_the_same_everywhere(trainer)
        if step == 1:
            state = [copy.deepcopy(trainer.state_dict())]
            dist.broadcast_object_list(state, src=0)
    for ours, one in zip(tensors(trainer)[: len(expected)], expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=0, atol=1e-10)

    resumed = Trainer(*networks("batch", seed=9), max_grad_norm=1.0)
    resumed.load_state_dict(state[0])
    for batch in joint_batches(processes)[2:]:
        resumed.step(batch.chunk(processes)[rank])
    assert all(map(torch.equal, tensors(trainer), tensors(resumed)))


def trained_in_shards(processes):
    """The tensors of both networks after the steps, each part of a batch normalised by itself, in one process."""
    whole = networks("batch", seed=1)
    adams = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in whole]
    loss = LOSSES["non-saturating"]
    for step, batch in enumerate(joint_batches(processes)):
        rng = torch.Generator().manual_seed(derive_seed(0, step, 1))
        latents = torch.randn(len(batch), 6, generator=rng, dtype=torch.float64).chunk(processes)
        generators, discriminators = ([copy.deepcopy(network) for _ in range(processes)] for network in whole)
        fakes = [generator(z) for generator, z in zip(generators, latents, strict=True)]
        for discriminator, real, fake in zip(discriminators, batch.chunk(processes), fakes, strict=True):
            loss.discriminator(discriminator(real), discriminator(fake.detach())).backward()
        update(whole[1], discriminators, adams[1])
        for discriminator, fake in zip(discriminators, fakes, strict=True):
            loss.generator(discriminator(fake)).backward()
        update(whole[0], generators, adams[0])
        for network, copies in zip(whole, (generators, discriminators), strict=True):
            for name, buffer in network.named_buffers():
                buffer.copy_(mean([each.get_buffer(name).double() for each in copies]))
    return [tensor.detach() for network in whole for tensor in [*network.parameters(), *network.buffers()]]


def update(network, copies, adam):
    """Update a network along the mean gradient of its copies, and then the copies' weights."""
    for name, parameter in network.named_parameters():
        parameter.grad = mean([each.get_parameter(name).grad for each in copies])
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    adam.step()
    for each in copies:
        each.load_state_dict(dict(network.named_parameters()), strict=False)


def mean(tensors):
    return torch.stack(tensors).mean(0)


def wrapped(rank, processes):
    """The network inside a DistributedDataParallel is trained, under its own name."""
    generator, discriminator = networks("batch")
    wrappers = [nn.parallel.DistributedDataParallel(network) for network in (generator, discriminator)]
    trainer = Trainer(*wrappers)
    assert trainer.generator is generator
    for batch in joint_batches(processes):
        trainer.step(batch.chunk(processes)[rank])
    expect_the_same_everywhere(trainer)
    assert trainer.ema.sample(2, seed=0).shape == (2, 1, 16, 16)


class Parts(nn.Module):
    """A discriminator whose parts depend on the process, and whose statistics and buffers are not BatchNorm's."""

    def __init__(self, rank):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1, track_running_stats=True)
        self.layers = nn.ModuleList(nn.Linear(256, 1) for _ in range(3))
        self.register_buffer("whole", torch.tensor([rank, 7], dtype=torch.int16))
        self.register_buffer("same", torch.ones(1).expand(3))
        self.rank = rank

    def forward(self, images):
        return self.layers[self.rank % 2](self.norm(images).flatten(1))


def with_other_parts(rank, processes):
    """What a process does not use counts as a gradient of zero; what none uses stays as it is."""
    torch.manual_seed(rank)
    generator, discriminator = networks("batch")[0], Parts(rank).double()
    trainer = Trainer(generator, discriminator, g_lr=0.0, weight_decay=0.1)
    assert discriminator.whole.tolist() == [0, 7]
    before = [layer.weight.detach().clone() for layer in discriminator.layers]
    for batch in joint_batches(processes):
        trainer.step(batch.chunk(processes)[rank])
        expect_the_same_everywhere(trainer)
    moved = [not torch.equal(layer.weight, weight) for layer, weight in zip(discriminator.layers, before, strict=True)]
    assert moved == [True, True, False]


def drawing_apart(rank):
    """Latents, augmentations and dropout are other numbers in each process."""
    latents, images, dropped = [], [], []
    generator, _ = networks("none")
    discriminator = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 1)).double()
    generator.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    discriminator.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    discriminator[1].register_forward_hook(lambda _, inputs, output: dropped.append(output))
    Trainer(generator, discriminator, augmentations=["translation"]).step(joint_batches(1)[0].abs() + 0.1)
    for mine in (latents[0], images[0], dropped[0]):
        first = mine.detach().clone()
        dist.broadcast(first, src=0)
        assert torch.equal(mine, first) == (rank == 0)


def of_other_shapes(rank):
    """Networks that are not the same are named in every process."""
    generator, _ = networks("none")
    with pytest.raises(ValueError, match=r"must be the same, but process 0 has .*0.weight', \(1, 256\).*process 1"):
        Trainer(generator, nn.Sequential(nn.Linear(256 + rank, 1)).double())


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_as_one_on_the_joint_batch(processes):
    references = []
    for options in ({}, {"schedule": "alternate", "weight_decay": 1e-3}, {"r1": 0.5, "max_grad_norm": 0.1}):
        trainer = Trainer(*networks("none"), **options)
        for batch in joint_batches(processes):
            trainer.step(batch)
        references.append((options, [tensor.detach() for tensor in tensors(trainer)]))
    run_in_processes(equal_to_one_process, processes, processes, references, trained_in_shards(processes))


def test_a_trainer_of_another_number_of_processes_refuses_to_train(monkeypatch):
    trainer = Trainer(*networks("batch"))
    monkeypatch.setattr("dcgan._checks.process_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"built for 1 process\(es\), but now there are 2.*build the trainer after"):
        trainer.step(joint_batches(1)[0])
    assert trainer.steps == 0


def test_processes_that_train_alone_are_noticed(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "1")
    Trainer(*networks("batch"))
    assert not caplog.records
    monkeypatch.setenv("WORLD_SIZE", "2")
    Trainer(*networks("batch"))
    assert "WORLD_SIZE is 2, but there is no process group" in caplog.text
