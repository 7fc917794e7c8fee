# SPDX-License-Identifier: Apache-2.0
"""What a client does for one message."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from numpy.typing import NDArray

from atlas_flwr.budget import return_freed_memory
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.clustering import noised, signed_bytes
from atlas_flwr.config import RunConfig, from_yaml, load_config
from atlas_flwr.data import (
    Batch,
    CausalCollator,
    ClassifierCollator,
    Collator,
    Task,
    in_order,
    majority_accuracy,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.lora import AdapterState, ImportanceProbe, Scaling
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies.fingerprints import IMPORTANCE_KEY
from atlas_flwr.strategies.records import Layout
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.initial import FINGERPRINT_RANK, initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import ClientModel, adapted_split, adapted_whole
from atlas_flwr.train.sketch import sketch_gradients
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import connect
from atlas_flwr.types import OptimizerSpec
from atlas_flwr.wire import ByteMeter

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
        me = Identity.of(context, config)
        if me.memory is not None:
            return_freed_memory()
        return cls(config, me, ModelFiles.of(config), entries, arrays)

    @property
    def round(self) -> int:
        """Server round."""
        return int(str(self.entries["server-round"]))

    @property
    def plan(self) -> SplitPlan | None:
        """The client's cut; ``None`` for the whole model."""
        plan = self.entries.get("plan")
        return None if plan is None else SplitPlan.parse(str(plan))

    @property
    def scaling(self) -> Scaling:
        """LoRA's scaling."""
        return Scaling(self.config.lora_alpha, self.config.use_rslora)

    def fingerprint(self) -> tuple[NDArray[np.int8], dict[str, float]]:
        """Sketch the gradients of head and tail at the shared start.

        Returns
        -------
        tuple[NDArray, dict[str, float]]
            The sketch, with noise if the run says so, and how much the loss depends on
            each layer on this client, if the server asked for that.
        """
        config, shard = self.config, self.me.shard(self.config)
        steps = config.fingerprint_batches
        batches = sample_batches(
            shard.train,
            self._collator(shard.task),
            # No example twice: the parts must differ as independent draws do.
            batch_size=max(1, min(config.batch_size, len(shard.train) // steps)),
            steps=steps,
            seed=derive_seed(config.seed, "fingerprint", self.me.index, self.round),
        )
        probe = ImportanceProbe()
        with ExitStack() as stack:
            adapted = stack.enter_context(self._model(self._fingerprint_state()))
            if self.entries.get(IMPORTANCE_KEY):
                stack.enter_context(adapted.probing(probe))
            sketch = sketch_gradients(
                adapted.model,
                batches,
                name=adapted.parameter_name,
                parts=config.fingerprint_parts,
                dim=config.fingerprint_dim,
                seed=config.seed,
            )
        if config.fingerprint_epsilon:
            # No seed: the server knows the run's, and would subtract the noise.
            private = config.fingerprint_epsilon, config.fingerprint_delta
            sketch = signed_bytes(noised(sketch, *private))
        return sketch, probe.means()

    def train(self) -> tuple[ArrayRecord, Metrics]:
        """Train some local steps; return the client's arrays and metrics."""
        config = self.config
        layout = Layout.of(self.arrays, self.scaling)
        state = layout.read(self.arrays, "server")
        batches, examples = self._train_batches()
        started = time.monotonic()
        with PeakMeter() as meter, self._model(state) as adapted:
            done = train(
                adapted.model,
                batches,
                OptimizerSpec(config.learning_rate, weight_decay=config.weight_decay),
                proximal_mu=float(str(self.entries.get("proximal-mu", 0.0))),
            )
            arrays = layout.write(adapted.state())
        metrics: Metrics = {
            "num-examples": examples,
            "train-loss": done.loss,
            "steps": done.steps,
            "seconds": time.monotonic() - started,
            "peak-bytes": meter.peak_bytes,
            "rank": max((f.rank for f in state.factors.values()), default=0),
            "head": self.plan.head if self.plan else 0,
            "tail": (self.plan.tail or 0) if self.plan else 0,
            **_crossed(adapted),
        }
        return arrays, metrics

    def evaluate(self) -> Metrics:
        """Score the adapters on the client's test examples."""
        config, shard = self.config, self.me.shard(self.config)
        layout = Layout.of(self.arrays, self.scaling)
        collate = self._collator(shard.task)
        with self._model(layout.read(self.arrays, "server")) as adapted:
            found = evaluate(
                adapted.model,
                in_order(shard.test, collate, config.eval_batch_size),
                collate.label_ids,
            )
        return {
            "num-examples": found.examples,
            "accuracy": found.accuracy,
            "loss": found.loss,
            "majority": majority_accuracy(shard.train, shard.test),
            **_crossed(adapted),
        }

    @contextmanager
    def _model(self, state: AdapterState) -> Iterator[ClientModel]:
        if self.plan is None:
            with adapted_whole(self.files.whole(), state, self.scaling) as adapted:
                yield adapted
            return
        parts = self.files.parts(self.plan)
        trunk = connect(
            str(self.entries["trunk-address"]),
            token=str(self.entries["trunk-token"]),
            codec=self.config.codec,
        )
        sides = (parts.head, parts.tail, trunk)
        with adapted_split(*sides, state, self.scaling) as adapted:
            yield adapted

    def _fingerprint_state(self) -> AdapterState:
        """Adapters of the client's side, the same for all who have the same cut."""
        config, outline = self.config, self.files.outline()
        shapes = outline.shapes(config.target_list)
        if self.plan is not None:
            trunk = self.plan.trunk_range(outline.num_layers)
            shapes = {
                n: s for n, s in shapes.items() if outline.block_of(n) not in trunk
            }
        return initial_state(
            shapes, rank=FINGERPRINT_RANK, scaling=self.scaling, seed=config.seed
        )

    def _train_batches(self) -> tuple[Iterable[Batch], int]:
        """Return the batches of this round, and how many examples they come from."""
        pooled = int(str(self.entries.get("pooled-nodes", 0)))
        owners = range(pooled) if pooled else [self.me.index]
        shards = [self.me.shard(self.config, owner) for owner in owners]
        streams = [
            sample_batches(
                shard.train,
                self._collator(shard.task),
                batch_size=self.config.batch_size,
                steps=self.config.local_steps,
                seed=derive_seed(self.config.seed, "train", self.round, owner),
            )
            for owner, shard in zip(owners, shards, strict=True)
        ]
        turns = zip(*streams, strict=True)
        return chain.from_iterable(turns), sum(len(shard.train) for shard in shards)

    def _collator(self, task: Task) -> Collator:
        causal = self.files.source.kind == "causal"
        make = CausalCollator if causal else ClassifierCollator
        return make(tokenizer_of(self.files.source), task, self.config.max_length)


def _crossed(adapted: ClientModel) -> Metrics:
    """Bytes that the client sent over its cut, and received."""
    trunk = getattr(adapted.model, "trunk", None)
    meter = getattr(trunk, "meter", None) or ByteMeter()
    return {"cut-bytes-up": meter.total_up, "cut-bytes-down": meter.total_down}
