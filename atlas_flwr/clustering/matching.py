# SPDX-License-Identifier: Apache-2.0
"""Clusters keep their numbers when clients are clustered anew.

A maximum-weight matching of new clusters to old ones by the members that they share
(Kuhn 1955, "The Hungarian method for the assignment problem"): no other one-to-one
renumbering leaves more clients with the number that they had.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from atlas_flwr.errors import DataError

__all__ = ["match_labels"]


def match_labels(
    before: Mapping[str, int], after: Mapping[str, int], *, fresh: int = 0
) -> dict[str, int]:
    """Renumber a new clustering so that it agrees most with the former one.

    Parameters
    ----------
    before, after : Mapping[str, int]
        Cluster by client. Clients may have come or gone between the two.
    fresh : int
        Least number for a cluster that shares no member with an old one. Numbers of
        ``before`` are never given to such a cluster; give one more than the largest
        number ever used, to avoid those of clusters that are long gone as well.

    Returns
    -------
    dict[str, int]
        New number by client of ``after``: the same partition, other names.

    Raises
    ------
    DataError
        If a label is negative.

    Examples
    --------
    >>> match_labels({"a": 0, "b": 0, "c": 1}, {"a": 1, "b": 1, "c": 0, "d": 2})
    {'a': 0, 'b': 0, 'c': 1, 'd': 2}
    """
    lowest = min([fresh, *before.values(), *after.values()])
    if lowest < 0:
        raise DataError(f"cluster number {lowest}; allowed: 0 and above")
    old, new = sorted(set(before.values())), _by_first_member(after)
    shared = np.zeros((len(new), len(old)), np.int64)
    for client in before.keys() & after.keys():
        shared[new.index(after[client]), old.index(before[client])] += 1
    partners = {
        new[i]: old[j]
        for i, j in zip(*linear_sum_assignment(shared, maximize=True), strict=True)
        if shared[i, j]
    }
    following = max([fresh - 1, *before.values()]) + 1
    for label in new:
        if label not in partners:
            partners[label] = following
            following += 1
    return {client: partners[label] for client, label in after.items()}


def _by_first_member(labels: Mapping[str, int]) -> list[int]:
    """List the clusters by their first client, whatever order clients came in."""
    return list(dict.fromkeys(labels[client] for client in sorted(labels)))
