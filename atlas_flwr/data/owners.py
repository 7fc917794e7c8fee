# SPDX-License-Identifier: Apache-2.0
"""Examples that belong to somebody are dealt so that nobody's lie on two clients."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from atlas_flwr.data.examples import Example
from atlas_flwr.errors import DataError

__all__ = ["dealt_by_owner", "one_sided"]

ALMOST_ALL = 0.9


def dealt_by_owner(
    examples: Sequence[Example], sharers: int, field: str, task: str, seed: int
) -> list[list[Example]]:
    """Deal examples to clients, all of one owner's to the same.

    Whoever has most goes first, to the client that has least so far.

    Parameters
    ----------
    examples : Sequence[Example]
        With their owners; each client's keep this order.
    sharers : int
        How many clients.
    field, task : str
        For messages.
    seed : int
        Orders owners of as many examples.

    Raises
    ------
    DataError
        If there are fewer owners than clients, or a client comes to have one example
        alone, where it needs one to train on and one to be tested on.
    """
    sizes = Counter(example.owner for example in examples)
    if len(sizes) < sharers:
        raise DataError(
            f"task {task}: `client: {field}` has {len(sizes)} values in "
            f"{len(examples)} examples, for {sharers} clients; at most {len(sizes)} "
            "can share it: lower num-supernodes, or add tasks"
        )
    owners = sorted(sizes)
    random.Random(seed).shuffle(owners)
    owners.sort(key=lambda owner: -sizes[owner])
    place: dict[str, int] = {}
    loads = [0] * sharers
    for owner in owners:
        place[owner] = loads.index(min(loads))
        loads[place[owner]] += sizes[owner]
    if min(loads) < 2:
        poor = next(owner for owner in owners if loads[place[owner]] < 2)
        raise DataError(
            f"task {task}: of `client: {field}`, {poor!r} has one example alone, and a "
            f"client of {sharers} would have no other; it needs one to train on and "
            "one to be tested on: lower num-supernodes"
        )
    shares: list[list[Example]] = [[] for _ in range(sharers)]
    for example in examples:
        shares[place[example.owner]].append(example)
    return shares


def one_sided(examples: Sequence[Example], field: str, task: str) -> str:
    """Say it where one owner has almost all that there is."""
    sizes = Counter(example.owner for example in examples)
    owner, most = sizes.most_common(1)[0]
    if len(sizes) < 2 or most < ALMOST_ALL * len(examples):
        return ""
    return (
        f"task {task}: of `client: {field}`, {owner!r} has {most:,} of "
        f"{len(examples):,} examples, and they lie on one client; the others have "
        f"{len(examples) - most:,} together"
    )
