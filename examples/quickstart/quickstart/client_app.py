"""A client: head and tail here, the trunk over there."""

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.data import (
    CausalCollator,
    in_order,
    load_task,
    make_shard,
    resolve_model,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.lora import Scaling
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.split import SplitPlan, load_parts
from atlas_flwr.train.evaluation import evaluate as score
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.step import batch_loss
from atlas_flwr.trunk import connect

SCALING = Scaling(alpha=16.0)
app = ClientApp()


def opened(message: Message, context: Context) -> tuple:
    """Put this client's adapters on its parts, around its session on the trunk."""
    torch.set_num_threads(1)
    config, arrays = message.content["config"], message.content["arrays"]
    source, task = resolve_model(str(context.run_config["model"])), load_task("movies")
    node = context.node_config
    shard = make_shard(int(node["partition-id"]), int(node["num-partitions"]), [task])
    parts = load_parts(source.path, SplitPlan.parse(config["plan"]))
    trunk = connect(config["trunk-address"], token=config["trunk-token"])
    layout = Layout.of(arrays, SCALING)
    state = layout.read(arrays, "server")
    collate = CausalCollator(tokenizer_of(source), task, max_length=48)
    return shard, collate, layout, (parts.head, parts.tail, trunk, state, SCALING)


@app.train()
def train(message: Message, context: Context) -> Message:
    shard, collate, layout, parts = opened(message, context)
    seed = int(message.content["config"]["server-round"])
    with adapted_split(*parts) as client:
        trained = [p for p in client.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for batch in sample_batches(
            shard.train, collate, batch_size=8, steps=8, seed=seed
        ):
            optimizer.zero_grad()
            loss = batch_loss(client.model, batch)
            loss.backward()  # through the trunk, whose adapters step there
            optimizer.step()
        arrays = layout.write(client.state())
    metrics = MetricRecord({"num-examples": len(shard.train), "loss": loss.item()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    shard, collate, _, parts = opened(message, context)
    with adapted_split(*parts) as client:
        found = score(
            client.model, in_order(shard.test[:32], collate, 16), collate.label_ids
        )
    metrics = {"num-examples": found.examples, "accuracy": found.accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
