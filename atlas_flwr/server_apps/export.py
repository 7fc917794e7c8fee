# SPDX-License-Identifier: Apache-2.0
"""A run's adapters, in PEFT's format: one folder a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import save_file

from atlas_flwr.lora import AdapterState, save_peft
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.build import Setting, scaling_of
from atlas_flwr.split import SUMMARY_KEY
from atlas_flwr.strategies.atlas import Atlas
from atlas_flwr.strategies.local import Local

__all__ = ["SUMMARY_FILE", "export_adapters"]

SUMMARY_FILE = "summary.safetensors"


def export_adapters(
    folder: RunFolder, strategy: Strategy, setting: Setting, arrays: ArrayRecord
) -> list[Path]:
    """Write ``adapters/<cluster>/``, or ``adapters/all/`` where there is one model.

    Returns
    -------
    list[Path]
        The folders.
    """
    paths = []
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
        paths.append(path)
    return paths


def _states(
    strategy: Strategy, setting: Setting, arrays: ArrayRecord
) -> Mapping[str, AdapterState]:
    if isinstance(strategy, Atlas):
        return strategy.cluster_states()
    layout = Layout.of(arrays, scaling_of(setting.config))
    if isinstance(strategy, Local):
        return {c: layout.read(a, f"client {c}") for c, a in strategy.own.items()}
    return {"all": layout.read(arrays, "server")}
