# SPDX-License-Identifier: Apache-2.0
"""What a client remembers of a run from round to round, on its own disk.

Flower's ``context.state`` ends with the process, and a run that dies must go on where
it was: so each thing is kept with its round, and a round that is done again does not
see what came of it the first time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.data.arrays import read_arrays
from atlas_flwr.data.cache import clients_folder

__all__ = ["ClientStore"]

KEPT = 3
LOST = "what this client has kept of the run is lost; bring it back, or begin anew"


@dataclass(frozen=True)
class ClientStore:
    """A client's folder for one run.

    Attributes
    ----------
    path : Path
        Made when something is first saved.
    saved : Sequence[int]
        Rounds of the server's checkpoints, from which a run goes on.
    """

    path: Path
    saved: Sequence[int] = ()

    @classmethod
    def of(cls, run_id: str, client: int, saved: Sequence[int] = ()) -> ClientStore:
        """Return a client's store in the cache folder.

        Parameters
        ----------
        run_id : str
            The run's.
        client : int
            Its number.
        saved : Sequence[int]
            See the class; only :meth:`save` reads it.

        Raises
        ------
        DataError
            If the run's id could lead out of it.
        """
        return cls(clients_folder(run_id) / str(client), saved)

    def save(
        self, name: str, server_round: int, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Keep arrays under a name and a round; drop those of long ago.

        Those of later rounds are dropped, too: the run was resumed, and these are of
        what it had done before, which may not be done again.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(".draft", f"{name}-", self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            Path(draft).replace(self.path / f"{name}-{server_round}.npz")
        finally:  # where the disk is full every round would leave another
            Path(draft).unlink(missing_ok=True)
        rounds = self._rounds(name)
        before = sorted(r for r in rounds if r < server_round)
        wanted = {*before[-KEPT:], *self._to_resume(before), server_round}
        for other in set(rounds) - wanted:
            (self.path / f"{name}-{other}.npz").unlink()

    def load(self, name: str, *, before: int) -> dict[str, NDArray[Any]] | None:
        """Return what was kept last before a round; ``None`` for nothing.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        rounds = [found for found in self._rounds(name) if found < before]
        if not rounds:
            return None
        return read_arrays(self.path / f"{name}-{max(rounds)}.npz", LOST)

    def _to_resume(self, rounds: Sequence[int]) -> Iterator[int]:
        """Yield the round whose arrays a run needs that goes on from a checkpoint."""
        for checkpoint in self.saved:
            if known := [number for number in rounds if number <= checkpoint]:
                yield max(known)

    def _rounds(self, name: str) -> list[int]:
        paths = self.path.glob(f"{name}-*.npz")
        return [int(path.stem.rpartition("-")[2]) for path in paths]
