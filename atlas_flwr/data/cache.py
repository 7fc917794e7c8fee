# SPDX-License-Identifier: Apache-2.0
"""The cache folder, outside any repository, filled atomically."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atlas_flwr.errors import DataError

__all__ = ["cache_folder", "clients_folder", "filling"]


def cache_folder() -> Path:
    """Return ``$ATLAS_CACHE``, or ``atlas-flwr`` in the user's cache folder."""
    own = os.environ.get("ATLAS_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "atlas-flwr"


def clients_folder(run_id: str) -> Path:
    """Return the folder of what clients on this machine remember of a run.

    Raises
    ------
    DataError
        If the run's id could lead out of it.
    """
    if not re.fullmatch(r"[0-9a-f]{16}", run_id):
        raise DataError(f"run-id {run_id!r}; it must be 16 hexadecimal digits")
    return cache_folder() / "clients" / run_id


@contextmanager
def filling(target: Path) -> Iterator[Path | None]:
    """Make ``target`` once, whoever comes first; others wait for it.

    Yields
    ------
    Path or None
        An empty folder to fill, which becomes ``target`` when the block ends well and
        vanishes when it does not; ``None`` if ``target`` is there already.

    Raises
    ------
    DataError
        If the cache cannot be written to.
    """
    if target.exists():
        yield None
        return
    with _locked(target):
        if target.exists():
            yield None
            return
        for orphan in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(orphan)  # whoever was filling it was killed
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield work
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"the cache folder {target.parent} cannot be written to: "
            f"{error.strerror}; set ATLAS_CACHE to a folder that can"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
