# SPDX-License-Identifier: Apache-2.0
"""Tasks whose answer is text: what their files may say, and their examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from atlas_flwr.data.examples import Example
from atlas_flwr.data.held import Held
from atlas_flwr.data.rows import Fault, Faults, Row
from atlas_flwr.data.templates import template_fields

if TYPE_CHECKING:
    from atlas_flwr.data.definitions import Definition

__all__ = [
    "COMPLETION",
    "GENERATION",
    "OF_TEXT",
    "SCORES",
    "completion_problems",
    "generation_problems",
    "written_examples",
]

GENERATION, COMPLETION = "generation", "completion"
LEARN = ("all", "last")
SCORES = ("rouge_l", "chrf", "bleu", "exact_match")
OF_TEXT = ("prompt", "response", "messages", "learn", "chat", "system", "scores")
_OF_CLASSES = ("balance", "above", "label", "labels", "template", "max_chars")


def generation_problems(given: Definition, preset: Definition) -> Iterator[str]:
    """Yield what is wrong with a task file of this kind; ``preset`` says nothing."""
    if given.messages:
        yield from _conversation_problems(given)
    else:
        for key in ("prompt", "response"):
            yield from _template_problems(key, getattr(given, key))
        if given.learn != preset.learn:
            yield "`learn` is for conversations, which `messages` names the field of"
        if given.format in ("lines", "folder"):
            yield f"`format: {given.format}` has no fields for `prompt` and `response`"
    if given.system and not given.chat:
        yield "`system` goes into a chat template; set `chat: true`, or use `prompt`"
    for name in given.scores:
        if name not in SCORES:
            yield f"scores {name!r}; allowed: {', '.join(SCORES)}"
    if len(set(given.scores)) < len(given.scores):
        yield "`scores` names one twice"
    yield from _foreign((*_OF_CLASSES, "text"), given, preset)


def completion_problems(given: Definition, preset: Definition) -> Iterator[str]:
    """Yield what is wrong with a task file of this kind; ``preset`` says nothing."""
    if not given.text:
        yield "`text` names no field"
    yield from _foreign(_OF_CLASSES, given, preset)
    for key in OF_TEXT:
        if getattr(given, key) != getattr(preset, key):
            yield f"`{key}` is for `kind: generation`; leave it out"


def _foreign(
    keys: Iterable[str], given: Definition, preset: Definition
) -> Iterator[str]:
    for key in keys:
        if getattr(given, key) != getattr(preset, key):
            yield f"`{key}` is for classifications; leave it out"


def _template_problems(key: str, template: str) -> Iterator[str]:
    if not template.strip():
        yield f"`{key}` is missing: a template such as '{{instruction}}'"
        return
    try:
        fields = template_fields(template)
    except ValueError as error:
        yield f"`{key}`: {error}"
        return
    if not fields:
        yield f"`{key}` names no field of a row; write {{name}} for one"


def _conversation_problems(given: Definition) -> Iterator[str]:
    for key in ("prompt", "response"):
        if getattr(given, key):
            yield f"`{key}` and `messages` are two ways to say it; leave one out"
    if not given.chat:
        yield "`messages` go into a chat template; set `chat: true`"
    if given.learn not in LEARN:
        yield f"learn {given.learn!r}; allowed: {', '.join(LEARN)}"
    if given.format in ("csv", "tsv", "lines", "folder", "gettext"):
        yield f"`format: {given.format}` has no lists, which `messages` are"


def written_examples(
    rows: Iterable[Row | Fault],
    faults: Faults,
    *,
    answered: bool,
    held: Held[Example, None],
) -> tuple[tuple[Example, ...], list[str]]:
    """Take prompts and responses, or texts, in which white space may have a meaning.

    Parameters
    ----------
    rows : Iterable[Row | Fault]
        Of the source.
    faults : Faults
        Filled in: what cannot be used.
    answered : bool
        Whether rows have responses, as their labels.
    held : Held[Example, None]
        Empty; what of them is held in memory.

    Returns
    -------
    tuple[tuple[Example, ...], list[str]]
        The examples, and what is not taken though it could be used.
    """
    repeated = Faults()
    what = "prompt and response stand" if answered else "text stands"
    before = f"whose {what} there before"
    for row in rows:
        if isinstance(row, Fault):
            faults.add(row)
        elif why := _lacking(row, answered):
            faults.add(Fault(row.where, why))
        else:
            example = Example(
                row.text, answer=row.label, turns=row.turns, owner=row.owner
            )
            if example in held.kept:
                repeated.add(Fault(row.where, before))
            elif held.has_room(example):
                held.add(example, None)
    found = sorted(held.kept, key=lambda example: (example.text, example.answer))
    return tuple(found), [*repeated.told(), *held.told()]


def _lacking(row: Row, answered: bool) -> str:
    if not row.text.strip():
        return f"with an empty {'prompt' if answered else 'text'}"
    return "with an empty response" if answered and not row.label.strip() else ""
