"""Checkpoints: whole or not at all, two of them, and words for one that is damaged."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError

from atlas_flwr.errors import ResumeError, StorageError
from atlas_flwr.server_apps.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

FILES = ("state.json", "state.safetensors")


def saved(folder, *rounds):
    for number in rounds:
        value = np.full((3, 2), number, np.float32)
        arrays = ArrayRecord({"b": Array(value), "a": Array(-value)})
        state = {"m": value, "c": value}
        save_checkpoint(folder, Checkpoint(number, arrays, state, {"k": number}))
    return folder


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    found = load_checkpoint(saved(tmp_path, 1, 2))
    assert found.round == 2
    assert list(found.arrays) == ["b", "a"]
    assert list(found.state) == ["m", "c"]  # a sum of floats depends on its order
    assert (found.arrays["a"].numpy() == -2).all()
    assert (found.state["m"] == 2).all()
    assert found.values == {"k": 2}


def test_the_last_two_rounds_are_kept(tmp_path):
    saved(tmp_path, 0, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-2", "round-3"]


def test_rounds_of_an_abandoned_future_go(tmp_path):
    saved(tmp_path, 2, 3, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-1"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("length", [0, 10])
def test_a_file_cut_short_is_named_and_the_round_before_offered(tmp_path, file, length):
    saved(tmp_path, 4, 5)
    damaged = tmp_path / "round-5" / file
    damaged.write_bytes(damaged.read_bytes()[:length])
    with pytest.raises(ResumeError) as caught:
        load_checkpoint(tmp_path)
    assert str(damaged) in str(caught.value)
    assert f"round 4 is there, too: remove {damaged.parent}" in str(caught.value)
    shutil.rmtree(damaged.parent)  # as it says
    assert load_checkpoint(tmp_path).round == 4


@pytest.mark.parametrize("file", FILES)
def test_a_lone_damaged_checkpoint_leaves_a_new_start(tmp_path, file):
    (saved(tmp_path, 1) / "round-1" / file).unlink()
    with pytest.raises(ResumeError, match=rf"{file} is damaged.*start the run anew"):
        load_checkpoint(tmp_path)


def test_a_full_disk_is_said_and_costs_no_checkpoint_that_was_there(
    tmp_path, monkeypatch
):
    saved(tmp_path, 1)

    def full(tensors, path):
        path.write_bytes(b"cut")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("atlas_flwr.server_apps.checkpoint.save_file", full)
    with pytest.raises(StorageError, match=r"No space left.*Make room.*resume="):
        saved(tmp_path, 2)
    assert load_checkpoint(tmp_path).round == 1
    assert [path.name for path in tmp_path.iterdir()] == ["round-1"]


def test_a_number_alone_comes_back_as_one(tmp_path):
    """As BatchNorm's counter of batches is."""
    count = np.array(7)
    arrays = ArrayRecord({"count": Array(count)})
    save_checkpoint(tmp_path, Checkpoint(1, arrays, {"count": count}, {}))
    found = load_checkpoint(tmp_path)
    for value in (found.arrays["count"].numpy(), found.state["count"]):
        assert (value.shape, value.dtype) == (count.shape, count.dtype)
        assert value == count
