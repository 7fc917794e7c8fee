# SPDX-License-Identifier: Apache-2.0
"""Plain text: a line an example, or a file an example."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from atlas_flwr.data.fields import unwritable
from atlas_flwr.data.readers.files import named_files
from atlas_flwr.data.rows import Fault, Row

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_folder", "read_lines"]


def read_lines(reading: Reading) -> Iterator[Row | Fault]:
    """Read an example of each line that a pattern matches."""
    pattern = re.compile(reading.pattern or "(?P<text>.*)")
    groups = [g for g in ("text", reading.label, reading.client) if g]
    for number, line in reading.lines():
        match = pattern.match(line)
        if match is None or None in match.group(*groups, 0):
            yield Fault(f"line {number}", "that do not match the task's pattern")
        else:
            yield _row(reading, match, match["text"], f"line {number}")


def read_folder(reading: Reading) -> Iterator[Row | Fault]:
    """Read an example of each file whose name a pattern matches."""
    pattern = re.compile(reading.pattern)
    for name, content in named_files(reading, pattern.search):
        match = pattern.search(name)
        assert match is not None
        text = reading.decoded(content, name)
        lines = text.splitlines(keepends=not reading.label)
        kept = lines[: reading.max_lines] if reading.max_lines else lines
        if reading.label:
            text = " ".join(line for line in kept if line.strip())
        else:
            text = "".join(kept).replace("\r\n", "\n")
        yield _row(reading, match, text, name)


def _row(reading: Reading, match: re.Match[str], text: str, where: str) -> Row | Fault:
    if why := unwritable(text):
        return Fault(where, f"with {why}")
    label = match["label"] if reading.label else ""
    owner = match[reading.client] if reading.client else ""
    return Row(text, label, where, owner=owner)
