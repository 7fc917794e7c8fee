# SPDX-License-Identifier: Apache-2.0
"""Telling a client's task by how much it sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atlas_flwr.privacy.attacks.base import TaskAttack

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Traffic"]


class Traffic(TaskAttack):
    """Compares sizes with those that texts of each task would give; TLS hides none.

    The likeliest task, where a step's size is a sum of lengths that are drawn
    independently, taken to be normal.
    """

    name = "traffic"
    about = "the sizes of a round's steps are those of texts of which task?"

    def guess(
        self, sizes: NDArray[Any], rows: int, lengths: Mapping[str, NDArray[Any]]
    ) -> str:
        """Return the likeliest task."""
        import numpy as np

        def unlikeliness(known: NDArray[Any]) -> float:
            mean, variance = rows * known.mean(), max(rows * known.var(), 1e-3)
            off = np.square(sizes - mean) / variance + np.log(variance)
            return float(off.sum())

        return min(lengths, key=lambda task: unlikeliness(lengths[task]))
