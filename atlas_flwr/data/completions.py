# SPDX-License-Identifier: Apache-2.0
"""Batches of plain text, every token of which is learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from logging import WARNING
from typing import Any

from atlas_flwr.data.examples import Example
from atlas_flwr.data.responses import KEPT_ROWS, GenerationCollator
from atlas_flwr.data.tasks import Task
from atlas_flwr.data.token_rows import TokenRow
from atlas_flwr.data.tokens import start_ids, token_ids
from atlas_flwr.errors import DataError
from atlas_flwr.log import log

__all__ = ["CompletionCollator"]


class CompletionCollator(GenerationCollator):
    """Pieces of texts for a decoder, padded on the left.

    A long text is cut into pieces. Each but the first begins with the last token of the
    one before, so that every token is predicted once, but the text's very first where
    the tokenizer puts none before it. The token that ends a text is learned, too.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        The model's.
    task : Task
        For its name.
    max_length : int
        Longest piece, in tokens.

    Attributes
    ----------
    cut : Callable[[Example], tuple[Example, ...]]
        Returns the pieces of one text; none where nothing of it can be learned.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        super().__init__(tokenizer, task, max_length)
        self._begin = start_ids(tokenizer)
        self.cut = lru_cache(maxsize=KEPT_ROWS)(self._pieces)

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """Cut texts into pieces; those in which nothing can be learned are counted."""
        found = [self.cut(example) for example in examples]
        empty = sum(not pieces for pieces in found)
        if empty:
            what = "task %s: %d of %d texts are too short to learn from, and left out"
            log(WARNING, what, self._task.name, empty, len(examples))
        if empty == len(found):
            raise DataError(
                f"task {self._task.name}: none of {len(found)} texts has two tokens"
            )
        return [piece for pieces in found for piece in pieces]

    def _row(self, example: Example) -> TokenRow:
        """Make a piece's row; of a text that is not cut yet, its first piece's."""
        whole = example.tokens or self._tokens(example)
        ids = list(whole[: self.max_length])
        return TokenRow.answering(ids[:1], ids[1:])

    def _pieces(self, example: Example) -> tuple[Example, ...]:
        ids, step = self._tokens(example), self.max_length - 1
        return tuple(
            Example("", tokens=tuple(ids[start : start + step + 1]))
            for start in range(0, len(ids) - 1, step)
        )

    def _tokens(self, example: Example) -> list[int]:
        end = self._tokenizer.eos_token_id
        ids = self._begin + token_ids(self._tokenizer, example.text)
        return ids if end is None else [*ids, end]
