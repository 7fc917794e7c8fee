# SPDX-License-Identifier: Apache-2.0
"""What a client says of itself, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord

from atlas_flwr.split import SplitPlan

__all__ = ["Assigned", "Profile"]


@dataclass(frozen=True)
class Profile:
    """What a client says of itself.

    Attributes
    ----------
    client : str
        Its id, the same in every run.
    memory : int, optional
        Bytes that training may take on its device; ``None`` where it set no limit.
    task : str
        Its true task where it is known, for reports only; else empty.
    partitions : int
        Clients that the texts are dealt to, it among them; 0 where it does not say.
    """

    client: str
    memory: int | None = None
    task: str = ""
    partitions: int = 0

    def to_record(self) -> ConfigRecord:
        """Write the reply's ConfigRecord."""
        return ConfigRecord(
            {
                "client-id": self.client,
                "memory": self.memory or 0,
                "task": self.task,
                "partitions": self.partitions,
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
        )


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
