# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens, of which some are to be learned, and batches of them.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from atlas_flwr.data.batches import Batch
from atlas_flwr.data.tokens import left_padded
from atlas_flwr.types import NO_LABEL

__all__ = ["TokenRow", "batch_of"]


@dataclass(frozen=True)
class TokenRow:
    """Tokens, and which of them are to be predicted.

    Attributes
    ----------
    ids : list[int]
        The tokens.
    learned : list[bool]
        Of each; never of the first, which nothing predicts.
    """

    ids: list[int]
    learned: list[bool]

    @classmethod
    def answering(cls, before: list[int], answer: list[int]) -> TokenRow:
        """Make a row of which the end is learned."""
        return cls(before + answer, [False] * len(before) + [True] * len(answer))

    @property
    def first(self) -> int:
        """Where the first learned token is; the row's length if there is none."""
        return self.learned.index(True) if any(self.learned) else len(self.ids)

    @property
    def said(self) -> list[int]:
        """The learned tokens."""
        return [t for t, known in zip(self.ids, self.learned, strict=True) if known]

    @property
    def labels(self) -> list[int]:
        """The learned tokens, in their places."""
        pairs = zip(self.ids, self.learned, strict=True)
        return [token if known else NO_LABEL for token, known in pairs]

    def of_last(self) -> TokenRow:
        """Return a row of which the last learned run alone is learned."""
        begin, end = self._last_run()
        kept = [begin <= n < end for n in range(len(self.ids))]
        return TokenRow(self.ids, kept)

    def _last_run(self) -> tuple[int, int]:
        """Where the last learned tokens begin and end; of none, both at the end."""
        ends = [n for n, known in enumerate(self.learned, start=1) if known]
        end = ends[-1] if ends else len(self.ids)
        begin = end
        while begin and self.learned[begin - 1]:
            begin -= 1
        return begin, end

    def within(self, length: int) -> TokenRow:
        """Cut the row from its beginning, and what is behind the last learned token.

        Of the last answer nothing is lost, unless it is too long by itself: then it is
        cut at its end.
        """
        begin, end = self._last_run()
        if end - begin > length - 1:
            start = max(begin - 1, 0)
            end = start + length
        else:
            start = max(end - length, 0)
        learned = self.learned[start:end]
        return TokenRow(self.ids[start:end], [False, *learned[1:]])


def batch_of(rows: Sequence[TokenRow], filler: int) -> Batch:
    """Put rows into one batch, padded on the left; at least one, none empty."""
    ids, mask = left_padded([row.ids for row in rows], filler)
    labels, _ = left_padded([row.labels for row in rows], NO_LABEL)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        targets=torch.zeros(len(rows), dtype=torch.long),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=max(len(row.ids) - row.first for row in rows) + 1,
    )
