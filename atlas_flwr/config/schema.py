# SPDX-License-Identifier: Apache-2.0
"""The schema: every key that a run has, with its default, its limits and advice.

A field ``num_rounds`` here is the key ``num-rounds`` in Flower's run config, where
values are flat and only of type bool, int, float or str. Lists are therefore comma
lists, and the properties at the end give them parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from atlas_flwr.config.parsing import parse_bytes, parse_cut, split_list

__all__ = ["KIN", "MAX_RANK", "Knob", "RunConfig", "knobs"]

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


@dataclass(frozen=True)
class Knob:
    """What is known about a key besides its type and default.

    Attributes
    ----------
    help : str
        What it does and how to choose it.
    minimum, maximum : float, optional
        Inclusive limits.
    above : float, optional
        Exclusive lower limit.
    only : tuple[str, ...]
        The strategies that read it; empty means all. Others want it at its default.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    only: tuple[str, ...] = ()


def knob(default: Any, help: str, **limits: Any) -> Any:
    """Make a dataclass field that carries a :class:`Knob`."""
    return field(default=default, metadata={"knob": Knob(help, **limits)})


@dataclass(frozen=True)
class RunConfig:
    """The resolved configuration of a run; make one with ``load_config``."""

    strategy: Literal[
        "atlas",
        "fedavg",
        "fedprox",
        "local",
        "centralized",
        "flexlora",
        "flora",
        "hetlora",
        "hsplitlora",
        "mira",
        "oracle",
        "splitlora",
    ] = knob(
        "atlas",
        "What the clients do together. atlas splits, clusters and assigns; flexlora, "
        "flora, hetlora, hsplitlora, mira and splitlora are the published methods of "
        "these names, on the same split clients; oracle is fedavg among clients of "
        "one true task; fedavg and fedprox train the whole model on every client; "
        "local never aggregates; centralized pools the data, as a bound that no "
        "federation reaches.",
    )
    model: str = knob(
        "smollm2",
        "A model's short name (smollm2, minilm), a local folder, or any hub name. "
        "Start small: a step's time grows with it on every client and on the trunk.",
    )
    tasks: str = knob(
        "questions,spam,movies,news",
        "Comma list of tasks, dealt to the clients in turn. With fewer clients than "
        "tasks some go unused; two clients a task is the least that can cluster.",
    )
    num_rounds: int = knob(
        3,
        "Rounds of training. More rounds with fewer local-steps follow the data more "
        "closely and send more bytes.",
        minimum=1,
    )
    seed: int = knob(
        0,
        "Decides data, adapters, devices and clusters. Compare methods over the same "
        "seeds, at least three.",
        minimum=0,
        maximum=2**63 - 1,
    )

    local_steps: int = knob(
        8,
        "Optimiser steps of a client in a round. Clients drift apart as it grows; "
        "lower learning-rate with it.",
        minimum=1,
    )
    batch_size: int = knob(
        8,
        "Examples in a training step. Activations, and bytes sent at the cut, are "
        "proportional to it: lower it first on small devices.",
        minimum=1,
    )
    eval_batch_size: int = knob(
        16,
        "Examples in an evaluation step. No gradients are kept, so twice batch-size "
        "takes no more memory.",
        minimum=1,
    )
    max_length: int = knob(
        48,
        "Tokens an example is cut to. Batches are trimmed to their longest example, so "
        "a generous limit costs only where texts are long.",
        minimum=4,
    )
    learning_rate: float = knob(
        0.001,
        "AdamW's learning rate, on both sides of the cut. LoRA likes 2e-4 to 2e-3; "
        "lower it when lora-alpha rises.",
        above=0,
        maximum=1,
    )
    weight_decay: float = knob(
        0.0,
        "AdamW's decoupled weight decay of the adapters. 0 suits short fine-tuning.",
        minimum=0,
        maximum=1,
    )
    train_examples: int = knob(
        128,
        "Training examples of each client; 0 takes all that its share has.",
        minimum=0,
    )
    test_examples: int = knob(
        48,
        "Held-out examples of each client. 48 tell accuracies apart by about 7 points; "
        "quarter the error with 16 times as many.",
        minimum=1,
    )
    label_skew: float = knob(
        0.0,
        "Alpha of the Dirichlet distribution of labels over a task's clients; 0 is "
        "off (even). 0.1 is harsh, 0.5 is usual, 100 nearly even.",
        minimum=0,
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
        "the text, so it is for data that need not be private. none trains the whole "
        "model on every client, larger devices getting higher lora-ranks.",
        only=KIN,
    )
    cut: str = knob(
        "auto",
        "Blocks on the client as HEAD/TAIL, e.g. 2/1 (vanilla: 2/-), for every client; "
        "auto chooses for each by its memory. More blocks on the client leak less and "
        "cost it more.",
        only=KIN,
    )
    max_head: int = knob(
        4,
        "Most blocks in a head that cut='auto' considers. Beyond a few, leakage falls "
        "slowly and the client's time grows as fast as ever.",
        minimum=1,
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

    clustering: Literal["kmeans", "none"] = knob(
        "kmeans",
        "How clients with similar tasks are found; none keeps all in one cluster, to "
        "see what clustering brings.",
        only=ATLAS,
    )
    num_clusters: int = knob(
        0,
        "Number of clusters; 0 chooses by silhouette. Set it only when you know it.",
        minimum=0,
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
        4,
        "Batches in a client's fingerprint. More average the noise of few examples "
        "away, at the price of a training step each.",
        minimum=1,
    )
    fingerprint_dim: int = knob(
        64,
        "Numbers in a fingerprint. 64 keep distances between some hundred clients to "
        "within a quarter; the bytes are negligible.",
        minimum=2,
        maximum=65536,
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
    mixing: float = knob(
        0.0,
        "How strongly clusters (mira: clients) are drawn to those with similar "
        "fingerprints after each round, from 0 to 1. Try 0.1 to 0.5 where tasks are "
        "related; unrelated ones pull each other down.",
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
    trunk_recompute: bool = knob(
        False,
        "Recompute activations in the trunk's backward instead of keeping them: far "
        "less server memory for about a third more of its time.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = knob(
        "float32",
        "Type of the frozen weights. bfloat16 halves their memory; on CPUs without "
        "native support it is slower. float16 is for GPUs.",
    )
    device: Literal["auto", "cpu", "cuda"] = knob(
        "cpu",
        "Where clients and trunk compute; auto takes a GPU where there is one.",
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
