import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan.latents import derive_seed, sample_latents, seeded_latents


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 2**40), st.sampled_from(["normal", "uniform"]))
def test_a_latent_depends_on_seed_and_index_alone(start, n, seed, distribution):
    whole = seeded_latents(1400, 3, seed=seed, distribution=distribution)
    assert torch.equal(
        seeded_latents(n, 3, seed=seed, start=start, distribution=distribution), whole[start : start + n]
    )


@pytest.mark.parametrize(("distribution", "bound", "deviation"), [("normal", 7, 1.0), ("uniform", 1, 3**-0.5)])
def test_latents_follow_their_distribution(distribution, bound, deviation):
    z = seeded_latents(20_000, 5, seed=0, distribution=distribution)
    assert z.abs().max() <= bound
    assert z.mean().abs() < 0.01
    assert abs(z.std() - deviation) < 0.01


def test_seeds_of_nearby_words_are_unrelated_in_the_bits_the_cpu_keeps():
    seeds = {derive_seed(a, b) % 2**32 for a in range(60) for b in range(60)}
    assert len(seeds) >= 3598  # of 3600: two would collide by chance once in 600 such sets
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(0, 5) == 1917503096803325388


def test_latents_of_a_seed_are_frozen():
    """A change here changes every image that anyone has published by its seed."""
    expected = torch.randn(256, 4, generator=torch.Generator().manual_seed(derive_seed(11, 0)))
    assert torch.equal(seeded_latents(256, 4, seed=11), expected)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        seeded_latents(-1, 4, seed=0)
    with pytest.raises(ValueError, match="distribution must be 'normal', 'uniform' or a function, got 'gauss'"):
        sample_latents((2, 3), "gauss", torch.Generator())
    with pytest.raises(ValueError, match="seeds must be non-negative integers of at most 64 bits"):
        derive_seed(-1)
