# SPDX-License-Identifier: Apache-2.0
"""Who attacks, and what they know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PASSIVE_SERVER", "Adversary", "Who"]


class Who(StrEnum):
    """A place in a federation from which one can attack."""

    PASSIVE_SERVER = "passive server"
    MALICIOUS_SERVER = "malicious server"
    CLIENT = "another client"
    OUTSIDER = "outsider"


@dataclass(frozen=True)
class Adversary:
    """An attacker.

    Attributes
    ----------
    who : Who
        Its place. A passive server runs what it should and keeps what it sees; a
        malicious one also answers what it likes.
    weights : bool
        Knows the base model's weights.
    adapters : bool
        Knows the adapters that a client was sent at the beginning of its round.
    texts : bool
        Has other texts, of tasks that are not the client's.
    defence : bool
        Knows which defence is on, how strong, and the codec.
    labels : bool
        Has a few labelled texts of the client's own task.
    """

    who: Who
    weights: bool = True
    adapters: bool = True
    texts: bool = True
    defence: bool = True
    labels: bool = False

    def __str__(self) -> str:
        known = ("weights", "adapters", "texts", "defence", "labels")
        told = [name for name in known if getattr(self, name)]
        return f"{self.who.value}; knows {', '.join(told) or 'nothing'}"


PASSIVE_SERVER = Adversary(Who.PASSIVE_SERVER)
