"""A short campaign of faults; `python tests/faults` is a long one."""

import pytest
from campaign import FLIPPED, Campaign


@pytest.fixture(scope="module")
def _campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("faults"), seed=1)


@pytest.fixture
def campaign(_campaign):
    """The campaign without the losses of other tests, which run in any order."""
    _campaign.lost.clear()
    return _campaign


def test_killed_runs_end_as_unbroken_ones(campaign):
    campaign.kill(rounds=4)
    assert campaign.lost == []
    assert campaign.counts["kills"] > 2


def test_full_disks_lose_nothing(campaign):
    campaign.fill_disk()
    assert campaign.lost == []


@pytest.mark.parametrize("kind", FLIPPED)
def test_flipped_bits_change_nothing_without_a_word(campaign, kind):
    campaign.flip(kind)
    assert campaign.lost == []


def test_the_judge_finds_losses(campaign, monkeypatch):
    monkeypatch.setitem(campaign.expected, "metrics", [])
    campaign.flip("samples/step-*.png")
    campaign.flip("config.json")
    assert len(campaign.lost) == 1
