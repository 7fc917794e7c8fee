# SPDX-License-Identifier: Apache-2.0
"""A wrapper that makes any strategy resumable: same seed, same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from atlas_flwr.seeds import derive_seed

__all__ = ["Resumable", "Stateful", "seed_draws"]

Arrays = Mapping[str, NDArray[Any]]


def seed_draws(seed: int, what: str, server_round: int) -> None:
    """Seed Python's global generator, from which Flower's own strategies draw nodes.

    Parameters
    ----------
    seed, server_round : int
        Of the run; 0 is the round before training.
    what : str
        ``"train"`` or ``"evaluate"``.
    """
    random.seed(derive_seed(seed, what, server_round))


@runtime_checkable
class Stateful(Protocol):
    """A strategy with more to save than its global arrays."""

    def state(self) -> tuple[Arrays, Mapping[str, object]]:
        """Return arrays and JSON values."""
        ...

    def restore(self, arrays: Arrays, values: Mapping[str, object]) -> None:
        """Take up what :meth:`state` returned."""
        ...


class Resumable(Strategy):
    """Count rounds from where a former run ended, and report each round's end.

    Parameters
    ----------
    inner : Strategy
        Any strategy.
    first_round : int
        The round to start with, from 1.
    seed : int
        Flower's own strategies sample nodes from Python's global generator. It is
        seeded here before each use from the seed and the round, so that their draws
        are the same in a resumed run.
    evaluate_every : int
        Rounds between evaluations.
    last_round : int, optional
        Evaluated in any case.
    on_round_end : Callable[[int, ArrayRecord], None]
        Called after a round's evaluation with the round and the current arrays.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        first_round: int = 1,
        seed: int = 0,
        evaluate_every: int = 1,
        last_round: int | None = None,
        on_round_end: Callable[[int, ArrayRecord], None],
    ) -> None:
        self.inner = inner
        self.offset = first_round - 1
        self.seed = seed
        self.evaluate_every = evaluate_every
        self.last_round = last_round
        self.on_round_end = on_round_end
        self.arrays = ArrayRecord()

    def summary(self) -> None:
        """Log the inner strategy's summary."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of training."""
        self.arrays = arrays
        actual = server_round + self.offset
        seed_draws(self.seed, "train", actual)
        return self.inner.configure_train(actual, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate training results."""
        actual = server_round + self.offset
        arrays, metrics = self.inner.aggregate_train(actual, replies)
        if arrays is not None:
            self.arrays = arrays
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of evaluation."""
        actual = server_round + self.offset
        if actual % self.evaluate_every and actual != self.last_round:
            return []
        seed_draws(self.seed, "evaluate", actual)
        return self.inner.configure_evaluate(actual, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate evaluation results and end the round."""
        actual = server_round + self.offset
        metrics = self.inner.aggregate_evaluate(actual, replies)
        self.on_round_end(actual, self.arrays)
        return metrics
