# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: adapters, cuts, clusters, ranks, aggregation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atlas_flwr.config.knob import knob

__all__ = ["ATLAS", "KIN", "MAX_RANK", "SINGLE_REPLIES", "MethodConfig"]

MAX_RANK = 256
ATLAS = ("atlas",)
# Atlas and its kin: they split, unless told otherwise, and know unlike ranks.
KIN = (
    "atlas",
    "flexlora",
    "flora",
    "hetlora",
    "hsplitlora",
    "mira",
    "oracle",
    "splitlora",
)
# Why a strategy cannot do with the sum of its clients' replies.
SINGLE_REPLIES: Mapping[str, str] = {
    "atlas": "each cluster has a sum of its own, of products that are added exactly",
    "centralized": "there is one client, which holds all data",
    "flexlora": "it adds up the clients' products B A, not their factors",
    "flora": "it stacks the clients' factors, and needs each of them",
    "hetlora": "it weighs each client by the norm of its product",
    "hsplitlora": "it concatenates products of unlike ranks",
    "local": "every client has adapters of its own",
    "mira": "every client has adapters of its own, which are mixed",
    "oracle": "each task has a sum of its own",
    "splitlora": "a split client's adapters are on the trunk too, and between "
    "aggregations every client has its own",
}


@dataclass(frozen=True)
class MethodConfig:
    """What ATLAS and the methods beside it are made of."""

    adapter: Literal["lora", "ia3", "prompt", "dora", "bottleneck"] = knob(
        "lora",
        "What is trained. lora: factors of each layer's change, added exactly. ia3: "
        "vectors that scale keys, values and feed-forward inputs, in far fewer bytes, "
        "averaged exactly; the paper's learning-rate is 0.003. prompt: prompt-tokens "
        "embeddings before each text, averaged number by number. dora and bottleneck "
        "adapters are refused: no sum or mean of them is what was learned. What "
        "concerns ranks is read by lora alone.",
    )
    prompt_tokens: int = knob(
        16,
        "Virtual tokens before each text with adapter='prompt'; they take time and "
        "memory as real ones do. The paper gains little beyond 20.",
        minimum=1,
        maximum=1024,
    )
    lora_rank: int = knob(
        8,
        "The one rank of fedavg, fedprox, local and centralized, and of all others "
        "with ranks='uniform'. 4 to 16 suffice for classification.",
        minimum=1,
        maximum=MAX_RANK,
    )
    lora_ranks: str = knob(
        "2,4,8",
        "Ranks that assignment may give to a layer, a comma list. Wider choices use "
        "odd devices better; the aggregate's rank is their sum before recompression.",
    )
    lora_alpha: float = knob(
        16.0,
        "LoRA's alpha: a layer of rank r is scaled by alpha / r, so that ranks may "
        "differ. Keep about twice the largest rank.",
        above=0,
    )
    trunk_learning_rate: float = knob(
        0.0,
        "AdamW's learning rate on the trunk, if it is to be another than on clients; 0 "
        "for the same. The trunk of a federation sees all clients' gradients, and some "
        "methods let it learn faster (SGLR, MU-SplitFed).",
        minimum=0,
        maximum=1,
        only=KIN,
    )
    use_rslora: bool = knob(
        False,
        "Scale a layer of rank r by alpha / sqrt(r), as rsLoRA does, which lets high "
        "ranks learn more; lower lora-alpha with it.",
    )
    lora_targets: str = knob(
        "all-linear",
        "Which linear layers get adapters: all-linear, or a comma list of names such "
        "as q_proj,v_proj. Fewer layers save memory more than lower ranks do.",
    )

    split: Literal["u-shaped", "vanilla", "none"] = knob(
        "u-shaped",
        "u-shaped keeps labels and loss on the client, in two round trips a step. "
        "vanilla sends labels to the trunk, in one; for language models the labels are "
        "the text. From either, a trunk can read the text (docs/threat-model.md). none "
        "trains the whole model on every client, larger devices getting higher "
        "lora-ranks.",
        only=KIN,
    )
    cut: str = knob(
        "auto",
        "Blocks on the client as HEAD/TAIL, e.g. 2/1 (vanilla: 2/-), for every client; "
        "auto chooses for each by its memory. More blocks on the client cost it more "
        "and spare the trunk; they do not hide its text from who tries guesses through "
        "the public head (docs/threat-model.md).",
        only=KIN,
    )
    max_head: int = knob(
        4,
        "Most blocks in a head that cut='auto' considers. Each costs the client time "
        "and spares the trunk as much; none of them hides the client's text.",
        minimum=1,
    )
    summary_positions: int = knob(
        0,
        "Learned positions into which the head reads a text, and which alone cross the "
        "cut, with one constant position: so many rows for any length. 0 lets the "
        "whole text cross. For tasks that end in a label; 4 and a head of 4 to 8 "
        "blocks are a beginning (docs/summary-positions.md).",
        minimum=0,
        maximum=256,
        only=KIN,
    )
    devices: str = knob(
        "",
        "Memory budgets of the clients, e.g. 320MiB,448MiB,1GiB, repeated over them; "
        "empty is unlimited. Unsplit strategies need a budget for the whole model.",
    )
    device_order: Literal["shuffled", "cycle"] = knob(
        "shuffled",
        "How devices meet clients. cycle gives client i the budget i, which confounds "
        "device and task where both counts divide; shuffled does not.",
    )

    clustering: Literal["kmeans", "agglomerative", "spectral", "none"] = knob(
        "kmeans",
        "How clients with similar tasks are found; none keeps all in one cluster, to "
        "see what clustering brings.",
        only=ATLAS,
    )
    num_clusters: int = knob(
        0,
        "Number of clusters; 0 counts those that differ by more than noise. Set it "
        "only when you know it.",
        minimum=0,
        only=ATLAS,
    )
    balanced_clusters: bool = knob(
        False,
        "Make cluster sizes differ by one at most. Use it only where tasks are known "
        "to have equally many clients.",
        only=ATLAS,
    )
    max_clusters: int = knob(
        8,
        "Most clusters that num-clusters=0 considers. Keep it well under the number "
        "of clients: a cluster of one learns from nobody.",
        minimum=1,
    )
    recluster_every: int = knob(
        0,
        "Rounds between new clusterings; 0 clusters once. Use it where clients' data "
        "changes; each costs a pass of fingerprint-batches.",
        minimum=0,
        only=ATLAS,
    )
    fingerprint_batches: int = knob(
        12,
        "Batches in a client's fingerprint, no example twice; each costs a training "
        "step, once. minilm needs 12, smollm2 4; at least fingerprint-parts.",
        minimum=1,
    )
    fingerprint_parts: int = knob(
        4,
        "Sketches in a fingerprint, of disjoint batches; they tell its noise, and so "
        "how many clusters there are. 1 chooses by silhouette instead.",
        minimum=1,
        maximum=64,
    )
    fingerprint_dim: int = knob(
        64,
        "Numbers in each part of a fingerprint, a byte each; with 4 parts 256 bytes.",
        minimum=2,
        maximum=65536,
    )
    fingerprint_epsilon: float = knob(
        0.0,
        "Noise on a fingerprint that makes it (epsilon, delta)-private towards the "
        "server; 0 adds none. 100 and less hides the tasks of eight clients. It covers "
        "the fingerprint alone, and such runs do not repeat bit by bit.",
        minimum=0,
        only=KIN,
    )
    fingerprint_delta: float = knob(
        1e-5,
        "Delta of fingerprint-epsilon. Well under one over the number of clients.",
        above=0,
        maximum=0.1,
        only=KIN,
    )

    ranks: Literal["budget", "device", "uniform"] = knob(
        "budget",
        "budget gives each layer of a client one of lora-ranks, or none, the most "
        "important layers first, as its memory affords; device gives all layers of a "
        "client the largest of lora-ranks that fits; uniform gives lora-rank to all.",
        only=KIN,
    )
    trunk_session_memory: str = knob(
        "",
        "Bytes that the trunk may spend on one client's adapters, e.g. 32MiB, the most "
        "important layers first; empty is unlimited. For ranks='budget'.",
        only=KIN,
    )
    aggregation: Literal["both", "fold", "truncate", "mean", "none"] = knob(
        "both",
        "The clients' products are added exactly, whatever their ranks; what differs "
        "is how the sum comes back to a client. both: its strongest directions are "
        "trained on, the rest is folded into the frozen weights, and nothing is lost; "
        "fold: all is folded and a fresh adapter begins; truncate: the rest is lost, "
        "which sends the fewest bytes. To compare: mean averages the factors, which is "
        "another matrix; none keeps every client's own.",
        only=("atlas", "mira"),
    )
    aggregation_interval: int = knob(
        1,
        "Rounds between SplitLoRA's aggregations; clients go on from their own until "
        "then. More saves bytes and lets them drift.",
        minimum=1,
        only=("splitlora",),
    )
    server_adapters: Literal["own", "shared"] = knob(
        "own",
        "SplitLoRA's server side: own trains one adapter for each client and averages "
        "them (SFL-V1); shared lets all clients' steps train one in turn (SFL-V2), "
        "or some batches at a time (trunk-merge), and wants one cut and "
        "ranks='uniform'.",
        only=("splitlora",),
    )
    trunk_merge: int = knob(
        1,
        "Batches that server-adapters='shared' merges: the one adapter steps on the "
        "mean of so many batches' gradients, whichever clients they come from. With as "
        "many as clients it steps as rarely as each of them does.",
        minimum=1,
        only=("splitlora",),
    )
    rank_decay: float = knob(
        1.0,
        "HetLoRA's gamma: a client's layer whose directions beyond this share of its "
        "rank have shrunk in a round loses them for good; 1 prunes nothing. Try 0.5 to "
        "0.99, with a rank-penalty.",
        above=0,
        maximum=1,
        only=("hetlora",),
    )
    rank_penalty: float = knob(
        0.0,
        "HetLoRA's lambda: weight, in a client's loss, of the size of the directions "
        "that rank-decay would drop. Try 0.001 to 0.1; large values empty them at the "
        "loss's cost.",
        minimum=0,
        only=("hetlora",),
    )
    mixing: float = knob(
        0.0,
        "How strongly clusters (mira: clients) are drawn to those with similar "
        "fingerprints after each round, from 0 to 1. Try 0.1 to 0.5 where tasks are "
        "related; unrelated ones pull each other down.",
        minimum=0,
        maximum=1,
        only=("atlas", "mira"),
    )
    mixing_decay: float = knob(
        0.0,
        "Share of mixing that each round takes from it: at 0.5 it halves every round. "
        "Groups take more of others while they have learned little themselves.",
        minimum=0,
        maximum=1,
        only=("atlas", "mira"),
    )
    max_rank: int = knob(
        0,
        "Rank at which a cluster's sum is cut, with a warning that says what it loses; "
        "0 never cuts it. What both and fold send grows with the ranks of all rounds "
        "until it is reached.",
        minimum=0,
        only=KIN,
    )
