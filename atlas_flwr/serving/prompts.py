# SPDX-License-Identifier: Apache-2.0
"""Prompts of a file, put to a model as a task puts them, or as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_flwr.data import Task
from atlas_flwr.data.chats import chat_prompt
from atlas_flwr.data.fields import plain_text, unwritable
from atlas_flwr.data.readers.objects import loaded_json
from atlas_flwr.data.templates import filled_in, template_fields
from atlas_flwr.data.tokens import prompt_ids
from atlas_flwr.data.turns import USER, Turn, read_turns, with_system
from atlas_flwr.errors import DataError

__all__ = ["PromptForm", "Prompts", "read_prompts"]

PROMPT = "prompt"
TOLD = 3  # rows that are named of those which cannot be used


@dataclass(frozen=True)
class PromptForm:
    """How a task makes a prompt of a row.

    Attributes
    ----------
    name : str
        The task's.
    template : str
        With ``{name}`` for a row's field.
    chat : bool
        Put the tokenizer's chat template around it.
    system : str
        What comes before a chat.
    messages : str
        A conversation's field, instead of a template.
    """

    name: str
    template: str
    chat: bool = False
    system: str = ""
    messages: str = ""

    @classmethod
    def of(cls, task: Task) -> PromptForm | None:
        """Return a task's; ``None`` if it has classes."""
        if not task.writes:
            return None
        messages = task.reading.messages
        return cls(task.name, task.prompt, task.chat, task.system, messages)

    @classmethod
    def told(cls, task: Mapping[str, Any]) -> PromptForm | None:
        """Read a task of an adapter's ``tasks.json``; ``None`` if it has classes."""
        prompt, messages = str(task.get("prompt", "")), str(task.get("messages", ""))
        if not prompt and not messages:
            return None
        chat, system = bool(task.get("chat")), str(task.get("system", ""))
        return cls(str(task["name"]), prompt, chat, system, messages)

    @property
    def fields(self) -> tuple[str, ...]:
        """What a row has to have."""
        return (self.messages,) if self.messages else template_fields(self.template)

    def text(self, row: Mapping[str, Any]) -> str:
        """Fill a row in."""
        return filled_in(self.template, row, plain_text)


@dataclass(frozen=True)
class Prompts:
    """Makes tokens of prompts, as in training.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizer
        The model's.
    forms : Sequence[PromptForm]
        Of the tasks.
    most : int, optional
        Tokens that a prompt may come to, so that an answer has room; ``None`` for any.
    """

    tokenizer: Any
    forms: Sequence[PromptForm]
    most: int | None = None

    def ids(self, row: Mapping[str, Any]) -> list[int]:
        """Return a row's tokens; a row with a prompt is put as it is."""
        if PROMPT in row:
            return self.plain(str(row[PROMPT]))
        form = self.form_of(row)
        assert form is not None
        if form.messages:
            return self.chat(read_turns(row[form.messages]), form.system)
        text = form.text(row)
        if form.chat:
            return self.chat([Turn(USER, text)], form.system)
        return self.plain(text)

    def fault(self, ids: Sequence[int]) -> str:
        """Say why a prompt cannot be answered, if it cannot."""
        if not ids:
            return "an empty prompt"
        if self.most is None or len(ids) <= self.most:
            return ""
        return (
            f"a prompt of {len(ids)} tokens, and with the answer's the model knows "
            f"{self.most}: shorten it, or --max-new-tokens"
        )

    def fitting(self, ids: list[int]) -> list[int]:
        """Return a prompt's end, as much of it as leaves an answer room."""
        return ids if self.most is None else ids[-self.most :]

    def form_of(self, row: Mapping[str, Any]) -> PromptForm | None:
        """Return the first form whose fields a row has."""
        fit = (form for form in self.forms if all(f in row for f in form.fields))
        return next(fit, None)

    def plain(self, text: str) -> list[int]:
        """Return a text's tokens as it is, for an answer to follow."""
        return prompt_ids(self.tokenizer, text)

    def chat(self, turns: Sequence[Turn], system: str = "") -> list[int]:
        """Return the tokens of turns in the tokenizer's chat template."""
        return chat_prompt(self.tokenizer, with_system(turns, system))


def read_prompts(path: Path, prompts: Prompts) -> list[dict[str, Any]]:
    """Read a file of prompts: a JSON object a line, or an array of them.

    Raises
    ------
    DataError
        If there is no such file, or none in it; naming rows that are no objects, or
        have neither ``prompt`` nor a task's fields, or come to no token, or to more
        than the model knows.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; it has a JSON object a line, with a prompt")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8: {error}; it has a JSON object a line, with a "
            "prompt"
        ) from None
    rows = list(_entries(text))
    if not rows:
        raise DataError(f"{path} has no prompt in it")
    faults = [f for n, row in rows for f in _faults(n, row, prompts)]
    if faults:
        more = f" and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise DataError(f"{path}: {'; '.join(faults[:TOLD])}{more}")
    return [dict(row) for _, row in rows if isinstance(row, Mapping)]


def _entries(text: str) -> Iterator[tuple[str, object]]:
    """Yield what each line, or entry of an array, is, and where it stands."""
    if text.lstrip().startswith("[") and isinstance(found := _read(text), list):
        yield from ((f"entry {n}", row) for n, row in enumerate(found, 1))
        return
    # str.splitlines would break at what stands in a text, such as U+2028, too
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _read(line)


def _read(text: str) -> object:
    try:
        return loaded_json(text)
    except json.JSONDecodeError:
        return text


def _faults(where: str, row: object, prompts: Prompts) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"{where} is no JSON object, or has a key twice"
    elif PROMPT in row and not isinstance(row[PROMPT], str):
        yield f"{where} has a prompt that is no text"
    elif why := _conversation_fault(row, prompts):
        yield f"{where} has a conversation that {why}"
    elif PROMPT not in row and prompts.form_of(row) is None:
        fields = [f"{', '.join(f.fields)} (task {f.name})" for f in prompts.forms]
        wanted = " or the fields ".join(["'prompt'", *fields])
        yield f"{where} has {', '.join(row) or 'no fields'}; wanted: {wanted}"
    elif why := _field_fault(row, prompts) or prompts.fault(prompts.ids(row)):
        yield f"{where} has {why}"


def _field_fault(row: Mapping[str, Any], prompts: Prompts) -> str:
    """Say what is no text, of what a row's prompt is made of."""
    form = None if PROMPT in row else prompts.form_of(row)
    if form is not None and form.messages:
        spoken = " ".join(turn.content for turn in read_turns(row[form.messages]))
        why = unwritable(spoken)
        return f"{why} in {form.messages!r}" if why else ""
    for name in (PROMPT,) if form is None else form.fields:
        if isinstance(row[name], dict | list):
            return f"an object or a list in {name!r}, where text is wanted"
        if why := unwritable(row[name]):
            return f"{why} in {name!r}"
    return ""


def _conversation_fault(row: Mapping[str, Any], prompts: Prompts) -> str:
    """Say what is wrong with a row's conversation, if it has one."""
    form = None if PROMPT in row else prompts.form_of(row)
    if form is None or not form.messages:
        return ""
    try:
        turns = read_turns(row[form.messages])
    except ValueError as error:
        return str(error)
    return "" if turns[-1].role == USER else "ends in an answer: end it in a question"
