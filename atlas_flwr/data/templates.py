# SPDX-License-Identifier: Apache-2.0
"""Templates: text with ``{name}`` where a row's field goes."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["filled_in", "template_fields"]


def template_fields(template: str) -> tuple[str, ...]:
    """Return the fields that a template names, each once, with blanks in them or not.

    Raises
    ------
    ValueError
        If its braces do not match, or a field has no name, or a format.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"{error}: write {{name}} for a field, and {{{{ }}}} for braces"
        ) from None
    found = []
    for _, name, form, conversion in pieces:
        if name is None:
            continue
        if form or conversion or not name:
            raise ValueError(
                f"{{{name}}} is no field: write {{name}}, and {{{{ }}}} for braces"
            )
        found.append(name)
    return tuple(dict.fromkeys(found))


def filled_in(
    template: str, record: Mapping[str, Any], plain: Callable[[Any], str]
) -> str:
    """Fill a row's fields in.

    Parameters
    ----------
    template : str
        As :func:`template_fields` takes it.
    record : Mapping[str, Any]
        Has at least its fields.
    plain : Callable[[Any], str]
        Writes a field as text.
    """
    pieces = string.Formatter().parse(template)
    return "".join(
        before if name is None else before + plain(record[name])
        for before, name, _, _ in pieces
    )
