# SPDX-License-Identifier: Apache-2.0
"""``--run-config``: Flower's syntax, checked before anything is started."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError

__all__ = ["Value", "app_defaults", "checked", "parse_overrides"]

Value = bool | int | float | str
PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S*)")
OUR_APP = "atlas_flwr.server_apps.app:app"


def parse_overrides(texts: Sequence[str]) -> dict[str, Value]:
    """Read ``key=value`` pairs or the paths of TOML files; later ones win.

    As ``flwr run --run-config``, but quotes round text may be left out.

    Raises
    ------
    ConfigError
        When a text is neither.
    """
    overrides: dict[str, Value] = {}
    for text in texts:
        overrides |= _from_file(text) if text.endswith(".toml") else _pairs(text)
    return overrides


def _from_file(path: str) -> dict[str, Value]:
    try:
        loaded = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"--run-config {path}: {error}"]) from None
    nested = [key for key, value in loaded.items() if not isinstance(value, Value)]
    if nested:
        raise ConfigError(
            [f"--run-config {path}: {', '.join(nested)} must be one plain value each"]
        )
    return loaded


def _pairs(text: str) -> dict[str, Value]:
    rest = PAIR.sub("", text).strip()
    if rest:
        raise ConfigError(
            [
                f"--run-config {text!r}: {rest!r} is not key=value; write e.g. "
                "\"num-rounds=3 cut='2/1'\" or the path of a .toml file"
            ]
        )
    return {key: _value(word) for key, word in PAIR.findall(text)}


def _value(word: str) -> Value:
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word
    return value if isinstance(value, Value) else word


def app_defaults(app: Path) -> tuple[dict[str, Value], bool]:
    """Read an app's run config, and whether its ServerApp is this library's own.

    Raises
    ------
    ConfigError
        When the folder holds no Flower app.
    """
    path = app / "pyproject.toml"
    try:
        flower: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        section = flower["tool"]["flwr"]["app"]
        ours = section.get("components", {}).get("serverapp") == OUR_APP
        config = section.get("config", {})
    except (
        AttributeError,
        KeyError,
        OSError,
        TypeError,
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
    ) as error:
        raise ConfigError(
            [
                f"{app} holds no Flower app ({type(error).__name__}: {error}); give "
                "the folder whose pyproject.toml has [tool.flwr.app]"
            ]
        ) from None
    return config, ours


def checked(app: Path, overrides: Mapping[str, Value]) -> dict[str, Value]:
    """Return an app's run config with overrides, after what can be checked has been.

    Raises
    ------
    ConfigError
        With every problem at once.
    """
    defaults, ours = app_defaults(app)
    merged = {**defaults, **overrides}
    if ours:
        load_config(merged)
    unknown = overrides.keys() - defaults.keys()
    if unknown:
        raise ConfigError(
            [
                f"{key} is not a key of {app / 'pyproject.toml'}"
                for key in sorted(unknown)
            ]
        )
    return merged
