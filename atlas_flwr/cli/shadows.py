# SPDX-License-Identifier: Apache-2.0
"""Adapters that an attacker trains to see what training does to a text's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.config import RunConfig
    from atlas_flwr.data import Collator, Example
    from atlas_flwr.lora import AdapterState

__all__ = ["halves", "shadow_losses"]


def halves(shadows: int, texts: int, seed: int) -> Tensor:
    """Draw halves of texts, so that each is in half of the shadows.

    Parameters
    ----------
    shadows, texts : int
        How many; shadows an even number.
    seed : int
        Of the draw.

    Returns
    -------
    Tensor
        Shape (shadows, texts), bool: each row is the rest of the one before or after.

    Raises
    ------
    ValueError
        If the number of shadows is odd.
    """
    import torch

    if shadows % 2:
        raise ValueError(f"shadows={shadows}: they come in pairs; make it even")
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    for _ in range(shadows // 2):
        order = torch.randperm(texts, generator=generator)
        half = torch.zeros(texts, dtype=torch.bool)
        half[order[: texts // 2]] = True
        rows += [half, ~half]
    return torch.stack(rows) if rows else torch.zeros(0, texts, dtype=torch.bool)


def shadow_losses(
    config: RunConfig,
    model: Any,
    like: AdapterState,
    collate: Collator,
    examples: Sequence[Example],
    within: Tensor,
    members: int,
    losses: Callable[[Any], Tensor],
) -> Tensor:
    """Train adapters as a client does, each on some of the texts.

    Parameters
    ----------
    config : RunConfig
        For steps, rows and learning rate of all rounds together.
    model : Any
        The public one, whole.
    like : AdapterState
        What was exported: for its layers and ranks.
    collate : Collator
        Of the texts' task.
    examples : Sequence[Example]
        N texts.
    within : Tensor
        Shape (S, N), bool: what each is trained on.
    members : int
        Texts that the client has learned from: each is passed as often here.
    losses : Callable[[Any], Tensor]
        Returns a model's losses (N,).

    Returns
    -------
    Tensor
        Shape (S, N).
    """
    import torch

    from atlas_flwr.config.optimizers import optimizer_of
    from atlas_flwr.data import sample_batches
    from atlas_flwr.lora import AdapterState, Scaling, initial_factors
    from atlas_flwr.seeds import derive_seed
    from atlas_flwr.server_apps.build import scaling_of
    from atlas_flwr.train.loop import train
    from atlas_flwr.train.model import adapted_whole

    scaling = scaling_of(config)
    drawn = config.num_rounds * config.local_steps * config.accumulate
    found: list[Tensor] = []
    for turn, row in enumerate(within):
        seed = derive_seed(config.seed, "shadow", turn)
        factors = {
            name: initial_factors(name, f.shape, f.rank, scaling=scaling, seed=seed)
            for name, f in like.factors.items()
        }
        own = [e for e, inside in zip(examples, row.tolist(), strict=True) if inside]
        steps = max(1, round(drawn * len(own) / members))
        batches = sample_batches(
            own, collate, batch_size=config.batch_size, steps=steps, seed=seed
        )
        start = AdapterState(factors)
        with adapted_whole(model, start, Scaling()) as adapted:
            train(adapted.model, batches, optimizer_of(config))
            found.append(losses(adapted.model))
    return torch.stack(found) if found else torch.zeros(within.shape)
