# SPDX-License-Identifier: Apache-2.0
"""Everything that can be found wrong before anything is started, told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.cli.overrides import Value, app_defaults, checked
from atlas_flwr.config import split_list
from atlas_flwr.errors import AtlasError, ConfigError

__all__ = ["Preflight", "cleared", "placed"]

PATHS = ("runs-dir", "resume")


@dataclass(frozen=True)
class Preflight:
    """What was found good.

    Attributes
    ----------
    overrides : Mapping[str, Value]
        What to run with: paths made absolute, minima lowered to the clients there are.
    merged : Mapping[str, Value]
        The app's run config with these.
    notes : tuple[str, ...]
        What was changed, for the user.
    """

    overrides: Mapping[str, Value]
    merged: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def cleared(
    app: Path,
    overrides: Mapping[str, Value],
    clients: int | None = None,
    *,
    devices: bool = True,
) -> Preflight:
    """Check all that a run needs: keys, files, texts, model, cut, devices, clients.

    Parameters
    ----------
    app : Path
        Folder of the app; of one that is not this library's own only keys and the
        number of clients are looked at.
    overrides : Mapping[str, Value]
        As the user gave them; relative paths are seen from where the user stands.
    clients : int, optional
        Simulated clients; ``None`` where nothing is to be run.
    devices : bool
        Whether each device has to hold something.

    Raises
    ------
    ConfigError
        With every problem at once.
    """
    from atlas_flwr.server_apps.minima import Minima

    defaults, ours = app_defaults(app)
    problems = list(_count_problems(clients))
    if not ours:
        if problems:
            raise ConfigError(problems)
        return Preflight(overrides, checked(app, overrides))
    wanted = placed(overrides)
    minima = Minima({**defaults, **wanted}, overrides, clients or 0)
    # A resumed run has minima of its own, and lowers these itself.
    lowered = {} if wanted.get("resume") else minima.lowered
    merged = {**defaults, **wanted, **lowered}
    problems += minima.problems()
    problems += _run_problems(app, merged, overrides, clients, devices)
    problems += _foreign_keys(app, overrides, defaults)
    if problems:
        raise ConfigError(problems)
    return Preflight({**wanted, **lowered}, merged, minima.notes() if lowered else ())


def placed(overrides: Mapping[str, Value]) -> dict[str, Value]:
    """Make paths absolute, as seen from here: the ServerApp stands in the app's folder.

    Parameters
    ----------
    overrides : Mapping[str, Value]
        As the user gave them.
    """
    found = dict(overrides)
    for key in PATHS:
        if isinstance(path := found.get(key), str) and path:
            found[key] = _absolute(path)
    if isinstance(files := found.get("trunk-access"), str):
        found["trunk-access"] = ",".join(map(_absolute, split_list(files)))
    if isinstance(model := found.get("model"), str) and _is_folder(model):
        found["model"] = _absolute(model)
    if isinstance(tasks := found.get("tasks"), str):
        found["tasks"] = ",".join(map(_placed_task, split_list(tasks)))
    return found


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _is_folder(model: str) -> bool:
    from atlas_flwr.data.models import SHORT_NAMES

    named = model.startswith((".", "~"))
    return named or (model not in SHORT_NAMES and bool(model) and Path(model).is_dir())


def _placed_task(item: str) -> str:
    from atlas_flwr.data import task_names

    looks = "/" in item or item.startswith("~") or item.endswith((".yaml", ".yml"))
    known = not item or item in task_names()
    is_file = looks or (not known and Path(item).is_file())
    return _absolute(item) if is_file else item


def _count_problems(clients: int | None) -> Iterator[str]:
    if clients is not None and clients < 1:
        yield f"-n {clients}: a run needs clients; give at least 1"


def _run_problems(
    app: Path,
    merged: Mapping[str, Value],
    named: Collection[str],
    clients: int | None,
    devices: bool,
) -> list[str]:
    """Ask what the ServerApp would, in the folder in which it would."""
    from atlas_flwr.config.reach_rules import beyond_simulation
    from atlas_flwr.server_apps.checks import checked_config
    from atlas_flwr.server_apps.continuation import check_clients, saved_state

    try:
        with chdir(app):
            config = checked_config(
                merged, named, devices=devices, clients=clients or 0
            )
            if merged.get("resume"):
                folder, _ = saved_state(str(merged["resume"]), config)
                if clients:
                    check_clients(folder, clients)
    except ConfigError as error:
        return list(error.problems)
    except AtlasError as error:
        return [str(error)]
    # Who counts clients simulates them.
    return [p.sentence for p in beyond_simulation(config)] if clients else []


def _foreign_keys(
    app: Path, overrides: Mapping[str, Value], defaults: Mapping[str, Value]
) -> Iterator[str]:
    """Yield keys of the library that this app does not have, which Flower refuses."""
    from atlas_flwr.config import options

    for key in overrides:
        if key in options() and key not in defaults:
            yield f"{key} is not a key of {app / 'pyproject.toml'}; add it there"
