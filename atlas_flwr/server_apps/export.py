# SPDX-License-Identifier: Apache-2.0
"""A run's adapters, in PEFT's format: one folder a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import save_file

from atlas_flwr.data import Task, load_task
from atlas_flwr.errors import RoundError
from atlas_flwr.lora import AdapterState, save_peft
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.remedies import kept_elsewhere
from atlas_flwr.report import RunFolder
from atlas_flwr.report.store import writing
from atlas_flwr.server_apps.build import RunContext, initial_arrays, scaling_of
from atlas_flwr.server_apps.model_card import ModelCard
from atlas_flwr.split import SUMMARY_KEY
from atlas_flwr.strategies.atlas import Atlas
from atlas_flwr.strategies.local import Local

__all__ = ["SUMMARY_FILE", "check_learned", "export_adapters"]

SUMMARY_FILE = "summary.safetensors"


def export_adapters(
    folder: RunFolder, strategy: Strategy, setting: RunContext, arrays: ArrayRecord
) -> list[Path]:
    """Write ``adapters/<cluster>/``, or ``adapters/all/`` where there is one model.

    Those of clusters that there are no more, as a run has ended before, are removed.

    Returns
    -------
    list[Path]
        The folders.
    """
    root = folder.path / "adapters"
    with writing(root):
        written = list(_exported(folder, strategy, setting, arrays))
        for former in set(root.glob("*/")).difference(written):
            shutil.rmtree(former)
    return written


def _exported(
    folder: RunFolder, strategy: Strategy, setting: RunContext, arrays: ArrayRecord
) -> Iterator[Path]:
    for name, state in _states(strategy, setting, arrays).items():
        path = folder.adapter_dir(name)
        dense = dict(state.dense)
        summary = dense.pop(SUMMARY_KEY, None)
        save_peft(
            path,
            replace(state, dense=dense),
            base_model=setting.files.source.hub_name,
            causal=setting.files.source.kind == "causal",
        )
        if summary is not None:  # of the crossing, which PEFT does not know
            save_file({SUMMARY_KEY: summary}, path / SUMMARY_FILE)
        tasks = _tasks(strategy, setting, name)
        config = setting.config
        ModelCard(
            setting.files,
            tasks,
            config.max_length,
            summary=SUMMARY_FILE if summary is not None else "",
            notes=kept_elsewhere(config),
        ).write(path)
        yield path


def _tasks(strategy: Strategy, setting: RunContext, group: str) -> list[Task]:
    """Return the tasks of a group's clients; all where they are not known."""
    known = [load_task(name) for name in setting.config.task_list]
    clusters: Mapping[str, object] = {}
    if isinstance(strategy, Atlas):
        clusters = strategy.clusters
    elif isinstance(strategy, Local):
        clusters = {client: client for client in strategy.own}
    members = {client for client, found in clusters.items() if str(found) == group}
    profiles = setting.roster.profiles.values()
    named = {profile.task for profile in profiles if profile.client in members}
    return [task for task in known if task.name in named] or known


def check_learned(strategy: Strategy, setting: RunContext, arrays: ArrayRecord) -> None:
    """Refuse to call a run a success whose adapters are those that it began with.

    Raises
    ------
    RoundError
        If no number of any of them has moved.
    """
    states = _states(strategy, setting, arrays)
    begun = Layout.of(arrays).read(initial_arrays(setting), "initial arrays")
    if not any(_has_moved(state, begun) for state in states.values()):
        raise RoundError(
            "the run has learned nothing: its adapters are those that it began with, "
            "to the last bit. Raise learning-rate (now "
            f"{setting.config.learning_rate}) or local-steps, and look whether clients "
            "failed in training"
        )


def _has_moved(state: AdapterState, begun: AdapterState) -> bool:
    """An adapter begins with B = 0, whatever rank and A it was then given."""
    dense = any(
        key in begun.dense and not np.array_equal(value, begun.dense[key])
        for key, value in state.dense.items()
    )
    folded = [*state.folded.values()]
    return dense or any(bool(f.B.any()) for f in [*state.factors.values(), *folded])


def _states(
    strategy: Strategy, setting: RunContext, arrays: ArrayRecord
) -> Mapping[str, AdapterState]:
    if isinstance(strategy, Atlas):
        return strategy.cluster_states()
    layout = Layout.of(arrays, scaling_of(setting.config))
    if isinstance(strategy, Local):
        return {c: layout.read(a, f"client {c}") for c, a in strategy.own.items()}
    return {"all": layout.read(arrays, "server")}
