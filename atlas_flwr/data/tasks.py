# SPDX-License-Identifier: Apache-2.0
"""Tasks: text, labels and a template, described in a small YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from atlas_flwr.data.definitions import read_definition
from atlas_flwr.data.readers import Reading, Row
from atlas_flwr.errors import DataError

__all__ = ["Example", "Task", "load_examples", "load_task", "task_names"]


@dataclass(frozen=True)
class Example:
    """A text and the number of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes
    ----------
    name : str
        Its file's stem.
    labels : tuple[str, ...]
        The word that a causal model answers for each class.
    raw_labels : tuple[str, ...]
        What the classes are called in the source.
    template : str
        Prompt of a causal model; ``{text}`` stands for the text, and the label's word
        follows after a space.
    balance : bool
        Draw equally many examples of each class.
    reading : Reading
        Where the text comes from.
    above : float, optional
        Labels are numbers: the last class is those above this, the first those below
        ``-above``, and what lies between is left out.
    max_chars : int
        Longer texts are cut at the last word that fits; 0 for no limit.
    description, licence : str
        For people.
    """

    name: str
    labels: tuple[str, ...]
    raw_labels: tuple[str, ...]
    template: str
    balance: bool
    reading: Reading
    above: float | None
    max_chars: int = 0
    description: str = ""
    licence: str = ""


def task_names() -> list[str]:
    """List the tasks that come with the library."""
    folder = resources.files("atlas_flwr.data") / "tasks"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_task(name_or_path: str) -> Task:
    """Read a task that comes with the library, or a YAML file of the user's.

    Raises
    ------
    DataError
        With every problem of the file at once.
    """
    if name_or_path in task_names():
        folder = resources.files("atlas_flwr.data") / "tasks"
        text = (folder / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return _parse(name_or_path, text, Path())
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise DataError(
            f"task {name_or_path!r}: neither a file nor one of "
            f"{', '.join(task_names())}; a task is a YAML file, see docs/tasks.md"
        )
    return _parse(path.stem, path.read_text(encoding="utf-8"), path.parent)


@lru_cache(maxsize=16)
def load_examples(task: Task) -> tuple[Example, ...]:
    """Read a task's examples: no duplicates, in a fixed order.

    Raises
    ------
    DataError
        If a label is not among the task's, or a class has no example.
    """
    found: dict[str, int] = {}
    for row in task.reading.rows():
        label = _class(task, row)
        text = _shortened(" ".join(row.text.split()), task.max_chars)
        if label is not None and text:
            found.setdefault(text, label)
    examples = tuple(Example(text, label) for text, label in sorted(found.items()))
    present = {example.label for example in examples}
    if len(present) < len(task.labels):
        absent = [
            task.raw_labels[i] for i in range(len(task.labels)) if i not in present
        ]
        raise DataError(f"task {task.name}: no example of {', '.join(absent)}")
    return examples


def _shortened(text: str, limit: int) -> str:
    if not limit or len(text) <= limit:
        return text
    return text[: limit + 1].rpartition(" ")[0] or text[:limit]


def _class(task: Task, row: Row) -> int | None:
    if task.above is not None:
        value = _number(task, row.label)
        if abs(value) <= task.above:
            return None
        return len(task.labels) - 1 if value > 0 else 0
    if row.label not in task.raw_labels:
        raise DataError(
            f"task {task.name}: label {row.label!r} in {task.reading.where}; its "
            f"`labels` are {', '.join(task.raw_labels)}"
        )
    return task.raw_labels.index(row.label)


def _number(task: Task, label: str) -> float:
    try:
        return float(label)
    except ValueError:
        raise DataError(
            f"task {task.name}: label {label!r} in {task.reading.where} is not a "
            "number, which `above` needs"
        ) from None


@lru_cache(maxsize=64)
def _parse(name: str, text: str, folder: Path) -> Task:
    given = read_definition(name, text)
    return Task(
        name=name,
        labels=tuple(given.labels.values()),
        raw_labels=tuple(given.labels),
        template=given.template,
        balance=given.balance,
        reading=Reading(
            format=given.format,
            package=given.package,
            member=given.member,
            path=str(folder / given.path) if given.path else "",
            dataset=given.dataset,
            split=given.split,
            encoding=given.encoding,
            pattern=given.pattern,
            text=tuple(given.text),
            label=given.label,
            max_lines=given.max_lines,
            skip_rows=given.skip_rows,
        ),
        above=given.above,
        max_chars=given.max_chars,
        description=given.description,
        licence=given.licence,
    )
