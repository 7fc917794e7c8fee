# SPDX-License-Identifier: Apache-2.0
"""A client's batches for one message: to sketch, to train on, to be scored on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path

from torch import nn

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import (
    Batch,
    Collator,
    Example,
    ModelSource,
    NextTokenCollator,
    Shard,
    Task,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.data.collation import collator_of
from atlas_flwr.data.drawing import sample_examples
from atlas_flwr.data.label_counts import LOOKED_AT, most_labels
from atlas_flwr.remedies import ClientHooks
from atlas_flwr.seeds import derive_seed

__all__ = ["ClientBatches"]

COLLATORS = 16  # kept, with their rows' tokens


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
    hooks : ClientHooks
        Change what the client has and how it is read, and choose among it.
    """

    config: RunConfig
    me: Identity
    source: ModelSource
    round: int
    hooks: ClientHooks = field(default_factory=ClientHooks)

    def shard(self, owner: int | None = None) -> Shard:
        """Return the client's text, or another's, as remedies leave it."""
        return self.hooks.own(self.me.shard(self.config, owner))

    def collator(self, task: Task) -> Collator:
        """Return what makes batches of a task's examples."""
        given = self.source, task, self.config.max_length
        collate = self.hooks.collating(_collator(*given, _written(self.source)))
        if self.source.kind == "causal" and self.config.summary_positions:
            return NextTokenCollator(collate)
        return collate

    def read(self) -> None:
        """Read the client's text and its tokenizer; both are then kept."""
        self.collator(self.shard().task)

    def to_sketch(self) -> Iterator[Batch]:
        """Return the batches of the fingerprint, no example in two of them.

        Of few examples there are fewer batches; only of fewer than there are parts some
        are in several.
        """
        config, examples = self.config, self._own()
        most = min(config.fingerprint_batches, len(examples))
        steps = max(most, config.fingerprint_parts)
        return sample_batches(
            examples,
            self.collator(self.shard().task),
            # No example twice: the parts must differ as independent draws do.
            batch_size=max(1, min(config.batch_size, len(examples) // steps)),
            steps=steps,
            seed=derive_seed(config.seed, "fingerprint", self.me.index, self.round),
        )

    def count(self) -> int:
        """Tell how many examples the client has, of which fingerprints are made."""
        return len(self._own())

    def _own(self) -> Sequence[Example]:
        shard = self.shard()
        prepared = self.collator(shard.task).prepared(shard.train)
        return self._some(prepared, self.config.train_examples)

    def to_train(
        self, model: nn.Module, pooled: Sequence[int] = ()
    ) -> tuple[Sequence[Batch], int]:
        """Return the round's batches, and how many examples they come from.

        Parameters
        ----------
        model : nn.Module
            As the round begins.
        pooled : Sequence[int]
            Take the examples of these clients, in turns, instead of the client's own.
        """
        owners = pooled or [self.me.index]
        held = [self.shard(owner) for owner in owners]
        shards = [self.hooks.shard(s, model, self.collator(s.task)) for s in held]
        collators = [self.collator(shard.task) for shard in shards]
        most = self.config.train_examples
        examples = [
            self._some(collate.prepared(shard.train), most)
            for collate, shard in zip(collators, shards, strict=True)
        ]
        streams = [
            sample_batches(
                own,
                collate,
                batch_size=self.config.batch_size,
                steps=self.config.local_steps * self.config.accumulate,
                seed=derive_seed(self.config.seed, "train", self.round, owner),
            )
            for owner, own, collate in zip(owners, examples, collators, strict=True)
        ]
        batches = list(chain.from_iterable(zip(*streams, strict=True)))
        return batches, sum(map(len, examples))

    def trained_on(self) -> tuple[list[Example], list[Example]]:
        """Return the client's own examples that :meth:`to_train` draws, and tests.

        As no remedy chooses among them; each once.
        """
        drawn = self._drawn(self.round)
        test, _ = self.to_score(self.collator(self.shard().task))
        return list(dict.fromkeys(chain.from_iterable(drawn))), list(test)

    def _drawn(self, server_round: int) -> Iterator[list[Example]]:
        """Yield the examples of each of a round's batches, the client's own."""
        config, shard = self.config, self.shard()
        collate = self.collator(shard.task)
        yield from sample_examples(
            self._some(collate.prepared(shard.train), config.train_examples),
            batch_size=config.batch_size,
            steps=config.local_steps * config.accumulate,
            seed=derive_seed(config.seed, "train", server_round, self.me.index),
        )

    def most_labels(self) -> int:
        """Return the labels of an example, on average, in the fullest training step.

        Those of the first rounds are looked at, however many rounds a run has.
        """
        steps = self.config.local_steps * self.config.accumulate
        rounds = range(1, math.ceil(LOOKED_AT / steps) + 1)
        drawn = chain.from_iterable(map(self._drawn, rounds))
        return most_labels(self.collator(self.shard().task), drawn)

    def to_score(
        self, collate: Collator
    ) -> tuple[Sequence[Example], Sequence[Example]]:
        """Return the examples that answers are scored on, and those learned from."""
        config, shard = self.config, self.shard()
        test = self._some(collate.prepared(shard.test), config.test_examples)
        return test, self._some(collate.prepared(shard.train), config.train_examples)

    @staticmethod
    def _some(examples: Sequence[Example], most: int) -> Sequence[Example]:
        """Take no more than ``most``, if it is above 0, evenly from all of them."""
        count = len(examples)
        if not most or count <= most:
            return examples
        return [examples[i * count // most] for i in range(most)]


@lru_cache(maxsize=COLLATORS)
def _collator(
    source: ModelSource, task: Task, max_length: int, written: tuple[int, ...]
) -> Collator:
    """Make a collator for all messages that this process answers.

    A tokenizer takes longer to read than a step's texts to cut into tokens, and the
    texts are the same in every message.
    """
    return collator_of(source, tokenizer_of(source), task, max_length)


def _written(source: ModelSource) -> tuple[int, ...]:
    """Return when the files of a tokenizer on this machine were written."""
    files = sorted(Path(source.path).glob("*token*"))
    return tuple(file.stat().st_mtime_ns for file in files)
