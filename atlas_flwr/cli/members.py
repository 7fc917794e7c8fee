# SPDX-License-Identifier: Apache-2.0
"""Whether a run's exported adapters tell which texts they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from atlas_flwr.errors import DataError
from atlas_flwr.report import ClientTrained, RunFolder, dealt_to, summarize_folder

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.client_apps.batches import ClientBatches
    from atlas_flwr.data import Collator, Example
    from atlas_flwr.privacy import Score
    from atlas_flwr.privacy.attacks.base import MemberAttack, Suspects

__all__ = ["check_members", "member_scores", "trained_and_not"]


def check_members(folder: RunFolder) -> None:
    """Want adapters that are read, before longer work begins.

    Raises
    ------
    DataError
        If the run's model writes no text, its adapters are not LoRA's, its summaries
        cross, or it has exported nothing.
    """
    from atlas_flwr.data import resolve_model

    config = folder.config()
    why = None
    if resolve_model(config.model, progress=False).kind != "causal":
        why = f"model={config.model!r} writes no text, whose loss would be compared"
    elif config.adapter != "lora":
        why = f"adapter={config.adapter!r}: they read LoRA's adapters alone"
    elif config.summary_positions:
        why = f"summary-positions={config.summary_positions}: they write no text"
    elif not any((folder.path / "adapters").glob("*/")):
        why = "it has exported no adapters, which it does when it has ended"
    if why:
        raise DataError(
            f"attacks on members cannot be tried on {folder.path}: {why}; leave them "
            "out of --attacks"
        )


def member_scores(
    folder: RunFolder, attacks: Sequence[MemberAttack], texts: int, seed: int
) -> Iterator[Score]:
    """Attack the adapters of each client's cluster, or its own.

    Parameters
    ----------
    folder : RunFolder
        Of a finished run on this machine's tasks.
    attacks : Sequence[MemberAttack]
        What to try.
    texts : int
        Members, and as many others, of each client at most.
    seed : int
        Of the interval's resampling.

    Raises
    ------
    DataError
        As :func:`check_members` does.
    """
    from atlas_flwr.privacy.attacks.base import MEMBER
    from atlas_flwr.privacy.auc import auc
    from atlas_flwr.privacy.scores import Score
    from atlas_flwr.remedies.wire_defence import defence_of

    check_members(folder)
    config = folder.config()
    shadows = max(attack.shadows for attack in attacks)
    run = summarize_folder(folder)
    # Who was only scored has no members.
    trained = run.ranks or run.true_tasks
    told = [_client(folder, int(i), texts, shadows) for i in trained]
    cuts = sorted(set(run.plans.values()))
    for attack in attacks:
        pairs = []
        for suspects in told:
            found = attack.scores(suspects).numpy()
            half = len(found) // 2
            pairs.append((found[:half], found[half:]))
        area, interval = auc(pairs, seed)
        yield Score(
            attack=attack.name,
            adversary=str(attack.adversary),
            defence=str(defence_of(config)),
            cut=", ".join(map(str, cuts)) or "none",
            target=MEMBER,
            texts=sum(len(suspects.losses) for suspects in told),
            tokens=0,
            token_accuracy=area,
            exact_texts=0,
            baseline=0.5,
            interval=interval,
        )


def trained_and_not(
    folder: RunFolder, client: int, count: int
) -> tuple[ClientBatches, Sequence[Example], Sequence[Example]]:
    """Return a client's examples that its rounds drew, and those it was tested on."""
    from atlas_flwr.client_apps.batches import ClientBatches
    from atlas_flwr.client_apps.identity import Identity
    from atlas_flwr.data import resolve_model

    config = folder.config()
    source = resolve_model(config.model, progress=False)
    me = Identity(client, count, None)
    rounds = [
        ClientBatches(config, me, source, number)
        for number in _rounds(folder, str(client), config.num_rounds)
    ]
    found = [batches.trained_on() for batches in rounds]
    members = dict.fromkeys(example for drawn, _ in found for example in drawn)
    return rounds[0], list(members), found[0][1]


def _rounds(folder: RunFolder, client: str, most: int) -> Sequence[int]:
    """Return the rounds in which a client trained; all, where a run tells none of it.

    Where rounds draw some clients, what another round would have drawn is no member.
    """
    happened = (event for _, event in folder.events())
    trained = [event for event in happened if isinstance(event, ClientTrained)]
    own = sorted({event.round for event in trained if event.client == client})
    return own or range(1, most + 1)


def _client(folder: RunFolder, client: int, texts: int, shadows: int) -> Suspects:
    """Return losses of a client's members, then of as many others."""
    from atlas_flwr.cli.shadows import halves, shadow_losses
    from atlas_flwr.lora import Scaling
    from atlas_flwr.privacy.attacks.base import Suspects
    from atlas_flwr.serving import Choice, chosen, dealt_again
    from atlas_flwr.train.model import adapted_whole
    from atlas_flwr.train.weights import ModelFiles

    config = folder.config()
    files = ModelFiles.of(config, "cpu")
    picked = chosen(folder, config, Choice(client=str(client)), files, files.outline())
    count = dealt_to(folder)
    dealt_again(folder.run_id(), config, client, count)
    batches, members, others = trained_and_not(folder, client, count)
    collate = batches.collator(batches.shard().task)
    model: Any = files.whole()
    few = min(texts, len(members), len(others))
    examples = [*members[:few], *others[:few]]
    losses = partial(_losses, collate=collate, examples=examples)
    within = halves(shadows, len(examples), config.seed)
    own = shadow_losses(
        config,
        model,
        picked.state,
        collate,
        examples,
        within,
        len(members),
        losses,
    )
    untrained = losses(model)
    with adapted_whole(model, picked.state, Scaling()) as adapted:
        return Suspects(losses(adapted.model), untrained, own, within)


def _losses(model: Any, collate: Collator, examples: Sequence[Example]) -> Tensor:
    """Return each example's mean loss over what is learned of it, shape (N,)."""
    import torch

    from atlas_flwr.train.step import batch_loss

    with torch.no_grad():
        found = [batch_loss(model.eval(), collate([example])) for example in examples]
    return torch.stack(found).float()
