# SPDX-License-Identifier: Apache-2.0
"""Which runs a comparison is made of, and which of them are still to be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from atlas_flwr.cli.overrides import Value
from atlas_flwr.config import RunConfig, load_config, options
from atlas_flwr.errors import ConfigError
from atlas_flwr.report import RunFolder, dealt_to, summarize_folder
from atlas_flwr.report.comparison import one_spelling

__all__ = ["Trial", "plan", "progress"]

OURS_TO_SET = ("strategy", "seed", "run-name", "runs-dir", "resume")
NOT_COMPARED = ("run_name", "runs_dir", "resume")


@dataclass(frozen=True)
class Trial:
    """One strategy with one seed.

    Attributes
    ----------
    strategy : str
        Name of the strategy.
    seed : int
        The seed.
    overrides : Mapping[str, Value]
        Of the run config, strategy and seed included.
    """

    strategy: str
    seed: int
    overrides: Mapping[str, Value]

    @property
    def name(self) -> str:
        """Name of its run folder, but for a number."""
        return f"{self.strategy}-seed{self.seed}"


@dataclass(frozen=True)
class Progress:
    """What is there of a trial.

    Attributes
    ----------
    finished : RunFolder, optional
        Its folder, if it is complete.
    overrides : Mapping[str, Value]
        What to run it with if it is not: anew, or from its last checkpoint.
    """

    finished: RunFolder | None
    overrides: Mapping[str, Value]


def plan(
    strategies: Sequence[str], seeds: Sequence[int], given: Mapping[str, Value]
) -> list[Trial]:
    """List the trials: seed by seed, so that an early look is at paired runs.

    A key that only some strategies read goes to those only.

    Raises
    ------
    ConfigError
        When a key is the comparison's own to set, or no strategy here reads it.
    """
    repeated = sorted({s for s in strategies if strategies.count(s) > 1})
    problems = [
        *(() if strategies else ["--strategies '': names nothing to compare"]),
        *(f"--strategies names {name} more than once" for name in repeated),
        *(f"{k}: compare sets it itself" for k in given if k in OURS_TO_SET),
        *(
            f"{key}: none of {', '.join(strategies)} reads it"
            for key in given
            if not any(_reads(strategy, key) for strategy in strategies)
        ),
    ]
    if problems:
        raise ConfigError(problems)
    return [
        Trial(strategy, seed, {**_read_by(strategy, given), **_own(strategy, seed)})
        for seed in seeds
        for strategy in strategies
    ]


def _own(strategy: str, seed: int) -> dict[str, Value]:
    return {"strategy": strategy, "seed": seed}


def _read_by(strategy: str, given: Mapping[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in given.items() if _reads(strategy, key)}


def _reads(strategy: str, key: str) -> bool:
    known = options().get(key)
    return known is None or not known.only or strategy in known.only


def progress(
    trial: Trial, out: Path, defaults: Mapping[str, Value], num_clients: int
) -> Progress:
    """Look for what a former comparison left of a trial.

    Parameters
    ----------
    trial : Trial
        The trial.
    out : Path
        Folder of the comparison.
    defaults : Mapping[str, Value]
        The app's run config.
    num_clients : int
        Clients that the trial is to have.

    Raises
    ------
    ConfigError
        When a folder of its name is of another configuration.
    """
    wanted = load_config({**defaults, **trial.overrides})
    where: dict[str, Value] = {"runs-dir": str(out.resolve())}
    resumable = None
    for folder in _folders(trial, out):
        _check_same(folder, wanted, num_clients)
        if summarize_folder(folder).finished:
            return Progress(folder, {})
        resumable = folder if any(folder.path.glob("checkpoint/round-*")) else resumable
    if resumable:
        where["resume"] = str(resumable.path.resolve())
    else:
        where["run-name"] = next(_free_names(trial, out))
    return Progress(None, {**trial.overrides, **where})


def _names(trial: Trial) -> Iterator[str]:
    return (f"{trial.name}{'' if n == 1 else f'-{n}'}" for n in count(1))


def _folders(trial: Trial, out: Path) -> Iterator[RunFolder]:
    for name in _names(trial):
        if not (out / name).exists():
            return
        if (out / name / "config.yaml").is_file():
            yield RunFolder.open(out / name)


def _free_names(trial: Trial, out: Path) -> Iterator[str]:
    return (name for name in _names(trial) if not (out / name).exists())


def _check_same(folder: RunFolder, wanted: RunConfig, num_clients: int) -> None:
    found, clients = one_spelling(folder.config()), dealt_to(folder)
    wanted = one_spelling(wanted)
    differing = [
        f"{entry.name.replace('_', '-')}={getattr(found, entry.name)!r}"
        for entry in dataclasses.fields(RunConfig)
        if entry.name not in NOT_COMPARED
        and getattr(found, entry.name) != getattr(wanted, entry.name)
    ]
    if clients not in (0, num_clients):
        differing.append(f"{clients} clients")
    if differing:
        raise ConfigError(
            [
                f"{folder.path} was run with {', '.join(differing)}: give the same "
                "again, or another --out"
            ]
        )
