# SPDX-License-Identifier: Apache-2.0
"""What is evaluated before anybody has trained leaves nothing to later rounds."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.protocol import keys
from atlas_flwr.strategies import HSplitLora, Mira
from atlas_flwr.testing import local_grid
from tests.matrix_clients import initial

LAYER = "model.q"


def asked_app() -> ClientApp:
    """Clients whose fingerprint is of other batches in each round, as ours' are."""
    app = ClientApp()

    @app.query("fingerprint")
    def fingerprint(message: Message, context) -> Message:
        number = int(message.content["config"][keys.SERVER_ROUND])
        rng = np.random.default_rng([number, context.node_id])
        sketch = Array(rng.normal(size=4).astype(np.float32))
        content = RecordDict({"fingerprint": ArrayRecord({keys.SKETCH: sketch})})
        told = {LAYER: 1.0, keys.NUM_EXAMPLES: 1.0 + number}
        content[keys.IMPORTANCE] = MetricRecord(told)
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize(
    "make", [Mira, lambda: HSplitLora(lora_alpha=2.0)], ids=["mira", "hsplitlora"]
)
def test_a_run_resumed_before_its_first_round_knows_its_clients_alike(make):
    """A run evaluates before its first round, and keeps a checkpoint of that."""
    strategies = [make(), make()]
    arrays, config = initial(), ConfigRecord()
    with local_grid(asked_app(), 3) as grid:
        strategies[0].configure_evaluate(0, arrays, config, grid)
        strategies[1].restore(*strategies[0].state())
        for strategy in strategies:
            assert len(list(strategy.configure_train(1, arrays, config, grid))) == 3
    (through, seen), (resumed, told) = (s.state() for s in strategies)
    assert seen == told
    assert through.keys() == resumed.keys()
    for key, value in through.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)
