# SPDX-License-Identifier: Apache-2.0
"""A client's batches for one message: to sketch, to train on, to be scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from torch import nn

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import RunConfig
from atlas_flwr.data import (
    Batch,
    CausalCollator,
    ClassifierCollator,
    Collator,
    ModelSource,
    NextTokenCollator,
    Shard,
    Task,
    by_length,
    in_order,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.seeds import derive_seed
from atlas_flwr.train.pruning import el2n, hardest

__all__ = ["ClientBatches"]

KEPT = "kept-examples"


@dataclass(frozen=True)
class ClientBatches:
    """Makes batches of a client's examples.

    Attributes
    ----------
    config : RunConfig
        The run's configuration.
    me : Identity
        The client.
    source : ModelSource
        The model's, for its tokenizer.
    round : int
        Server round.
    """

    config: RunConfig
    me: Identity
    source: ModelSource
    round: int

    def collator(self, task: Task) -> Collator:
        """Return what makes batches of a task's examples."""
        make = CausalCollator if self.source.kind == "causal" else ClassifierCollator
        collate = make(tokenizer_of(self.source), task, self.config.max_length)
        if self.source.kind == "causal" and self.config.summary_positions:
            return NextTokenCollator(collate)
        return collate

    def to_sketch(self) -> Iterator[Batch]:
        """Return the batches of the fingerprint, no example in two of them."""
        config, shard = self.config, self.me.shard(self.config)
        steps = config.fingerprint_batches
        return sample_batches(
            shard.train,
            self.collator(shard.task),
            # No example twice: the parts must differ as independent draws do.
            batch_size=max(1, min(config.batch_size, len(shard.train) // steps)),
            steps=steps,
            seed=derive_seed(config.seed, "fingerprint", self.me.index, self.round),
        )

    def to_train(
        self, model: nn.Module, store: Callable[[], ClientStore], pooled: int = 0
    ) -> tuple[Sequence[Batch], int]:
        """Return the round's batches, and how many examples they come from.

        Parameters
        ----------
        model : nn.Module
            As the round begins; scores the examples, if they are to be pruned.
        store : Callable[[], ClientStore]
            Opens the client's store, where it says which examples stay.
        pooled : int
            Take the examples of so many clients, in turns, instead of the client's own.
        """
        owners = range(pooled) if pooled else [self.me.index]
        shards = [self.me.shard(self.config, owner) for owner in owners]
        if self.config.prune_data and self.round > 1:
            shards = [self._pruned(shard, model, store()) for shard in shards]
        streams = [
            sample_batches(
                shard.train,
                self.collator(shard.task),
                batch_size=self.config.batch_size,
                steps=self.config.local_steps,
                seed=derive_seed(self.config.seed, "train", self.round, owner),
            )
            for owner, shard in zip(owners, shards, strict=True)
        ]
        batches = list(chain.from_iterable(zip(*streams, strict=True)))
        return batches, sum(len(shard.train) for shard in shards)

    def _pruned(self, shard: Shard, model: nn.Module, store: ClientStore) -> Shard:
        """Drop the examples that are learned already, by scores taken once."""
        found = store.load(KEPT, before=self.round)
        if found is not None:
            kept = found["kept"].tolist()
        else:
            collate = self.collator(shard.task)
            batches = in_order(shard.train, collate, self.config.eval_batch_size)
            scores = el2n(model, batches, collate.label_ids)
            kept = hardest(scores, self.config.prune_data)
            store.save(KEPT, self.round, {"kept": np.array(kept)})
        ordered = by_length(shard.train)
        return replace(shard, train=tuple(ordered[i] for i in kept))
