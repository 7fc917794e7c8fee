# SPDX-License-Identifier: Apache-2.0
"""Batches of prompts and responses, with the loss on the responses alone.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from atlas_flwr.data.batches import IGNORED, Batch, Collator, start_ids
from atlas_flwr.data.tasks import Example, Task
from atlas_flwr.errors import DataError

__all__ = ["GenerationCollator", "commonest_token_accuracy"]


class GenerationCollator(Collator):
    """Prompt and response for a decoder, padded on the left.

    The loss is on the response alone, and on the token that ends it. Too long a row
    loses the beginning of its prompt; only a response that is too long by itself is
    cut, at its end.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        The model's.
    task : Task
        Says whether the tokenizer's chat template is to be put around both.
    max_length : int
        Longest row, in tokens.

    Raises
    ------
    DataError
        If the task wants a chat template, and the tokenizer has none, or one that does
        not let a response be told from its prompt.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        if task.chat and not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"task {task.name} has `chat: true`, and the model's tokenizer has no "
                "chat template; leave it out, and write the roles into `prompt`"
            )
        self._tokenizer = tokenizer
        self._task = task
        self._max_length = max_length
        self._begin = [] if task.chat else start_ids(tokenizer)
        self.label_ids = ()
        pad = tokenizer.pad_token_id
        self._pad = tokenizer.eos_token_id if pad is None else pad
        if task.chat:  # tell now what would be told in the middle of a run
            self._chat(Example("a question", answer="an answer"))

    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples; an evaluation scores responses, so it has them, too."""
        pairs = [self.row(example) for example in examples]
        longest = max(len(before) + len(answer) for before, answer in pairs)
        ids = torch.full((len(pairs), longest), self._pad)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for i, (before, answer) in enumerate(pairs):
            row = [*before, *answer]
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
            labels[i, longest - len(answer) :] = torch.tensor(answer)
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            targets=torch.zeros(len(pairs), dtype=torch.long),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=max(len(answer) for _, answer in pairs) + 1,
        )

    def row(self, example: Example) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, at least one, and those of its response."""
        parted = self._chat if self._task.chat else self._plain
        before, answer = parted(example)
        answer = answer[: self._max_length - 1]
        room = self._max_length - len(answer)
        return before[-room:], answer

    def _plain(self, example: Example) -> tuple[list[int], list[int]]:
        whole = self._ids(example.text + example.answer)
        before = self._begin + self._ids(example.text)
        joined = self._begin + whole
        # Tokens that reach over the seam belong to the response.
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, joined, strict=False)) if a != b),
            len(before),
        )
        answer = joined[shared:]
        if not before[:shared]:
            before, shared = joined[:1], 1
            answer = joined[1:]
        end = self._tokenizer.eos_token_id
        return before[:shared], [*answer, *([] if end is None else [end])]

    def _chat(self, example: Example) -> tuple[list[int], list[int]]:
        system = self._task.system
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": example.text})
        answer = {"role": "assistant", "content": example.answer}
        before = self._rendered(turns, add_generation_prompt=True)
        whole = self._rendered([*turns, answer])
        if not whole.startswith(before):
            raise DataError(
                f"task {self._task.name}: the chat template writes a question "
                "otherwise when its answer follows, so that it is unclear where that "
                "begins; leave `chat` out, and write the roles into `prompt`"
            )
        return self._ids(before), self._ids(whole[len(before) :])

    def _rendered(self, turns: list[dict[str, str]], **options: Any) -> str:
        made: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, **options
        )
        return made

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def commonest_token_accuracy(
    collate: GenerationCollator, train: Sequence[Example], test: Sequence[Example]
) -> float:
    """Share of the test responses' tokens that are the training responses' commonest.

    What token accuracy is to be compared with, as accuracy is with the commonest class.
    """
    counts = Counter(token for example in train for token in collate.row(example)[1])
    commonest = counts.most_common(1)[0][0]
    tokens = [token for example in test for token in collate.row(example)[1]]
    return tokens.count(commonest) / len(tokens)
