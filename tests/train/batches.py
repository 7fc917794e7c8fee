"""Random batches for the tiny models of tests/families.py."""

from __future__ import annotations

import torch

from atlas_flwr.data import Batch
from atlas_flwr.data.token_rows import TokenRow, batch_of
from tests.families import CLASSES


def causal_batch(keep=3):
    ids = torch.randint(3, 61, (4, 10))
    labels = torch.full_like(ids, -100)
    labels[:, -keep + 1 :] = ids[:, -keep + 1 :]
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        targets=torch.zeros(4, dtype=torch.long),
        logits_to_keep=keep,
    )


def classifier_batch():
    ids = torch.randint(3, 61, (4, 10))
    labels = torch.randint(0, CLASSES, (4,))
    return Batch(ids, torch.ones_like(ids), labels, labels.clone())


def ragged_chats(rows=4, length=24):
    """Make rows of unlike lengths with two answers each, of a few tokens."""
    made = []
    for n in range(rows):
        ids = torch.randint(3, 61, (length - 2 * n,)).tolist()
        row = TokenRow(ids, [False] * len(ids))
        for place in (4, 5, len(ids) - 4 - n, len(ids) - 2, len(ids) - 1):
            row.learned[place] = True
        made.append(row)
    return batch_of(made, filler=0)
