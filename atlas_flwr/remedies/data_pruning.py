# SPDX-License-Identifier: Apache-2.0
"""Pruning of a client's data after its first round (arXiv 2107.07075).

See :mod:`atlas_flwr.train.el2n` for the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atlas_flwr.options import Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Collator, Shard
    from atlas_flwr.lora import AdapterState

__all__ = ["DataPruning", "PruningKeys"]

KEPT = "kept-examples"
TRAINED = "trained-before"  # of no arrays: that it is there says it


@dataclass(frozen=True)
class PruningKeys:
    """Keys of the run config."""

    prune_data: float = option(
        0.0,
        "Share of its training examples that a client drops after its first round: "
        "those with the smallest error (EL2N). Scoring costs a forward pass over all "
        "of them, once.",
        minimum=0,
        maximum=0.95,
    )


class DataPruning(Remedy):
    """Lets a client go on with the examples that it has not learned yet."""

    name = "prune-data"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want clients that have data of their own."""
        if config.prune_data and config.strategy == "centralized":
            yield Problem(
                ("prune-data", "strategy"),
                f"prune-data={config.prune_data}: clients prune their own data, and "
                "centralized pools it; set prune-data=0.0",
            )

    def needs_classes(self, config: RunConfig) -> bool:
        """Tell whether examples are scored, which is by their classes."""
        return config.prune_data > 0

    def client(self, now: RoundContext) -> ClientHooks:
        """Prune, from the second round on in which the client trains."""
        return _Pruned(now) if now.config.prune_data else ClientHooks()


@dataclass(frozen=True)
class _Pruned(ClientHooks):
    now: RoundContext

    def shard(self, shard: Shard, model: Any, collate: Collator) -> Shard:
        """Drop the examples that are learned already, by scores taken once."""
        import numpy as np

        from atlas_flwr.data import by_length, in_order
        from atlas_flwr.train.el2n import el2n, hardest

        config, store = self.now.config, self.now.store()
        found = store.load(KEPT, before=self.now.round)
        if found is not None:
            kept = found["kept"].tolist()
        elif store.load(TRAINED, before=self.now.round) is None:
            return shard  # who has learned nothing knows nothing by heart
        else:
            batches = in_order(shard.train, collate, config.eval_batch_size)
            scores = el2n(model, batches, collate.label_ids)
            kept = hardest(scores, config.prune_data)
            store.save(KEPT, self.now.round, {"kept": np.array(kept)})
        ordered = by_length(shard.train)
        return replace(shard, train=tuple(ordered[i] for i in kept))

    def trained(self, state: AdapterState) -> AdapterState:
        """Take note of the first round in which the client has trained."""
        store = self.now.store()
        if store.load(TRAINED, before=self.now.round) is None:
            store.save(TRAINED, self.now.round, {})
        return state
