# SPDX-License-Identifier: Apache-2.0
"""The order of clients and clusters, whose names are mostly numbers."""

from __future__ import annotations

__all__ = ["by_number"]


def by_number(name: str) -> tuple[bool, int, str]:
    """Return a name's key in a sort: numbers first, by their value, others as text.

    Examples
    --------
    >>> sorted(["10", "all", "9"], key=by_number)
    ['9', '10', 'all']
    """
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)
