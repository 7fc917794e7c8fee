# SPDX-License-Identifier: Apache-2.0
"""All remedies: a new one gets a line in each of the two lists.

Their order is that of their hooks (see :mod:`atlas_flwr.remedies.chain`): what a client
sends passes the first remedy last, and a step's loss is the first one's to change last.
The recorder is first: nothing stands between it and the wire. The watch comes next, as
it compares what was sent, past any defence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.options import Problem
from atlas_flwr.remedies.alignment import Alignment, AlignmentKeys
from atlas_flwr.remedies.auxiliary_tail import AuxiliaryKeys, AuxiliarySteps
from atlas_flwr.remedies.base import (
    Blocks,
    ClientHooks,
    Remedy,
    RoundContext,
    ServerHooks,
)
from atlas_flwr.remedies.chain import ClientChain, ServerChain
from atlas_flwr.remedies.data_pruning import DataPruning, PruningKeys
from atlas_flwr.remedies.gradient_skipping import GradientSkipping, SkippingKeys
from atlas_flwr.remedies.gradient_watch import GradientWatch, WatchKeys
from atlas_flwr.remedies.moving_average import AverageKeys, MovingAverage
from atlas_flwr.remedies.personal_sides import PersonalKeys, PersonalSides
from atlas_flwr.remedies.proximal import Proximal, ProximalKeys
from atlas_flwr.remedies.rank_penalty import RankPenalty, RankPenaltyKeys
from atlas_flwr.remedies.robust_sums import RobustKeys, RobustSums
from atlas_flwr.remedies.wire_defence import DefenceKeys, WireDefence
from atlas_flwr.remedies.wire_recording import RecordingKeys, WireRecording

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.lora import AdapterState

__all__ = [
    "REMEDIES",
    "RemedyKeys",
    "client_hooks",
    "every_step_crosses",
    "finish_remedies",
    "kept_elsewhere",
    "needing_classes",
    "remedy_problems",
    "remedy_warnings",
    "remembered_steps",
    "server_hooks",
    "session_started",
]


@dataclass(frozen=True)
class RemedyKeys(
    PersonalKeys,
    AverageKeys,
    RobustKeys,
    PruningKeys,
    SkippingKeys,
    ProximalKeys,
    RankPenaltyKeys,
    AuxiliaryKeys,
    AlignmentKeys,
    DefenceKeys,
    WatchKeys,
    RecordingKeys,
):
    """Against drawbacks of split and federated training; all are off by default."""


REMEDIES: tuple[Remedy, ...] = (
    WireRecording(),
    GradientWatch(),
    WireDefence(),
    PersonalSides(),
    MovingAverage(),
    RobustSums(),
    DataPruning(),
    GradientSkipping(),
    Proximal(),
    RankPenalty(),
    AuxiliarySteps(),
    Alignment(),
)


def remedy_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what a configuration gets wrong about remedies."""
    for remedy in REMEDIES:
        yield from remedy.problems(config)


def remembered_steps(config: RunConfig) -> int:
    """Return of how many steps of a round a client keeps something till its end."""
    return max(remedy.remembered_steps(config) for remedy in REMEDIES)


def every_step_crosses(config: RunConfig) -> bool:
    """Tell whether each step of a client is one of the trunk's."""
    return all(remedy.every_step_crosses(config) for remedy in REMEDIES)


def needing_classes(config: RunConfig) -> list[str]:
    """Return the keys of remedies that are on and want tasks with classes."""
    return [remedy.name for remedy in REMEDIES if remedy.needs_classes(config)]


def kept_elsewhere(config: RunConfig) -> list[str]:
    """Say what belongs to a run's answers and is not among its adapters."""
    told = (remedy.kept_elsewhere(config) for remedy in REMEDIES)
    return [sentence for sentence in told if sentence]


def remedy_warnings(config: RunConfig) -> list[str]:
    """Say what a user must not overlook of the remedies that are on."""
    return [told for remedy in REMEDIES for told in remedy.warnings(config)]


def session_started(
    config: RunConfig,
    folder: Path,
    client: str,
    server_round: int,
    state: AdapterState,
) -> None:
    """Let each remedy see what a client's session on the trunk begins a round with."""
    for remedy in REMEDIES:
        remedy.session_started(config, folder, client, server_round, state)


def finish_remedies(config: RunConfig, run_id: str, folder: Path) -> None:
    """Let each remedy leave something in the folder of a run that has ended."""
    for remedy in REMEDIES:
        remedy.finish(config, run_id, folder)


def client_hooks(now: RoundContext) -> ClientHooks:
    """Return all remedies' hooks on a client in one round."""
    return ClientChain([remedy.client(now) for remedy in REMEDIES])


def server_hooks(config: RunConfig, blocks: Blocks) -> ServerHooks:
    """Return all remedies' hooks on the server of a run."""
    return ServerChain([remedy.server(config, blocks) for remedy in REMEDIES])
