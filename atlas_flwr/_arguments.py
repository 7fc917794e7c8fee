# SPDX-License-Identifier: Apache-2.0
"""Arguments that are refused: words that there are not, and what a method fixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_choice", "with_fixed"]


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not allowed.

    Raises
    ------
    ValueError
        With all that are.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")


def with_fixed(
    method: str,
    given: Mapping[str, Any],
    fixed: Mapping[str, Any],
    preset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the arguments for the base; refuse those that the method fixes.

    Parameters
    ----------
    method : str
        Its name, for the error.
    given : Mapping[str, Any]
        What the caller gave by name.
    fixed, preset : Mapping[str, Any]
        What the method does not let be changed, and what it changes the default of.

    Raises
    ------
    TypeError
        If another value than the fixed one was given.
    """
    odd = [name for name in fixed if name in given and given[name] != fixed[name]]
    if odd:
        name = odd[0]
        raise TypeError(
            f"{method}({name}={given[name]!r}): it is {method} by {name}="
            f"{fixed[name]!r}; leave the argument out, or take Atlas"
        )
    return {**(preset or {}), **given, **fixed}
