# SPDX-License-Identifier: Apache-2.0
"""The configured strategy, with what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from atlas_flwr.aggregation.metrics import averaged_metrics
from atlas_flwr.aggregation.mixing import Mixing
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.config import ADAPTER_STRATEGIES, RunConfig
from atlas_flwr.config.optimizers import trunk_optimizer_of
from atlas_flwr.log import log
from atlas_flwr.lora import PROMPT_KEY, AdapterState, Scaling, ia3_shapes
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.remedies import ServerHooks, server_hooks
from atlas_flwr.report.events import Event
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.split import SUMMARY_KEY, SplitPlan
from atlas_flwr.strategies import (
    Atlas,
    Centralized,
    FlexLora,
    Flora,
    HetLora,
    HSplitLora,
    Local,
    Mira,
    OracleFedAvg,
    SecureAtlas,
    SplitLora,
)
from atlas_flwr.train.initial import initial_state, initial_vectors
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.transports.watching import Calls

__all__ = [
    "STRATEGIES",
    "RunContext",
    "covering_plan",
    "holders_of",
    "initial_arrays",
    "needs_trunk",
    "scaling_of",
]


@dataclass(frozen=True)
class RunContext:
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
    trunk : Endpoint, optional
        The trunk, for split clients.
    calls : Calls
        Is told of all calls to trunks that the run serves by gRPC.
    started : Callable[[str, int, AdapterState], None]
        Is told what each client's session on the trunk begins a round with.
    """

    config: RunConfig
    files: ModelFiles
    outline: Outline
    roster: Roster
    on_event: Callable[[Event], None]
    trunk: Endpoint | None = None
    calls: Calls = field(default_factory=Calls)
    started: Callable[[str, int, AdapterState], None] = lambda *_: None

    @property
    def hooks(self) -> ServerHooks:
        """What remedies do on the server."""
        return server_hooks(self.config, self.outline)

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
            "train_metrics_aggr_fn": averaged_metrics,
            "evaluate_metrics_aggr_fn": averaged_metrics,
        }


def _kin(setting: RunContext) -> dict[str, Any]:
    """Arguments of Atlas and of the methods that are built on it."""
    config = setting.config
    rule = DeviceRule.of(config, setting.outline, setting.files.dtype)
    return {
        **setting.sampling,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "max_rank": config.max_rank or None,
        "flat": config.flat_rounds,
        "assign": rule,
        "sessions": _sessions(setting),
        "roster": setting.roster,
        "seed": config.seed,
        "on_event": setting.on_event,
        "hooks": setting.hooks,
    }


def _sessions(setting: RunContext) -> TrunkSessions | None:
    if setting.trunk is None:
        return None
    return TrunkSessions(
        host=setting.trunk.host,
        address=setting.trunk.address,
        ca=setting.trunk.ca,
        optimizer=trunk_optimizer_of(setting.config),
        layer_block=setting.outline.block_of,
        num_layers=setting.outline.num_layers,
        hooks=setting.hooks,
        checks=setting.config.peer_checks,
        steps=setting.config.local_steps * setting.config.accumulate,
        holder=holders_of(setting.config, setting.roster),
        started=setting.started,
    )


def holders_of(config: RunConfig, roster: Roster) -> Callable[[str], str]:
    """Return who says of whom a client's certificate is.

    Where the trunk asks for one, the log names who has none, once: in TLS's handshake
    neither end is told.
    """
    told: set[str] = set()

    def holder(client: str) -> str:
        found = roster.holder(client)
        if config.trunk_client_ca and not found and client not in told:
            told.add(client)
            log(
                WARNING,
                "client %s has no certificate (trunk-cert and trunk-key of its node "
                "config), and the trunk asks for one (trunk-client-ca): it will not "
                "reach it",
                client,
            )
        return found

    return holder


