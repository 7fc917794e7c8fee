# SPDX-License-Identifier: Apache-2.0
"""Batches of text that is to be written: the loss is on that alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from atlas_flwr.data.batches import Batch, Collator
from atlas_flwr.data.chats import assistant_mask, chat_prompt, pieces
from atlas_flwr.data.examples import Example
from atlas_flwr.data.tasks import Task
from atlas_flwr.data.token_rows import TokenRow, batch_of
from atlas_flwr.data.tokens import (
    common_start,
    pad_id,
    prompt_ids,
    start_ids,
    token_ids,
)
from atlas_flwr.data.turns import ASSISTANT, USER, Turn, with_system
from atlas_flwr.errors import DataError

__all__ = ["KEPT_ROWS", "GenerationCollator", "commonest_token_accuracy"]

KEPT_ROWS = 4096  # whose tokens a collator keeps: 32 MB at 512 tokens each


class GenerationCollator(Collator):
    """Prompt and response, or a conversation, for a decoder, padded on the left.

    The loss is on the response alone, and on the token that ends it; in a conversation
    on each of the assistant's turns, or the last, as the task says. Too long a row
    loses its beginning; only a last response that is too long by itself is cut, at its
    end.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        The model's.
    task : Task
        Says whether the tokenizer's chat template is to be put around all.
    max_length : int
        Longest row, in tokens.

    Raises
    ------
    DataError
        If the task wants a chat template, and the tokenizer has none, or one that does
        not let a response be told from what stands before it.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        if task.chat and not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"task {task.name} has `chat: true`, and the model's tokenizer has no "
                "chat template; leave it out, and write the roles into `prompt`"
            )
        self._tokenizer = tokenizer
        self._task = task
        self.max_length = max_length
        self._begin = [] if task.chat else start_ids(tokenizer)
        self.label_ids = ()
        self._pad = pad_id(tokenizer)
        self._kept = lru_cache(maxsize=KEPT_ROWS)(self._row)
        if task.chat:  # tell now what would be told in the middle of a run
            self._chat(self._sample())

    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples; an evaluation scores responses, so it has them, too."""
        return batch_of([self.row(example) for example in examples], self._pad)

    def row(self, example: Example) -> TokenRow:
        """Return an example's tokens, which are not to be changed: they are kept."""
        return self._kept(example)

    def whole(self, example: Example) -> TokenRow:
        """Return an example's tokens, however many these are."""
        return self._chat(example) if self._task.chat else self._plain(example)

    def _row(self, example: Example) -> TokenRow:
        return self.whole(example).within(self.max_length)

    def prompt(self, example: Example) -> list[int]:
        """Return the tokens that an answer is to follow; as serving has them."""
        if self._task.chat:
            turns = example.turns or (Turn(USER, example.text),)
            ids = chat_prompt(self._tokenizer, with_system(turns, self._task.system))
        else:
            ids = prompt_ids(self._tokenizer, example.text)
        return ids[-self.max_length :]

    def _sample(self) -> Example:
        """Return an example as the task has them."""
        turns = (Turn(USER, "a question"), Turn(ASSISTANT, "one"), Turn(USER, "more"))
        several = turns if self._task.reading.messages else ()
        return Example("a question", answer="an answer", turns=several)

    def _plain(self, example: Example) -> TokenRow:
        before = self._begin + token_ids(self._tokenizer, example.text)
        whole = token_ids(self._tokenizer, example.text + example.answer)
        joined = self._begin + whole
        # Tokens that reach over the seam belong to the response.
        shared = common_start(before, joined) or 1
        end = self._tokenizer.eos_token_id
        answer = [*joined[shared:], *([] if end is None else [end])]
        return TokenRow.answering(joined[:shared], answer)

    def _chat(self, example: Example) -> TokenRow:
        turns = example.turns or (Turn(USER, example.text),)
        answer = Turn(ASSISTANT, example.answer)
        said = (*with_system(turns, self._task.system), answer)
        last = len(said) - 1
        spoken = {n for n, turn in enumerate(said) if turn.role == ASSISTANT}
        wanted = spoken if self._task.learn == "all" else {last}
        found = list(pieces(self._tokenizer, said))
        lacking = wanted.difference(piece.turn or 0 for piece in found)
        if lacking:
            return self._marked(said, last in lacking)
        row = TokenRow([], [])
        for piece in found:
            count = piece.said if piece.turn in wanted else 0
            row.ids.extend(piece.ids)
            row.learned.extend([True] * count + [False] * (len(piece.ids) - count))
        return row

    def _marked(self, turns: Sequence[Turn], last: bool) -> TokenRow:
        """Take the assistant's tokens as the template marks them, if it does."""
        found = assistant_mask(self._tokenizer, turns)
        if found is not None and any(found[1]):
            row = TokenRow(*found)
            return row if self._task.learn == "all" else row.of_last()
        if last:
            what = "writes a question otherwise when its answer follows"
            mend = "leave `chat` out, and write the roles into `prompt`"
        else:
            what = "writes an answer otherwise when another question follows"
            mend = "set `learn: last`"
        raise DataError(
            f"task {self._task.name}: the chat template {what}, so that it is unclear "
            "where that begins, nor does it mark it with {% generation %}; " + mend
        )


def commonest_token_accuracy(
    collate: GenerationCollator, train: Sequence[Example], test: Sequence[Example]
) -> float:
    """Share of the test responses' tokens that are the training responses' commonest.

    What token accuracy is to be compared with, as accuracy is with the commonest class.
    """
    counts = Counter(token for example in train for token in collate.row(example).said)
    commonest = counts.most_common(1)[0][0]
    tokens = [token for example in test for token in collate.row(example).said]
    return tokens.count(commonest) / len(tokens)
