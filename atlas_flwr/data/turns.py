# SPDX-License-Identifier: Apache-2.0
"""Turns of a conversation, as data sets write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.data.fields import unwritable

__all__ = ["ASSISTANT", "SYSTEM", "USER", "Turn", "joined", "read_turns", "with_system"]

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"
ROLES = {
    SYSTEM: SYSTEM,
    USER: USER,
    ASSISTANT: ASSISTANT,
    "human": USER,  # as ShareGPT calls them
    "gpt": ASSISTANT,
}
KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes
    ----------
    role : str
        ``"system"``, ``"user"`` or ``"assistant"``.
    content : str
        Its words.
    """

    role: str
    content: str


def with_system(turns: Sequence[Turn], system: str) -> tuple[Turn, ...]:
    """Put a system text before turns, unless they begin with their own."""
    if not system or (turns and turns[0].role == SYSTEM):
        return tuple(turns)
    return Turn(SYSTEM, system), *turns


def joined(turns: Sequence[Turn]) -> str:
    """Return all that was said, without who said it."""
    return "\n".join(turn.content for turn in turns)


def read_turns(value: Any) -> tuple[Turn, ...]:
    """Read a list of ``{role, content}``, or ShareGPT's ``{from, value}``.

    Where one side speaks twice in a row, a line feed joins what it says, since many
    chat templates refuse it otherwise.

    Raises
    ------
    ValueError
        If it is none, or does not begin with a user's turn after at most one system
        text; the message goes on from "whose conversation".
    """
    if not isinstance(value, list) or not value:
        raise ValueError("is no list of {role, content}, or is empty")
    turns: list[Turn] = []
    for entry in value:
        turn = _turn(entry)
        if turns and turns[-1].role == turn.role:
            turn = Turn(turn.role, f"{turns.pop().content}\n{turn.content}")
        turns.append(turn)
    begun = turns[1:] if turns[0].role == SYSTEM else turns
    if not begun or begun[0].role != USER:
        raise ValueError("does not begin with a user's turn")
    if any(turn.role == SYSTEM for turn in begun):
        raise ValueError("has a system text in its midst")
    return tuple(turns)


def _turn(entry: Any) -> Turn:
    keys = next((k for k in KEYS if isinstance(entry, dict) and k[0] in entry), None)
    if keys is None:
        raise ValueError("has an entry that is no {role, content}")
    role, content = entry[keys[0]], entry.get(keys[1])
    if role not in ROLES:
        raise ValueError(f"has the role {role!r}, where {', '.join(ROLES)} are known")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("has a turn without text")
    if why := unwritable(content):
        raise ValueError(f"has {why} in it")
    return Turn(ROLES[role], content)
