# SPDX-License-Identifier: Apache-2.0
"""Throughput of a trunk against its replicas, on Ray nodes that are on this machine.

Eight clients of four clusters take steps at once, through frames and Ray, with one CPU
thread a replica and one client a pass. Twice: with the blocks' own arithmetic, for
which replicas on one machine share its cores; and with blocks that are next to nothing
and a forward that waits, as for a GPU of its own, which shows what routing, frames and
Ray leave of each replica.

    python benchmarks/replicas.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import transformers
from ray.cluster_utils import Cluster

from atlas_flwr.budget import Guest
from atlas_flwr.budget.chains import Link
from atlas_flwr.lora import AdapterState, Scaling, initial_factors, linear_names
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk import Endpoint, SessionSpec, TrunkEngine, TrunkSource, connect
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.replicas import Replicas
from atlas_flwr.trunk.transports.ray import start_ray_trunk
from atlas_flwr.types import TrunkCall

ALONE = Limits(sessions_per_pass=1)  # as on CPUs: joined calls would all be one pass
PLAN, CLIENTS, CLUSTERS, ROWS, TOKENS = SplitPlan(1, 1), 8, 4, 4, 64


@dataclass(frozen=True)
class Waiting(TrunkSource):
    """A trunk each of whose forward passes waits, and computes next to nothing.

    Attributes
    ----------
    seconds : float
        How long it waits.
    """

    seconds: float = 0.0

    def engine(self, *, own_threads: bool = False) -> TrunkEngine:
        """Load the trunk."""
        engine = TrunkSource.engine(self, own_threads=own_threads)
        run, seconds = engine.base.run, self.seconds

        def slowed(*args: Any) -> torch.Tensor:
            time.sleep(seconds)
            return run(*args)

        engine.base.run = slowed  # type: ignore[method-assign]
        return engine


class Silent:
    """Is told, and says nothing."""

    def lost(self, server_round: int, host: str, reason: str) -> None:
        """Fail: nothing is to be lost here."""
        raise RuntimeError(reason)

    def started(self, server_round: int, replica: str) -> None:
        """Say nothing."""

    def seated(self, what: str, seats: Any) -> None:
        """Say nothing."""

    def moved(self, server_round: int, seats: Any) -> None:
        """Say nothing."""


def saved(folder: Path, width: int, blocks: int) -> AdapterState:
    """Save a Llama with random weights; return adapters of its trunk."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    names = [n for n in linear_names(model) if 0 < int(n.split(".")[2]) < blocks - 1]
    shapes = {n: tuple(model.get_submodule(n).weight.shape) for n in names}
    scaling = Scaling(16.0)
    return AdapterState(
        {
            n: initial_factors(n, s, 8, scaling=scaling, seed=0)
            for n, s in shapes.items()
        }
    )


def work(address: str, token: str, width: int, steps: range) -> None:
    """Take a client's steps."""
    trunk = connect(address, token)
    hidden = torch.randn(ROWS, TOKENS, width)
    for step in steps:
        out = trunk.forward(TrunkCall(hidden, step=step))
        trunk.backward(step, torch.ones_like(out))


def throughput(
    source: TrunkSource, state: AdapterState, count: int, steps: int
) -> float:
    """Return the steps of all clients in a second, with so many replicas."""
    width = next(iter(state.factors.values())).shape[1]

    @contextmanager
    def start(link: Link) -> Iterator[Endpoint]:
        host = start_ray_trunk(f"{link.host}-{count}", source, threads=1, spread=True)
        yield Endpoint(host, host.address)
        host.stop()

    links = [Link(f"replica-{k}", 1, 2) for k in range(count)]
    hosts = PeerHosts(start, Silent(), at_once=2)
    replicas = Replicas(hosts, links)
    replicas.start()
    guests = [Guest(str(k), cluster=k % CLUSTERS) for k in range(CLIENTS)]
    replicas.admit("train", 1, guests, [])
    tokens = [replicas.open(SessionSpec(PLAN, state, client=g.client)) for g in guests]
    doors = [replicas.doors(token)[0] for token in tokens]
    took = 0.0
    for turn in (range(2), range(2, 2 + steps)):  # the first warms up
        clients = [
            threading.Thread(target=work, args=(d.address, d.token, width, turn))
            for d in doors
        ]
        began = time.perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        took = time.perf_counter() - began
    assert replicas.stats().steps == CLIENTS * (2 + steps)
    hosts.stop()
    return CLIENTS * steps / took


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only-waiting", action="store_true")
    parser.add_argument("--wait", type=float, default=0.2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(max(given.replicas) - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| a pass | replicas | steps/s | against one |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as text:
        wide, narrow = Path(text) / "wide", Path(text) / "narrow"
        waiting = Waiting(str(narrow), PLAN, limits=ALONE, seconds=given.wait)
        kinds: dict[str, tuple[TrunkSource, AdapterState]] = {}
        if not given.only_waiting:
            kinds["computes"] = (
                TrunkSource(str(wide), PLAN, limits=ALONE),
                saved(wide, 384, 8),
            )
        kinds[f"waits {given.wait:g} s"] = waiting, saved(narrow, 32, 3)
        for what, (source, state) in kinds.items():
            found = [throughput(source, state, n, given.steps) for n in given.replicas]
            for count, rate in zip(given.replicas, found, strict=True):
                print(f"| {what} | {count} | {rate:.2f} | {rate / found[0]:.2f} |")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
