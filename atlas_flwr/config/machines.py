# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: where clients and trunk compute, and where a run is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, option

__all__ = ["MachineConfig"]


@dataclass(frozen=True)
class MachineConfig:
    """Where clients and trunk compute, and where a run is kept."""

    trunk: Literal["auto", "ray", "grpc", "local", "peers"] = option(
        "auto",
        "How clients reach the trunk. ray: an actor of a simulation's Ray cluster. "
        "grpc: a service of the ServerApp, over TLS, for SuperNodes on other machines. "
        "local: inside the ServerApp's process, for tests. peers: clients that lend "
        "memory carry it for others (docs/peers.md). auto takes ray in a "
        "simulation, and grpc on Flower's deployment engine.",
    )
    trunk_listen: str = option(
        "127.0.0.1:0",
        "Where trunk='grpc' listens, HOST:PORT; port 0 takes a free one. For "
        "SuperNodes on other machines 0.0.0.0 and a port that your firewall lets in.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_advertise: str = option(
        "",
        "The HOST or HOST:PORT that clients dial to reach trunk='grpc'; empty is that "
        "of trunk-listen. It is the name in the trunk's certificate.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_client_ca: str = option(
        "",
        "Mutual TLS for the trunk that the ServerApp serves by trunk='grpc': who shows "
        "no certificate of an authority in this file, PEM, is refused before any call. "
        "SuperNodes name theirs in their node config, trunk-cert and trunk-key.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_access: str = option(
        "",
        "The file access.json that `atlas-flwr trunk` wrote: the trunk runs on a "
        "machine of its own, and this run opens its sessions there. Several files, as "
        "'a.json,b.json', are of trunks that share the clients, as trunk-replicas do.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_address: str = option(
        "",
        "Where clients and ServerApp dial the trunk of trunk-access, "
        "grpcs://HOST:PORT; empty is what that file says.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_replicas: int = option(
        1,
        "Copies of the trunk of trunk='ray', spread over the nodes and GPUs of the Ray "
        "cluster. A cluster's clients go to one of them, or to several of their own "
        "where there are fewer clusters; the numbers are those of one trunk. Each "
        "holds all of its weights, and trunk-threads is for each.",
        minimum=1,
        only=ADAPTER_STRATEGIES,
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
        only=ADAPTER_STRATEGIES,
    )
    trunk_queue: str = option(
        "longest-path",
        "Whose call the trunk takes first, of those that wait. longest-path: of the "
        "client with the most time before it outside the trunk, as a round ends with "
        "its last. fifo: that which came first. fair: each cluster its share.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_rate: int = option(
        1000,
        "Calls a second that a trunk of trunk='grpc' takes from one session, with "
        "twice as many at once; who is faster waits, to the same numbers. 0 is no "
        "limit, nor one of guessed tokens.",
        minimum=0,
        only=ADAPTER_STRATEGIES,
    )
    trunk_metrics: int = option(
        0,
        "Port at which the ServerApp's machine, and no other, is shown Prometheus' "
        "/metrics, /healthz and /readyz of the trunk that the run starts; 0 for none.",
        minimum=0,
        maximum=65535,
        only=ADAPTER_STRATEGIES,
    )
    trunk_restarts: int = option(
        2,
        "How often a trunk that has died is started again while a run goes on; the "
        "round is then done again from the server's state, to the same numbers. Of "
        "several trunk-replicas only the clients of the one that died do theirs again.",
        minimum=0,
    )
    trunk_recompute: bool = option(
        False,
        "Recompute activations in the trunk's backward instead of keeping them: far "
        "less server memory for about a third more of its time.",
        only=ADAPTER_STRATEGIES,
    )
    trunk_limit: str = option(
        "",
        "What all clients' sessions may take of the trunk's memory together, the base "
        "aside, e.g. 8GiB. Over it idle ones move from a GPU to the host's memory, and "
        "clients wait for their turn; no number changes. Empty: all that a GPU has, "
        "and on a CPU no limit. A session that is alone is never refused.",
        only=ADAPTER_STRATEGIES,
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
        "they were, but for num-rounds, which may grow, and those of the trunk that "
        "change no number (docs/running.md lists them).",
    )
    checkpoint_every: int = option(
        1,
        "Rounds between checkpoints; the last round has one, too. 0 writes none, and "
        "the run cannot be resumed.",
        minimum=0,
    )
