# SPDX-License-Identifier: Apache-2.0
"""Plain text: a line an example, or a file an example."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.data.packages import fetch
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_folder", "read_lines"]

LEFT_BY_SYSTEMS = ("._", ".DS_Store", "Thumbs.db", "__MACOSX")


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
    for name, content in _files(reading):
        match = pattern.search(name)
        if match:
            text = reading.decoded(content, name)
            lines = text.splitlines(keepends=not reading.label)
            kept = lines[: reading.max_lines] if reading.max_lines else lines
            if reading.label:
                text = " ".join(line for line in kept if line.strip())
            else:
                text = "".join(kept).replace("\r\n", "\n")
            yield _row(reading, match, text, name)


def _row(reading: Reading, match: re.Match[str], text: str, where: str) -> Row:
    label = match["label"] if reading.label else ""
    owner = match[reading.client] if reading.client else ""
    return Row(text, label, where, owner=owner)


def _files(reading: Reading) -> Iterator[tuple[str, bytes]]:
    if reading.path:
        if not Path(reading.path).is_dir():
            raise DataError(
                f"there is no folder {reading.path} (a task's `path` is seen from the "
                "folder of its YAML file)"
            )
        for path in sorted(Path(reading.path).rglob("*")):
            if path.is_file() and not path.name.startswith(LEFT_BY_SYSTEMS):
                yield str(path.relative_to(reading.path)), path.read_bytes()
        return
    with zipfile.ZipFile(fetch(reading.package)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(reading.member) and not name.endswith("/"):
                yield name.removeprefix(reading.member), wheel.read(name)
