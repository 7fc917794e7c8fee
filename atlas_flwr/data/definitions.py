# SPDX-License-Identifier: Apache-2.0
"""A task's YAML file, checked: every problem of it is told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas_flwr.data.generation import (
    COMPLETION,
    GENERATION,
    OF_TEXT,
    completion_problems,
    generation_problems,
)
from atlas_flwr.data.readers import PRESET_ENCODING, READERS
from atlas_flwr.errors import DataError

__all__ = ["Definition", "OneOfEach", "read_definition"]

ON_BAD_ROWS = ("error", "drop")
CLASSIFICATION = "classification"
_REQUIRED = {
    CLASSIFICATION: ("format", "labels"),
    GENERATION: ("format",),
    COMPLETION: ("format",),
}
_SOURCES = ("package", "path", "dataset")
_PATTERN_GROUPS = {"lines": ("label", "text"), "folder": ("label",)}
# What is read of some formats alone.
_READ_OF = {
    "encoding": tuple(name for name in READERS if name not in ("hub", "parquet")),
    "max_lines": ("folder",),
    "pattern": tuple(sorted(_PATTERN_GROUPS)),
    "skip_rows": ("csv", "tsv"),
    "split": ("hub",),
}

SHIELD = "\0"  # no YAML text has a zero byte
_MERGE = "tag:yaml.org,2002:merge"


@dataclass
class Definition:
    """What a task file may say.

    Attributes
    ----------
    description, licence : str
        For people.
    kind : str
        ``"classification"``, ``"generation"`` or ``"completion"``.
    prompt, response : str
        Of a generation: templates in which ``{name}`` is a field of a row.
    messages : str
        Of a generation: the field of a conversation, instead of both.
    client : str
        The field by which rows belong to clients.
    chat, system, learn, scores
        See :class:`atlas_flwr.data.Task`.
    format, package, member, path, dataset, split, encoding, delimiter, pattern, text, \
label, max_lines, skip_rows
        See :class:`atlas_flwr.data.readers.Reading`.
    labels : dict[str, str]
        What each class is called in the source, to the word that says it. Words that
        are one token of the model, and differ in it, are learnt fastest.
    template, balance, above, max_chars, on_bad_rows
        See :class:`atlas_flwr.data.Task`.
    """

    description: str = ""
    licence: str = ""
    kind: str = CLASSIFICATION
    prompt: str = ""
    response: str = ""
    messages: str = ""
    learn: str = "all"
    chat: bool = False
    system: str = ""
    client: str = ""
    scores: list[str] = field(default_factory=list)
    format: str = ""
    package: str = ""
    member: str = ""
    path: str = ""
    dataset: str = ""
    split: str = "train"
    encoding: str = PRESET_ENCODING
    delimiter: str = ""
    pattern: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    labels: dict[str, str] = field(default_factory=dict)
    template: str = "{text}\nLabel:"
    balance: bool = False
    above: float | None = None
    max_chars: int = 0
    max_lines: int = 0
    skip_rows: int = 0
    on_bad_rows: str = "error"


def read_definition(name: str, text: str) -> Definition:
    """Read a task file.

    Parameters
    ----------
    name : str
        For messages.
    text : str
        The file's content.

    Raises
    ------
    DataError
        With all its problems.
    """
    given = _mapping(name, text)
    problems = [*_key_problems(given), *_label_problems(given.get("labels", {}))]
    values, wrong = _typed(given)
    problems += wrong
    if not wrong:
        problems += _value_problems(values)
    if problems:
        raise DataError(
            f"task {name} has {len(problems)} problem(s), see docs/tasks.md:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return values


class OneOfEach(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the second alone."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                found = str(self.construct_object(key))  # as the schema takes it
                if found in seen:
                    why = f"the key {found!r} stands twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, why, key.start_mark
                    )
                seen.add(found)
        return super().construct_mapping(node, deep)


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        given = yaml.load(text, OneOfEach)
    except (ValueError, yaml.YAMLError) as error:  # of a date that no calendar has
        raise DataError(f"task {name} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise DataError(
            f"task {name} is not a mapping of keys to values but "
            f"{type(given).__name__}; see docs/tasks.md"
        )
    return {str(key): value for key, value in given.items()}


def _key_problems(given: Mapping[str, Any]) -> Iterator[str]:
    known = [entry.name for entry in fields(Definition)]
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else ", ".join(known)
            yield f"unknown key {key!r}; {hint}"
    kind = str(given.get("kind", CLASSIFICATION))
    if kind not in _REQUIRED:
        yield f"kind {kind!r}; allowed: {', '.join(_REQUIRED)}"
    for key in _REQUIRED.get(kind, ()):
        if key not in given:
            which = f"; allowed: {', '.join(READERS)}" if key == "format" else ""
            yield f"`{key}` is missing{which}"


def _label_problems(labels: Any) -> Iterator[str]:
    """Problems that the schema's conversion to str would hide."""
    if not isinstance(labels, dict):
        return
    for pair in labels.items():
        for word in pair:
            if isinstance(word, bool):
                yield (
                    "`labels`: YAML takes an unquoted yes, no, on, off, true or false "
                    f"for the truth value {word}; put it in quotes"
                )


