# SPDX-License-Identifier: Apache-2.0
"""Batches: prompts and labels as tensors, trimmed to their longest text.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atlas_flwr.data.tokens import (
    common_start,
    left_padded,
    pad_id,
    start_ids,
    token_ids,
)
from atlas_flwr.errors import DataError
from atlas_flwr.types import NO_LABEL

if TYPE_CHECKING:
    from atlas_flwr.data.examples import Example
    from atlas_flwr.data.tasks import Task

__all__ = [
    "Batch",
    "CausalCollator",
    "ClassifierCollator",
    "Collator",
    "TokenChange",
]

# From texts' tokens to others, as many of each text.
TokenChange = Callable[[Sequence[Sequence[int]]], list[list[int]]]


@dataclass(frozen=True)
class Batch:
    """A batch.

    Attributes
    ----------
    input_ids, attention_mask : Tensor
        Shape (B, T), int64.
    position_ids, token_type_ids : Tensor, optional
        Shape (B, T).
    labels : Tensor
        Shape (B, T) for causal models, -100 outside the label's tokens; (B, T + 1)
        where the last is of the token that follows; (B,) for classifiers.
    targets : Tensor
        Shape (B,): class numbers.
    logits_to_keep : int
        Last positions of which a causal model's logits are needed; 0 for classifiers.
    places : Tensor, optional
        Shape (2, N), int64: rows, and places in the last ``logits_to_keep`` - 1 columns
        of ``labels``, where these have one; ``None`` to look for them.
    truths : Tensor, optional
        Shape (B,): true class numbers, for records alone; ``None``: ``targets`` are.
    true_ids : Tensor, optional
        Shape (B, T): the text's own tokens where others are read in their place, for
        records alone; ``None``: ``input_ids`` are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    targets: Tensor
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    logits_to_keep: int = 0
    places: Tensor | None = None
    truths: Tensor | None = None
    true_ids: Tensor | None = None

    @property
    def causal(self) -> bool:
        """Whether it is for a causal model."""
        return self.labels.dim() == 2

    @property
    def own_ids(self) -> Tensor:
        """The texts' own tokens, shape (B, T), whatever is read in their place."""
        return self.input_ids if self.true_ids is None else self.true_ids

    @property
    def looks_ahead(self) -> bool:
        """Whether the last label is of the token that follows the row."""
        return self.causal and self.labels.shape[1] == self.input_ids.shape[1] + 1

    @property
    def label_places(self) -> Tensor:
        """See ``places``; for a causal batch that does not look ahead."""
        if self.places is not None:
            return self.places
        known = self.labels[:, -self.logits_to_keep + 1 :] != NO_LABEL
        return torch.stack(known.nonzero(as_tuple=True))

    @property
    def label_count(self) -> int:
        """Labels that the loss is the mean over."""
        if not self.causal or self.looks_ahead:
            return len(self)
        return self.label_places.shape[1]

    def rows(self, start: int, stop: int) -> Batch:
        """Return some rows of a causal batch that does not look ahead.

        They keep their padding; no more logits are needed than their own labels ask.
        """
        own: dict[str, Any] = {
            name: value[start:stop]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "places"
        }
        known = (own["labels"] != NO_LABEL).any(0).nonzero().flatten().tolist()
        kept = self.labels.shape[1] - known[0] + 1 if known else 1
        return replace(self, **own, logits_to_keep=kept, places=None)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; itself where it is there already."""
        if self.input_ids.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.targets)


class Collator(ABC):
    """Make batches of a task's examples.

    Attributes
    ----------
    label_ids : Sequence[int]
        Each class's column in a model's (last) logits.
    longest_word : int
        Tokens of the longest label that come after a prompt of the greatest length.
    """

    label_ids: Sequence[int]
    longest_word: int = 0

    @abstractmethod
    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples; with ``prompt`` a causal batch ends where the label would.

        Parameters
        ----------
        examples : Sequence[Example]
            At least one.
        prompt : bool
            For evaluation.
        """

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """Return examples as they are collated: pieces of them, where they are cut."""
        return list(examples)

    def reading(self, change: TokenChange) -> Collator:
        """Return a collator of the same task that puts other tokens for the texts'.

        Parameters
        ----------
        change : TokenChange
            Never sees a template, a label, or what a tokenizer puts around a text.

        Raises
        ------
        DataError
            If what is read is learned, too, as in all tasks without classes.
        """
        raise DataError("only texts that have classes are read by other tokens")


