# SPDX-License-Identifier: Apache-2.0
"""What can happen to the trunk that a run serves: it is lost, or refuses calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CallsRefused", "TrunkRestarted"]


@dataclass(frozen=True)
class CallsRefused:
    """The trunk that the ServerApp serves answered calls by an error.

    Attributes
    ----------
    round : int
        Server round; 0 for what came before the first.
    counts : Mapping[str, int]
        How many, by the kind of error.
    """

    round: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class TrunkRestarted:
    """The trunk was lost and is started again.

    Attributes
    ----------
    round : int
        Rounds that are done; -1 where not even the evaluation before the first is. What
        was written about the next one is void.
    reason : str
        How it was lost.
    """

    round: int
    reason: str
