# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: its folder, its events, its summary, tables and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.report.client_events import ClientEvaluated, ClientTrained
    from atlas_flwr.report.comparison import Comparison, compare, compare_folders
    from atlas_flwr.report.comparison_rows import markdown
    from atlas_flwr.report.events import (
        Baseline,
        Clustered,
        RoundEnded,
        RunEnded,
        RunStarted,
        SumsSent,
    )
    from atlas_flwr.report.page import comparison_page, run_page, write_report
    from atlas_flwr.report.store import RunFolder, latest_run
    from atlas_flwr.report.summary import RoundSummary, Summary
    from atlas_flwr.report.table import final_table, round_table
    from atlas_flwr.report.totals import dealt_to, summarize, summarize_folder

__all__ = [
    "Baseline",
    "ClientEvaluated",
    "ClientTrained",
    "Clustered",
    "Comparison",
    "RoundEnded",
    "RoundSummary",
    "RunEnded",
    "RunFolder",
    "RunStarted",
    "Summary",
    "SumsSent",
    "compare",
    "compare_folders",
    "comparison_page",
    "dealt_to",
    "final_table",
    "latest_run",
    "markdown",
    "round_table",
    "run_page",
    "summarize",
    "summarize_folder",
    "write_report",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Baseline": "events",
        "ClientEvaluated": "client_events",
        "ClientTrained": "client_events",
        "Clustered": "events",
        "Comparison": "comparison",
        "RoundEnded": "events",
        "RoundSummary": "summary",
        "RunEnded": "events",
        "RunFolder": "store",
        "RunStarted": "events",
        "SumsSent": "events",
        "Summary": "summary",
        "compare": "comparison",
        "compare_folders": "comparison",
        "comparison_page": "page",
        "dealt_to": "totals",
        "final_table": "table",
        "latest_run": "store",
        "markdown": "comparison_rows",
        "round_table": "table",
        "run_page": "page",
        "summarize": "totals",
        "summarize_folder": "totals",
        "write_report": "page",
    },
)
