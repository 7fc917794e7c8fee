# SPDX-License-Identifier: Apache-2.0
"""What attacks have read of a run, set in a table: rows of ``privacy.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atlas_flwr.errors import DataError
from atlas_flwr.report.store import RunFolder
from atlas_flwr.report.table import as_text, percent

__all__ = ["PRIVACY_COLUMNS", "privacy_rows", "privacy_table"]

PRIVACY_COLUMNS = (
    "attack",
    "of",
    "cut",
    "defence",
    "read, %",
    "95 %",
    "guessing, %",
    "at most, %",
    "whole",
    "texts",
)


OF = {
    "text": "tokens",
    "response": "response tokens",
    "label": "labels",
    "member": "members (AUC)",
    "task": "clients' tasks",
    "balance": "clients' balance of labels (overlap)",
}


def privacy_rows(folder: RunFolder) -> list[tuple[str, ...]]:
    """Return the cells of each attack; none where a run was not attacked."""
    path = folder.path / "privacy.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [_cells(found) for found in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it, or run "
            f"`atlas-flwr attack {folder.path}` again"
        ) from None


def privacy_table(folder: RunFolder) -> str:
    """Set all attacks in text."""
    title = "what attacks tell, beside a guess and the most there was to tell"
    return as_text(title, PRIVACY_COLUMNS, privacy_rows(folder), total=False)


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = found["interval"]
    return (
        found["attack"],
        OF[found["target"]],
        found["cut"],
        found["defence"],
        percent(found["token_accuracy"]),
        f"{percent(low)}–{percent(high)}",
        percent(found["baseline"]),
        percent(found["upper_bound"]) if "upper_bound" in found else "–",
        str(found["exact_texts"]),
        str(found["texts"]),
    )