class CausalCollator(Collator):
    """Prompt and label for a decoder, padded on the left.

    So the labels of all rows lie in the last columns, and the LM head need not run on
    any other. Padding is told by the mask, since a pad token may be the end token.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        The model's.
    task : Task
        For its template and words.
    max_length : int
        Longest prompt, in tokens; the text is cut, never the template or the label.

    Raises
    ------
    DataError
        If two labels begin with the same token, or the template alone is too long.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        self._tokenizer = tokenizer
        before, after = task.template.split("{text}")
        self._before = start_ids(tokenizer) + token_ids(tokenizer, before)
        self._after = self._following("a", after)
        self._words = [self._following(after, f" {word}") for word in task.labels]
        self._room = max_length - len(self._before) - len(self._after)
        problems = [*_alike(task, self._words)]
        if self._room < 1:
            problems.append(
                f"max-length={max_length} leaves no token for the text of task "
                f"{task.name}, whose template takes {max_length - self._room}"
            )
        if problems:
            raise DataError(*problems)
        self.label_ids = [tokens[0] for tokens in self._words]
        self.longest_word = max(map(len, self._words))
        self._pad = pad_id(tokenizer)
        self._change: TokenChange | None = None

    def reading(self, change: TokenChange) -> CausalCollator:
        """Return a collator that puts other tokens for the texts'."""
        other = copy(self)
        other._change = change
        return other

    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples."""
        words = [[] if prompt else self._words[e.label] for e in examples]
        own = self._texts([e.text for e in examples])
        read = own if self._change is None else self._change(own)
        rows = self._rows(read, words)
        ids, mask = left_padded(rows, self._pad)
        learned = [
            [NO_LABEL] * (len(row) - len(word)) + word
            for row, word in zip(rows, words, strict=True)
        ]
        labels, _ = left_padded(learned, NO_LABEL)
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            targets=torch.tensor([e.label for e in examples]),
            truths=torch.tensor([e.truth for e in examples]),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=max(map(len, words)) + 1,
            true_ids=None
            if read is own
            else left_padded(self._rows(own, words), self._pad)[0],
        )

    def _texts(self, texts: list[str]) -> list[list[int]]:
        made = self._tokenizer(texts, add_special_tokens=False, verbose=False)
        return [ids[: self._room] for ids in made["input_ids"]]

    def _rows(
        self, texts: Sequence[list[int]], words: Sequence[list[int]]
    ) -> list[list[int]]:
        return [
            self._before + ids + self._after + word
            for ids, word in zip(texts, words, strict=True)
        ]

    def _following(self, before: str, text: str) -> list[int]:
        """Return a text's tokens where it follows another.

        SentencePiece tokenizers (Llama 2, Mistral, Phi-3) put a blank of their own
        before whatever they are given alone, with which all words would begin alike.
        """
        if not text or not _adds_blank(self._tokenizer):
            return token_ids(self._tokenizer, text)
        before = before or "a"
        alone = token_ids(self._tokenizer, before)
        both = token_ids(self._tokenizer, before + text)
        return both[common_start(alone, both) :]


class ClassifierCollator(Collator):
    """Text and class for an encoder, padded on the right."""

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._change: TokenChange | None = None
        self.label_ids = range(len(task.labels))

    def reading(self, change: TokenChange) -> ClassifierCollator:
        """Return a collator that puts other tokens for the texts'."""
        other = copy(self)
        other._change = change
        return other

    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples."""
        made = self._tokenizer(
            [e.text for e in examples],
            truncation=True,
            max_length=self._max_length,
            padding=True,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        targets = torch.tensor([e.label for e in examples])
        own: Tensor = made["input_ids"]
        read = self._changed(own, made["special_tokens_mask"] == 0)
        return Batch(
            input_ids=read,
            attention_mask=made["attention_mask"],
            labels=targets,
            targets=targets,
            token_type_ids=made.get("token_type_ids"),
            truths=torch.tensor([e.truth for e in examples]),
            true_ids=None if read is own else own,
        )

    def _changed(self, ids: Tensor, text: Tensor) -> Tensor:
        """Put other tokens where the text's own are, all (B, T)."""
        if self._change is None:
            return ids
        own = [row[there].tolist() for row, there in zip(ids, text, strict=True)]
        read = ids.clone()
        flat = [token for row in self._change(own) for token in row]
        read[text] = torch.tensor(flat, dtype=ids.dtype)
        return read


def _adds_blank(tokenizer: Any) -> bool:
    """Tell whether a tokenizer begins a text with a blank that is not in it."""
    tokens = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "a"))
    return bool(tokens) and str(tokens[0]).startswith("\u2581")


def _alike(task: Task, words: Sequence[Sequence[int]]) -> Iterator[str]:
    """Tell of labels that a model could not tell apart by their first tokens."""
    first: dict[int, str] = {}
    for label, tokens in zip(task.labels, words, strict=True):
        known = first.setdefault(tokens[0], label)
        if known != label:
            yield (
                f"task {task.name}: the words {known!r} and {label!r} begin "
                "with the same token of this model, and could not be told apart; "
                "choose other words in `labels`"
            )
