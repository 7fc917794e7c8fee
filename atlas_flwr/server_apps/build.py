# SPDX-License-Identifier: Apache-2.0
"""The configured strategy, with what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from atlas_flwr.budget import assign
from atlas_flwr.config import RunConfig
from atlas_flwr.lora import AdapterState
from atlas_flwr.report.events import Event
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies.atlas import Atlas
from atlas_flwr.strategies.centralized import Centralized
from atlas_flwr.strategies.local import Local
from atlas_flwr.strategies.records import write_state
from atlas_flwr.strategies.roster import Assigned, Profile, Roster
from atlas_flwr.strategies.sessions import TrunkSessions
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.weights import ModelFiles, Outline
from atlas_flwr.trunk import TrunkHost
from atlas_flwr.types import OptimizerSpec

__all__ = ["STRATEGIES", "Setting", "covering_plan", "initial_arrays", "optimizer_of"]


@dataclass(frozen=True)
class Setting:
    """What a strategy is built from.

    Attributes
    ----------
    config : RunConfig
        The run's configuration.
    files : ModelFiles
        The model.
    outline : Outline
        Its structure.
    roster : Roster
        The clients.
    on_event : Callable[[Event], None]
        Receives what the strategy tells.
    trunk : tuple[TrunkHost, str], optional
        The trunk and its address, for split clients.
    """

    config: RunConfig
    files: ModelFiles
    outline: Outline
    roster: Roster
    on_event: Callable[[Event], None]
    trunk: tuple[TrunkHost, str] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """FedAvg's arguments."""
        config = self.config
        return {
            "fraction_train": config.fraction_train,
            "fraction_evaluate": config.fraction_evaluate,
            "min_train_nodes": config.min_train_nodes,
            "min_evaluate_nodes": config.min_evaluate_nodes,
            "min_available_nodes": config.min_available_nodes,
        }


def _atlas(setting: Setting) -> Strategy:
    config = setting.config
    assert setting.trunk is not None
    host, address = setting.trunk
    return Atlas(
        **setting.sampling,
        lora_alpha=config.lora_alpha,
        fingerprints="gradients",
        clustering=config.clustering,
        num_clusters=config.num_clusters or None,
        max_clusters=config.max_clusters,
        recluster_every=config.recluster_every,
        aggregation=config.aggregation,
        assign=_assigner(setting),
        sessions=TrunkSessions(
            host=host,
            address=address,
            optimizer=optimizer_of(config),
            layer_block=setting.outline.block_of,
            num_layers=setting.outline.num_layers,
        ),
        roster=setting.roster,
        seed=config.seed,
        on_event=setting.on_event,
    )


def _fedavg(setting: Setting) -> Strategy:
    return FedAvg(**setting.sampling)


def _fedprox(setting: Setting) -> Strategy:
    return FedProx(**setting.sampling, proximal_mu=setting.config.proximal_mu)


def _local(setting: Setting) -> Strategy:
    return Local(**setting.sampling, roster=setting.roster)


def _centralized(setting: Setting) -> Strategy:
    return Centralized(**setting.sampling)


STRATEGIES: Mapping[str, Callable[[Setting], Strategy]] = {
    "atlas": _atlas,
    "centralized": _centralized,
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "local": _local,
}


def optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return AdamW's settings, for both sides of the cut."""
    return OptimizerSpec(lr=config.learning_rate, weight_decay=config.weight_decay)


def initial_arrays(setting: Setting) -> ArrayRecord:
    """Make the arrays that all clients start from.

    ATLAS starts at the largest rank that it may assign; lower ranks are its first rows.
    The other strategies know one rank.
    """
    config = setting.config
    rank = config.lora_rank
    if config.strategy == "atlas" and config.ranks == "budget":
        rank = max(config.rank_choices)
    state: AdapterState = initial_state(
        setting.outline.shapes(config.target_list),
        rank=rank,
        alpha=config.lora_alpha,
        seed=config.seed,
        dense=setting.files.dense(),
    )
    return write_state(state)


def covering_plan(config: RunConfig, outline: Outline) -> SplitPlan:
    """Return the plan whose trunk covers every client's, and the fingerprints'."""
    plan = SplitPlan(1, None if config.split == "vanilla" else 1)
    plan.check(outline.num_layers)
    return plan


def _assigner(setting: Setting) -> Callable[[Profile], Assigned]:
    config = setting.config
    architecture = setting.outline.architecture(config.target_list)
    head, tail = config.fixed_cut or (None, None if config.split == "vanilla" else 1)
    ranks = config.rank_choices if config.ranks == "budget" else (config.lora_rank,)
    if head is not None:
        SplitPlan(head, tail).check(architecture.num_layers)

    def choose(profile: Profile) -> Assigned:
        found = assign(
            architecture,
            profile.memory,
            ranks=ranks,
            max_head=config.max_head,
            tail=tail,
            batch=config.batch_size,
            length=config.max_length,
            fixed_head=head,
            dtype_bytes=setting.files.dtype.itemsize,
        )
        return Assigned(found.rank, SplitPlan(found.head, found.tail))

    return choose
