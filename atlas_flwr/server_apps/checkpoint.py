# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the state after a round, on disk as a whole or not at all.

The round before stays, for the case that a disk gives a file back cut short.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from atlas_flwr.errors import ResumeError
from atlas_flwr.report.store import writing

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint", "saved_rounds"]

_TENSORS, _VALUES = "state.safetensors", "state.json"
_OURS, _THEIRS = "arrays/", "strategy/"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run's state.

    Attributes
    ----------
    round : int
        The last round that is complete.
    arrays : ArrayRecord
        The strategy's global arrays.
    state : Mapping[str, NDArray]
        Other arrays of the strategy.
    values : Mapping[str, object]
        Its JSON values.
    """

    round: int
    arrays: ArrayRecord
    state: Mapping[str, NDArray[Any]]
    values: Mapping[str, object]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/round-<n>``; keep the one before, and remove what is older."""
    draft = folder / f".round-{checkpoint.round}"
    try:
        with writing(folder):
            _write(folder, draft, checkpoint)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # of one that was broken off
    found = saved_rounds(folder)
    # Rounds above this one are of a run that was resumed from before them.
    kept = [number for number in found if number <= checkpoint.round][-_KEPT:]
    for number in set(found).difference(kept):
        shutil.rmtree(folder / f"round-{number}")


def _write(folder: Path, draft: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"round-{checkpoint.round}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tensors = {_OURS + key: a.numpy() for key, a in checkpoint.arrays.items()}
    tensors |= {_THEIRS + key: value for key, value in checkpoint.state.items()}
    # Not ascontiguousarray, which makes a row of a single number.
    whole = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    save_file(whole, draft / _TENSORS)
    values = {
        "round": checkpoint.round,
        # safetensors sorts, and a sum of floats depends on its order.
        "arrays": list(checkpoint.arrays),
        "state": list(checkpoint.state),
        "strategy": dict(checkpoint.values),
    }
    (draft / _VALUES).write_text(json.dumps(values), encoding="utf-8")
    for file in draft.iterdir():
        _onto_disk(file)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    _onto_disk(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the last complete checkpoint.

    Raises
    ------
    ResumeError
        If there is none, or its files are damaged.
    """
    rounds = saved_rounds(folder)
    if not rounds:
        raise ResumeError(
            f"{folder} has no checkpoint: the run stopped in its first round, or had "
            "checkpoint-every=0; start it anew"
        )
    path = folder / f"round-{rounds[-1]}"
    values = _read(path / _VALUES, _json, rounds)
    tensors = _read(path / _TENSORS, load_file, rounds)
    arrays = {
        key.removeprefix(_OURS): Array(value)
        for key, value in tensors.items()
        if key.startswith(_OURS)
    }
    state = {
        key.removeprefix(_THEIRS): value
        for key, value in tensors.items()
        if key.startswith(_THEIRS)
    }
    record = ArrayRecord({key: arrays[key] for key in values["arrays"]})
    order = values.get("state", state)  # not in older ones
    state = {key: state[key] for key in order}
    return Checkpoint(values["round"], record, state, values["strategy"])


def _read(file: Path, read: Callable[[Path], Any], rounds: Sequence[int]) -> Any:
    try:
        return read(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ResumeError(
            f"{file} is damaged or cut short ({error}); {_way_on(file.parent, rounds)}"
        ) from None


def _way_on(damaged: Path, rounds: Sequence[int]) -> str:
    if len(rounds) < 2:
        return "there is no checkpoint of another round; start the run anew"
    return (
        f"the checkpoint of round {rounds[-2]} is there, too: remove {damaged} and "
        "resume again to go on from it"
    )


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def saved_rounds(folder: Path) -> list[int]:
    """List the rounds of which there is a checkpoint, the last one last."""
    names = (path.name.removeprefix("round-") for path in folder.glob("round-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _onto_disk(path: Path) -> None:
    """Make the system write a file, or a folder's names, out."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
