# SPDX-License-Identifier: Apache-2.0
"""What the adapters that a run's clients sent back tell of their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.cli.labelled import OWN_SECRET
from atlas_flwr.cli.properties import (
    Properties,
    in_some_balance,
    public_halves,
    shares_of,
)
from atlas_flwr.errors import DataError
from atlas_flwr.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.config import RunConfig
    from atlas_flwr.data import Batch, Example, Task
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.privacy import Recording, Score
    from atlas_flwr.privacy.attacks.base import Shadows, SketchAttack
    from atlas_flwr.report import RunFolder
    from atlas_flwr.split import Parts
    from atlas_flwr.train.weights import ModelFiles
    from atlas_flwr.trunk import TrunkEngine

__all__ = ["MadeUp", "changed", "check_updates", "update_scores"]

SHADOWS = 24  # of each task that the attacker thinks possible


def check_updates(config: RunConfig, found: Sequence[Recording]) -> None:
    """Want updates of round 1 that can be made up, before longer work begins.

    Raises
    ------
    DataError
        If none was recorded, or they are not of LoRA's adapters of single tokens'
        positions and of the ranks that were sent.
    """
    why, firsts = None, _firsts(found)
    if config.adapter != "lora":
        why = f"adapter={config.adapter!r}: it reads LoRA's adapters alone"
    elif config.split == "vanilla":
        why = "a vanilla split sends the labels themselves"
    elif config.summary_positions:
        why = f"summary-positions={config.summary_positions}: it makes up none"
    elif not firsts:
        why = (
            "no update of round 1 was kept, when all start alike: a recording has the "
            "last four rounds"
        )
    elif any(_ranks(r.adapters) != _ranks(r.update) for r in firsts if r.update):
        why = "its clients change ranks as they train"
    if why:
        raise DataError(
            f"updates cannot be attacked: {why}; leave update out of --attacks"
        )


def update_scores(
    folder: RunFolder,
    found: Sequence[Recording],
    attacks: Sequence[SketchAttack],
    seed: int,
) -> Iterator[Score]:
    """Guess each client's task, and its balance of labels, by its first round's update.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    found : Sequence[Recording]
        What it recorded.
    attacks : Sequence[SketchAttack]
        What to try.
    seed : int
        Of the shadows, and of resampling.

    Raises
    ------
    DataError
        As :func:`check_updates` does.
    """
    from atlas_flwr.remedies.wire_defence import defence_of

    config, firsts = folder.config(), _firsts(found)
    check_updates(config, found)
    own = Properties.of(folder, [recording.client for recording in firsts])
    alike: dict[Any, MadeUp] = {}  # one of those who start alike stands for all
    for one in firsts:
        alike.setdefault(_start(one), MadeUp(config, one, own, seed))
    starts = {recording.client: _start(recording) for recording in firsts}
    yield from own.scores(
        attacks,
        {r.client: changed(r, r.update)[None] for r in firsts if r.update},
        lambda client: alike[starts[client]].shadows,
        seed,
        defence=str(defence_of(config)),
        cut=", ".join(sorted({str(recording.plan) for recording in firsts})),
    )


def _firsts(found: Sequence[Recording]) -> list[Recording]:
    return [r for r in found if r.round == 1 and r.update is not None]


def _ranks(state: AdapterState) -> Mapping[str, int]:
    return {name: found.rank for name, found in state.factors.items()}


def _start(recording: Recording) -> tuple[str, frozenset[tuple[str, int]]]:
    return str(recording.plan), frozenset(_ranks(recording.adapters).items())


def changed(start: Recording, after: AdapterState) -> NDArray[np.float32]:
    """Return what a round has changed, of all numbers that the client sent back."""
    from atlas_flwr.lora.flattening import flatten

    assert start.update is not None
    names = sorted(flatten(start.update, ""))
    old, new = flatten(start.adapters, ""), flatten(after, "")
    return np.concatenate([np.float32(new[name] - old[name]).ravel() for name in names])


@dataclass(frozen=True)
class MadeUp:
    """Clients that an attacker makes up, who start as one of the run's did.

    Attributes
    ----------
    config : RunConfig
        The run's: they train as its clients do.
    start : Recording
        For cut and adapters. The trunk's adapters are of the greatest of its ranks.
    own : Properties
        Tasks to make up clients of, and texts that they do not have.
    seed : int
        Of their data and its order.
    """

    config: RunConfig
    start: Recording
    own: Properties
    seed: int

    @cached_property
    def shadows(self) -> Mapping[str, Shadows]:
        """Updates of many clients of each task, made when they are first asked for."""
        return {name: self._of(name) for name in self.own.names}

    def _of(self, name: str) -> Shadows:
        from atlas_flwr.data import load_task
        from atlas_flwr.privacy.attacks.base import Shadows

        task, config = load_task(name), self.config
        halves = public_halves(task, self.own.told, config.seed)
        rng = np.random.default_rng(derive_seed(self.seed, "updates", name))
        second = np.arange(SHADOWS) % 2 == 1
        drawn = [
            in_some_balance(task, halves[int(half)], config.train_examples, rng)
            for half in second
        ]
        seeds = [derive_seed(self.seed, "update", name, i) for i in range(SHADOWS)]
        rows = [
            self.update(task, examples, seed)
            for examples, seed in zip(drawn, seeds, strict=True)
        ]
        return Shadows(
            np.stack(rows)[:, None],
            np.stack([shares_of(task, examples) for examples in drawn]),
            second,
            shares_of(task, halves[0] + halves[1]),
        )

    def update(
        self, task: Task, examples: Sequence[Example], seed: int
    ) -> NDArray[np.float32]:
        """Return what a client of these examples would change in the round."""
        import torch

        from atlas_flwr.config.optimizers import optimizer_of, trunk_optimizer_of
        from atlas_flwr.privacy.defended import DefendedTrunk
        from atlas_flwr.remedies.wire_defence import defence_of, penalised
        from atlas_flwr.server_apps.build import scaling_of
        from atlas_flwr.train.loop import train
        from atlas_flwr.train.model import adapted_split
        from atlas_flwr.train.step import task_loss
        from atlas_flwr.trunk import SessionSpec
        from atlas_flwr.trunk.transports.local import EngineTrunk

        config, plan, (parts, engine) = self.config, self.start.plan, self._model
        defence = defence_of(config)
        spec = SessionSpec(plan, self._middle, trunk_optimizer_of(config))
        token = engine.open(spec)
        drawn = torch.Generator().manual_seed(seed)
        trunk = DefendedTrunk(EngineTrunk(engine, token), defence, drawn)
        sides = parts.head, parts.tail, trunk, self.start.adapters
        batches = self._batches(task, examples, seed)
        objective = partial(penalised, defence, proceed=task_loss)
        with adapted_split(*sides, scaling_of(config)) as adapted:
            train(adapted.model, batches, optimizer_of(config), objective)
            found = changed(self.start, adapted.state())
        engine.close(token)
        return found

    def _batches(
        self, task: Task, examples: Sequence[Example], seed: int
    ) -> Iterator[Batch]:
        """Read examples as a client does, its defence among it."""
        from atlas_flwr.data import sample_batches, tokenizer_of
        from atlas_flwr.data.collation import collator_of
        from atlas_flwr.remedies.wire_defence import defence_of, read_through

        config, files, defence = self.config, self._files, defence_of(self.config)
        classes, tokenizer = len(task.labels), tokenizer_of(files.source)
        plain = collator_of(files.source, tokenizer, task, config.max_length)
        yield from sample_batches(
            defence.examples(examples, classes, OWN_SECRET, learned=True),
            read_through(plain, defence, files, OWN_SECRET),
            batch_size=config.batch_size,
            steps=config.local_steps * config.accumulate,
            seed=seed,
        )

    @cached_property
    def _files(self) -> ModelFiles:
        from atlas_flwr.train.weights import ModelFiles

        return ModelFiles.of(self.config, "cpu")

    @cached_property
    def _model(self) -> tuple[Parts, TrunkEngine]:
        plan = self.start.plan
        return self._files.parts(plan), self._files.trunk(plan).engine()

    @cached_property
    def _middle(self) -> AdapterState:
        """The trunk's adapters, as all clients start."""
        from atlas_flwr.server_apps.build import scaling_of
        from atlas_flwr.train.initial import initial_state

        outline, config = self._files.outline(), self.config
        blocks = self.start.plan.trunk_range(outline.num_layers)
        shapes = outline.shapes(config.target_list)
        return initial_state(
            {n: shape for n, shape in shapes.items() if outline.block_of(n) in blocks},
            rank=max(_ranks(self.start.adapters).values()),
            scaling=scaling_of(config),
            seed=config.seed,
        )
