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
    pattern = re.compile(reading.pattern)
    for number, line in reading.lines():
        match = pattern.match(line)
        if match is None or None in (match["text"], match["label"]):
            yield Fault(f"line {number}", "that do not match the task's pattern")
        else:
            yield Row(match["text"], match["label"], f"line {number}")


def read_folder(reading: Reading) -> Iterator[Row | Fault]:
    """Read an example of each file whose name a pattern matches."""
    pattern = re.compile(reading.pattern)
    for name, content in _files(reading):
        match = pattern.search(name)
        if match:
            lines = reading.decoded(content, name).splitlines()
            kept = lines[: reading.max_lines] if reading.max_lines else lines
            text = " ".join(line for line in kept if line.strip())
            yield Row(text, match["label"], name)


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
