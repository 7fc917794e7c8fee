# SPDX-License-Identifier: Apache-2.0
"""What a client says of itself, and what it is given."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord

from atlas_flwr.errors import BudgetError, DataError
from atlas_flwr.split import SplitPlan

__all__ = ["Assigned", "Offer", "Profile"]

ID = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class Offer:
    """What a client would carry of the trunk for others.

    Attributes
    ----------
    memory : int
        Bytes that it lends; 0 for nothing.
    speed : float
        How fast it computes, 1 being common.
    link : float
        Bits a second that its link carries each way; infinity where it does not say,
        and it is of no account.
    trust : frozenset[str]
        Groups of clients that it would carry for, and be carried by; those who name
        none are one group, ``""``.
    access : str
        The way to the trunk that it serves, and its owner's secret, as JSON; empty in
        a simulation, where an actor serves it.

    Raises
    ------
    BudgetError
        If memory is below 0, or speed or link is not above it.
    """

    memory: int = 0
    speed: float = 1.0
    link: float = math.inf
    trust: frozenset[str] = frozenset({""})
    access: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.memory < 0 or not 0 < self.speed < math.inf or not self.link > 0:
            raise BudgetError(
                f"lends {self.memory} bytes at speed {self.speed} over a link of "
                f"{self.link} bit/s; these are numbers above 0, or no bytes"
            )


@dataclass(frozen=True)
class Profile:
    """What a client says of itself.

    Attributes
    ----------
    client : str
        Its id, the same in every run; files are named after it.
    memory : int, optional
        Bytes that training may take on its device; ``None`` where it set no limit.
    task : str
        Its true task where it is known, for reports only; else empty.
    partitions : int
        Clients that the texts are dealt to, it among them; 0 where it does not say.
    offer : Offer
        What it would carry of the trunk for others.
    labels : int
        Those of an example, on average, in the fullest step that it can have; 0 where
        it does not say, as without a limit to its memory.
    holder : str
        Whom the certificate is of that it shows the trunk; empty where it has none.
    cut : str
        The cut that it is to have; empty or ``'auto'`` where the server chooses.

    Raises
    ------
    DataError
        If its id could lead to another place.
    """

    client: str
    memory: int | None = None
    task: str = ""
    partitions: int = 0
    offer: Offer = Offer()
    labels: int = 0
    holder: str = ""
    cut: str = ""

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.client):
            raise DataError(
                f"says that its id is {self.client[:99]!r}; an id has 1 to 64 letters, "
                "digits, - _ . and begins with a letter or digit"
            )

    def to_record(self) -> ConfigRecord:
        """Write the reply's ConfigRecord."""
        return ConfigRecord(
            {
                "client-id": self.client,
                "memory": self.memory or 0,
                "task": self.task,
                "partitions": self.partitions,
                "labels": self.labels,
                "lends": self.offer.memory,
                "speed": self.offer.speed,
                "link": self.offer.link,
                "trust": sorted(self.offer.trust),
                "access": self.offer.access,
                "holder": self.holder,
                "cut": self.cut,
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Profile:
        """Read a reply's ConfigRecord."""
        return cls(
            client=str(record["client-id"]),
            memory=int(str(record["memory"])) or None,
            task=str(record["task"]),
            partitions=int(str(record.get("partitions", 0))),
            labels=int(str(record.get("labels", 0))),
            offer=Offer(
                memory=int(str(record.get("lends", 0))),
                speed=float(str(record.get("speed", 1.0))),
                link=float(str(record.get("link", math.inf))),
                trust=frozenset(_texts(record.get("trust", [""]))),
                access=str(record.get("access", "")),
            ),
            holder=str(record.get("holder", "")),
            cut=str(record.get("cut", "")),
        )


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


@dataclass(frozen=True)
class Assigned:
    """What phase 2 gives a client.

    Attributes
    ----------
    ranks : Mapping[str, int] or int
        LoRA rank by layer, on its own side and on the trunk; one number for all.
        Layers that are missing, or at 0, get no adapter.
    plan : SplitPlan, optional
        Its cut; ``None`` where it trains the whole model.
    """

    ranks: Mapping[str, int] | int
    plan: SplitPlan | None = None
