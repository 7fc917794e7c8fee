# SPDX-License-Identifier: Apache-2.0
"""What a trunk's passes cost: sessions one by one or joined, and a step beside unsplit.

Run from the top of the repository, on a CPU or a GPU::

    python benchmarks/trunk.py            # what the docs say; within 4 minutes on a GPU
    python benchmarks/trunk.py --quick    # small shapes, seconds

Weights are random, of the models' shapes. What is compared is measured in turn in one
process, and medians are printed: wall time, and processor time of the process. Where
activations of all sessions would not fit, both sides recompute them. Needs torch,
transformers and peft alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atlas_flwr.lora import (
    AdapterState,
    Scaling,
    attach,
    initial_factors,
    linear_names,
)
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.trunk.transports.addresses import connect
from atlas_flwr.trunk.transports.certificates import run_identity
from atlas_flwr.trunk.transports.grpc import ServeOptions, serve_grpc
from atlas_flwr.trunk.transports.local import EngineTrunk, LocalTrunk, LoopbackTrunk
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.types import OptimizerSpec, TrunkCall
from atlas_flwr.wire.codecs import codec_named

PLAN, RANK, BATCH, SCALING = SplitPlan(2, 1), 8, 4, Scaling(16.0)
ADAMW = OptimizerSpec(lr=1e-4)

Shape = tuple[int, int, int, int, int]  # width, inner, blocks, heads, heads of keys
SHAPES: dict[str, Shape] = {
    "SmolLM2": (576, 1536, 30, 9, 3),
    "1.1B": (2048, 5632, 22, 32, 4),
    "7B": (4096, 11008, 32, 32, 32),
    "tiny": (64, 128, 6, 4, 2),
}


@dataclass(frozen=True)
class Crowd:
    """Sessions that wait together."""

    model: str
    sessions: int
    tokens: int
    turns: int
    recompute: bool = False


GPU = (
    Crowd("1.1B", 16, 16, 3),
    Crowd("1.1B", 16, 64, 3),
    Crowd("1.1B", 16, 256, 3),
    Crowd("1.1B", 64, 16, 2),
    Crowd("1.1B", 64, 64, 2),
    Crowd("1.1B", 64, 256, 1, recompute=True),
    Crowd("7B", 8, 64, 3),
    Crowd("7B", 8, 256, 3),
)
CPU = (Crowd("SmolLM2", 16, 16, 3), Crowd("SmolLM2", 16, 64, 3))
QUICK = (
    Crowd("tiny", 8, 16, 3),
    Crowd("tiny", 8, 64, 3),
    Crowd("tiny", 8, 64, 3, recompute=True),
)


def built(name: str, device: str, vocabulary: int = 512) -> Any:
    """Make a Llama of that shape, with random weights on the device."""
    width, inner, blocks, heads, key_heads = SHAPES[name]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=2048,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def adapters(model: Any, blocks: range) -> AdapterState:
    """Make adapters of all linear layers of those blocks."""
    made = {}
    for name in linear_names(model):
        if int(name.split(".")[2]) in blocks:
            m, n = model.get_submodule(name).weight.shape
            made[name] = initial_factors(name, (m, n), RANK, scaling=SCALING, seed=0)
    return AdapterState(made)


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Return a piece of work's wall and processor seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return medians of wall and processor milliseconds."""
    walls, cpus = zip(*pairs, strict=True)
    return 1e3 * statistics.median(walls), 1e3 * statistics.median(cpus)


class Clients:
    """Sessions of one engine, and the tensors that their clients would send."""

    def __init__(self, engine: TrunkEngine, state: AdapterState, crowd: Crowd) -> None:
        self.engine = engine
        spec = SessionSpec(PLAN, state, ADAMW)
        self.tokens = [engine.open(spec) for _ in range(crowd.sessions)]
        shape = BATCH, crowd.tokens, engine.base.width
        self.hidden = [self._drawn(shape, k) for k in range(crowd.sessions)]
        self.grads = [self._drawn(shape, 1000 + k) for k in range(crowd.sessions)]
        self.step = 0

    def _drawn(self, shape: tuple[int, ...], seed: int) -> Tensor:
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.engine.base.reference_tensor)

    def one(self, k: int) -> None:
        """Take one session's step."""
        call = TrunkCall(self.hidden[k], step=self.step)
        self.engine.forward(self.tokens[k], call)
        self.engine.backward(self.tokens[k], self.step, self.grads[k])

    def one_by_one(self) -> None:
        """Take each session's step, in turn."""
        self.step += 1
        for k in range(len(self.tokens)):
            self.one(k)

    def joined(self) -> None:
        """Take each session's step, each in a thread of its own."""
        self.step += 1
        work = [threading.Thread(target=self.one, args=(k,)) for k in self._numbers()]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()

    def _numbers(self) -> range:
        return range(len(self.tokens))

    def close(self) -> None:
        """Close the sessions."""
        for token in self.tokens:
            self.engine.close(token)


def crowded(engine: TrunkEngine, model: Any, crowd: Crowd, device: str) -> str:
    """Measure one row of the table of sessions."""
    engine.recompute = crowd.recompute
    blocks = PLAN.trunk_range(model.config.num_hidden_layers)
    clients = Clients(engine, adapters(model, blocks), crowd)
    for k in range(2):
        clients.one(k)
    apart, joined, passes = [], [], 0
    for _ in range(crowd.turns):
        apart.append(timed(clients.one_by_one, device))
        clients.joined()  # now the engine knows whom to wait for
        before = engine.stats().base_passes
        joined += [timed(clients.joined, device) for _ in range(2)]
        passes += engine.stats().base_passes - before
    clients.close()
    (wall, cpu), (wall_joined, cpu_joined) = median(apart), median(joined)
    name = f"{crowd.model}, {crowd.sessions} x ({BATCH} x {crowd.tokens})"
    name += ", recomputed" if crowd.recompute else ""
    return (
        f"| {name} | {wall:.0f} | {wall_joined:.0f} | {wall / wall_joined:.1f} "
        f"| {cpu / cpu_joined:.1f} | {passes / len(joined):.1f} |"
    )


