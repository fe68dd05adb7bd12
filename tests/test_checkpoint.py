"""Training state on disk: complete or refused, never executed, the newest ones kept."""

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from dcgan import checkpoint


def state_of(step):
    return {"step": step, "weights": torch.full((3, 2), float(step)), "groups": [{"lr": 0.1}]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_is_loaded_as_it_was_saved(tmp_path):
    path = checkpoint.save(tmp_path / "state", state_of(7), step=7)
    assert path == tmp_path / "state" / "step-000007.pt"
    loaded = checkpoint.load(path)
    assert loaded["step"] == 7
    assert loaded["groups"] == [{"lr": 0.1}]
    assert torch.equal(loaded["weights"], torch.full((3, 2), 7.0))


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [30]), (2, [20, 30]), (3, [10, 20, 30]), (4, [10, 20, 30]), (9, [10, 20, 30])]
)
def test_the_newest_states_are_kept(tmp_path, keep, left):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, state_of(step), step=step, keep=keep)
    assert names(tmp_path) == [f"step-{step:06d}.pt" for step in left]


def test_what_was_just_saved_stays_even_behind_later_steps(tmp_path):
    for step in (500, 600):
        checkpoint.save(tmp_path, state_of(step), step=step)
    path = checkpoint.save(tmp_path, state_of(100), step=100, keep=2)
    assert checkpoint.load(path)["step"] == 100
    assert names(tmp_path) == ["step-000100.pt", "step-000600.pt"]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoint.save(tmp_path, state_of(1), step=1, keep=0)


@pytest.mark.parametrize("kept", [{30}, {10, 30}, {20, 30, 40}, set()])
def test_pruning_removes_the_states_of_other_steps(tmp_path, kept):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, state_of(step), step=step, keep=None)
    checkpoint.prune(tmp_path, kept)
    assert names(tmp_path) == [f"step-{step:06d}.pt" for step in sorted(kept & {10, 20, 30})]


def test_states_are_ordered_by_number_beyond_six_digits(tmp_path):
    for step in (1_000_000, 999_999, 10_000_000):
        checkpoint.save(tmp_path, state_of(step), step=step, keep=None)
    assert [path.stem for path in checkpoint.list_states(tmp_path)] == ["step-999999", "step-1000000", "step-10000000"]


def test_other_files_in_the_folder_are_not_states(tmp_path):
    for name in ("step-.pt", "step-5.pt.bak", "step-x.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert checkpoint.list_states(tmp_path) == []
    assert checkpoint.list_states(tmp_path / "missing") == []


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".step-000001.pt.123.tmp").write_bytes(b"half a state")
    checkpoint.save(tmp_path, state_of(2), step=2)
    assert names(tmp_path) == ["step-000002.pt"]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_state_is_refused_by_name(tmp_path, share):
    path = checkpoint.save(tmp_path, state_of(1), step=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"step-000001\.pt is not a complete training state"):
        checkpoint.load(path)


def test_code_in_a_state_is_refused_and_not_executed(tmp_path):
    path, trace = tmp_path / "step-000001.pt", tmp_path / "executed"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    for write in (lambda: torch.save({"state": Code()}, path), lambda: path.write_bytes(pickle.dumps(Code()))):
        write()
        with pytest.raises(ValueError, match=r"step-000001\.pt is not a complete training state"):
            checkpoint.load(path)
        assert not trace.exists()


def test_a_state_must_be_a_dictionary(tmp_path):
    torch.save([1, 2], tmp_path / "step-000001.pt")
    with pytest.raises(ValueError, match="must contain a dictionary, got list"):
        checkpoint.load(tmp_path / "step-000001.pt")


def test_a_missing_state_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="step-000001"):
        checkpoint.load(tmp_path / "step-000001.pt")


def test_an_error_while_writing_leaves_the_old_state_and_names_the_file(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, state_of(1), step=1)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*step-000001\.pt"):
        checkpoint.save(tmp_path, {"other": 1}, step=1)
    assert names(tmp_path) == ["step-000001.pt"]
    assert path.read_bytes() == before


def test_an_old_state_that_another_program_holds_is_removed_by_a_later_call(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, state_of(step), step=step)
    unlink = Path.unlink

    def held(self, *args, **kwargs):
        if self.name == "step-000001.pt":
            raise PermissionError(13, "The process cannot access the file", str(self))  # as Windows says
        unlink(self, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", held)
    checkpoint.prune(tmp_path, {2})
    assert names(tmp_path) == ["step-000001.pt", "step-000002.pt"]
    monkeypatch.undo()
    checkpoint.prune(tmp_path, {2})
    assert names(tmp_path) == ["step-000002.pt"]


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    state = state_of(1) | {"trainer": {"steps": 1, "moments": [torch.arange(50.0), torch.ones((), dtype=torch.int64)]}}
    path = checkpoint.save(tmp_path, state, step=1)
    whole, before = path.read_bytes(), _flat(checkpoint.load(path))
    rng, refused = random.Random(0), 0
    for position in [*rng.sample(range(len(whole)), 400), *rng.sample(range(len(whole) - 1500, len(whole)), 400)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            after = checkpoint.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - most are, but a flip in padding may load
            refused += 1
        else:
            assert _flat(after) == before, position
    assert refused > 300


def _flat(value):
    """Everything in a state, types included, as what can be compared."""
    if isinstance(value, dict):
        return {key: _flat(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_flat(item) for item in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else (type(value).__name__, value)
