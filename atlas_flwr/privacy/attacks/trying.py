# SPDX-License-Identifier: Apache-2.0
"""Guesses tried through a causal head, from left to right.

Shapes: T tokens, D width, G guesses of a place, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.privacy.attacks.learned import LearnedReader
from atlas_flwr.privacy.attacks.reader import LinearReader, Reader
from atlas_flwr.privacy.knowledge import Knowledge
from atlas_flwr.privacy.observation import Observation

__all__ = ["Trying"]

GUESSES = 256
ROWS = 1024
SAME = 1e-3  # relative distance below which a guess is what was sent


@dataclass(frozen=True)
class Trying:
    """Tries a reader's guesses.

    Attributes
    ----------
    knowledge : Knowledge
        For head, defence and codec.
    reader : Reader
        Makes the guesses; a learned one where the defence draws.
    firsts : Tensor
        Shape (V, D): what every token gives where it begins a text, by one of the
        heads; no reader knows that place, which sees nothing but itself.
    """

    knowledge: Knowledge
    reader: Reader
    firsts: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, knowledge: Knowledge, seen: Sequence[Observation]) -> Trying:
        """Fit the reader, and run the vocabulary."""
        knowledge = knowledge.of_sent
        table = knowledge.table(seen[0])
        fitted: Reader = LinearReader(knowledge.known, table, first=False)
        if knowledge.defence.draws:
            fitted = LearnedReader.of(knowledge, seen[0])
        head = knowledge.model.head(seen[0])
        rows = torch.arange(len(table))[:, None].split(ROWS)
        parts = [head(input_ids=r, use_cache=False).last_hidden_state for r in rows]
        return cls(knowledge, fitted, torch.cat([p[:, 0] for p in parts]))

    @torch.no_grad()
    def read(self, seen: Observation) -> Tensor:
        """Return a text's tokens as far as they are told, shape (T,)."""
        head = self.knowledge.model.head(seen)
        scores = self.reader.scores(seen.hidden)
        found = scores.topk(min(GUESSES, scores.shape[1]))
        guesses, prior = found.indices, found.values.log_softmax(1)
        read = guesses[:, 0].clone()
        near = self._costs(seen.hidden[0], self.firsts)
        few = near.topk(min(GUESSES, len(near)), largest=False).indices
        out = head(input_ids=few[:, None], use_cache=False).last_hidden_state[:, 0]
        costs = self._costs(seen.hidden[0], out)
        read[0] = few[costs.argmin()]
        # A client's head moves on in a round: what a right guess errs by is seen here.
        accepted = (
            0.0
            if self.knowledge.defence.draws
            else SAME
            + 2 * _apart(self._crossed(out[costs.argmin()][None])[0], seen.hidden[0])
        )
        done = 1
        while done < len(read):
            place = self._first_wrong(head, read, seen.hidden, done, accepted)
            if place is None:
                break
            cache = head(input_ids=read[None, :place], use_cache=True).past_key_values
            cache.batch_repeat_interleave(guesses.shape[1])
            out = head(
                input_ids=guesses[place][:, None], past_key_values=cache, use_cache=True
            ).last_hidden_state[:, 0]
            costs = self._costs(seen.hidden[place], out)
            if self.knowledge.defence.draws:
                costs = costs - prior[place]
            read[place] = guesses[place][costs.argmin()]
            done = place + 1
        return read

    def _first_wrong(
        self, head: Any, read: Tensor, wanted: Tensor, done: int, accepted: float
    ) -> int | None:
        """Return the first place that does not give what was received."""
        if not accepted:
            return done
        sent = head(input_ids=read[None], use_cache=False).last_hidden_state[0]
        off = (self._crossed(sent) - wanted).norm(dim=1) / wanted.norm(dim=1)
        wrong = (off[done:] >= accepted).nonzero()
        return done + int(wrong[0]) if len(wrong) else None

    def _costs(self, received: Tensor, candidates: Tensor) -> Tensor:
        """Return how unlikely each of G candidates makes what was received, (G,)."""
        knowledge = self.knowledge
        crossed = self._crossed(candidates)
        return knowledge.defence.unlikeliness(received, crossed, knowledge.scale)

    def _crossed(self, hidden: Tensor) -> Tensor:
        return self.knowledge.crossed(hidden, None)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
