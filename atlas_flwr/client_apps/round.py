# SPDX-License-Identifier: Apache-2.0
"""What a client does in one round, for one message."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from numpy.typing import NDArray
from torch import nn

from atlas_flwr.budget import return_freed_memory
from atlas_flwr.client_apps.answers import answers_record, is_scored
from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.client_apps.same_texts import check_texts
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.client_apps.trunk import (
    checked_trunk,
    crossed_bytes,
    dialled,
    told_of_trunk,
)
from atlas_flwr.clustering import noised, signed_bytes
from atlas_flwr.config import RunConfig, from_yaml, load_config
from atlas_flwr.config.optimizers import optimizer_of, trunk_optimizer_of
from atlas_flwr.data import (
    Collator,
    Example,
    Task,
    in_order,
    majority_accuracy,
    tokenizer_of,
)
from atlas_flwr.data.responses import GenerationCollator, commonest_token_accuracy
from atlas_flwr.lora import AdapterState, ImportanceProbe, Scaling, initial_factors
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.remedies import ClientHooks, RoundContext, client_hooks
from atlas_flwr.split import SUMMARY_KEY, SplitPlan
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.initial import FINGERPRINT_RANK, initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import ClientModel, adapted_split, adapted_whole
from atlas_flwr.train.sketch import sketch_gradients
from atlas_flwr.train.step import task_loss
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import SessionSpec

__all__ = ["ClientRound", "config_of", "profile_of"]

Metrics = dict[str, int | float | list[int]]


def config_of(message: Message, context: Context) -> RunConfig:
    """Return the run config that the server sent, or else the context's."""
    for record in message.content.config_records.values():
        if keys.RUN_CONFIG in record:
            return from_yaml(str(record[keys.RUN_CONFIG]))
    return load_config(context.run_config)


def profile_of(config: RunConfig, context: Context) -> Profile:
    """Return what the server is told of a client, before it trains.

    How many labels a step has is told, and looked up, where memory is given by it.
    """
    me = Identity.of(context, config)
    profile = me.profile(config)
    if me.memory is None:
        return profile
    source = ModelFiles.of(config).source
    labels = ClientBatches(config, me, source, round=0).most_labels()
    return replace(profile, labels=labels)


