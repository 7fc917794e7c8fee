# SPDX-License-Identifier: Apache-2.0
"""The likeliest text behind replaced tokens, by the public model and the defence.

Shapes: T tokens, B beams, C candidates of a place, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.data.tokens import end_id
from atlas_flwr.privacy.knowledge import Knowledge, KnownText

__all__ = ["Restoring"]

BEAMS = 8
NEAR, LIKELY = 64, 16  # candidates: nearest to what is read, and of each beam
WEIGHTS = (1.0, 0.5, 0.25)  # of the public model, among which one is chosen
TRIED, LONGEST = 12, 24  # known texts to choose it by, and tokens of one


@dataclass(frozen=True)
class Restoring:
    """Restores texts.

    Attributes
    ----------
    knowledge : Knowledge
        For defence, vocabulary and templates.
    public : Any
        The public model.
    weight : float
        How much it counts beside the defence's odds. With 1 the text is the likeliest
        of all, if the model knows how likely such texts are. It does not, of titles
        and questions, and then writes over words that were left as they are.
    """

    knowledge: Knowledge
    public: Any
    weight: float = 1.0

    @classmethod
    def of(cls, knowledge: Knowledge) -> Restoring:
        """Load the public model, and choose its weight by known texts."""
        assert knowledge.whole is not None
        found = cls(knowledge, knowledge.whole().requires_grad_(False).eval())
        known = knowledge.known[:: max(1, len(knowledge.known) // TRIED)][:TRIED]
        return max(
            (replace(found, weight=weight) for weight in WEIGHTS),
            key=lambda one: one.right(known),
        )

    @torch.no_grad()
    def right(self, texts: Sequence[KnownText]) -> int:
        """Count the tokens that it restores of known texts."""
        right = 0
        for text in texts:
            if text.sent is None:
                continue
            own = range(len(text.ids))[text.private][:LONGEST]
            read = text.sent[own.start : own.stop]
            before = text.sent[: own.start].tolist()
            if len(own):
                found = self._likeliest(before, read.tolist())
                right += int((found == text.ids[own.start : own.stop]).sum())
        return right

    @torch.no_grad()
    def text(self, read: Tensor, client: str) -> Tensor:
        """Return what a client's tokens (T,) were before they were replaced."""
        before, after = self.knowledge.frames[client]
        own = slice(len(before), _last(read.tolist(), after))
        found = read.clone()
        if len(read[own]):
            found[own] = self._likeliest(list(before), read[own].tolist())
        return found

    def _likeliest(self, before: list[int], read: Sequence[int]) -> Tensor:
        """Search from left to right, behind a template."""
        start = before or [end_id(self.public)]
        out = self.public(input_ids=torch.tensor([start]), use_cache=True)
        totals, written = torch.zeros(1).double(), torch.empty(1, 0, dtype=torch.long)
        for token in read:
            said = self.weight * out.logits[:, -1].double().log_softmax(1)
            among = self._candidates(token, said)
            odds = self._odds(token, among)
            scores = totals[:, None] + said[:, among] + odds
            best = scores.flatten().topk(min(BEAMS, scores.numel()))
            row, column = best.indices // len(among), best.indices % len(among)
            totals, chosen = best.values, among[column]
            written = torch.cat([written[row], chosen[:, None]], dim=1)
            cache = out.past_key_values
            cache.reorder_cache(row)
            out = self.public(
                input_ids=chosen[:, None], past_key_values=cache, use_cache=True
            )
        return written[int(totals.argmax())]

    def _candidates(self, token: int, said: Tensor) -> Tensor:
        """Return tokens (C,) that may have stood where one was read."""
        vocabulary = self.knowledge.vocabulary
        assert vocabulary is not None
        (near,) = vocabulary.nearest([token], min(NEAR, len(vocabulary)))
        likely = said.topk(min(LIKELY, said.shape[1]), dim=1).indices.flatten()
        found = torch.cat([near.long(), likely, torch.tensor([token])])
        different: Tensor = found.unique()
        return different

    def _odds(self, token: int, among: Tensor) -> Tensor:
        vocabulary = self.knowledge.vocabulary
        assert vocabulary is not None
        return self.knowledge.defence.token_odds(token, among, vocabulary)


def _last(row: Sequence[int], words: Sequence[int]) -> int:
    """Return where some tokens begin for the last time; the end, where they do not."""
    size = len(words)
    starts = range(len(row) - size, -1, -1) if size else ()
    wanted = list(words)
    return next((i for i in starts if list(row[i : i + size]) == wanted), len(row))
