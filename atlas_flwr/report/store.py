# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its configuration, events, summary, adapters and checkpoint.

::

    runs/20250131-174501-atlas/
        config.yaml      as resolved
        run-id           16 random hexadecimal digits
        metrics.jsonl    a line an event, only ever appended to
        summary.json     replaced as a whole after each round
        report.html
        adapters/<cluster>/
        checkpoint/
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from yaml import YAMLError

from atlas_flwr.config import RunConfig, from_yaml, to_yaml
from atlas_flwr.errors import ConfigError, DataError, ResumeError, StorageError
from atlas_flwr.report.events import Event, RunStarted
from atlas_flwr.report.records import from_record, to_record

__all__ = ["RunFolder", "latest_run", "replace_text", "taken_name", "writing"]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; make one with :meth:`create` or :meth:`open`.

    Attributes
    ----------
    path : Path
        Where it is.
    """

    path: Path

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """Make a new folder in ``config.runs_dir`` and write the configuration.

        Raises
        ------
        ConfigError
            When ``config.run_name`` is given and taken.
        """
        folder = cls(_new_folder(config))
        folder.rewrite(config)
        replace_text(folder.path / "run-id", secrets.token_hex(8))
        folder.metrics_path.touch()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Take up a folder that :meth:`create` made.

        Raises
        ------
        ResumeError
            When it is not one.
        """
        folder = cls(Path(path))
        if not folder.config_path.is_file():
            raise ResumeError(
                f"{path} is not a run folder: it has no config.yaml; a run makes one "
                "as <runs-dir>/<time>-<strategy>"
            )
        return folder

    @property
    def config_path(self) -> Path:
        """Path of ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """Path of ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """Path of ``summary.json``."""
        return self.path / "summary.json"

    @property
    def report_path(self) -> Path:
        """Path of ``report.html``."""
        return self.path / "report.html"

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoint, made when first asked for."""
        return _made(self.path / "checkpoint")

    def adapter_dir(self, cluster: int | str) -> Path:
        """Folder of a cluster's adapters, made when first asked for."""
        return _made(self.path / "adapters" / str(cluster))

    def run_id(self) -> str:
        """Read the run's id, which no other run has, and which a resumed one keeps.

        Raises
        ------
        ResumeError
            When the folder has none.
        """
        path = self.path / "run-id"
        if not path.is_file():
            raise ResumeError(
                f"{self.path} has no file run-id: an older version made it, and this "
                "one cannot continue it; start a new run"
            )
        return path.read_text(encoding="utf-8")

    def config(self) -> RunConfig:
        """Read the configuration.

        Raises
        ------
        DataError
            When the file is damaged.
        """
        try:
            return from_yaml(self.config_path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, YAMLError) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{self.config_path} is damaged: {said}") from None

    def rewrite(self, config: RunConfig) -> None:
        """Write the configuration: at the start, or with more rounds than before."""
        replace_text(self.config_path, to_yaml(config))

    def record(self, event: Event, at: float | None = None) -> None:
        """Append an event; it is on disk when this returns.

        Parameters
        ----------
        event : Event
            What happened.
        at : float, optional
            Seconds since 1970; ``None`` is now.
        """
        record = to_record(event, time.time() if at is None else at)
        line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
        path = self.metrics_path
        with writing(path), path.open("ab+") as file:
            _drop_torn_line(file.fileno())
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Read the events as JSON objects, oldest first.

        A last line without its end, as a killed process leaves it, is passed over.

        Raises
        ------
        DataError
            When any other line is not an event.
        """
        if not self.metrics_path.is_file():
            return []
        found = self.metrics_path.read_bytes()
        whole, end, _ = found.rpartition(b"\n")
        if found and not end and not found.startswith(b"{"):
            raise DataError(f"{self.metrics_path}: has no event in it, but other bytes")
        lines = whole.split(b"\n") if whole else []
        return [self._parsed(line, number) for number, line in enumerate(lines, 1)]

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.metrics_path}:{number}: {error}") from None
        is_event = (
            isinstance(record, dict)
            and isinstance(record.get("event"), str)
            and isinstance(record.get("time"), int | float)
        )
        if not is_event:
            raise DataError(
                f"{self.metrics_path}:{number}: not an event: it needs an object with "
                "'event' and 'time'"
            )
        found: dict[str, Any] = record
        return found

    def events(self) -> Iterator[tuple[float, Event]]:
        """Yield the events of known kinds with their times in seconds since 1970."""
        for number, record in enumerate(self.records(), 1):
            try:
                event = from_record(record)
            except DataError as error:
                raise DataError(f"{self.metrics_path}:{number}: {error}") from None
            if event is not None:
                yield float(record["time"]), event

    def partitions(self) -> int:
        """Count the clients that its texts are dealt to; 0 where it was not noted."""
        events = (event for _, event in self.events())
        starts = (event for event in events if isinstance(event, RunStarted))
        return next((start.partitions for start in starts if start.partitions), 0)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json`` in one step: a reader sees the old or the new."""
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        replace_text(self.summary_path, text + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old or the new one whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path), draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what a file that cannot be written means for its run.

    Raises
    ------
    StorageError
        For errors of the disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} cannot be written: {error}. Make room there, and continue the run "
            "from its last checkpoint with --run-config \"resume='<run folder>'\""
        ) from None


def taken_name(config: RunConfig) -> str:
    """Say that a run of the configured name is there already; empty where it is not."""
    path = Path(config.runs_dir) / config.run_name
    taken = config.run_name and not config.resume and path.exists()
    return _taken(config, path) if taken else ""


def _taken(config: RunConfig, path: Path) -> str:
    return (
        f"run-name={config.run_name!r}: {path} is there already; choose another name, "
        f"or continue it with resume={str(path)!r}"
    )


def latest_run(runs_dir: str | Path) -> RunFolder | None:
    """Return the run folder that was begun last, or ``None`` where there is none."""
    configs = Path(runs_dir).glob("*/config.yaml")
    newest = max(configs, key=lambda path: path.stat().st_mtime, default=None)
    return RunFolder(newest.parent) if newest else None


def _new_folder(config: RunConfig) -> Path:
    parent = _made(Path(config.runs_dir))
    if config.run_name:
        path = parent / config.run_name
        if not _made_new(path):
            raise ConfigError([_taken(config, path)])
        return path
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.strategy}"
    candidates = (parent / f"{stem}{'' if n == 1 else f'-{n}'}" for n in count(1))
    return next(path for path in candidates if _made_new(path))


def _made_new(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _drop_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        text = os.pread(descriptor, size, 0)
        os.ftruncate(descriptor, text.rfind(b"\n") + 1)
