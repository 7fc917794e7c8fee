# SPDX-License-Identifier: Apache-2.0
"""Tasks: text, labels and a template, described in a small YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from math import isfinite
from pathlib import Path

from atlas_flwr.data.definitions import CLASSIFICATION, read_definition
from atlas_flwr.data.examples import Examined, Example
from atlas_flwr.data.generation import COMPLETION, written_examples
from atlas_flwr.data.held import Held
from atlas_flwr.data.readers import Reading
from atlas_flwr.data.rows import Fault, Faults, Row
from atlas_flwr.errors import DataError

__all__ = ["Example", "Task", "load_examples", "load_task", "task_names"]


_CONTRADICTED = "whose text stands there with another label, too"


@dataclass(frozen=True)
class Task:
    """A task: to classify texts, or to answer prompts.

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
    on_bad_rows : str
        ``"error"``, or ``"drop"`` to leave out rows that cannot be used.
    kind : str
        ``"classification"``; ``"generation"``, which has no labels: the reading's
        templates make a prompt and its response, or it reads conversations; or
        ``"completion"``, of texts that are learned whole.
    chat : bool
        Put the model's own chat template around what is said.
    system : str
        What comes before a chat.
    learn : str
        Which of the assistant's turns in a conversation: ``"all"`` or ``"last"``.
    scores : tuple[str, ...]
        Of answers, see :mod:`atlas_flwr.train.scores`.
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
    on_bad_rows: str = "error"
    kind: str = CLASSIFICATION
    chat: bool = False
    system: str = ""
    learn: str = "all"
    scores: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it is answered by text."""
        return self.kind != CLASSIFICATION

    @property
    def answers(self) -> bool:
        """Whether there are prompts, and references for their answers."""
        return self.writes and not self.completes

    @property
    def completes(self) -> bool:
        """Whether texts are learned whole."""
        return self.kind == COMPLETION

    @property
    def prompt(self) -> str:
        """Template of what comes before text that is written; of a chat its field's."""
        if self.completes:
            return " ".join(f"{{{name}}}" for name in self.reading.text)
        return self.reading.prompt


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"task file {path} is not in UTF-8: {error}; save it as that (its data may "
            "have another `encoding`)"
        ) from None
    return _parse(path.stem, text, path.parent)


def load_examples(task: Task) -> tuple[Example, ...]:
    """Read a task's examples: no duplicates, in a fixed order.

    Raises
    ------
    DataError
        If rows cannot be used and the task does not let them be dropped, or a class
        has no example.
    """
    return read_examples(task).examples


@lru_cache(maxsize=16)
def read_examples(task: Task) -> Examined:
    """Read a task's examples, and count what is left out.

    Raises
    ------
    DataError
        See :func:`load_examples`.
    """
    if task.writes:
        return _read_answers(task)
    held: Held[str, _Seen] = Held(str)
    faults, repeated = Faults(), Faults()
    for row in task.reading.rows():
        for fault in _taken(task, row, held, repeated):
            faults.add(fault)
    _refuse_faults(task, faults)
    examples = tuple(
        Example(text, seen.label, owner=seen.owner)
        for text, seen in sorted(held.kept.items(), key=lambda item: item[0])
        if not seen.contradicted
    )
    present = {example.label for example in examples}
    if len(present) < len(task.labels):
        absent = [
            task.raw_labels[i] for i in range(len(task.labels)) if i not in present
        ]
        raise DataError(
            f"task {task.name}: no example of {', '.join(absent)} in "
            f"{task.reading.where}, of {len(examples)} that can be used"
        )
    return Examined(examples, (*faults.told(), *repeated.told(), *held.told()))


@dataclass
class _Seen:
    """A text's label and first place, and whether it has another label elsewhere."""

    label: int
    where: str
    owner: str
    contradicted: bool = False


def _taken(
    task: Task, row: Row | Fault, held: Held[str, _Seen], repeated: Faults
) -> list[Fault]:
    """Take a row's example; return what cannot be used: it, or it and one before."""
    if isinstance(row, Fault):
        return [row]
    label = _class(task, row)
    if isinstance(label, Fault) or label is None:
        return [label] if label else []
    text = _shortened(" ".join(row.text.split()), task.max_chars)
    if not text:
        return [Fault(row.where, "with an empty text")]
    if text not in held.kept:
        if held.has_room(text):
            held.add(text, _Seen(label, row.where, row.owner))
        return []
    seen = held.kept[text]
    if not seen.contradicted and seen.label == label:
        repeated.add(Fault(row.where, "whose text and label stand there before"))
        return []
    places = [row.where] if seen.contradicted else [seen.where, row.where]
    seen.contradicted = True
    return [Fault(where, _CONTRADICTED) for where in places]


def _refuse_faults(task: Task, faults: Faults) -> None:
    if faults and task.on_bad_rows == "error":
        raise DataError(
            f"task {task.name}: rows of {task.reading.where} cannot be used: "
            + "; ".join(faults.told())
            + ". Mend them, or set `on_bad_rows: drop` in the task file"
        )


def _read_answers(task: Task) -> Examined:
    """Read what is answered by text."""
    faults = Faults()
    examples, not_taken = written_examples(
        task.reading.rows(),
        faults,
        answered=not task.completes,
        held=Held(lambda example: example.text + example.answer),
    )
    _refuse_faults(task, faults)
    if not examples:
        raise DataError(
            f"task {task.name}: no example in {task.reading.where} can be used"
        )
    return Examined(examples, (*faults.told(), *not_taken))


def _shortened(text: str, limit: int) -> str:
    if not limit or len(text) <= limit:
        return text
    return text[: limit + 1].rpartition(" ")[0] or text[:limit]


def _class(task: Task, row: Row) -> int | Fault | None:
    if task.above is not None:
        try:
            value = float(row.label)
        except ValueError:
            return Fault(row.where, f"whose label is no number, as {row.label!r}")
        if not isfinite(value):
            return Fault(row.where, f"whose label is not finite, as {row.label!r}")
        if abs(value) <= task.above:
            return None
        return len(task.labels) - 1 if value > 0 else 0
    for label in (row.label, row.label.strip(), _whole(row.label)):
        if label in task.raw_labels:
            return task.raw_labels.index(label)
    folded = [raw.casefold() for raw in task.raw_labels]
    if folded.count(row.label.strip().casefold()) == 1:
        return folded.index(row.label.strip().casefold())
    allowed = ", ".join(task.raw_labels)
    return Fault(row.where, f"with label {row.label!r}, where `labels` are {allowed}")


def _whole(label: str) -> str:
    """Return ``"1"`` for ``"1.0"``, as tables write whole numbers."""
    number, point, zeros = label.strip().partition(".")
    return number if point and not zeros.strip("0") else label


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
            path=str(folder / Path(given.path).expanduser()) if given.path else "",
            dataset=given.dataset,
            split=given.split,
            encoding=given.encoding,
            delimiter=given.delimiter,
            pattern=given.pattern,
            text=tuple(given.text),
            label="" if given.kind == COMPLETION else given.label,
            max_lines=given.max_lines,
            skip_rows=given.skip_rows,
            prompt=given.prompt,
            response=given.response,
            messages=given.messages,
            client=given.client,
        ),
        above=given.above,
        max_chars=given.max_chars,
        description=given.description,
        licence=given.licence,
        on_bad_rows=given.on_bad_rows,
        kind=given.kind,
        chat=given.chat,
        system=given.system,
        learn=given.learn,
        scores=tuple(given.scores),
    )
