# SPDX-License-Identifier: Apache-2.0
"""What the trunk's adapters of a client were as a round began, beside a recording.

They never cross to the client, so no recording of its has them. The server does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from atlas_flwr.data.arrays import read_arrays
from atlas_flwr.lora import AdapterState
from atlas_flwr.lora.flattening import flatten, unflatten
from atlas_flwr.privacy.observation import ANEW

__all__ = ["keep_start", "kept_start"]

FOLDER, PREFIX, FOLDED = "trunk", "start", "folded"
ROUNDS = 4  # as a recording has


def keep_start(wire: Path, client: str, number: int, state: AdapterState) -> None:
    """Write down what a session on the trunk began with.

    Parameters
    ----------
    wire : Path
        The run's folder of what was recorded; what is older than a recording goes.
    client : str
        Whose session.
    number : int
        Server round.
    state : AdapterState
        The trunk's share of the client's adapters, and of what is folded.
    """
    folded = AdapterState(state.folded)
    path = _path(wire, client, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = flatten(state, PREFIX) | flatten(folded, FOLDED)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    draft.replace(path)  # so that one that is there is whole
    kept = (one.stem.rpartition("-") for one in path.parent.glob("*.npz"))
    numbers = sorted(int(number) for whose, _, number in kept if whose == client)
    for old in numbers[:-ROUNDS]:
        _path(wire, client, old).unlink()


def kept_start(wire: Path, client: str, number: int) -> AdapterState | None:
    """Return what :func:`keep_start` wrote; ``None`` where it did not.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = _path(wire, client, number)
    if not path.is_file():
        return None
    arrays = read_arrays(path, ANEW)
    return replace(unflatten(arrays, PREFIX), folded=unflatten(arrays, FOLDED).factors)


def _path(wire: Path, client: str, number: int) -> Path:
    return wire / FOLDER / f"{client}-{number}.npz"