def _atlas(setting: RunContext) -> Strategy:
    config = setting.config
    kind = SecureAtlas if config.secure_aggregation else Atlas
    return kind(
        **_kin(setting),
        fingerprints="gradients",
        clustering=config.clustering,
        num_clusters=config.num_clusters or None,
        max_clusters=config.max_clusters,
        recluster_every=config.recluster_every,
        balanced=config.balanced_clusters,
        min_cluster_size=config.min_cluster_size,
        aggregation=config.aggregation,
        importance=measures_importance(config),
        mixing=Mixing(config.mixing, decay=config.mixing_decay),
    )


def _mira(setting: RunContext) -> Strategy:
    config = setting.config
    return Mira(
        **_kin(setting),
        aggregation=config.aggregation,
        importance=measures_importance(config),
        mixing=Mixing(config.mixing, decay=config.mixing_decay),
    )


def _splitlora(setting: RunContext) -> Strategy:
    config, given = setting.config, _kin(setting)
    if given["sessions"] is not None:
        shared = config.server_adapters == "shared"
        given["sessions"] = replace(
            given["sessions"], shared=shared, merge=config.trunk_merge
        )
    return SplitLora(**given, interval=config.aggregation_interval)


def _fedavg(setting: RunContext) -> Strategy:
    return FedAvg(**setting.sampling)


def _fedprox(setting: RunContext) -> Strategy:
    return FedProx(**setting.sampling, proximal_mu=setting.config.proximal_mu)


def _local(setting: RunContext) -> Strategy:
    return Local(**setting.sampling, roster=setting.roster)


def _centralized(setting: RunContext) -> Strategy:
    return Centralized(**setting.sampling, roster=setting.roster)


STRATEGIES: Mapping[str, Callable[[RunContext], Strategy]] = {
    "atlas": _atlas,
    "centralized": _centralized,
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "flexlora": lambda setting: FlexLora(**_kin(setting)),
    "flora": lambda setting: Flora(**_kin(setting)),
    "hetlora": lambda setting: HetLora(
        **_kin(setting), rank_decay=setting.config.rank_decay
    ),
    "hsplitlora": lambda setting: HSplitLora(**_kin(setting)),
    "local": _local,
    "mira": _mira,
    "oracle": lambda setting: OracleFedAvg(**_kin(setting)),
    "splitlora": _splitlora,
}


def needs_trunk(config: RunConfig) -> bool:
    """Tell whether a run's clients are split."""
    return config.strategy in ADAPTER_STRATEGIES and config.split != "none"


def measures_importance(config: RunConfig) -> bool:
    """Tell whether ranks are given by importance, which has to be measured then."""
    has_ranks = config.adapter == "lora" and config.split != "none"
    return has_ranks and config.ranks == "budget"


def scaling_of(config: RunConfig) -> Scaling:
    """Return LoRA's scaling, the same on both sides of the cut."""
    return Scaling(config.lora_alpha, config.use_rslora)


def initial_arrays(setting: RunContext) -> ArrayRecord:
    """Make the arrays that all clients start from.

    ATLAS and its kin start at the largest rank that they may assign; lower ranks are
    its first rows. The other strategies know one rank.
    """
    config = setting.config
    dense = setting.files.dense()
    if config.summary_positions:
        dense[SUMMARY_KEY] = setting.files.summary(config.summary_positions)
    if config.adapter == "ia3":
        shapes = ia3_shapes(setting.outline.model)
        return write_state(initial_vectors(shapes, dense))
    if config.adapter == "prompt":
        prompt = {PROMPT_KEY: setting.files.prompt(config.prompt_tokens)}
        return write_state(AdapterState(dense={**dense, **prompt}))
    rank = config.lora_rank
    if config.strategy in ADAPTER_STRATEGIES and config.ranks != "uniform":
        rank = max(config.rank_choices)
    state: AdapterState = initial_state(
        setting.outline.shapes(config.target_list),
        rank=rank,
        scaling=scaling_of(config),
        seed=config.seed,
        dense=dense,
    )
    return write_state(state)


def covering_plan(config: RunConfig, outline: Outline) -> SplitPlan:
    """Return the plan whose trunk covers every client's, and the fingerprints'."""
    plan = SplitPlan(1, None if config.split == "vanilla" else 1)
    plan.check(outline.num_layers)
    return plan
