# SPDX-License-Identifier: Apache-2.0
"""The clients: they train the whole model, and do not know which strategy asks."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from dropin.task import fit, load_model, load_text, score

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the adapters on this client's text."""
    model, (blocks, _) = received(msg, context)
    config = context.run_config
    server_round = int(str(msg.content.config_records["config"]["server-round"]))
    loss = fit(
        model,
        blocks,
        steps=int(config["local-steps"]),
        rate=float(config["learning-rate"]),
        seed=1000 * server_round + int(context.node_config["partition-id"]),
    )
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(blocks)})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Score the adapters on text that was held out."""
    model, (_, blocks) = received(msg, context)
    metrics = MetricRecord({"loss": score(model, blocks), "num-examples": len(blocks)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


def received(msg: Message, context: Context) -> tuple[PeftModel, tuple[Tensor, Tensor]]:
    """Load the model with the adapters that came, and this client's text."""
    config, node = context.run_config, context.node_config
    model = load_model(str(config["model"]), int(config["lora-rank"]))
    arrays = msg.content.array_records["arrays"]
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    text = load_text(
        str(config["model"]),
        str(config["kinds"]),
        int(node["partition-id"]),
        int(node["num-partitions"]),
    )
    return model, text
