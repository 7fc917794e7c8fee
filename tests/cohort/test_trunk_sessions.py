# SPDX-License-Identifier: Apache-2.0
"""What a trunk hands over of a client is numbers, or refused by the client's name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.types import OptimizerSpec

LAYER = "blocks.1.q"


class Served:
    """A host that hands over what it is told to."""

    def __init__(self, state):
        self.state, self.open_ones = state, set()

    def open(self, spec):
        self.open_ones.add("token")
        return "token"

    def adapters(self, token):
        return self.state

    def close(self, token):
        self.open_ones.discard(token)


def handed(value):
    factors = LoraFactors(torch.ones(2, 5), torch.full((4, 2), value), 1.0)
    return [
        AdapterState({LAYER: factors}),
        AdapterState({}, {"classifier.weight": np.full((3, 2), value, np.float32)}),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [0, 1])
def test_what_a_trunk_has_learned_is_numbers_or_its_client_is_named(kind, value):
    for state, fits in ((handed(1.0)[kind], True), (handed(value)[kind], False)):
        host = Served(state)
        sessions = TrunkSessions(host, "", OptimizerSpec(), lambda name: None, 4)
        sessions.open("7", SplitPlan(1, 1), AdapterState())
        if fits:
            assert sessions.collect("7") is state
        else:
            with pytest.raises(AdapterError, match=r"client 7: .* NaN or infinity"):
                sessions.collect("7")
        assert not host.open_ones
