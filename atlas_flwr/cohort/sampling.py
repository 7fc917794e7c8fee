# SPDX-License-Identifier: Apache-2.0
"""Node sampling: as many as FedAvg takes, drawn from the run's seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from atlas_flwr.seeds import derive_seed

__all__ = ["draw", "sample_size"]


def sample_size(num_nodes: int, fraction: float, minimum: int) -> int:
    """Return FedAvg's sample size: ``max(int(num_nodes * fraction), minimum)``."""
    return max(int(num_nodes * fraction), minimum)


def draw(nodes: Sequence[int], size: int, seed: int, *names: object) -> list[int]:
    """Draw ``size`` of the nodes without replacement, keeping their order.

    Parameters
    ----------
    nodes : Sequence[int]
        Candidates, in an order that is the same in every run.
    size : int
        At most ``len(nodes)`` are drawn.
    seed : int
        The run's seed.
    *names : object
        What is drawn for: the round, ``"train"`` or ``"evaluate"``.
    """
    if size >= len(nodes):
        return list(nodes)
    rng = random.Random(derive_seed(seed, "sample", *names))
    chosen = set(rng.sample(range(len(nodes)), size))
    return [node for index, node in enumerate(nodes) if index in chosen]