def _typed(given: Mapping[str, Any]) -> tuple[Definition, list[str]]:
    """Convert value by value, so that one wrong type does not hide the next."""
    values: Any = OmegaConf.structured(Definition)
    problems = []
    for entry in fields(Definition):
        if entry.name in given:
            value = _shielded(given[entry.name])
            if entry.name in ("text", "scores") and isinstance(value, str):
                value = [value]
            try:
                values = OmegaConf.merge(values, {entry.name: value})
            except (OmegaConfBaseException, TypeError) as error:
                why = str(error).partition("\n")[0]
                if isinstance(value, dict):
                    why = "YAML takes an unquoted {...} for a mapping; put it in quotes"
                problems.append(f"`{entry.name}`: {why}")
    found: Any = OmegaConf.to_object(values)
    own = {e.name: _unshielded(getattr(found, e.name)) for e in fields(Definition)}
    return Definition(**own), problems


def _shielded(value: Any) -> Any:
    """Hide what OmegaConf would read as another key, ``${price}``, or as none, ???."""
    if isinstance(value, dict):
        return {_shielded(str(key)): _shielded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_shielded(item) for item in value]
    if isinstance(value, str):
        return value.replace("${", f"${SHIELD}{{").replace("???", f"??{SHIELD}?")
    return value


def _unshielded(value: Any) -> Any:
    if isinstance(value, dict):
        return {_unshielded(key): _unshielded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_unshielded(item) for item in value]
    return value.replace(SHIELD, "") if isinstance(value, str) else value


def _value_problems(given: Definition) -> Iterator[str]:
    if given.format and given.format not in READERS:
        yield f"format {given.format!r}; allowed: {', '.join(READERS)}"
    sources = [key for key in _SOURCES if getattr(given, key)]
    if len(sources) != 1:
        yield (
            f"give exactly one of {', '.join(_SOURCES)}; got "
            f"{', '.join(sources) or 'none'}"
        )
    if (given.format == "hub") != bool(given.dataset):
        yield "`format: hub` and `dataset` go together"
    if given.on_bad_rows not in ON_BAD_ROWS:
        yield f"on_bad_rows {given.on_bad_rows!r}; allowed: {', '.join(ON_BAD_ROWS)}"
    for key in ("max_chars", "max_lines", "skip_rows"):
        if getattr(given, key) < 0:
            yield f"`{key}` is {getattr(given, key)}; it counts, so 0 or more"
    if given.delimiter and (given.format != "csv" or not _delimits(given.delimiter)):
        yield (
            f"delimiter {given.delimiter!r}; one character, for `format: csv`, that is "
            "neither a quote nor an end of line"
        )
    problems = _PROBLEMS.get(given.kind, _class_problems)
    yield from problems(given, Definition())
    yield from _unread_problems(given, Definition())
    yield from _pattern_problems(given)


def _unread_problems(given: Definition, preset: Definition) -> Iterator[str]:
    """Yield keys that nothing would read; a format that there is not is told alone."""
    if given.format not in READERS:
        return
    for key, formats in _READ_OF.items():
        if getattr(given, key) != getattr(preset, key) and given.format not in formats:
            listed = ", ".join(formats)
            yield f"`{key}` is read with `format` {listed} alone; leave it out"
    if given.member and not given.package:
        yield "`member` is a file of a `package`; a file of your own is its `path`"
    for key in ("text", "label") if given.format in _PATTERN_GROUPS else ():
        if getattr(given, key) != getattr(preset, key):
            yield (
                f"`{key}` names a field, and `format: {given.format}` has none but the "
                "groups of its `pattern`; leave it out"
            )


def _delimits(text: str) -> bool:
    return len(text) == 1 and text not in '"\r\n'


def _class_problems(given: Definition, preset: Definition) -> Iterator[str]:
    if not given.text:
        yield "`text` names no field"
    if given.label in given.text:
        yield f"`text` and `label` both name {given.label!r}: the answer is in the text"
    for key in OF_TEXT:
        if getattr(given, key) != getattr(preset, key):
            yield f"`{key}` is for `kind: generation`; leave it out"
    yield from _word_problems(given)
    if given.template.count("{text}") != 1:
        yield f"the template has {given.template.count('{text}')} {{text}}; exactly 1"
    if given.template.rstrip() != given.template:
        yield "the template ends in white space; the label's word brings its own"


_PROBLEMS = {
    CLASSIFICATION: _class_problems,
    GENERATION: generation_problems,
    COMPLETION: completion_problems,
}


def _word_problems(given: Definition) -> Iterator[str]:
    words = list(given.labels.values())
    if given.labels and len(words) < 2:
        yield f"{len(words)} labels; a classification needs at least 2"
    if given.above is not None and len(words) != 2:
        yield f"`above` makes two classes; `labels` has {len(words)}"
    if any(word != word.strip() or not word for word in words):
        yield "a word in `labels` is empty, or has white space around it"
    if len(set(words)) < len(words):
        yield "two classes have the same word in `labels`"


def _pattern_problems(given: Definition) -> Iterator[str]:
    try:
        groups = re.compile(given.pattern).groupindex
    except re.error as error:
        yield f"`pattern` is not a regular expression: {error}"
        return
    for group in _needed_groups(given):
        if group not in groups:
            yield f"format {given.format} needs a pattern with (?P<{group}>...)"


def _needed_groups(given: Definition) -> list[str]:
    """Return the groups that a pattern must have."""
    if given.format not in _PATTERN_GROUPS:
        return []
    own = [given.client] if given.client else []
    if given.kind == CLASSIFICATION:
        return [*_PATTERN_GROUPS[given.format], *own]
    says_what = given.pattern and given.format == "lines"
    return [*(["text"] if says_what else []), *own]
