# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the state after a round, on disk as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from atlas_flwr.errors import ResumeError

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_TENSORS, _VALUES = "state.safetensors", "state.json"
_OURS, _THEIRS = "arrays/", "strategy/"


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
    """Write ``folder/round-<n>`` and remove the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"round-{checkpoint.round}"
    draft, target = folder / f".{name}", folder / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tensors = {_OURS + key: a.numpy() for key, a in checkpoint.arrays.items()}
    tensors |= {_THEIRS + key: value for key, value in checkpoint.state.items()}
    whole = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(whole, draft / _TENSORS)
    values = {
        "round": checkpoint.round,
        "arrays": list(checkpoint.arrays),  # safetensors sorts; sums keep their order
        "strategy": dict(checkpoint.values),
    }
    (draft / _VALUES).write_text(json.dumps(values), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    for old in _rounds(folder):
        if old != checkpoint.round:
            shutil.rmtree(folder / f"round-{old}")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the last complete checkpoint.

    Raises
    ------
    ResumeError
        If there is none.
    """
    rounds = _rounds(folder)
    if not rounds:
        raise ResumeError(
            f"{folder} has no checkpoint: the run stopped in its first round, or had "
            "checkpoint-every=0; start it anew"
        )
    path = folder / f"round-{max(rounds)}"
    values = json.loads((path / _VALUES).read_text(encoding="utf-8"))
    tensors = load_file(path / _TENSORS)
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
    return Checkpoint(values["round"], record, state, values["strategy"])


def _rounds(folder: Path) -> list[int]:
    return [
        int(path.name.removeprefix("round-"))
        for path in folder.glob("round-*")
        if (path / _VALUES).is_file()
    ]
