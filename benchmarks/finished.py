# SPDX-License-Identifier: Apache-2.0
"""Runs of a benchmark that need not be repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def is_finished(folder: Path) -> bool:
    """Tell whether a run has ended; what a broken-off one has left is removed."""
    summary = folder / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["finished"]:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False
