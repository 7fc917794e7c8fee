# SPDX-License-Identifier: Apache-2.0
"""What the adapters that a run's clients sent back tell of their data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlas_flwr.cli.labelled import OWN_SECRET
from atlas_flwr.cli.properties import (
    Properties,
    in_some_balance,
    public_halves,
    shares_of,
)
from atlas_flwr.errors import DataError
from atlas_flwr.privacy.starts import kept_start
from atlas_flwr.remedies.wire_recording import WIRE
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

__all__ = ["MadeUp", "changed", "check_updates", "of_round", "update_scores"]

SHADOWS = 24  # of each task that the attacker thinks possible


def check_updates(
    config: RunConfig, found: Sequence[Recording], wire: Path, number: int | None = None
) -> None:
    """Want updates of a round that can be made up, before longer work begins.

    Parameters
    ----------
    config : RunConfig
        The run's.
    found : Sequence[Recording]
        What it recorded.
    wire : Path
        Where.
    number : int, optional
        The round; by default the first of which an update was kept.

    Raises
    ------
    DataError
        If none was recorded, or they are not of LoRA's adapters of single tokens'
        positions and of the ranks that were sent, or what the trunk began with was not
        kept.
    """
    why, those = None, of_round(found, number)
    kept = sorted({r.round for r in found if r.update is not None})
    if config.adapter != "lora":
        why = f"adapter={config.adapter!r}: it reads LoRA's adapters alone"
    elif config.split == "vanilla":
        why = "a vanilla split sends the labels themselves"
    elif config.summary_positions:
        why = f"summary-positions={config.summary_positions}: it makes up none"
    elif not those:
        named = "any round" if number is None else f"round {number}"
        why = f"no update of {named} was kept; there are of {kept or 'none'}"
    elif any(_ranks(r.adapters) != _ranks(r.update) for r in those if r.update):
        why = "its clients change ranks as they train"
    elif any(kept_start(wire, r.client, r.round) is None for r in those):
        why = (
            f"it has not kept what the trunk began round {those[0].round} with: "
            "record it anew"
        )
    if why:
        raise DataError(
            f"updates cannot be attacked: {why}; leave update out of --attacks"
        )


def update_scores(
    folder: RunFolder,
    found: Sequence[Recording],
    attacks: Sequence[SketchAttack],
    seed: int,
    number: int | None = None,
) -> Iterator[Score]:
    """Guess each client's task, and its balance of labels, by its update of a round.

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
    number : int, optional
        The round; by default the first of which an update was kept.

    Raises
    ------
    DataError
        As :func:`check_updates` does.
    """
    from atlas_flwr.remedies.wire_defence import defence_of

    config, those, wire = folder.config(), of_round(found, number), folder.path / WIRE
    check_updates(config, found, wire, number)
    own = Properties.of(folder, [recording.client for recording in those])
    alike: dict[str, MadeUp] = {}  # one of those who start alike stands for all
    starts: dict[str, str] = {}
    for one in those:
        middle = kept_start(wire, one.client, one.round)
        assert middle is not None
        starts[one.client] = _start(one, middle)
        alike.setdefault(starts[one.client], MadeUp(config, one, middle, own, seed))
    yield from own.scores(
        attacks,
        {r.client: changed(r, r.update)[None] for r in those if r.update},
        lambda client: alike[starts[client]].shadows,
        seed,
        defence=str(defence_of(config)),
        cut=", ".join(sorted({str(recording.plan) for recording in those})),
    )


def of_round(found: Sequence[Recording], number: int | None) -> list[Recording]:
    """Return what is attacked: the updates of a round, or of the first that has any."""
    kept = [r for r in found if r.update is not None]
    wanted = min((r.round for r in kept), default=0) if number is None else number
    return [r for r in kept if r.round == wanted]


def _ranks(state: AdapterState) -> Mapping[str, int]:
    return {name: found.rank for name, found in state.factors.items()}


def _start(recording: Recording, middle: AdapterState) -> str:
    """Return what differs where two clients start unlike."""
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.lora.flattening import flatten

    told = hashlib.blake2b(str(recording.plan).encode())
    for whole in (recording.adapters, middle):
        parts = flatten(whole, "live") | flatten(AdapterState(whole.folded), "folded")
        for name, value in sorted(parts.items()):
            told.update(f"{name} {value.shape} ".encode())
            told.update(np.ascontiguousarray(value).tobytes())
    return told.hexdigest()


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
        For cut and adapters.
    middle : AdapterState
        The trunk's adapters, as its round began.
    own : Properties
        Tasks to make up clients of, and texts that they do not have.
    seed : int
        Of their data and its order.
    """

    config: RunConfig
    start: Recording
    middle: AdapterState
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
        # Of a whole share, which may be of any size, a round draws as many.
        count = config.train_examples or self._drawn
        drawn = [
            in_some_balance(task, halves[int(half)], count, rng) for half in second
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
        spec = SessionSpec(plan, self.middle, trunk_optimizer_of(config))
        token = engine.open(spec)
        drawn = torch.Generator().manual_seed(seed)
        trunk = DefendedTrunk(EngineTrunk(engine, token), defence, drawn)
        sides = parts.head, parts.tail, trunk, replace(self.start.adapters, folded={})
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

    @property
    def _drawn(self) -> int:
        """Examples that a round draws, repetitions counted."""
        config = self.config
        return config.batch_size * config.local_steps * config.accumulate

    @cached_property
    def _files(self) -> ModelFiles:
        from atlas_flwr.train.weights import ModelFiles

        return ModelFiles.of(self.config, "cpu")

    @cached_property
    def _model(self) -> tuple[Parts, TrunkEngine]:
        """Head and tail, with what is folded in them, and the trunk."""
        from atlas_flwr.lora import fold
        from atlas_flwr.privacy.knowledge import on_side

        plan = self.start.plan
        parts = self._files.parts(plan)
        for side in (parts.head, parts.tail):
            fold(side, on_side(side, self.start.adapters.folded))
        return parts, self._files.trunk(plan).engine()
