# SPDX-License-Identifier: Apache-2.0
"""A run that may have been brought from another machine, with what of it lies here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from atlas_flwr.cli.report import latest
from atlas_flwr.config import RunConfig, split_list
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.report import RunFolder

__all__ = ["BroughtRun", "add_run"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add what names a run, and where its model and task files lie."""
    parser.add_argument("run", nargs="?", type=Path, help="folder (default: latest)")
    parser.add_argument("--runs-dir", default="runs", help="where the latest is sought")
    parser.add_argument(
        "--model", help="the run's, where it lies on this machine (default: as there)"
    )
    parser.add_argument(
        "--tasks",
        help="the run's task files, where they lie on this machine; each is known by "
        "its name",
    )


@dataclass(frozen=True)
class BroughtRun(RunFolder):
    """A run's folder, with the model and task files of this machine.

    Attributes
    ----------
    model : str, optional
        What the run's model is called here.
    tasks : str, optional
        Where its task files lie here, a comma list in any order.
    """

    model: str | None = None
    tasks: str | None = None

    @classmethod
    def named(cls, given: argparse.Namespace) -> BroughtRun:
        """Open the run that :func:`add_run`'s arguments name.

        Raises
        ------
        AtlasError
            If there is none, or ``--tasks`` are not its own.
        """
        run = RunFolder.open(given.run) if given.run else latest(given.runs_dir)
        found = cls(run.path, given.model, given.tasks)
        found.config()
        return found

    @property
    def as_it_was(self) -> RunFolder:
        """The folder, with nothing of this machine."""
        return RunFolder(self.path)

    def config(self) -> RunConfig:
        """Read the run's configuration, with what of it lies elsewhere here.

        Raises
        ------
        ConfigError
            If ``tasks`` are not the run's.
        """
        config = super().config()
        if self.model is not None:
            config = replace(config, model=self.model)
        if self.tasks is None:
            return config
        return replace(config, tasks=_in_order(self.tasks, config.task_list))

    @contextmanager
    def elsewhere(self, option: str) -> Iterator[None]:
        """Say which option names what is not where the run, perhaps elsewhere, had it.

        Parameters
        ----------
        option : str
            ``"model"`` or ``"tasks"``.
        """
        try:
            yield
        except DataError as error:
            if getattr(self, option) is not None:  # it was said already
                raise
            had = getattr(super().config(), option)
            raise DataError(
                *error.problems,
                f"{self.path} was run with {option}={had!r}; if that lies elsewhere on "
                f"this machine, say where with --{option}",
            ) from None


def _in_order(given: str, had: Sequence[str]) -> str:
    """Put task files in the run's order, by which clients have their tasks."""
    files, names = split_list(given), [Path(task).stem for task in had]
    found = [Path(file).stem for file in files]
    if len(set(files)) < len(files) or sorted(found) != sorted(names):
        raise ConfigError(
            [
                f"--tasks {given!r} names {', '.join(found)}, "
                f"where the run's tasks are {', '.join(names)}: give each once; a "
                "task is known by the name of its file"
            ]
        )
    if len(set(names)) < len(names) and found != names:
        raise ConfigError(
            [
                f"--tasks {given!r}: some of the run's tasks have one name, "
                f"{', '.join(names)}: give them in this order"
            ]
        )
    by_name = dict(zip(found, files, strict=True))
    return given if found == names else ",".join(by_name[name] for name in names)
