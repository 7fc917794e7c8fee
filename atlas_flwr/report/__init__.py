# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: its folder, its events, its summary, tables and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.report.events import (
        Baseline,
        ClientEvaluated,
        ClientTrained,
        Clustered,
        RoundEnded,
        RunEnded,
        RunStarted,
    )
    from atlas_flwr.report.store import RunFolder, latest_run
    from atlas_flwr.report.summary import RoundSummary, Summary
    from atlas_flwr.report.table import final_table, round_table
    from atlas_flwr.report.tally import summarize, summarize_folder

__all__ = [
    "Baseline",
    "ClientEvaluated",
    "ClientTrained",
    "Clustered",
    "RoundEnded",
    "RoundSummary",
    "RunEnded",
    "RunFolder",
    "RunStarted",
    "Summary",
    "final_table",
    "latest_run",
    "round_table",
    "summarize",
    "summarize_folder",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Baseline": "events",
        "ClientEvaluated": "events",
        "ClientTrained": "events",
        "Clustered": "events",
        "RoundEnded": "events",
        "RoundSummary": "summary",
        "RunEnded": "events",
        "RunFolder": "store",
        "RunStarted": "events",
        "Summary": "summary",
        "final_table": "table",
        "latest_run": "store",
        "round_table": "table",
        "summarize": "tally",
        "summarize_folder": "tally",
    },
)
