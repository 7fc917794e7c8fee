# SPDX-License-Identifier: Apache-2.0
"""What a cluster's secure sum costs its members, and how far off it is.

Run from the top of the repository::

    python benchmarks/secure_sums.py --model smollm2

Members of a cluster "train" random factors at one rank, whose singular values fall by
a third from one to the next, and send them as `SecureAtlas` has them sent. Prints two
Markdown tables. Cost, a row a rank and a cluster's size: bytes up a client without
masks and with, and the CPU seconds in which a client sketches and the server rebuilds.
Error, relative, in Frobenius norm, on one layer of the model's widest shape, against
the dense float64 product: of the sum in float64, in 64-bit fixed point, and as the
float32 factors that are kept; then what the formula would give without oversampling,
and at half of the sum's rank, beside the best of that rank.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord

from atlas_flwr.config import load_config
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.lora import sketched as sketching
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.protocol.sketches import SketchPlan
from atlas_flwr.protocol.sums import SumLayout
from atlas_flwr.train.weights import ModelFiles

EXAMPLES, BITS, FALL = 128, 32, 2 / 3


def factors(shape: tuple[int, int], rank: int, seed: int) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
    B = 0.01 * torch.randn(shape[0], rank, generator=generator)
    return LoraFactors(A, B * FALL ** torch.arange(rank), 1.0)


def state(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> AdapterState:
    return AdapterState(
        {n: factors(s, rank, seed + i) for i, (n, s) in enumerate(shapes.items())}
    )


def cost(shapes: dict[str, tuple[int, int]], rank: int, clients: int) -> str:
    """Sketch one member's, and rebuild from it; return a row."""
    plan = SketchPlan("0", 0, clients, Scaling())
    sent = state(shapes, rank, 0)
    record = write_state(sent)
    layout = SumLayout(plan.arrays(record), clients, BITS, "num-examples")
    began = time.process_time()
    arrays = plan.sketched(record, write_state(state(shapes, rank, 1000)))
    metrics = MetricRecord({"num-examples": EXAMPLES})
    words = layout.vector(arrays, metrics).words
    took = time.process_time() - began
    del arrays  # a few hundred MiB
    mean = layout.mean([words], [])
    began = time.process_time()
    plan.rebuilt(mean.arrays, sent, mean.rounding)
    rebuilding = time.process_time() - began
    plain, masked = plain_bytes(record), words.nbytes
    return (
        f"| {rank} | {clients} | {plain / 2**20:.2f} | {masked / 2**20:.1f} | "
        f"{masked / plain:.0f} | {took:.1f} | {rebuilding:.1f} |"
    )


def plain_bytes(record: ArrayRecord) -> int:
    return sum(array.numpy().nbytes for array in record.values())


def error(shape: tuple[int, int], rank: int, clients: int) -> str:
    """Rebuild one layer in several ways; return a row."""
    many = [factors(shape, rank, 7 * client) for client in range(clients)]
    exact = sum(f.B.double() @ f.A.double() for f in many) / clients
    over = sketching.OVERSAMPLED

    def off(kept: int, bits: int | None, oversampled: int, double: bool) -> float:
        sketching.OVERSAMPLED = oversampled
        probes = sketching.Probes.drawn("layer", shape, kept, 0)
        sums = {}
        each = [probes.sketched(one) for one in many]
        for kind in each[0]:
            terms = [EXAMPLES * found[kind] for found in each]
            if bits is not None:
                terms = [torch.round(x * 2.0**bits) / 2.0**bits for x in terms]
            sums[kind] = sum(terms) / (EXAMPLES * clients)
        sketching.OVERSAMPLED = over
        if double:
            found = nystroem(probes, sums)
        else:
            rounding = 1 / (2.0 ** (BITS + 1) * EXAMPLES)
            made = probes.rebuilt(sums, rounding)
            found = made.B.double() @ made.A.double()
        return float((found - exact).norm() / exact.norm())

    full = rank * clients
    values = torch.linalg.svdvals(exact)
    best = float(values[full // 2 :].norm() / values.norm())
    found = [
        off(full, None, over, True),
        off(full, BITS, over, True),
        off(full, BITS, over, False),
        off(full, BITS, 0, True),
        off(full // 2, None, over, True),
        best,
    ]
    return f"| {rank} | {clients} | " + " | ".join(f"{x:.0e}" for x in found) + " |"


def nystroem(probes: sketching.Probes, sums: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rebuild without the checks, and without rounding to float32."""
    if "product" in sums:
        return sums["product"]
    Q = torch.linalg.qr(sums["right"])[0]
    core = torch.linalg.lstsq(probes.left.T @ Q, sums["left"]).solution
    return Q @ core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 5, 10])
    args = parser.parse_args()
    config = load_config({"model": args.model})
    shapes = dict(ModelFiles.of(config).outline().shapes(config.target_list))
    widest = max(shapes.values(), key=np.prod)
    pairs = [(rank, clients) for rank in args.ranks for clients in args.clients]
    print(
        "| rank | clients | plain, MiB | secure, MiB | times | client, s | "
        "server, s |\n" + "| --- " * 7 + "|"
    )
    for rank, clients in pairs:
        print(cost(shapes, rank, clients), flush=True)
    print(
        "\n| rank | clients | float64 | fixed point | float32 factors | "
        "not oversampled | at half the rank | best there |\n" + "| --- " * 8 + "|"
    )
    for rank, clients in pairs:
        print(error(widest, rank, clients), flush=True)


if __name__ == "__main__":
    main()
