# SPDX-License-Identifier: Apache-2.0
"""Fields of records as text, and those that are none."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["plain_text", "unwritable"]


def unwritable(value: Any) -> str:
    """Say why a field is no text, if it is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, bytes):
        return "bytes (decode that column before saving)"
    if isinstance(value, str) and "\0" in value:
        return "a NUL character (`tr -d '\\0' < FILE > MENDED` takes such out)"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "half a character (a lone surrogate)"
    return ""


def plain_text(value: Any) -> str:
    """Write a field as JSON would; a whole number without a point, null as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
