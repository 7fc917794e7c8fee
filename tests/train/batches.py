"""Random batches for the tiny models of tests/families.py."""

from __future__ import annotations

import torch

from atlas_flwr.data import Batch
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
