# SPDX-License-Identifier: Apache-2.0
"""What watching a trunk costs a call: frames in one process, interleaved, medians."""

from __future__ import annotations

import io
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import SessionSpec, TrunkEngine
from atlas_flwr.trunk.transports.envelope import answered, sealed_request
from atlas_flwr.trunk.transports.metrics import TrunkMetrics
from atlas_flwr.trunk.transports.requests import Request, Verb
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.trunk.transports.watching import Journal, Watch
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs import codec_named
from atlas_flwr.wire.messages import encode_tensors

CALLS = 400
CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def main() -> None:
    torch.set_num_threads(1)
    plan = SplitPlan(1, 1)
    engine = TrunkEngine(partition(LlamaForCausalLM(CONFIG).eval(), plan).trunk)
    frames, codec = FrameService(engine), codec_named("raw")
    watch = Watch(Journal([io.StringIO()]), TrunkMetrics(engine.stats).heard)
    hidden = (torch.randn(8, 32, 32), Role.ACTIVATION)
    frame = encode_tensors(codec, {"hidden": hidden})
    token = engine.open(SessionSpec(plan))
    envelope = sealed_request(Request(Verb.FORWARD, token, "raw", frame))
    seconds: dict[str, list[float]] = {"alone": [], "watched": []}
    for _ in range(CALLS):
        for name, answer in (("alone", answered), ("watched", watch.answered)):
            began = time.perf_counter()
            answer(frames, envelope)
            seconds[name].append(time.perf_counter() - began)
    for name, found in seconds.items():
        print(
            f"{name:8} median {1e3 * statistics.median(found):.3f} ms, "
            f"least {1e3 * min(found):.3f} ms"
        )
    began = time.perf_counter()
    for _ in range(10_000):
        watch.answered(frames, b"x" * 4)
    print(f"a refusal, all in all: {(time.perf_counter() - began) / 10:.4f} ms")


if __name__ == "__main__":
    main()
