# SPDX-License-Identifier: Apache-2.0
"""All that can be found wrong with a run before anything of it is started.

The command line asks here first, and the ServerApp again, where only it can know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from atlas_flwr.config import ADAPTER_STRATEGIES, RunConfig, load_config, split_list
from atlas_flwr.data import load_examples, load_task, make_shard, prepare
from atlas_flwr.errors import AtlasError, ConfigError, DataError
from atlas_flwr.remedies import needing_classes
from atlas_flwr.report.store import RunFolder, taken_name
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.server_apps.build import covering_plan, needs_trunk
from atlas_flwr.server_apps.continuation import (
    anew_problems,
    beside_began,
    continued,
    without_own_trunk,
)
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk.credentials import read_authorities
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.wire.codecs import CODEC_CHOICES

__all__ = ["checked_config", "find_problems"]

Value = bool | int | float | str
NEEDED = ("model", "tasks")


def checked_config(
    run_config: Mapping[str, Value],
    given: Collection[str] = (),
    *,
    devices: bool = True,
    clients: int = 0,
) -> RunConfig:
    """Check a run config, and all that it names; return the run's configuration.

    Parameters
    ----------
    run_config : Mapping[str, Value]
        Flat and kebab-case, as Flower has it.
    given : Collection[str]
        Keys that were given for this run; the others are the app's.
    devices : bool
        Whether each device has to hold something.
    clients : int
        How many there are, if that is known; each must have text.

    Returns
    -------
    RunConfig
        A resumed run's is the one that it began with.

    Raises
    ------
    ConfigError
        With every problem: of keys, files, texts, model, cut and devices.
    ResumeError
        If the run to resume was another one.
    """
    began = _began(str(run_config.get("resume", "")))
    if began:
        began = without_own_trunk(run_config, began)
        run_config = beside_began(run_config, began, given)
    try:
        config = load_config(
            run_config, {"codec": CODEC_CHOICES}, at_start=began is None
        )
    except ConfigError as error:
        sound = _sound(run_config, error.keys)
        more = find_problems(sound, devices, clients) if sound else ()
        raise ConfigError([*error.problems, *more], error.keys) from None
    problems: list[str] = []
    if began:
        config = continued(config, began, given)
        problems += anew_problems(config, began)
    elif taken := taken_name(config):
        problems.append(taken)
    problems += find_problems(config, devices, clients)
    if problems:
        raise ConfigError(problems)
    return config


def _began(resume: str) -> RunConfig | None:
    """Return what the run to resume began with, if there is one."""
    there = resume and (Path(resume) / "config.yaml").is_file()
    return RunFolder.open(resume).config() if there else None


def find_problems(
    config: RunConfig, devices: bool = True, clients: int = 0
) -> Iterator[str]:
    """Yield what is wrong with the files, texts and model that a sound config names.

    Where it is known how many clients there are, each task must have text for its own.
    """
    yield from _folder_problems(config)
    if config.trunk_client_ca:
        given = Path(config.trunk_client_ca)
        yield from _complaints(partial(read_authorities, given, "trunk-client-ca="))
    for path in split_list(config.trunk_access):
        yield from _complaints(partial(Access.read, path))
    good: dict[str, str] = {}
    problems = list(_data_problems(config, good))
    if clients and not problems:
        problems += _share_problems(config, clients)
    if good:  # a classifier has as many outputs as the tasks that can be read ask
        sound = replace(config, tasks=",".join(good.values()))
        problems += _model_problems(sound, devices)
    yield from dict.fromkeys(problems)


def _sound(run_config: Mapping[str, Value], keys: Collection[str]) -> RunConfig | None:
    """Return as much of a config as can be looked at further, if anything can."""
    if set(keys).intersection(NEEDED) or run_config.get("resume"):
        return None
    rest = {key: value for key, value in run_config.items() if key not in keys}
    for names in (rest.keys(), (*NEEDED, "runs-dir")):
        try:
            return load_config({key: rest[key] for key in names if key in rest})
        except ConfigError:
            continue  # what is wrong with it has been said
    return None


def _folder_problems(config: RunConfig) -> Iterator[str]:
    folder = Path(config.runs_dir)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        yield (
            f"runs-dir={config.runs_dir!r}: nothing can be written to {there} "
            f"({error.strerror}); give a folder that you may write to"
        )


def _data_problems(config: RunConfig, good: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with tasks and model; fill in what is good, by its name."""
    for name in config.task_list:
        try:
            task = load_task(name)
            load_examples(task)
        except AtlasError as error:
            yield str(error)
            continue
        if task.name in good:
            yield (
                f"tasks={config.tasks!r}: {good[task.name]} and {name} are both called "
                f"{task.name} in reports; rename one of the files"
            )
        good[task.name] = name
    yield from _kind_problems(config, list(good.values()))
    try:
        prepare(
            config.model,
            list(good.values()),
            max_length=config.max_length,
            learned_positions=config.learned_positions,
        )
    except DataError as error:
        yield from error.problems


def _kind_problems(config: RunConfig, names: Sequence[str]) -> Iterator[str]:
    """Say what needs classes, where a task has none, or deals them itself."""
    owned = [n for n in names if load_task(n).reading.client]
    if owned and config.label_skew:
        yield (
            f"label-skew={config.label_skew}: {owned[0]} names the field by which its "
            "rows belong to clients (`client`), and they cannot be dealt by another "
            "rule; leave label-skew out"
        )
    written = [n for n in names if load_task(n).writes]
    if not written:
        return
    for key in ("summary-positions", "label-skew", *needing_classes(config)):
        if getattr(config, key.replace("-", "_")):
            yield (
                f"{key}: is for tasks with classes, and {written[0]} is to be answered "
                f"by text; leave {key} out, or the task"
            )


def _share_problems(config: RunConfig, clients: int) -> Iterator[str]:
    """Say which task has too little text for its clients."""
    tasks = [load_task(name) for name in config.task_list]
    for client in range(min(len(tasks), clients)):
        try:
            make_shard(client, clients, tasks, seed=config.seed)
        except AtlasError as error:
            yield str(error)


def _complaints(check: Callable[[], object]) -> tuple[str, ...]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    except AtlasError as error:
        return (str(error),)
    return ()


def _model_problems(config: RunConfig, devices: bool) -> Iterator[str]:
    try:
        files = ModelFiles.of(config)
        outline = files.outline()
        count = outline.num_layers
    except AtlasError as error:
        yield str(error)
        return
    checks: list[Callable[[], object]] = [lambda: outline.shapes(config.target_list)]
    if needs_trunk(config):
        checks.append(lambda: covering_plan(config, outline))
        checks += [partial(SplitPlan(*cut).check, count) for cut in config.fixed_cuts]
    problems = [*dict.fromkeys(told for check in checks for told in _complaints(check))]
    if problems:
        yield from problems
        return
    # Tracing what a step takes of memory is the longest of all that is done here.
    if devices and config.device_bytes and config.strategy in ADAPTER_STRATEGIES:
        yield from DeviceRule.of(config, outline, files.dtype).problems()
