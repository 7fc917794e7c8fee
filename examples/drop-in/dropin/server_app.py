# SPDX-License-Identifier: Apache-2.0
"""The server: the line that makes the strategy is all that ATLAS changes."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict

from atlas_flwr.strategies import Atlas
from dropin.task import load_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train adapters over all clients, and tell the loss after each round."""
    config = context.run_config
    model = load_model(str(config["model"]), int(config["lora-rank"]))
    strategy = Atlas(min_available_nodes=int(config["min-nodes"]))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_config=ConfigRecord(),
    )
    for server_round, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {server_round}: held-out loss {metrics['loss']:.3f}", flush=True)
