# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: what is trained, on which data, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, option
from atlas_flwr.types import MOST_IN_FLIGHT

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """What is trained, on which data, for how long."""

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
    ] = option(
        "atlas",
        "What the clients do together. atlas splits, clusters and assigns; flexlora, "
        "flora, hetlora, hsplitlora, mira and splitlora are the published methods of "
        "these names, on the same split clients; oracle is fedavg among clients of "
        "one true task; fedavg and fedprox train the whole model on every client; "
        "local never aggregates; centralized pools the data, as a bound that no "
        "federation reaches.",
    )
    model: str = option(
        "smollm2",
        "A model's short name (smollm2, minilm), a local folder, or any hub name. "
        "Start small: a step's time grows with it on every client and on the trunk.",
    )
    tasks: str = option(
        "questions,spam,movies,news",
        "Comma list of tasks, dealt to the clients in turn. With fewer clients than "
        "tasks some go unused; two clients a task is the least that can cluster.",
    )
    num_rounds: int = option(
        3,
        "Rounds of training. More rounds with fewer local-steps follow the data more "
        "closely and send more bytes.",
        minimum=1,
    )
    seed: int = option(
        0,
        "Decides data, adapters, devices and clusters. Compare methods over the same "
        "seeds, at least three.",
        minimum=0,
        maximum=2**63 - 1,
    )

    local_steps: int = option(
        8,
        "Optimiser steps of a client in a round. Clients drift apart as it grows; "
        "lower learning-rate with it.",
        minimum=1,
    )
    batch_size: int = option(
        8,
        "Examples in a training step. Activations, and bytes sent at the cut, are "
        "proportional to it: lower it first on small devices.",
        minimum=1,
    )
    accumulate: int = option(
        1,
        "Batches whose gradients make one optimiser step, which is of the mean over "
        "all their labels: batch-size times as many examples, in batch-size's memory. "
        "A round runs local-steps times as many batches.",
        minimum=1,
    )
    in_flight: int = option(
        1,
        "Batches of an optimiser step (of accumulate) that are on their way to the "
        "trunk and back at once: while one waits, others compute, with the same "
        "numbers. Hides a link's delay; takes memory for each on client and trunk. A "
        "trunk of its own is started with the same in-flight.",
        minimum=1,
        maximum=MOST_IN_FLIGHT,
        only=ADAPTER_STRATEGIES,
    )
    eval_batch_size: int = option(
        16,
        "Examples in an evaluation step. No gradients are kept, so twice batch-size "
        "takes no more memory.",
        minimum=1,
    )
    max_length: int = option(
        48,
        "Tokens an example is cut to. Batches are trimmed to their longest example, so "
        "a generous limit costs only where texts are long.",
        minimum=4,
    )
    learning_rate: float = option(
        0.001,
        "AdamW's learning rate, on both sides of the cut. LoRA likes 2e-4 to 2e-3; "
        "lower it when lora-alpha rises.",
        above=0,
        maximum=1,
    )
    weight_decay: float = option(
        0.0,
        "AdamW's decoupled weight decay of the adapters. 0 suits short fine-tuning.",
        minimum=0,
        maximum=1,
    )
    train_examples: int = option(
        128,
        "Training examples of each client; 0 takes all that its share has.",
        minimum=0,
    )
    test_examples: int = option(
        48,
        "Held-out examples of each client. 48 tell accuracies apart by about 7 points; "
        "quarter the error with 16 times as many.",
        minimum=1,
    )
    label_skew: float = option(
        0.0,
        "Alpha of the Dirichlet distribution of labels over a task's clients; 0 is "
        "off (even). 0.1 is harsh, 0.5 is usual, 100 nearly even. It is of training "
        "examples; tests stay even unless test-skew is set.",
        minimum=0,
    )
    test_skew: bool = option(
        False,
        "Let each client's test examples have its training examples' proportions of "
        "labels, where label-skew is set: how well it does on data like its own. "
        "Without, all are tested on the same even mix.",
    )