@dataclass(frozen=True)
class ClientRound:
    """One client's part in one round.

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
    on_trunk : ArrayRecord, optional
        The trunk's, where it is to be checked.
    """

    config: RunConfig
    me: Identity
    files: ModelFiles
    entries: ConfigRecord
    arrays: ArrayRecord
    on_trunk: ArrayRecord | None = None

    @classmethod
    def of(cls, message: Message, context: Context) -> ClientRound:
        """Read a message."""
        config = config_of(message, context)
        torch.set_num_threads(config.client_threads)
        content = message.content
        records = dict(content.array_records)
        on_trunk = records.pop(keys.TRUNK_ARRAYS, None)
        arrays = next(iter(records.values()), ArrayRecord())
        entries = next(iter(content.config_records.values()))
        me = Identity.of(context, config)
        if me.memory is not None:
            return_freed_memory()
        return cls(config, me, ModelFiles.of(config), entries, arrays, on_trunk)

    @property
    def round(self) -> int:
        """Server round."""
        return int(str(self.entries[keys.SERVER_ROUND]))

    def batches(self, hooks: ClientHooks) -> ClientBatches:
        """Return what makes the client's batches."""
        given = self.config, self.me, self.files.source, self.round
        return ClientBatches(*given, hooks)

    @property
    def plan(self) -> SplitPlan | None:
        """The client's cut; ``None`` for the whole model."""
        plan = self.entries.get(keys.PLAN)
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
            The sketch, with noise if the run says so; and, if the server asked for
            it, how much the loss depends on each layer on this client, and by how
            many examples it counts.
        """
        config = self.config
        probe, hooks = ImportanceProbe(), self._hooks(before=self.round)
        with ExitStack() as stack:
            adapted = stack.enter_context(self._model(self._fingerprint_state(), hooks))
            asked = bool(self.entries.get(keys.IMPORTANCE))
            if asked:
                stack.enter_context(adapted.probing(probe))
            batches = self.batches(hooks)
            sketch = sketch_gradients(
                adapted.model,
                batches.to_sketch(),
                name=adapted.parameter_name,
                parts=config.fingerprint_parts,
                dim=config.fingerprint_dim,
                seed=config.seed,
            )
        if config.fingerprint_epsilon:
            # No seed: the server knows the run's, and would subtract the noise.
            private = config.fingerprint_epsilon, config.fingerprint_delta
            sketch = signed_bytes(noised(sketch, *private))
        counted = {keys.NUM_EXAMPLES: float(batches.count())} if asked else {}
        return sketch, probe.means() | counted

    def train(self) -> tuple[ArrayRecord, Metrics, dict[str, ConfigRecord]]:
        """Train some local steps.

        Returns
        -------
        tuple[ArrayRecord, Metrics, dict[str, ConfigRecord]]
            The third says how the trunk was called, if there was one, and what its
            adapters should be, if it was checked.
        """
        config = self.config
        pooled = self._pooled()
        # Whoever is sampled in other rounds: of all it is known what they began with.
        owners = range(self.me.count) if pooled else [self.me.index]
        if keys.RUN_ID in self.entries:  # else no run of ours, which could be resumed
            check_texts((self.me.shard(config, n) for n in owners), self._store)
        layout = Layout.of(self.arrays, self.scaling)
        hooks = self._hooks(before=self.round)
        state = hooks.incoming(layout.read(self.arrays, "server"))
        started = time.monotonic()
        drawn = self.batches(hooks)
        drawn.read()  # texts and tokenizer are no part of what training takes
        with (
            PeakMeter(self.files.device) as meter,
            self._model(state, hooks, trains=True) as adapted,
        ):
            batches, examples = drawn.to_train(adapted.model, pooled)
            hooks.begin(adapted, batches)
            done = train(
                adapted.model,
                batches,
                optimizer_of(config),
                objective=partial(hooks.step, proceed=task_loss),
                in_flight=config.in_flight,
            )
            trained = adapted.state()
        arrays = layout.write(hooks.trained(trained))
        metrics: Metrics = {
            keys.NUM_EXAMPLES: examples,
            "train-loss": done.loss,
            "steps": done.steps,
            "seconds": time.monotonic() - started,
            "peak-bytes": meter.peak_bytes,
            "rank": max((f.rank for f in state.factors.values()), default=0),
            "head": self.plan.head if self.plan else 0,
            "tail": (self.plan.tail or 0) if self.plan else 0,
            **crossed_bytes(adapted.model),
            **hooks.metrics(),
        }
        if done.penalty is not None:
            metrics["train-penalty"] = done.penalty
        return arrays, metrics, told_of_trunk(adapted.model)

    def _pooled(self) -> list[int]:
        """Return the clients whose texts are pooled; none where it has its own."""
        first = range(int(str(self.entries.get(keys.POOLED_NODES, 0))))
        named = self.entries.get(keys.POOLED_CLIENTS, [*first])
        assert isinstance(named, list)
        return [int(client) for client in named]

    def evaluate(self) -> tuple[Metrics, ConfigRecord | None]:
        """Score the adapters on the client's test examples.

        Returns
        -------
        tuple[Metrics, ConfigRecord or None]
            The second has what was written, in the rounds in which something is.
        """
        config = self.config
        layout = Layout.of(self.arrays, self.scaling)
        hooks = self._hooks(before=self.round + 1)
        batches = self.batches(hooks)
        task = batches.shard().task
        collate = batches.collator(task)
        state = hooks.incoming(layout.read(self.arrays, "server"))
        test, known = batches.to_score(collate)
        with self._model(state, hooks) as adapted:
            found = evaluate(
                adapted.model,
                in_order(test, collate, config.eval_batch_size),
                collate.label_ids,
                self._most_labels(batches),
            )
            answers = self._answers(adapted.model, task, collate, test)
        metrics: Metrics = {
            keys.NUM_EXAMPLES: found.examples,
            "tokens": found.tokens,
            "accuracy": found.accuracy,
            "confusion": list(found.confusion),
            "loss": found.loss,
            "majority": _majority(known, test, collate),
            **crossed_bytes(adapted.model),
        }
        return metrics, answers

    def _most_labels(self, batches: ClientBatches) -> int | None:
        """Return how many labels are scored at once, where memory has a limit.

        A label takes a training step three numbers a word of the vocabulary, of which
        scoring keeps one.
        """
        if self.me.memory is None:
            return None
        return 2 * self.config.batch_size * batches.most_labels()

    def _answers(
        self,
        model: nn.Module,
        task: Task,
        collate: Collator,
        test: Sequence[Example],
    ) -> ConfigRecord | None:
        if not is_scored(self.config, task, self.round):
            return None
        assert isinstance(collate, GenerationCollator)
        tokenizer = tokenizer_of(self.files.source)
        return answers_record(model, tokenizer, task, collate, test, self.config)

    @contextmanager
    def _model(
        self, state: AdapterState, hooks: ClientHooks, *, trains: bool = False
    ) -> Iterator[ClientModel]:
        if self.plan is None:
            with adapted_whole(self.files.whole(), state, self.scaling) as adapted:
                yield adapted
            return
        parts = self.files.parts(self.plan)
        trunk = dialled(self.entries, self.config, self.me)
        checked = None
        if self.on_trunk is not None:
            sent = Layout.of(self.on_trunk, self.scaling).read(self.on_trunk, "server")
            spec = SessionSpec(self.plan, sent, trunk_optimizer_of(self.config))
            trunk = checked = checked_trunk(trunk, self.files, spec)
        if trains:
            trunk = hooks.trunk(trunk)
        sides = (parts.head, parts.tail, hooks.guard(trunk))
        with adapted_split(*sides, state, self.scaling) as adapted:
            yield adapted
        if checked is not None:
            checked.settle()

    def _fingerprint_state(self) -> AdapterState:
        """Adapters of the client's side, the same for all who have the same cut."""
        config, outline = self.config, self.files.outline()
        shapes, _ = outline.shapes_by_side(config.target_list, self.plan)
        dense = {}
        if config.summary_positions:
            dense[SUMMARY_KEY] = self.files.summary(config.summary_positions)
        return initial_state(
            shapes,
            rank=FINGERPRINT_RANK,
            scaling=self.scaling,
            seed=config.seed,
            dense=dense,
        )

    def _store(self) -> ClientStore:
        saved = self.entries.get(keys.SAVED_ROUNDS, [])
        assert isinstance(saved, list)
        rounds = [int(number) for number in saved]
        return ClientStore.of(str(self.entries[keys.RUN_ID]), self.me.index, rounds)

    def _hooks(self, *, before: int) -> ClientHooks:
        """Return what remedies do; what is remembered of a round, and later, is not."""
        return client_hooks(
            RoundContext(
                self.config,
                self.entries,
                round=self.round,
                client=self.me.index,
                plan=self.plan,
                before=before,
                scaling=self.scaling,
                store=self._store,
                start=self._start,
            )
        )

    def _start(self, ranks: Mapping[str, int], dense: Sequence[str]) -> AdapterState:
        """Return what all clients begin with, of some layers and arrays."""
        shapes = self.files.outline().shapes(self.config.target_list)
        given, seed = self.scaling, self.config.seed
        factors = {
            name: initial_factors(name, shapes[name], rank, scaling=given, seed=seed)
            for name, rank in ranks.items()
        }
        known = self.files.dense()
        return AdapterState(factors, {key: known[key] for key in dense})


def _majority(
    train: Sequence[Example], test: Sequence[Example], collate: Collator
) -> float:
    """Score what answers without reading: the commonest class, or token."""
    if isinstance(collate, GenerationCollator):
        return commonest_token_accuracy(collate, train, test)
    return majority_accuracy(train, test)
