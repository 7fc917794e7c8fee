# SPDX-License-Identifier: Apache-2.0
"""Examples: a text and its class, a prompt and its answer, a text by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from atlas_flwr.data.turns import Turn

__all__ = ["Examined", "Example"]


@dataclass(frozen=True)
class Example:
    """A text and the number of its class, or what is read and what is to be written.

    Attributes
    ----------
    text : str
        What is read; of a conversation all that was said before the last answer. Of a
        completion all that is to be written.
    label : int
        The class's number.
    answer : str
        What is to be written.
    turns : tuple[Turn, ...]
        Of a conversation, all before the last answer.
    tokens : tuple[int, ...]
        Of a piece of a text that was cut: its tokens.
    owner : str
        Whose it is, where the source says so.
    true_label : int, optional
        The class's number, where a defence has put another in ``label``. Nothing that
        leaves a client may depend on it.
    """

    text: str
    label: int = 0
    answer: str = ""
    turns: tuple[Turn, ...] = ()
    tokens: tuple[int, ...] = ()
    owner: str = field(default="", compare=False)
    true_label: int | None = field(default=None, compare=False)

    @property
    def truth(self) -> int:
        """The class's true number."""
        return self.label if self.true_label is None else self.true_label

    @property
    def length(self) -> int:
        """How long it is, roughly: by it examples of like length are found."""
        return len(self.tokens) or len(self.text) + len(self.answer)


@dataclass(frozen=True)
class Examined:
    """What a task's source has.

    Attributes
    ----------
    examples : tuple[Example, ...]
        No two with one text, in a fixed order.
    left_out : tuple[str, ...]
        What was not taken: how many rows, why, and which.
    """

    examples: tuple[Example, ...]
    left_out: tuple[str, ...]
