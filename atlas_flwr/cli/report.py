# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr report``: a run's summary and page, rebuilt from its events."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.errors import DataError
from atlas_flwr.report import (
    RunFolder,
    final_table,
    latest_run,
    summarize_folder,
    write_report,
)

__all__ = ["latest", "main"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr report",
        description="Rebuild summary.json and report.html of a run from its events, "
        "and print its table.",
    )
    parser.add_argument(
        "run", nargs="?", type=Path, help="run folder (default: latest)"
    )
    parser.add_argument("--runs-dir", default="runs", help="where the latest is sought")
    given = parser.parse_args(arguments)
    folder = RunFolder.open(given.run) if given.run else latest(given.runs_dir)
    path = write_report(folder)
    print(final_table(summarize_folder(folder)))
    print(path)
    return 0


def latest(runs_dir: str) -> RunFolder:
    """Return the latest run's folder.

    Raises
    ------
    DataError
        If there is none.
    """
    folder = latest_run(runs_dir)
    if folder is None:
        raise DataError(
            f"no run in {runs_dir}; make one with `atlas-flwr run`, or give the folder "
            "of one"
        )
    return folder
