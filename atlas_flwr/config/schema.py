# SPDX-License-Identifier: Apache-2.0
"""The schema: every key that a run has, with its default, its limits and advice.

A field ``num_rounds`` here is the key ``num-rounds`` in Flower's run config, where
values are flat and only of type bool, int, float or str. Lists are therefore comma
lists, and the properties at the end give them parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from atlas_flwr.config.knob import Knob, knob
from atlas_flwr.config.method import KIN, MAX_RANK, MethodConfig
from atlas_flwr.config.parsing import parse_bytes, parse_cut, split_list
from atlas_flwr.config.remedies import RemedyConfig
from atlas_flwr.config.training import TrainingConfig

__all__ = ["KIN", "MAX_RANK", "RunConfig", "knobs"]


@dataclass(frozen=True)
class RunConfig(RemedyConfig, MethodConfig, TrainingConfig):
    """The resolved configuration of a run; make one with ``load_config``."""

    fraction_train: float = knob(
        1.0,
        "Share of the connected clients that train in a round.",
        above=0,
        maximum=1,
    )
    fraction_evaluate: float = knob(
        1.0,
        "Share of the connected clients that evaluate. Below 1 the per-task numbers of "
        "two rounds come from different clients.",
        above=0,
        maximum=1,
    )
    min_train_nodes: int = knob(
        2, "Fewest clients a training round asks; Flower waits for them.", minimum=1
    )
    min_evaluate_nodes: int = knob(
        2, "Fewest clients an evaluation asks; Flower waits for them.", minimum=1
    )
    min_available_nodes: int = knob(
        2,
        "Clients that must be connected before a round starts. Set it to the size of "
        "the federation where every client should be in the clustering.",
        minimum=1,
    )
    round_timeout: float = knob(
        3600.0,
        "Seconds after which a round goes on without the clients still missing. "
        "Several times a slow client's round.",
        above=0,
    )
    quorum: float = knob(
        1.0,
        "Share of a training round's replies after which it goes on; later ones are "
        "dropped, by fedavg and fedprox discounted and taken into the next round. "
        "Below 1 slow clients hold nobody up, a run's numbers depend on who was fast, "
        "and a resumed run may differ.",
        above=0,
        maximum=1,
    )
    secure_aggregation: bool = knob(
        False,
        "Let the server see the sum of the clients' updates, and no single one: fedavg "
        "and fedprox learn the same, and 8 bytes a number go up. What each client "
        "tells of its training is summed too; its evaluation is not.",
    )
    evaluate_every: int = knob(
        1,
        "Rounds between evaluations; the last round is always evaluated.",
        minimum=1,
    )
    proximal_mu: float = knob(
        0.1,
        "FedProx's pull towards the round's starting point. Try 0.001 to 1; large "
        "values stop learning.",
        minimum=0,
        only=("fedprox",),
    )

    codec: str = knob(
        "raw",
        "How tensors cross the cut. raw is exact; lossy codecs save bytes and may cost "
        "accuracy, gradients more than activations.",
        only=KIN,
    )
    trunk: Literal["ray", "local"] = knob(
        "ray",
        "Where the trunk runs in a simulation: ray, as an actor that all clients "
        "share, or local, inside each client, for tests and debugging.",
    )
    trunk_threads: int = knob(
        2,
        "CPU threads of the trunk. Leave cores for the clients: their number times "
        "client-threads plus this should not pass the machine's.",
        minimum=1,
    )
    trunk_batch: int = knob(
        0,
        "Clients whose calls, if they wait at the same time, run as one pass of the "
        "trunk. 0 is 64 on a GPU, where it makes them up to tens of times as fast, and "
        "1 on a CPU. At 1 a run gives the same bits every time; above it, the same "
        "numbers to float rounding.",
        minimum=0,
    )
    trunk_restarts: int = knob(
        2,
        "How often a trunk that has died is started again while a run goes on; the "
        "round is then done again from the server's state, to the same numbers.",
        minimum=0,
    )
    trunk_recompute: bool = knob(
        False,
        "Recompute activations in the trunk's backward instead of keeping them: far "
        "less server memory for about a third more of its time.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = knob(
        "float32",
        "Type of the frozen weights; what is trained is float32. bfloat16 halves their "
        "memory; on CPUs without native support it is slower. float16 is for GPUs.",
    )
    device: Literal["auto", "cpu", "cuda"] = knob(
        "cpu",
        "Where clients compute, and the trunk unless trunk-device says otherwise; auto "
        "takes a GPU where there is one. In a simulation clients share a GPU, each "
        "with the part that --client-gpus says, 0.1 for one; at 0 they see none.",
    )
    trunk_device: Literal["same", "auto", "cpu", "cuda"] = knob(
        "same",
        "Where the trunk computes; same is where clients do. Clients on CPUs and the "
        "trunk on a GPU is what most federations have.",
    )
    client_threads: int = knob(
        1,
        "CPU threads of each client. 1 is best where several clients share a machine.",
        minimum=1,
    )

    runs_dir: str = knob(
        "runs", "Folder that run folders are made in, relative to the SuperLink's."
    )
    run_name: str = knob(
        "", "Name of the run's folder; empty is <time>-<strategy>. Must be new."
    )
    resume: str = knob(
        "",
        "A run folder to continue from its last checkpoint. Other keys must be as "
        "they were, except num-rounds, which may grow.",
    )
    checkpoint_every: int = knob(
        1,
        "Rounds between checkpoints; 0 writes none, and the run cannot be resumed.",
        minimum=0,
    )

    @property
    def server_device(self) -> str:
        """``trunk_device``, or ``device`` where it is the same."""
        return self.device if self.trunk_device == "same" else self.trunk_device

    @property
    def task_list(self) -> tuple[str, ...]:
        """``tasks``, parsed."""
        return split_list(self.tasks)

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
    def trunk_session_bytes(self) -> int | None:
        """``trunk_session_memory``, parsed; ``None`` for unlimited."""
        text = self.trunk_session_memory
        return parse_bytes(text) if text else None

    @property
    def fixed_cut(self) -> tuple[int, int | None] | None:
        """``cut``, parsed as (head, tail); ``None`` for auto."""
        return None if self.cut == "auto" else parse_cut(self.cut)


def knobs() -> Mapping[str, Knob]:
    """Return every key's :class:`Knob`, by its name in Flower's run config."""
    return {
        entry.name.replace("_", "-"): entry.metadata["knob"]
        for entry in fields(RunConfig)
    }
