# SPDX-License-Identifier: Apache-2.0
"""Labelled texts of an attacker's own, and the trunk that they go through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_flwr.config import RunConfig
    from atlas_flwr.privacy import Recording
    from atlas_flwr.privacy.knowledge import Knowledge, LabelledText
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.weights import ModelFiles

__all__ = ["OWN_SECRET", "labelled_texts", "trunk_of"]

EACH = 8  # texts of a class
OWN_SECRET = b"the attacker's"


def trunk_of(files: ModelFiles, plan: SplitPlan) -> Any:
    """Load the public trunk of a cut."""
    from atlas_flwr.types import Side

    return files.parts(plan, (Side.TRUNK,)).trunk


def labelled_texts(
    config: RunConfig,
    files: ModelFiles,
    knows: Knowledge,
    found: Sequence[Recording],
    client: str,
) -> list[LabelledText]:
    """Run a few texts of a client's task, and none of its own, through its head.

    Parameters
    ----------
    config, files
        The run's.
    knows : Knowledge
        For head, defence and codec.
    found : Sequence[Recording]
        For the client's own texts.
    client : str
        Whose task.
    """
    import torch

    from atlas_flwr.data import load_task, make_shard, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.privacy.knowledge import LabelledText
    from atlas_flwr.remedies.wire_defence import read_through

    mine = [r for r in found if r.client == client]
    told = {tuple(t.prompt) for r in mine for t in r.truths}
    task = load_task(config.task_of(int(client)))
    tokenizer = tokenizer_of(files.source)
    plain = collator_of(files.source, tokenizer, task, config.max_length)
    collate = read_through(plain, knows.defence, files, OWN_SECRET)
    classes = len(task.labels)
    generator = torch.Generator().manual_seed(knows.seed)
    shard = make_shard(0, 1, [task], seed=knows.seed)
    # What a defence replaces in a client's texts it replaces in these; labels stay.
    own = knows.defence.examples(shard.train, classes, OWN_SECRET, learned=False)
    texts: list[LabelledText] = []
    counts: Counter[int] = Counter()
    for example in own:
        if counts[example.label] == EACH:
            continue
        batch = collate([example], prompt=True)
        if tuple(batch.own_ids[0].tolist()) in told:
            continue
        first, ids = mine[0].observations[0], batch.input_ids
        with torch.no_grad():
            hidden = knows.model.crossing(first, ids)[0].float()
        sent = knows.crossed(hidden, generator)
        word = 0 if knows.summarised else plain.longest_word
        texts.append(LabelledText(sent, example.label, word))
        counts[example.label] += 1
        if sum(counts.values()) == EACH * classes:
            break
    return texts
