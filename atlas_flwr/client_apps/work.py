# SPDX-License-Identifier: Apache-2.0
"""What a client does for one message."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from numpy.typing import NDArray

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig, from_yaml, load_config
from atlas_flwr.data import Example, Task, batches, make_collator, sample_batches
from atlas_flwr.lora import AdapterState
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies.records import Layout
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.initial import fingerprint_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import ClientModel, adapted_split, adapted_whole
from atlas_flwr.train.sketch import sketch_gradients
from atlas_flwr.train.weights import ModelFiles, client_parts, whole_model
from atlas_flwr.trunk import connect
from atlas_flwr.types import OptimizerSpec, TrunkClient

__all__ = ["RUN_CONFIG_KEY", "Work", "config_of"]

RUN_CONFIG_KEY = "run-config"
Metrics = dict[str, int | float]


def config_of(message: Message, context: Context) -> RunConfig:
    """Return the run config that the server sent, or else the context's."""
    for record in message.content.config_records.values():
        if RUN_CONFIG_KEY in record:
            return from_yaml(str(record[RUN_CONFIG_KEY]))
    return load_config(context.run_config)


@dataclass(frozen=True)
class Work:
    """One message's work.

    Attributes
    ----------
    config : RunConfig
        The run's configuration.
    me : Identity
        This client.
    files : ModelFiles
        Where the model is.
    entries : ConfigRecord
        The message's configuration: round, cut, trunk.
    arrays : ArrayRecord
        The message's arrays; empty for a fingerprint.
    """

    config: RunConfig
    me: Identity
    files: ModelFiles
    entries: ConfigRecord
    arrays: ArrayRecord

    @classmethod
    def of(cls, message: Message, context: Context) -> Work:
        """Read a message."""
        config = config_of(message, context)
        torch.set_num_threads(config.client_threads)
        content = message.content
        arrays = next(iter(content.array_records.values()), ArrayRecord())
        entries = next(iter(content.config_records.values()))
        files = ModelFiles.of(config)
        return cls(config, Identity.of(context, config), files, entries, arrays)

    @property
    def round(self) -> int:
        """Server round."""
        return int(str(self.entries["server-round"]))

    @property
    def plan(self) -> SplitPlan | None:
        """This client's cut; ``None`` for the whole model."""
        plan = self.entries.get("plan")
        return None if plan is None else SplitPlan.parse(str(plan))

    @property
    def optimizer(self) -> OptimizerSpec:
        """AdamW as configured."""
        return OptimizerSpec(
            lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    def fingerprint(self) -> NDArray[np.float32]:
        """Sketch the gradients of head and tail at the shared start."""
        config = self.config
        shard = self.me.shard(config)
        state = fingerprint_state(self.files, self.plan, config)
        seed = derive_seed(config.seed, "fingerprint", self.me.index)
        with self._model(state) as adapted:
            return sketch_gradients(
                adapted.model,
                sample_batches(
                    shard.train,
                    self._collator(shard.task),
                    batch_size=config.batch_size,
                    steps=config.fingerprint_batches,
                    seed=seed,
                ),
                name=adapted.parameter_name,
                dim=config.fingerprint_dim,
                seed=config.seed,
            )

    def train(self) -> tuple[ArrayRecord, Metrics]:
        """Train some local steps; return the client's arrays and metrics."""
        layout = Layout.of(self.arrays, self.config.lora_alpha)
        state = layout.read(self.arrays, "server")
        started = time.monotonic()
        with PeakMeter() as meter, self._model(state) as adapted:
            done = train(
                adapted.model,
                self._train_batches(),
                self.optimizer,
                proximal_mu=float(str(self.entries.get("proximal-mu", 0.0))),
            )
            arrays = layout.write(adapted.state())
        metrics: Metrics = {
            "num-examples": self._num_examples(),
            "train-loss": done.loss,
            "steps": done.steps,
            "seconds": time.monotonic() - started,
            "peak-bytes": meter.peak_bytes,
            **adapted.traffic(),
        }
        return arrays, metrics