def split_model(model: Any, trunk: Any, parts: Any) -> Any:
    """Put adapters on a client's parts, beside a trunk."""
    for side in (parts.head, parts.tail):
        names = linear_names(side)
        attach(side, dict.fromkeys(names, RANK), SCALING)
    return SplitModel(parts.head, parts.tail, trunk)


def stepping(model: Any, ids: Tensor, rest: Any = ()) -> Callable[[], None]:
    """Return a training step: forward, backward, AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    trained += [p for p in rest if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=ADAMW.lr, weight_decay=0.0)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        adamw.step()
        adamw.zero_grad()

    return step


def contenders(
    name: str, device: str, ids: Tensor, services: ExitStack
) -> dict[str, Callable[[], None]]:
    """Return a step of the unsplit model, and of the split one over each trunk."""
    made = {}
    plain = built(name, device, 32000)
    blocks = PLAN.trunk_range(plain.config.num_hidden_layers)
    state = adapters(plain, blocks)
    for kind in ("LocalTrunk", "engine", "frames", "gRPC with TLS"):
        parts = partition(plain, PLAN)
        rest: Any = ()
        trunk: Any
        if kind == "LocalTrunk":
            # Its own copy: PEFT and the engine both change modules.
            attach(parts.trunk, dict.fromkeys(linear_names(parts.trunk), RANK), SCALING)
            trunk, rest = LocalTrunk(parts.trunk), list(parts.trunk.parameters())
        else:
            engine = TrunkEngine(parts.trunk)
            token = engine.open(SessionSpec(PLAN, state, ADAMW))
            trunk = EngineTrunk(engine, token)
            if kind == "frames":
                codec, service = codec_named("raw"), FrameService(engine)
                trunk = LoopbackTrunk(token=token, codec=codec, service=service)
            elif kind == "gRPC with TLS":
                identity = run_identity("127.0.0.1")
                options = ServeOptions(identity=identity)
                address = services.enter_context(serve_grpc(engine, options))
                trunk = connect(address, token=token, ca=identity.ca)
        made[kind] = stepping(split_model(plain, trunk, parts), ids, rest)
    attach(plain, dict.fromkeys(linear_names(plain), RANK), SCALING)
    return {"unsplit": stepping(plain, ids), **made}


def steps(name: str, tokens: int, device: str, turns: int) -> list[str]:
    """Measure the rows of one shape of the table of steps."""
    ids = torch.randint(5, 30000, (BATCH, tokens), device=device)
    with ExitStack() as services:
        work = contenders(name, device, ids, services)
        found = taken_in_turn(work, device, turns)
    wall, cpu = median(found["unsplit"])
    rows = []
    for kind, pairs in found.items():
        mine, own = median(pairs)
        rows.append(
            f"| {name}, {BATCH} x {tokens}, {kind} | {mine:.0f} | {mine / wall:.2f} "
            f"| {own / cpu:.2f} |"
        )
    return rows


def taken_in_turn(
    work: dict[str, Callable[[], None]], device: str, turns: int
) -> dict[str, list[tuple[float, float]]]:
    """Time each kind's step, one after the other."""
    for step in work.values():
        for _ in range(2):
            step()
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in work}
    for _ in range(turns):
        for kind, step in work.items():
            found[kind].append(timed(step, device))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds")
    parser.add_argument("--device", default=None, help="cpu or cuda")
    parser.add_argument("--only", default="", help="part of a row's name")
    given = parser.parse_args()
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(1)
    crowds = QUICK if given.quick else GPU if device == "cuda" else CPU
    started, made = time.perf_counter(), []
    last = ""
    for crowd in crowds:
        label = f"{crowd.model}, {crowd.sessions} x ({BATCH} x {crowd.tokens})"
        if given.only not in label:
            continue
        if crowd.model != last:
            engine = model = None
            torch.cuda.empty_cache()
            model = built(crowd.model, device)
            engine = TrunkEngine(partition(model, PLAN).trunk, limits=Limits())
            last = crowd.model
        made.append(crowded(engine, model, crowd, device))  # type: ignore[arg-type]
        print(made[-1], f"({time.perf_counter() - started:.0f} s)", flush=True)
    engine = model = None
    torch.cuda.empty_cache()
    step = "tiny" if given.quick else "1.1B" if device == "cuda" else "SmolLM2"
    found = []
    for tokens in (128,) if device == "cpu" else (128, 512):
        if given.only not in f"{step}, {BATCH} x {tokens}":
            continue
        found += steps(step, tokens, device, 15 if device == "cuda" else 5)
        torch.cuda.empty_cache()
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(
        f"\n{where}, torch {torch.__version__}, {time.perf_counter() - started:.0f} s"
    )
    print(
        "\n| trunk, sessions | one by one, ms | joined, ms | gain | CPU gain | passes |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(made))
    print("\n| step | ms | to unsplit | CPU to unsplit |\n| --- | --- | --- | --- |")
    print("\n".join(found))


if __name__ == "__main__":
    main()
