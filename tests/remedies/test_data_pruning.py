# SPDX-License-Identifier: Apache-2.0
"""When a client prunes: once it has trained, whichever round that was."""

from __future__ import annotations

import torch

from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import RunConfig
from atlas_flwr.data import Example, Shard
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.remedies import RoundContext
from atlas_flwr.remedies.data_pruning import DataPruning

WHOLE = Shard("words", tuple(Example("a" * n, 0) for n in range(1, 5)), ())


class Collate:
    label_ids = (0, 1)


def hooks(folder, server_round):
    def store():
        return ClientStore(folder)

    config, before = RunConfig(prune_data=0.5), server_round
    about = {}, server_round, 0, None, before, Scaling(8.0), store, None
    return DataPruning().client(RoundContext(config, *about))


def test_a_client_that_first_trains_late_prunes_afterwards(tmp_path, monkeypatch):
    scores = torch.tensor([0.1, 0.4, 0.3, 0.2])
    monkeypatch.setattr("atlas_flwr.train.el2n.el2n", lambda *_: scores)
    monkeypatch.setattr("atlas_flwr.data.in_order", lambda *_: [])
    left = []
    for number in (3, 6, 7):
        now = hooks(tmp_path, number)
        left.append(len(now.shard(WHOLE, None, Collate).train))
        now.trained(AdapterState())
    assert left == [4, 2, 2]
    again = hooks(tmp_path, 3)  # of a run that goes on from before
    assert len(again.shard(WHOLE, None, Collate).train) == 4
