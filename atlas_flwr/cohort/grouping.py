# SPDX-License-Identifier: Apache-2.0
"""Which of a round's updates are added up together, and which are too few to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import WARNING

from atlas_flwr.aggregation import Contribution
from atlas_flwr.log import log

__all__ = ["check_least", "grouped"]


def check_least(least: int, available: int, drawn: int, aggregation: str) -> None:
    """Refuse a least number of updates in a sum that a run cannot keep.

    Parameters
    ----------
    least : int
        See :func:`grouped`.
    available : int
        Clients that a round waits for.
    drawn : int
        How many of these it asks to train.
    aggregation : str
        How updates are added up.

    Raises
    ------
    ValueError
        If a round may have fewer clients, or none are added up.
    """
    if least > available:
        raise ValueError(
            f"min_cluster_size={least}: a round may begin with fewer clients, by "
            f"min_available_nodes={available}; raise that to {least} or more"
        )
    if least > max(drawn, 1):  # none at all is a strategy that trains nobody
        raise ValueError(
            f"min_cluster_size={least}: by fraction_train and min_train_nodes a round "
            f"may draw {drawn} of {available} clients to train, and add up nothing; "
            f"raise min_train_nodes to {least} or more"
        )
    if least > 1 and aggregation == "none":
        raise ValueError(
            f"min_cluster_size={least}: with aggregation='none' no updates are added "
            "up; leave it out"
        )


def grouped(
    parts: Iterable[Contribution], group: Callable[[str], str | None], least: int
) -> dict[str, list[Contribution]]:
    """Deal updates to their clients' groups.

    Parameters
    ----------
    parts : Iterable[Contribution]
        A round's.
    group : Callable[[str], str or None]
        Returns a client's group; ``None`` for one that changed nothing.
    least : int
        Updates of a sum. A group of which fewer came back keeps what it had, since who
        is sent a sum of two learns one of them by the other.
    """
    members: dict[str, list[Contribution]] = {}
    for part in parts:
        name = group(part.client)
        if name is not None:
            members.setdefault(name, []).append(part)
    sizes = {g: sum(len(part.weights) for part in p) for g, p in members.items()}
    few = {name: count for name, count in sizes.items() if count < least}
    for name, count in few.items():
        told = "group %s: %d updates, fewer than min-cluster-size=%d, are not added"
        log(WARNING, told, name, count, least)
        del members[name]
    return members
