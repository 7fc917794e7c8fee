# SPDX-License-Identifier: Apache-2.0
"""A defence on the client's side of the cut (see :mod:`atlas_flwr.privacy`)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Collator, Example, Shard
    from atlas_flwr.privacy import Defence
    from atlas_flwr.privacy.defences.vocabulary import Vocabulary
    from atlas_flwr.train.step import Step, StepLoss
    from atlas_flwr.train.weights import ModelFiles
    from atlas_flwr.types import TrunkClient

__all__ = [
    "DefenceKeys",
    "WireDefence",
    "defence_of",
    "guarded",
    "penalised",
    "read_through",
    "vocabulary_of",
]

SECRET = "secret"


@dataclass(frozen=True)
class DefenceKeys:
    """Keys of the run config."""

    defence: str = option(
        "none",
        "What clients do to hidden states and gradients before they leave, e.g. "
        "'gaussian:0.3', 'laplace:0.3', 'topk:0.1', or to what they have: 'labels:1' "
        "answers labels at random and 'tokens:10' each token, mostly by near ones, "
        "private to that epsilon, and 'santext:16' to that epsilon a unit of distance; "
        "'mask' replaces numbers, addresses and names; "
        "'nopeek:1' trains the head to hide its text; or several joined by +. Trust "
        "none that `atlas-flwr attack` has not been tried on: it knows which one is "
        "on.",
        only=ADAPTER_STRATEGIES,
    )


class WireDefence(Remedy):
    """Changes what clients send."""

    name = "defence"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a defence that there is, and a cut whose labels do not cross."""
        from atlas_flwr.privacy import parse_defence

        try:
            found = parse_defence(config.defence)
        except ValueError as error:
            yield Problem(("defence",), f"defence={config.defence!r}: {error}")
            return
        if str(found) == "none":
            return
        if config.split == "u-shaped":
            yield from _head_problems(found, config)
            return
        why = {
            "none": "nothing crosses",
            "vanilla": "labels cross as they are, and for a language model these are "
            "the text",
        }
        yield Problem(
            ("defence", "split"),
            f"defence={config.defence!r}: with split={config.split!r} "
            f"{why[config.split]}; set split='u-shaped', or defence='none'",
        )

    def needs_classes(self, config: RunConfig) -> bool:
        """Tell whether the defence is for tasks with classes alone."""
        return defence_of(config).needs_classes

    def client(self, now: RoundContext) -> ClientHooks:
        """Defend, if the run says so."""
        found = defence_of(now.config)
        return ClientHooks() if str(found) == "none" else _Defending(found, now)


def _head_problems(found: Defence, config: RunConfig) -> Iterator[Problem]:
    """Want one position for each token, one batch at a time, to shape the head by."""
    if not found.shapes_head:
        return
    wrong = {
        "adapter": config.adapter == "prompt",
        "summary-positions": config.summary_positions > 0,
        "in-flight": config.in_flight > 1,
    }
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        value = getattr(config, key.replace("-", "_"))
        yield Problem(
            ("defence", key),
            f"defence={config.defence!r} with {key}={value!r}: a head is shaped by "
            "each token's own position, one batch after the other; leave one of both",
        )


def defence_of(config: RunConfig) -> Defence:
    """Return the defence of a run, whose config is sound."""
    from atlas_flwr.privacy import parse_defence

    return parse_defence(config.defence)


def guarded(trunk: TrunkClient, defence: Defence) -> TrunkClient:
    """Let a defence stand before a trunk."""
    from atlas_flwr.privacy.defences.system import SystemGenerator
    from atlas_flwr.privacy.defended import DefendedTrunk

    # The server knows the run's seed.
    return DefendedTrunk(trunk, defence, SystemGenerator())


def penalised(
    defence: Defence, step: Step, proceed: Callable[[Step], StepLoss]
) -> StepLoss:
    """Return a step's loss with what a defence adds to it.

    Where the head does not run nothing is added.
    """
    if not defence.shapes_head:
        return proceed(step)
    import torch

    head: Any = step.model.head
    seen: dict[str, torch.Tensor] = {}

    def embedded(module: Any, args: Any, out: torch.Tensor) -> None:
        seen["embeds"] = out

    def sent(module: Any, args: Any, out: Any) -> None:
        seen["hidden"] = out.last_hidden_state

    hooks = (
        head.get_input_embeddings().register_forward_hook(embedded),
        head.register_forward_hook(sent),
    )
    try:
        loss = proceed(step)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        return loss
    mask = step.batch.attention_mask
    # Many models put a position of some hundred times the usual size first.
    real = (mask != 0) & (mask.cumsum(1) > 1)
    return loss.plus(defence.penalty(seen["embeds"][real], seen["hidden"][real]))


def read_through(
    collate: Collator, defence: Defence, files: ModelFiles, secret: bytes
) -> Collator:
    """Return a collator by which a defended head reads texts.

    Parameters
    ----------
    collate : Collator
        Of a task.
    defence : Defence
        The client's.
    files : ModelFiles
        The model.
    secret : bytes
        See :meth:`~atlas_flwr.privacy.Defence.examples`.
    """
    if not defence.replaces_tokens:
        return collate
    words = vocabulary_of(files)
    return collate.reading(partial(defence.tokens, vocabulary=words, secret=secret))


@lru_cache(maxsize=1)
def vocabulary_of(files: ModelFiles) -> Vocabulary:
    """Return a model's vocabulary; a process keeps one, with what it has looked for."""
    from atlas_flwr.data import tokenizer_of
    from atlas_flwr.privacy.defences.vocabulary import Vocabulary

    return Vocabulary.of(files.table(), tokenizer_of(files.source))


class _Defending(ClientHooks):
    def __init__(self, defence: Defence, now: RoundContext) -> None:
        self.defence, self.now = defence, now

    def own(self, shard: Shard) -> Shard:
        classes = len(shard.task.labels)
        secret = self._secret() if self.defence.needs_classes else b""

        def changed(examples: Sequence[Example], learned: bool) -> tuple[Example, ...]:
            given = examples, classes, secret
            return tuple(self.defence.examples(*given, learned=learned))

        train, test = changed(shard.train, True), changed(shard.test, False)
        return replace(shard, train=train, test=test)

    def collating(self, collate: Collator) -> Collator:
        if not self.defence.replaces_tokens:
            return collate
        from atlas_flwr.train.weights import ModelFiles

        files = ModelFiles.of(self.now.config)
        return read_through(collate, self.defence, files, self._secret())

    def _secret(self) -> bytes:
        """Return what never leaves the client, and is the same in all rounds."""
        import numpy as np

        store = self.now.store()
        found = store.load(SECRET, before=1)
        if found is None:
            drawn = np.frombuffer(secrets.token_bytes(32), dtype=np.uint8)
            store.save(SECRET, 0, found := {SECRET: drawn})
        return found[SECRET].tobytes()

    def guard(self, trunk: TrunkClient) -> TrunkClient:
        return guarded(trunk, self.defence)

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        return penalised(self.defence, step, proceed)
