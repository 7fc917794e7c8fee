# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr attack``: what a server could have read of a run's texts."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from atlas_flwr.budget import return_freed_memory
from atlas_flwr.cli.brought import BroughtRun, add_run
from atlas_flwr.config import RunConfig, split_list
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.privacy import ATTACKS
from atlas_flwr.privacy.attacks.registry import (
    MEMBERSHIP,
    OF_SKETCHES,
    OF_TASKS,
    OF_UPDATES,
)
from atlas_flwr.report import write_report
from atlas_flwr.report.privacy import privacy_table
from atlas_flwr.report.store import replace_text

__all__ = ["main", "usual_attacks"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr attack",
        description="Attack what crossed the cut in a run with record-wire=true, as a "
        "server that knows the public weights, the adapters and the defence could, and "
        "the adapters that it has exported, as anybody could who has them; write "
        "RUN/privacy.json, and a section of the report.",
    )
    add_run(parser)
    parser.add_argument(
        "--attacks",
        help="a comma list (default: all on what crossed, "
        f"{','.join(ATTACKS)}, but where more than summaries crossed those that take "
        f"long; on exported adapters there are {','.join(MEMBERSHIP)}, "
        f"on sizes {','.join(OF_TASKS)}, on fingerprints {','.join(OF_SKETCHES)}, on "
        f"updates {','.join(OF_UPDATES)})",
    )
    parser.add_argument(
        "--texts", metavar="N", type=int, default=32, help="to attack (default: 32)"
    )
    parser.add_argument(
        "--known",
        metavar="TASKS",
        help="a comma list of tasks whose texts the attacker has, less those of the "
        "clients (default: three that are not the run's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument(
        "--round",
        metavar="N",
        type=int,
        help="whose updates to attack (default: the first that was kept)",
    )
    given = parser.parse_args(arguments)
    listed = ",".join(ATTACKS) if given.attacks is None else given.attacks
    names = _named(listed, given.texts)
    if given.known is not None:
        _check_known(given.known, names)
    if given.round is not None and not set(names).intersection(OF_UPDATES):
        listed, of = ",".join(names), ",".join(OF_UPDATES)
        raise ConfigError(
            [f"--round {given.round}: is of {of} alone, and --attacks has {listed}"]
        )
    folder = BroughtRun.named(given)
    _check_here(folder)
    if given.attacks is None:
        names = usual_attacks(folder.config())
    return_freed_memory()  # readers train on texts of all lengths, which leave holes

    tellers = [MEMBERSHIP[name] for name in names if name in MEMBERSHIP]
    if tellers:
        from atlas_flwr.cli.members import check_members

        check_members(folder)

    sketchers = [OF_SKETCHES[name] for name in names if name in OF_SKETCHES]
    if sketchers:
        from atlas_flwr.cli.sketches import check_sketches, sketch_scores

        check_sketches(folder)

    from atlas_flwr.cli.recorded import cases, recordings

    readers = [name for name in names if name in ATTACKS]
    sizers = [OF_TASKS[name] for name in names if name in OF_TASKS]
    updates = [OF_UPDATES[name] for name in names if name in OF_UPDATES]
    found, scores = recordings(folder) if readers or sizers or updates else [], []
    if updates:
        from atlas_flwr.cli.properties import check_public
        from atlas_flwr.cli.updates import check_updates, of_round, update_scores
        from atlas_flwr.remedies.wire_recording import WIRE

        check_updates(folder.config(), found, folder.path / WIRE, given.round)
        check_public(folder, [r.client for r in of_round(found, given.round)])

    known = split_list(given.known or "")
    held = found if readers else []
    for case in cases(folder.config(), held, given.texts, given.seed, known):
        for name in readers:
            began = time.monotonic()
            score = case.bounded(ATTACKS[name], given.seed)
            if isinstance(score, str):
                print(f"{name} at cut {case.cut}: left out, {score}", flush=True)
                continue
            scores.append(score)
            seconds = time.monotonic() - began
            print(f"{name} at cut {case.cut}: {seconds:.0f} s", flush=True)
    if sizers:
        from atlas_flwr.cli.traffic import task_scores

        scores += task_scores(folder.config(), found, sizers, given.seed)
    if updates:
        scores += update_scores(folder, found, updates, given.seed, given.round)
    if sketchers:
        scores += sketch_scores(folder, sketchers, given.seed)
    if tellers:
        from atlas_flwr.cli.members import member_scores

        scores += member_scores(folder, tellers, given.texts, given.seed)
    if not scores:
        raise DataError("no attack could be tried on what was recorded; see above")
    text = json.dumps([one.to_json() for one in scores], indent=2) + "\n"
    path = folder.path / "privacy.json"
    replace_text(path, text)
    page = write_report(folder.as_it_was)
    print(privacy_table(folder))
    print(f"{path}\n{page}")
    return 0


def usual_attacks(config: RunConfig) -> tuple[str, ...]:
    """Return what is tried of a run's crossings unless somebody says.

    One that writes takes as long as the others together, and is needed where nothing
    crossed that they could read.
    """
    every = bool(config.summary_positions)
    return tuple(name for name, one in ATTACKS.items() if every or not one.writes)


def _check_here(folder: BroughtRun) -> None:
    """Want the run's model and tasks, before anything is read."""
    from atlas_flwr.data import load_task, resolve_model

    config = folder.config()
    with folder.elsewhere("model"):
        resolve_model(config.model, progress=False)
    with folder.elsewhere("tasks"):
        for name in config.task_list:
            load_task(name)


def _named(listed: str, texts: int) -> tuple[str, ...]:
    """Read which attacks are wanted."""
    names = split_list(listed)
    known = (*ATTACKS, *OF_TASKS, *OF_SKETCHES, *OF_UPDATES, *MEMBERSHIP)
    problems = [
        f"attacks={listed!r}: {name!r} is no attack; there are {', '.join(known)}"
        for name in names or ("",)
        if name not in known
    ]
    problems += [
        f"attacks={listed!r}: names {name} more than once"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if texts < 1:
        problems.append(f"texts={texts}: at least 1 text to attack")
    if problems:
        raise ConfigError(problems)
    return names


def _check_known(listed: str, names: Sequence[str]) -> None:
    """Want different tasks, and an attack that learns from their texts."""
    known = split_list(listed)
    if not known or "" in known or len(set(known)) < len(known):
        raise ConfigError([f"--known {listed!r}: name different tasks, as in a,b"])
    if not set(names).intersection(ATTACKS):
        raise ConfigError(
            [
                f"--known {listed}: is read by {', '.join(ATTACKS)} alone, and of "
                f"them none is in --attacks {','.join(names)}; leave it out"
            ]
        )
