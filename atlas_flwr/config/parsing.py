# SPDX-License-Identifier: Apache-2.0
"""Lists, byte sizes and cuts, which Flower's run config can only carry as text."""

from __future__ import annotations

import math
import re

__all__ = [
    "format_bytes",
    "parse_address",
    "parse_bytes",
    "parse_cut",
    "parse_lent",
    "parse_link",
    "parse_speed",
    "split_list",
]

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
BITS = {"KBIT/S": 1e3, "MBIT/S": 1e6, "GBIT/S": 1e9}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
LINK = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]bit/s)", re.IGNORECASE)
ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)
CUT = re.compile(r"(\d+)/(\d+|-)")


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma list; spaces around items are dropped, empty text has no items.

    An empty item, as in ``"a,,b"``, is kept as ``""`` for the caller to refuse.
    """
    if not text.strip():
        return ()
    return tuple(item.strip() for item in text.split(","))


def parse_bytes(text: str) -> int:
    """Read a byte size, e.g. ``"320MiB"``, ``"1.5 GiB"`` or ``"64KB"``.

    Raises
    ------
    ValueError
        When it is not a positive number with a unit.
    """
    match = SIZE.fullmatch(text.strip())
    size = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0.0
    if not 1 <= size < math.inf:
        raise ValueError(
            f"{text!r} is not a byte size: write a positive number and a unit "
            "(B, KB, MB, GB, TB, KiB, MiB, GiB or TiB), e.g. 320MiB"
        )
    return int(size)


def parse_lent(text: str) -> int:
    """Read a byte size, or ``"0"``, which is nothing.

    Raises
    ------
    ValueError
        When it is neither.
    """
    try:
        return 0 if text.strip() == "0" else parse_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error}; or 0") from None


def parse_link(text: str) -> float:
    """Read what a link carries, e.g. ``"20Mbit/s"``, in bits a second.

    Raises
    ------
    ValueError
        When it is not a positive number with a unit.
    """
    match = LINK.fullmatch(text.strip())
    bits = float(match[1]) * BITS[match[2].upper()] if match else 0.0
    if not 0 < bits < math.inf:
        raise ValueError(
            f"{text!r} is no link: write a positive number and a unit (kbit/s, Mbit/s "
            "or Gbit/s), e.g. 20Mbit/s"
        )
    return bits


def parse_speed(text: str) -> float:
    """Read a speed, of which 1 is common.

    Raises
    ------
    ValueError
        When it is not a number above 0.
    """
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise ValueError(f"{text!r} is no speed; write a number above 0, e.g. 0.5")
    return speed


def format_bytes(size: float) -> str:
    """Write a byte size in the binary unit that keeps it short, e.g. ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        told = f"{size:.0f}" if unit == "B" else f"{size:.1f}"
        if abs(float(told)) < 1024:
            return f"{told} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_cut(text: str) -> tuple[int, int | None]:
    """Read a cut: ``"2/1"`` is (2, 1), and ``"2/-"``, which has no tail, (2, None).

    Raises
    ------
    ValueError
        When it is neither, or has no block on a side that must have one.
    """
    match = CUT.fullmatch(text.strip())
    head = int(match[1]) if match else 0
    tail = None if match and match[2] == "-" else int(match[2]) if match else 0
    if head < 1 or tail == 0:
        raise ValueError(
            f"{text!r} is not a cut: write HEAD/TAIL in blocks, both at least 1, "
            "e.g. 2/1, or HEAD/- where the trunk ends the model (split='vanilla')"
        )
    return head, tail


def parse_address(text: str) -> tuple[str, int | None]:
    """Read ``"host"``, ``"host:7001"`` or ``"[::1]:7001"``; the port may be missing.

    Raises
    ------
    ValueError
        When it is none of these.
    """
    match = ADDRESS.fullmatch(text.strip())
    port = int(match[2]) if match and match[2] else None
    if match is None or (port or 0) > 65535:
        raise ValueError(f"{text!r} is not HOST or HOST:PORT, e.g. 10.0.0.5:7001")
    return match[1].strip("[]"), port
