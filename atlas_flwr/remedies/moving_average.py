# SPDX-License-Identifier: Apache-2.0
"""A cluster that keeps a share of its own former product: a moving average over rounds.

The same as a server learning rate of 1 minus the share, on products B A.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.errors import DataError
from atlas_flwr.options import ATLAS, Problem, option
from atlas_flwr.remedies.base import Blocks, Remedy, ServerHooks

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.remedies.base import Average

__all__ = ["AverageKeys", "MovingAverage"]


@dataclass(frozen=True)
class AverageKeys:
    """Keys of the run config."""

    ema: float = option(
        0.0,
        "Share of a cluster's former product that is kept in each aggregation, against "
        "forgetting; the same as a server learning rate of 1 minus it. It slows "
        "short runs down.",
        minimum=0,
        maximum=0.99,
        only=ATLAS,
    )


class MovingAverage(Remedy):
    """Averages a cluster's product with its former one."""

    name = "ema"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want products that are added."""
        if config.ema and config.aggregation in ("mean", "none"):
            yield Problem(
                ("ema", "aggregation"),
                f"ema={config.ema}: products are averaged, and aggregation="
                f"{config.aggregation!r} has none; set ema=0.0, or aggregation='both'",
            )

    def server(self, config: RunConfig, blocks: Blocks) -> ServerHooks:
        """Average, if some is to be kept."""
        return KeptShare(config.ema) if config.ema else ServerHooks()


@dataclass(frozen=True)
class KeptShare(ServerHooks):
    """Keeps a share of what a group held.

    Attributes
    ----------
    share : float
        From 0 to below 1.

    Raises
    ------
    DataError
        If the share is impossible.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise DataError(f"ema={self.share}; allowed: from 0 to below 1")

    def combined(
        self, before: AdapterState, after: AdapterState, average: Average
    ) -> AdapterState:
        """Return share W_before + (1 - share) W_after."""
        return average(before, after, self.share)
