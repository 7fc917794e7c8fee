# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr compare``: strategies over seeds, one after the other, in one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from atlas_flwr.cli.launch import Federation, private_superlink
from atlas_flwr.cli.overrides import Value, app_defaults, parse_overrides
from atlas_flwr.cli.preflight import cleared
from atlas_flwr.cli.run import (
    COMPLETED,
    add_federation,
    add_run_config,
    federation_of,
)
from atlas_flwr.cli.trials import Trial, plan, progress
from atlas_flwr.config import split_list
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.report import (
    RunFolder,
    compare_folders,
    comparison_page,
    markdown,
    summarize_folder,
)
from atlas_flwr.report.store import replace_text

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    given = _parser().parse_args(arguments)
    if given.runs:
        folders, complete = _finished(given.runs), True
    else:
        folders, complete = _run_all(given)
    if folders:
        _write(given.out, folders)
    return 0 if complete else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas-flwr compare",
        description="Run strategies over seeds on one SuperLink, one after the other, "
        "and write compare.md and compare.html. What an earlier call finished is not "
        "run again, and what it began is resumed.",
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, help="compare these finished runs"
    )
    parser.add_argument("--strategies", default="atlas,fedavg,local", help="comma list")
    parser.add_argument("--seeds", default="0,1,2", help="comma list")
    parser.add_argument("--app", default=".", type=Path, help="app's folder")
    parser.add_argument("--out", default="runs/compare", type=Path, help="folder")
    add_run_config(parser)
    add_federation(parser)
    return parser


def _finished(runs: Sequence[Path]) -> list[RunFolder]:
    """Open runs; one that ended early would stand beside others as if it were whole."""
    folders = [RunFolder.open(run) for run in runs]
    problems = [
        f"{folder.path} is not finished: {found.rounds} of {found.planned_rounds} "
        f"rounds are done. Continue it with resume={str(folder.path)!r}, or leave it "
        "out"
        for folder, found in ((f, summarize_folder(f)) for f in folders)
        if not found.finished
    ]
    if problems:
        raise DataError(*problems)
    return folders


def _run_all(given: argparse.Namespace) -> tuple[list[RunFolder], bool]:
    """Run what is not finished; return the finished folders, and whether all are."""
    federation = federation_of(given)
    trials = plan(
        split_list(given.strategies),
        _seeds(given.seeds),
        parse_overrides(given.run_config),
    )
    defaults, ours = app_defaults(given.app)
    if not ours:
        raise ConfigError(
            [f"{given.app}: its serverapp must be atlas_flwr.server_apps.app:app"]
        )
    trials = _cleared(trials, given)
    given.out.mkdir(parents=True, exist_ok=True)
    _run_missing(given, trials, defaults, federation)
    found = [progress(t, given.out, defaults, given.num_supernodes) for t in trials]
    finished = [state.finished for state in found if state.finished]
    return finished, len(finished) == len(trials)


def _cleared(trials: Sequence[Trial], given: argparse.Namespace) -> list[Trial]:
    """Check all trials before any is run; return them as they are to be run."""
    problems: dict[str, None] = {}
    notes: dict[str, None] = {}
    good = []
    for trial in trials:
        try:
            found = cleared(given.app, trial.overrides, given.num_supernodes)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        notes |= dict.fromkeys(found.notes)
        good.append(replace(trial, overrides=found.overrides))
    if problems:
        raise ConfigError(list(problems))
    for note in notes:
        print(note, flush=True)
    return good


def _run_missing(
    given: argparse.Namespace,
    trials: Sequence[Trial],
    defaults: Mapping[str, Value],
    federation: Federation,
) -> None:
    states = [progress(t, given.out, defaults, given.num_supernodes) for t in trials]
    missing = [
        (trial, state.overrides)
        for trial, state in zip(trials, states, strict=True)
        if not state.finished
    ]
    print(f"{len(trials) - len(missing)} of {len(trials)} runs are done", flush=True)
    if not missing:
        return
    with private_superlink(given.app, given.verbose) as superlink:
        for number, (trial, overrides) in enumerate(missing, 1):
            print(f"\n== {number} of {len(missing)}: {trial.name}", flush=True)
            status = superlink.run(overrides, federation)
            if status != COMPLETED:
                print(f"{trial.name}: {status}", file=sys.stderr)


def _seeds(text: str) -> list[int]:
    words = split_list(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(
            [f"--seeds {text!r}: must be whole numbers from 0, e.g. 0,1,2"]
        )
    return [int(word) for word in dict.fromkeys(words)]


def _write(out: Path, folders: Sequence[RunFolder]) -> None:
    comparison = compare_folders(folders)
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(comparison)
    replace_text(out / "compare.md", table)
    replace_text(out / "compare.html", comparison_page(comparison))
    print(f"\n{table}\n{out / 'compare.md'}\n{out / 'compare.html'}")
