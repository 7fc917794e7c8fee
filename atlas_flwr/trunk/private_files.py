# SPDX-License-Identifier: Apache-2.0
"""Files that are secrets: their owner's alone, and whole whatever happens."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["write_private"]


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody but its owner can read, also where one was there.

    Who reads it, and who comes after a crash, finds the old one or the new one whole.

    Parameters
    ----------
    path : Path
        Its place; the folder is there.
    data : bytes
        What is in it.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
