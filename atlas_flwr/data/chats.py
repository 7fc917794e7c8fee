# SPDX-License-Identifier: Apache-2.0
"""Conversations as a tokenizer's chat template writes them, for training and serving.

Both must read the same tokens, so there is one place that makes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.data.tokens import token_ids
from atlas_flwr.data.turns import ASSISTANT, Turn

__all__ = [
    "Piece",
    "assistant_mask",
    "chat_prompt",
    "chat_template_text",
    "pieces",
]

MARK = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class Piece:
    """Tokens of a conversation between two seams.

    Attributes
    ----------
    ids : list[int]
        The tokens.
    turn : int, optional
        Which turn of the assistant's they are; ``None`` for all that is put before one.
    said : int
        How many of them the assistant is to say: the last is the one that ends its
        turn, and what a template writes behind that is nobody's.
    """

    ids: list[int]
    turn: int | None = None
    said: int = 0


def chat_template_text(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """Return turns in the tokenizer's template; the assistant's turn is begun, if due.

    It is due where another spoke last.
    """
    told = [{"role": turn.role, "content": turn.content} for turn in turns]
    due = turns[-1].role != ASSISTANT
    made: str = tokenizer.apply_chat_template(
        told, tokenize=False, add_generation_prompt=due
    )
    return made


def pieces(tokenizer: Any, turns: Sequence[Turn]) -> Iterator[Piece]:
    """Yield a conversation's tokens, cut where an assistant's turn begins and ends.

    A turn is cut out where what the template writes up to its beginning, and to its
    end, stands unchanged in the whole: so the tokens before an answer are the same
    whether it is still to come or known. Turns of which that is not true come in no
    piece of their own.
    """
    whole, done = chat_template_text(tokenizer, turns), 0
    for number, turn in enumerate(turns):
        if turn.role != ASSISTANT or not number:
            continue
        before = chat_template_text(tokenizer, turns[:number])
        after = chat_template_text(tokenizer, turns[: number + 1])
        if not (whole.startswith(after) and after.startswith(before)):
            continue
        if len(before) > done:
            yield Piece(token_ids(tokenizer, whole[done : len(before)]))
        ids = token_ids(tokenizer, whole[len(before) : len(after)])
        yield Piece(ids, number, _said(tokenizer, ids))
        done = len(after)
    if len(whole) > done:
        yield Piece(token_ids(tokenizer, whole[done:]))


def assistant_mask(
    tokenizer: Any, turns: Sequence[Turn]
) -> tuple[list[int], list[bool]] | None:
    """Return tokens, and which the template itself marks as the assistant's.

    ``None`` where it marks none, with ``{% generation %}``.
    """
    if not MARK.search(tokenizer.chat_template):
        return None
    told = [{"role": turn.role, "content": turn.content} for turn in turns]
    made = tokenizer.apply_chat_template(
        told, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(made["input_ids"]), [bool(m) for m in made["assistant_masks"]]


def chat_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Return the tokens that stand before an answer to turns, as in training."""
    return [token for piece in pieces(tokenizer, turns) for token in piece.ids]


def _said(tokenizer: Any, ids: Sequence[int]) -> int:
    """Count a turn's tokens up to its last special one, or all where there is none."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(n for n in added if added[n].special)}
    ends = [n for n, token in enumerate(ids, start=1) if token in special]
    return ends[-1] if ends else len(ids)
