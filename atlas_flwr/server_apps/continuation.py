# SPDX-License-Identifier: Apache-2.0
"""What a resumed run has to have in common with the one that it goes on with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace

from atlas_flwr.config import RunConfig, options
from atlas_flwr.config.rules import find_problems
from atlas_flwr.config.trunk_rules import TRUNK_ALONE
from atlas_flwr.errors import ResumeError
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.checkpoint import Checkpoint, load_checkpoint

__all__ = [
    "anew_problems",
    "beside_began",
    "check_clients",
    "continued",
    "left_behind",
    "saved_state",
    "without_own_trunk",
]

Value = bool | int | float | str
# What a resumed run may be given anew: nothing that changes its numbers.
TAKEN_ANEW = (
    "in_flight",
    "num_rounds",
    "trunk_access",
    "trunk_address",
    "trunk_advertise",
    "trunk_client_ca",
    "trunk_limit",
    "trunk_listen",
    "trunk_metrics",
    "trunk_queue",
    "trunk_rate",
    "trunk_replicas",
    "trunk_restarts",
    "trunk_threads",
)
# What was said of a run's own trunk means nothing once it goes on with one elsewhere.
OWN_TRUNK = (
    *TRUNK_ALONE,
    "trunk-advertise",
    "trunk-client-ca",
    "trunk-listen",
    "trunk-metrics",
    "trunk-replicas",
)
MINIMA = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
FREE_KEYS = (*TAKEN_ANEW, "resume", "runs_dir", "run_name")


def left_behind(given: Mapping[str, Value], began: RunConfig) -> Mapping[str, Value]:
    """Return the keys of a run's own trunk, if it is to go on with one elsewhere.

    Parameters
    ----------
    given : Mapping[str, Value]
        Flat and kebab-case, as :func:`continued` means it.
    began : RunConfig
        What it began with.

    Returns
    -------
    Mapping[str, Value]
        With their values: what the other trunk was started with takes their place.
    """
    if not given.get("trunk-access"):
        return {}
    had: dict[str, Value] = {
        key: getattr(began, key.replace("-", "_")) for key in OWN_TRUNK
    }
    if began.trunk in ("ray", "local"):
        had["trunk"] = began.trunk
    return {
        key: value
        for key, value in had.items()
        if value != getattr(RunConfig, key.replace("-", "_"))
    }


def without_own_trunk(given: Mapping[str, Value], began: RunConfig) -> RunConfig:
    """Return what a run began with, less what :func:`left_behind` returns."""
    names = [key.replace("-", "_") for key in left_behind(given, began)]
    return replace(began, **{name: getattr(RunConfig, name) for name in names})


def continued(
    given: RunConfig, began: RunConfig, named: Collection[str] = ()
) -> RunConfig:
    """Return the configuration of a resumed run.

    Parameters
    ----------
    given : RunConfig
        What the run would have as a new one.
    began : RunConfig
        What it began with.
    named : Collection[str]
        Keys that were named when it was resumed. They must agree with what the run
        began with, as must those that are not at the library's default, but for
        ``min-*-nodes``; all others are taken from the run.

    Raises
    ------
    ResumeError
        With every key that does not agree.
    """
    default = RunConfig()
    meant = {
        field.name
        for field in fields(RunConfig)
        if field.name.replace("_", "-") in named
        or getattr(given, field.name) != getattr(default, field.name)
    }
    odd = [
        f"{name.replace('_', '-')}: given {getattr(given, name)!r}, began with "
        f"{getattr(began, name)!r}"
        for name in sorted(meant.difference(FREE_KEYS))
        if getattr(given, name) != getattr(began, name)
        # The app's minima may have been lowered to the run's clients as it began.
        and (name.replace("_", "-") in named or name not in MINIMA)
    ]
    if odd:
        raise ResumeError(
            "a run continues with the configuration that it began with; leave these "
            "out, or start a new run:\n  - " + "\n  - ".join(odd)
        )
    anew = {name: getattr(given, name) for name in meant.intersection(TAKEN_ANEW)}
    return replace(began, **anew)


def beside_began(
    given: Mapping[str, Value], began: RunConfig, named: Collection[str] = ()
) -> dict[str, Value]:
    """Fill the keys that are not given from the run's, by which they are judged.

    Parameters
    ----------
    given : Mapping[str, Value]
        Flat and kebab-case, as :func:`continued` means it.
    began : RunConfig
        What it began with.
    named : Collection[str]
        Keys that were named when it was resumed.
    """
    default = RunConfig()
    rest = {
        key: getattr(began, key.replace("-", "_"))
        for key in options()
        if key not in ("resume", "run-name")
    }
    return rest | {
        key: value
        for key, value in given.items()
        # A key that there is not stays, to be refused.
        if key in named or value != getattr(default, key.replace("-", "_"), None)
    }


def anew_problems(config: RunConfig, began: RunConfig) -> Iterator[str]:
    """Yield what is wrong with keys given anew, beside what the run began with.

    Parameters
    ----------
    config : RunConfig
        What it would go on with.
    began : RunConfig
        What it began with.
    """
    changed = {
        name.replace("_", "-")
        for name in TAKEN_ANEW
        if getattr(config, name) != getattr(began, name)
    }
    for problem in find_problems(config):
        if not changed.isdisjoint(problem.keys):
            yield problem.sentence


def saved_state(path: str, config: RunConfig) -> tuple[RunFolder, Checkpoint]:
    """Open the folder of the run to resume, and read its last checkpoint.

    Parameters
    ----------
    path : str
        The run's folder.
    config : RunConfig
        What it is to go on with.

    Raises
    ------
    ResumeError
        If it has none, or has done more rounds than it is to have.
    """
    folder = RunFolder.open(path)
    saved = load_checkpoint(folder.checkpoint_dir)
    if config.num_rounds < saved.round:
        raise ResumeError(
            f"num-rounds={config.num_rounds}: the run has done {saved.round} rounds "
            f"already; give at least {saved.round}, or leave it out"
        )
    return folder, saved


def check_clients(folder: RunFolder, partitions: int) -> None:
    """Refuse clients among whom the texts are dealt in another way.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    partitions : int
        Clients that the texts are dealt to now, whether connected or not.

    Raises
    ------
    ResumeError
        If it began with another number; runs of older versions did not note theirs.
    """
    began = folder.partitions()
    if began and partitions != began:
        raise ResumeError(
            f"the run began with its texts dealt to {began} clients, and now it is "
            f"{partitions}: nobody would train on what it has trained on. Resume it "
            f"with {began} (`-n {began}`, or num-partitions={began} for each "
            "SuperNode), or start a new run"
        )
