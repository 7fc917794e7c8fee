# SPDX-License-Identifier: Apache-2.0
"""Prompts alone, with what follows each as its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from atlas_flwr.data.batches import Batch, Collator
from atlas_flwr.types import NO_LABEL

if TYPE_CHECKING:
    from atlas_flwr.data.examples import Example

__all__ = ["NextTokenCollator"]


class NextTokenCollator(Collator):
    """A decoder's prompts, with the label's first token as what follows each.

    Labels are one longer than the rows, so that they can be learned where the text
    ends and no token of the label is read.

    Parameters
    ----------
    inner : Collator
        Of the same task, for a causal model.
    """

    def __init__(self, inner: Collator) -> None:
        self._inner = inner
        self.label_ids = inner.label_ids

    def __call__(self, examples: Sequence[Example], prompt: bool = False) -> Batch:
        """Collate examples."""
        batch = self._inner(examples, prompt=True)
        if prompt:
            return batch
        rows, length = batch.input_ids.shape
        labels = torch.full((rows, length + 1), NO_LABEL)
        labels[:, -1] = torch.tensor(list(self.label_ids))[batch.targets]
        return replace(batch, labels=labels, logits_to_keep=1)
