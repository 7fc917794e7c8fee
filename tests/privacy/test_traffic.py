"""Sizes tell tasks whose texts are of unlike length, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.cli.traffic import task_scores
from atlas_flwr.config import RunConfig
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import Observation, Recording
from atlas_flwr.privacy.attacks.registry import OF_TASKS
from atlas_flwr.split import SplitPlan

TRAFFIC = OF_TASKS["traffic"]


@pytest.mark.parametrize("task", ["short", "long", "wide"])
def test_the_task_whose_lengths_made_the_sizes_is_guessed(task):
    rng = np.random.default_rng(0)
    lengths = {
        "short": rng.integers(5, 9, 300),
        "long": rng.integers(30, 40, 300),
        "wide": rng.integers(5, 65, 300),  # the mean of long
    }
    sizes = rng.choice(lengths[task], (40, 8)).sum(1)
    assert TRAFFIC.guess(sizes, 8, lengths) == task


def recording(client, lengths):
    seen = [
        Observation(str(client), 1, i // 4, "2/1", torch.zeros(n, 2), None, None)
        for i, n in enumerate(lengths)
    ]
    return Recording(str(client), 1, SplitPlan(2, 1), AdapterState(), seen, [])


def test_a_runs_clients_are_told_by_lengths_alone_and_not_where_all_are_alike():
    from atlas_flwr.data import load_task, make_shard, resolve_model, tokenizer_of
    from atlas_flwr.data.collation import collator_of

    config = RunConfig(model="tiny", tasks="questions,spam", max_length=48)
    source, found = resolve_model("tiny"), []
    for client, name in enumerate(config.task_list):
        task = load_task(name)
        collate = collator_of(source, tokenizer_of(source), task, config.max_length)
        shard = make_shard(0, 1, [task], train_examples=64, seed=5)
        rows = [collate([e]).input_ids.shape[1] for e in shard.train]
        found.append(recording(client, rows))
    (told,) = task_scores(config, found, [TRAFFIC], 0)
    assert told.token_accuracy >= 0.5  # others may have lengths like those of one
    assert told.baseline <= 1 / 7
    alike = RunConfig(model="tiny", tasks="questions,spam", summary_positions=4)
    found = [recording(client, [5] * 64) for client in range(2)]
    (told,) = task_scores(alike, found, [TRAFFIC], 0)
    assert told.token_accuracy <= 0.5  # the same guess for both
