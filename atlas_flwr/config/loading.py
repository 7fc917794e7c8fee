# SPDX-License-Identifier: Apache-2.0
"""From Flower's run config, or YAML, to a checked ``RunConfig`` and back."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from atlas_flwr.config.limit_rules import describe_limits
from atlas_flwr.config.parsing import split_list
from atlas_flwr.config.rules import (
    find_problems,
    resume_problems,
)
from atlas_flwr.config.schema import RunConfig, groups, options
from atlas_flwr.errors import ConfigError
from atlas_flwr.options import Problem

__all__ = ["describe", "from_yaml", "load_config", "to_yaml"]

Value = bool | int | float | str
SHIELDED = "$\ue000{"  # of ${HOME}, which OmegaConf would take for another key
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def load_config(
    run_config: Mapping[str, Value],
    known: Mapping[str, Collection[str]] | None = None,
    *,
    at_start: bool = True,
) -> RunConfig:
    """Check a run config and resolve it; keys that are missing take their defaults.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        Flower's ``context.run_config``: flat, kebab-case.
    known : Mapping[str, Collection[str]], optional
        Further allowed words for keys whose meaning other layers define, e.g.
        ``{"codec": CODECS}``. For a comma list, each item must be among them.
    at_start : bool
        Whether a run is to begin with it; of one that began, what nothing reads may
        have any value.

    Returns
    -------
    RunConfig
        Frozen and consistent.

    Raises
    ------
    ConfigError
        With every unknown key, wrong type, impossible value and contradiction at once.
    """
    return _resolve(run_config, known or {}, at_start=at_start)


@lru_cache(maxsize=16)
def from_yaml(text: str) -> RunConfig:
    """Read what :func:`to_yaml` wrote, of a run that began, with an older version, too.

    ``resume`` need not exist any more, and what nothing reads may have any value.

    Raises
    ------
    ConfigError
        As :func:`load_config`, for everything else.
    """
    loaded = OmegaConf.to_container(OmegaConf.create(text.replace("${", SHIELDED)))
    if not isinstance(loaded, dict):
        raise ConfigError([f"the YAML is a {type(loaded).__name__}: must be a mapping"])
    given = {
        key: value.replace(SHIELDED, "${") if isinstance(value, str) else value
        for key, value in loaded.items()
    }
    return _resolve(cast("dict[str, Value]", given), {}, at_start=False)


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML, in the schema's order and Flower's keys."""
    values = {key: getattr(config, key.replace("-", "_")) for key in options()}
    shielded = {
        key: value.replace("${", SHIELDED) if isinstance(value, str) else value
        for key, value in values.items()
    }
    text = OmegaConf.to_yaml(OmegaConf.create(shielded))
    return text.replace(SHIELDED, "${")


def _resolve(
    given: Mapping[str, Value], known: Mapping[str, Collection[str]], at_start: bool
) -> RunConfig:
    problems = [*_unknown_keys(given), *_wrong_values(given)]
    doubtful = {key for problem in problems for key in problem.keys}
    sound = {
        key.replace("-", "_"): str(value) if _is_text(key) else value
        for key, value in given.items()
        if key not in doubtful
    }
    # Texts are no business of OmegaConf's, as above.
    texts = {name: value for name, value in sound.items() if isinstance(value, str)}
    numbers = {name: value for name, value in sound.items() if name not in texts}
    typed = OmegaConf.merge(OmegaConf.structured(RunConfig), numbers)
    values = {**cast("dict[str, Any]", OmegaConf.to_container(typed)), **texts}
    # It has RunConfig's fields, and may hold values that RULES refuse.
    merged = cast("RunConfig", SimpleNamespace(**values))
    found = [*find_problems(merged, at_start=at_start), *_unknown_words(merged, known)]
    if at_start:
        found.extend(resume_problems(merged))
    problems += [problem for problem in found if doubtful.isdisjoint(problem.keys)]
    if problems:
        raise ConfigError(
            [problem.sentence for problem in problems],
            {key for problem in problems for key in problem.keys},
        )
    return RunConfig(**values)


@cache
def _hints() -> Mapping[str, Any]:
    hints = get_type_hints(RunConfig)
    return {
        entry.name.replace("_", "-"): hints[entry.name] for entry in fields(RunConfig)
    }


def _is_text(key: str) -> bool:
    return _hints()[key] is str


def _unknown_keys(given: Mapping[str, Value]) -> Iterator[Problem]:
    for key in given:
        if key in options():
            continue
        close = get_close_matches(str(key).lower().replace("_", "-"), options(), n=1)
        hint = f"did you mean {close[0]}?" if close else "`atlas-flwr config` lists all"
        yield Problem((key,), f"{key} is not a key; {hint}")


def _wrong_values(given: Mapping[str, Value]) -> Iterator[Problem]:
    for key, hint in _hints().items():
        if key in given and (complaint := _complaint(given[key], hint)):
            yield Problem((key,), f"{key}={given[key]!r}: {complaint}")


def _complaint(value: Value, hint: Any) -> str | None:
    if get_origin(hint) is not None:
        return _not_among(str(value), get_args(hint))
    kinds = {float: (int, float), str: (int, str)}.get(hint, (hint,))
    if isinstance(value, kinds) and isinstance(value, bool) == (hint is bool):
        return None
    return f"must be {TYPE_NAMES[hint]}, not {type(value).__name__}"


def _not_among(word: str, allowed: Collection[str]) -> str | None:
    if word in allowed:
        return None
    close = get_close_matches(word.lower(), allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"must be one of {', '.join(allowed)}{hint}"


def _unknown_words(
    config: RunConfig, known: Mapping[str, Collection[str]]
) -> Iterator[Problem]:
    for key, allowed in known.items():
        for word in split_list(getattr(config, key.replace("-", "_"))):
            if complaint := _not_among(word, allowed):
                yield Problem((key,), f"{key}: {word!r} {complaint}")


def describe(width: int = 88) -> str:
    """Say every key with its default, what is allowed, and advice, as plain text.

    Keys are in groups, those that most runs set first.

    Parameters
    ----------
    width : int
        Columns that the text is wrapped to.
    """
    lines: list[str] = []
    for about, keys in groups().items():
        lines += ["", f"# {about}"] if lines else [f"# {about}"]
        for key in keys:
            lines += _described(key, width)
    return "\n".join(lines)


def _described(key: str, width: int) -> Iterable[str]:
    hint, about = _hints()[key], options()[key]
    default = getattr(RunConfig, key.replace("-", "_"))
    words = get_args(hint)
    allowed = " | ".join(words) or describe_limits(about)
    kind = "word" if words else hint.__name__
    limits = f" ({allowed})" if allowed else ""
    owner = f" [only {', '.join(about.only)}]" if about.only else ""
    yield f"{key} = {default!r}   {kind}{limits}{owner}"
    indent = "    "
    yield textwrap.fill(
        about.help, width, initial_indent=indent, subsequent_indent=indent
    )
