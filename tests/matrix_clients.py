"""A federation of plain clients that fit a matrix: quick, and exact to reason about."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

M, N, RANK = 6, 5, 2
KEYS = ("model.q.lora_A.weight", "model.q.lora_B.weight", "model.head.weight")


def initial(rank: int = RANK) -> ArrayRecord:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(rank, N)), np.zeros((M, rank)), np.zeros((3,)))
    return ArrayRecord(
        {
            key: Array(value.astype(np.float32))
            for key, value in zip(KEYS, values, strict=True)
        }
    )


def trained(arrays: ArrayRecord, client: int, task: int) -> ArrayRecord:
    """Move as a client of a task does: mostly with its task, a little by itself."""
    common, own = np.random.default_rng(100 + task), np.random.default_rng(client)
    out = {}
    for key, array in arrays.items():
        shape = array.numpy().shape
        step = 0.3 * common.normal(size=shape) + 0.01 * own.normal(size=shape)
        moved = array.numpy() + step
        out[key] = Array(moved.astype(np.float32))
    return ArrayRecord(out)


def client_app(
    tasks: int = 2, examples=lambda client: 10 + client, mods=None
) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context) -> Message:
        client = int(context.node_config["partition-id"])
        arrays = trained(message.content["arrays"], client, client % tasks)
        metrics = MetricRecord({"num-examples": examples(client), "loss": 1.0})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        size = sum(a.numpy().sum() for a in message.content["arrays"].values())
        metrics = MetricRecord({"num-examples": 1, "size": float(size)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
