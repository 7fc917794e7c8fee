# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: where clients and trunk compute, and where a run is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import option

__all__ = ["MachineConfig"]


@dataclass(frozen=True)
class MachineConfig:
    """Where clients and trunk compute, and where a run is kept."""

    trunk: Literal["ray", "local"] = option(
        "ray",
        "Where the trunk runs in a simulation: ray, as an actor that all clients "
        "share, or local, inside each client, for tests and debugging.",
    )
    trunk_threads: int = option(
        2,
        "CPU threads of the trunk. Leave cores for the clients: their number times "
        "client-threads plus this should not pass the machine's.",
        minimum=1,
    )
    trunk_batch: int = option(
        0,
        "Clients whose calls, if they wait at the same time, run as one pass of the "
        "trunk. 0 is 64 on a GPU, where it makes them up to tens of times as fast, and "
        "1 on a CPU. At 1 a run gives the same bits every time; above it, the same "
        "numbers to float rounding.",
        minimum=0,
    )
    trunk_restarts: int = option(
        2,
        "How often a trunk that has died is started again while a run goes on; the "
        "round is then done again from the server's state, to the same numbers.",
        minimum=0,
    )
    trunk_recompute: bool = option(
        False,
        "Recompute activations in the trunk's backward instead of keeping them: far "
        "less server memory for about a third more of its time.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32",
        "Type of the frozen weights; what is trained is float32. bfloat16 halves their "
        "memory; on CPUs without native support it is slower. float16 is for GPUs.",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "cpu",
        "Where clients compute, and the trunk unless trunk-device says otherwise; auto "
        "takes a GPU where there is one. In a simulation clients share a GPU, each "
        "with the part that --client-gpus says, 0.1 for one; at 0 they see none.",
    )
    trunk_device: Literal["same", "auto", "cpu", "cuda"] = option(
        "same",
        "Where the trunk computes; same is where clients do. Clients on CPUs and the "
        "trunk on a GPU is what most federations have.",
    )
    client_threads: int = option(
        1,
        "CPU threads of each client. 1 is best where several clients share a machine.",
        minimum=1,
    )
    runs_dir: str = option(
        "runs", "Folder that run folders are made in, relative to the SuperLink's."
    )
    run_name: str = option(
        "", "Name of the run's folder; empty is <time>-<strategy>. Must be new."
    )
    resume: str = option(
        "",
        "A run folder to continue from its last checkpoint. Other keys must be as "
        "they were, except num-rounds, which may grow.",
    )
    checkpoint_every: int = option(
        1,
        "Rounds between checkpoints; 0 writes none, and the run cannot be resumed.",
        minimum=0,
    )
