# SPDX-License-Identifier: Apache-2.0
"""The schema: every key that a run has, with its default, its limits and advice.

A field ``num_rounds`` here is the key ``num-rounds`` in Flower's run config, where
values are flat and only of type bool, int, float or str. Lists are therefore comma
lists, and the properties at the end give them parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from atlas_flwr.config.adaptation import AdaptationConfig
from atlas_flwr.config.aggregation import AggregationConfig
from atlas_flwr.config.clusters import ClusterConfig
from atlas_flwr.config.cut import CutConfig
from atlas_flwr.config.machines import MachineConfig
from atlas_flwr.config.parsing import parse_bytes, parse_cut, parse_lent, split_list
from atlas_flwr.config.peers import PeerConfig
from atlas_flwr.config.rounds import RoundConfig
from atlas_flwr.config.scoring import ScoringConfig
from atlas_flwr.config.training import TrainingConfig
from atlas_flwr.options import ADAPTER_STRATEGIES, Option
from atlas_flwr.remedies import RemedyKeys
from atlas_flwr.types import AUTO_CODEC

__all__ = ["FIRST", "RunConfig", "groups", "options"]

T = TypeVar("T")
# The keys that most runs set.
FIRST: tuple[str, ...] = (
    "strategy",
    "model",
    "tasks",
    "num-rounds",
    "split",
    "devices",
    "local-steps",
    "batch-size",
    "max-length",
    "learning-rate",
)


@dataclass(frozen=True)
class RunConfig(
    PeerConfig,
    MachineConfig,
    RemedyKeys,
    RoundConfig,
    AggregationConfig,
    ClusterConfig,
    CutConfig,
    AdaptationConfig,
    ScoringConfig,
    TrainingConfig,
):
    """The resolved configuration of a run; make one with ``load_config``.

    Fields come in the reverse order of the bases: ``TrainingConfig``'s are first.
    """

    @property
    def server_device(self) -> str:
        """``trunk_device``, or ``device`` where it is the same.

        Where the trunk is on a machine of its own, the server computes no pass.
        """
        if self.trunk_access:
            return "cpu"
        return self.device if self.trunk_device == "same" else self.trunk_device

    @property
    def task_list(self) -> tuple[str, ...]:
        """``tasks``, parsed."""
        return split_list(self.tasks)

    def task_of(self, client: int) -> str:
        """Return the task of a client, by its number: tasks are dealt in turns."""
        return self.task_list[client % len(self.task_list)]

    @property
    def unsplit(self) -> str:
        """Why every client trains the whole model; empty where models are split."""
        if self.strategy not in ADAPTER_STRATEGIES:
            return f"strategy={self.strategy!r}: every client trains the whole model"
        if self.split == "none":
            return "split='none': every client trains the whole model"
        return ""

    @property
    def rank_choices(self) -> tuple[int, ...]:
        """``lora_ranks``, parsed, ascending."""
        return tuple(sorted(int(rank) for rank in split_list(self.lora_ranks)))

    @property
    def target_list(self) -> tuple[str, ...]:
        """``lora_targets``, parsed; ``("all-linear",)`` for all."""
        return split_list(self.lora_targets)

    @property
    def virtual_tokens(self) -> int:
        """``prompt_tokens`` where a prompt is trained; else 0."""
        return self.prompt_tokens if self.adapter == "prompt" else 0

    @property
    def crossing_positions(self) -> int | None:
        """Positions of a text that cross, if not all do."""
        count = self.summary_positions
        return count + 1 if count else None

    @property
    def learned_positions(self) -> int:
        """Positions that the head has besides a text's own."""
        return self.virtual_tokens + (self.crossing_positions or 0)

    @property
    def device_bytes(self) -> tuple[int, ...]:
        """``devices``, parsed, in bytes; empty for unlimited."""
        return tuple(parse_bytes(device) for device in split_list(self.devices))

    @property
    def peer_bytes(self) -> tuple[int, ...]:
        """``peer_memory``, parsed, in bytes; empty where nobody lends any."""
        return tuple(parse_lent(size) for size in split_list(self.peer_memory))

    @property
    def link_codec(self) -> str:
        """``codec``; ``raw`` for auto where what crosses is compared or kept."""
        exact = self.peer_checks > 0 or self.record_wire or self.watch > 0
        return self.recorded_codec if exact else self.codec

    @property
    def recorded_codec(self) -> str:
        """``codec``; ``raw`` for auto, by which a reader of the wire learns most."""
        return "raw" if self.codec == AUTO_CODEC else self.codec

    @property
    def counts_late(self) -> bool:
        """Whether updates that come after their round are counted."""
        apart = self.strategy in ("hetlora", "local")
        one_place = self.server_adapters == "shared" or self.trunk == "peers"
        return self.staleness_cutoff > 0 and not (apart or one_place)

    @property
    def trunk_session_bytes(self) -> int | None:
        """``trunk_session_memory``, parsed; ``None`` for unlimited."""
        text = self.trunk_session_memory
        return parse_bytes(text) if text else None

    @property
    def trunk_limit_bytes(self) -> int | None:
        """``trunk_limit``, parsed; ``None`` for none."""
        return parse_bytes(self.trunk_limit) if self.trunk_limit else None

    @property
    def fixed_cuts(self) -> tuple[tuple[int, int | None], ...]:
        """``cut``, parsed as (head, tail), one for all or several; empty for auto."""
        return () if self.cut == "auto" else tuple(map(parse_cut, self._cuts))

    @property
    def fixed_cut(self) -> tuple[int, int | None] | None:
        """The cut of all clients; ``None`` where they may have several."""
        cuts = self.fixed_cuts
        return cuts[0] if len(cuts) == 1 else None

    @property
    def kinds(self) -> tuple[tuple[int | None, str], ...]:
        """Each of ``devices``, ``None`` for unlimited, and the ``cut`` that it has."""
        memories, cuts = self.device_bytes or (None,), self._cuts
        count = max(len(memories), len(cuts))
        pairs = zip(_repeated(memories, count), _repeated(cuts, count), strict=True)
        return tuple(pairs)

    @property
    def _cuts(self) -> tuple[str, ...]:
        return split_list(self.cut)


def _repeated(items: tuple[T, ...], count: int) -> tuple[T, ...]:
    return items * count if len(items) == 1 else items


def options() -> Mapping[str, Option]:
    """Return every key's :class:`Option`, by its name in Flower's run config."""
    return {
        entry.name.replace("_", "-"): entry.metadata["option"]
        for entry in fields(RunConfig)
    }


def groups() -> Mapping[str, tuple[str, ...]]:
    """Return the keys in groups, by what a group is about; the ten first keys first.

    A group is a base of :class:`RunConfig`, and its docstring says what it is about.
    """
    found: dict[str, tuple[str, ...]] = {"What most runs set.": FIRST}
    for base in reversed(RunConfig.__bases__):
        keys = [entry.name.replace("_", "-") for entry in fields(base)]
        about = (base.__doc__ or "").partition("\n")[0]
        found[about] = tuple(key for key in keys if key not in FIRST)
    return found
