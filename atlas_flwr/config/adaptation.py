# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: what is trained of the model, and at which ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, option

__all__ = ["MAX_RANK", "AdaptationConfig"]

MAX_RANK = 256


@dataclass(frozen=True)
class AdaptationConfig:
    """What is trained of the model, and at which ranks."""

    adapter: Literal["lora", "ia3", "prompt"] = option(
        "lora",
        "What is trained. lora: factors of each layer's change, added exactly. ia3: "
        "vectors that scale keys, values and feed-forward inputs, in far fewer bytes, "
        "averaged exactly; the paper's learning-rate is 0.003. prompt: prompt-tokens "
        "embeddings before each text, averaged number by number. Not DoRA, "
        "whose magnitudes rescale the rows of W + B A, nor bottlenecks with a function "
        "inside: no sum or mean of them is what was learned. What concerns ranks is "
        "read by lora alone.",
    )
    prompt_tokens: int = option(
        16,
        "Virtual tokens before each text with adapter='prompt'; they take time and "
        "memory as real ones do. The paper gains little beyond 20.",
        minimum=1,
        maximum=1024,
    )
    lora_rank: int = option(
        8,
        "The one rank of fedavg, fedprox, local and centralized, and of all others "
        "with ranks='uniform'. 4 to 16 suffice for classification.",
        minimum=1,
        maximum=MAX_RANK,
    )
    lora_ranks: str = option(
        "2,4,8",
        "Ranks that assignment may give to a layer, a comma list. Wider choices use "
        "odd devices better; the aggregate's rank is their sum before recompression.",
        only=ADAPTER_STRATEGIES,
    )
    lora_alpha: float = option(
        16.0,
        "LoRA's alpha: a layer of rank r is scaled by alpha / r, so that ranks may "
        "differ. Keep about twice the largest rank.",
        above=0,
    )
    use_rslora: bool = option(
        False,
        "Scale a layer of rank r by alpha / sqrt(r), as rsLoRA does, which lets high "
        "ranks learn more; lower lora-alpha with it.",
    )
    lora_targets: str = option(
        "all-linear",
        "Which linear layers get adapters: all-linear, or a comma list of names such "
        "as q_proj,v_proj. Fewer layers save memory more than lower ranks do.",
    )
    ranks: Literal["budget", "device", "uniform"] = option(
        "budget",
        "budget gives each layer of a client one of lora-ranks, or none, the most "
        "important layers first, as its memory affords; device gives all layers of a "
        "client the largest of lora-ranks that fits; uniform gives lora-rank to all.",
        only=ADAPTER_STRATEGIES,
    )
    devices: str = option(
        "",
        "What training may take of each client's memory, e.g. 320MiB,448MiB,1GiB, "
        "repeated over them; empty is unlimited. Python, its libraries and the texts "
        "take some 0.5 GiB beside it. Unsplit strategies need it for the whole model.",
    )
    device_order: Literal["shuffled", "cycle"] = option(
        "shuffled",
        "How devices meet clients. cycle gives client i the budget i, which confounds "
        "device and task where both counts divide; shuffled does not.",
    )
    trunk_session_memory: str = option(
        "",
        "Bytes that the trunk may spend on one client's adapters, e.g. 32MiB, the most "
        "important layers first; empty is unlimited. For ranks='budget'.",
        only=ADAPTER_STRATEGIES,
    )
    max_rank: int = option(
        0,
        "Rank at which a cluster's sum is cut, with a warning that says what it loses; "
        "0 never cuts it. What fold sends, and both without flat-rounds, grows with "
        "the ranks of all rounds until it is reached.",
        minimum=0,
        only=ADAPTER_STRATEGIES,
    )
    trunk_learning_rate: float = option(
        0.0,
        "AdamW's learning rate on the trunk, if it is to be another than on clients; 0 "
        "for the same. The trunk of a federation sees all clients' gradients, and some "
        "methods let it learn faster (SGLR, MU-SplitFed).",
        minimum=0,
        maximum=1,
        only=ADAPTER_STRATEGIES,
    )
