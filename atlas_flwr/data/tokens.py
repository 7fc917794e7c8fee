# SPDX-License-Identifier: Apache-2.0
"""Tokens of texts, and rows of them as one batch.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "common_start",
    "end_id",
    "left_padded",
    "pad_id",
    "pieces",
    "prompt_ids",
    "start_ids",
    "token_ids",
]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, without any that a tokenizer would put around it."""
    made = tokenizer(text, add_special_tokens=False, verbose=False)
    ids: list[int] = made["input_ids"]
    return ids


def start_ids(tokenizer: Any) -> list[int]:
    """Return the token that this tokenizer begins every text with, if any."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] if ids[0] == tokenizer.bos_token_id else []


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return a prompt's tokens, without those that an answer would change.

    A blank at the end belongs to the answer's first word.
    """
    start = start_ids(tokenizer)
    before = start + token_ids(tokenizer, text)
    joined = start + token_ids(tokenizer, text + "a")
    return before[: common_start(before, joined)] or before[:1]


def pad_id(tokenizer: Any) -> int:
    """Return what rows are filled with: the end token where there is no other."""
    pad = tokenizer.pad_token_id
    found: int = tokenizer.eos_token_id if pad is None else pad
    return found


def end_id(model: Any) -> int:
    """Return the token that ends a model's texts, the first of several; 0 for none."""
    ends = model.generation_config.eos_token_id
    return int(ends[0] if isinstance(ends, list) else ends or 0)


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def left_padded(
    rows: Sequence[Sequence[int]], filler: int = 0
) -> tuple[Tensor, Tensor]:
    """Put rows side by side, their ends in the last column.

    Parameters
    ----------
    rows : Sequence[Sequence[int]]
        At least one.
    filler : int
        Goes before the shorter ones.

    Returns
    -------
    tuple[Tensor, Tensor]
        The rows and a mask that is 1 where they are, both (B, T), int64.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), filler)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :] = torch.tensor(row)
            mask[i, -len(row) :] = 1
    return ids, mask


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to a text, a blank before it among that."""
    (first, *_) = token_ids(tokenizer, "a")
    start = len(tokenizer.decode([first]))
    return [tokenizer.decode([first, token])[start:] for token in ids]
