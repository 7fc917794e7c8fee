# SPDX-License-Identifier: Apache-2.0
"""Summary positions: learned positions that read a text, and that alone cross the cut.

A client puts S learned positions where a text ends, its head reads the text into them,
and behind one constant first position they are all that the trunk ever sees: S + 1 rows
a text, however long it is. From the cut on, the model is masked: nothing attends to the
text's own positions. Positions are counted anew there, from 0, so that a text's length
does not cross either.

The first position is the sink that attention of trained models wants (arXiv
2309.17453). In a causal model it comes before the text and so cannot read it. In an
encoder, where all positions read all others, it is one summary more, and the one that
is pooled; all stand before the text then.

Letters: B texts, T tokens, S summary positions, D numbers each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.errors import PlanError
from atlas_flwr.types import NO_LABEL, TrunkCall

__all__ = ["SUMMARY_KEY", "Summary", "attach_summary", "reads_forward_only"]

SUMMARY_KEY = "summary_embeddings"


class Summary(nn.Module):
    """Learned positions, and what of a text crosses with them.

    Parameters
    ----------
    embeddings : Tensor
        Shape (1 + S, D): the first position, and the S that read the text.
    causal : bool
        Whether the model's positions read only those before them.

    Raises
    ------
    PlanError
        If there are fewer than two rows.
    """

    def __init__(self, embeddings: Tensor, *, causal: bool) -> None:
        super().__init__()
        if embeddings.dim() != 2 or len(embeddings) < 2:
            raise PlanError(
                f"summary embeddings of shape {tuple(embeddings.shape)}; they must be "
                "(1 + S, D), for a first position and at least one that reads the text"
            )
        self.embeddings = nn.Parameter(embeddings)
        self.causal = causal

    @property
    def crossing(self) -> int:
        """Rows of a text that cross: 1 + S."""
        return len(self.embeddings)

    def around(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Put the learned positions around the texts of a head's inputs.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            ``inputs_embeds`` of shape (B, T, D); where given, ``attention_mask``,
            ``position_ids`` and ``token_type_ids`` of shape (B, T).

        Returns
        -------
        dict[str, Any]
            The same with T + S + 1 positions.
        """
        embeds = inputs["inputs_embeds"]
        rows = len(embeds)
        learned = self.embeddings.to(embeds).expand(rows, -1, -1)
        before = 1 if self.causal else self.crossing
        after = self.crossing - before
        order = _order(inputs, before, after)

        def joined(first: Tensor, text: Tensor, last: Tensor) -> Tensor:
            both = torch.cat([first.to(text), text, last.to(text)], dim=1)
            at = order if both.dim() == 2 else order[..., None]
            return torch.take_along_dim(both, at, dim=1)

        out = {**inputs, "inputs_embeds": joined(*_parted(learned, before, embeds))}
        for key, filled in (("attention_mask", 1), ("token_type_ids", 0)):
            found = inputs.get(key)
            if found is not None:
                extra = found.new_full((rows, self.crossing), filled)
                out[key] = joined(*_parted(extra, before, found))
        positions = inputs.get("position_ids")
        if positions is not None:
            text = positions.expand(rows, -1) + before
            first = torch.arange(before, device=text.device).expand(rows, -1)
            steps = torch.arange(1, after + 1, device=text.device)
            last = text.amax(dim=1, keepdim=True) + steps
            out["position_ids"] = joined(first, text, last)
        return out

    def leaving(self, hidden: Tensor, attention_mask: Tensor | None) -> TrunkCall:
        """Return what crosses: the learned positions, and nothing else.

        Parameters
        ----------
        hidden : Tensor
            Shape (B, T + S + 1, D): what the head made of :meth:`around`'s inputs.
        attention_mask : Tensor, optional
            Shape (B, T + S + 1), as the head had it.
        """
        count, length = self.crossing, hidden.shape[1]
        if not self.causal:
            return TrunkCall(hidden[:, :count])
        first = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
        if attention_mask is not None:
            first = (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)
        last = torch.arange(length - count + 1, length, device=hidden.device)
        at = torch.cat([first, last.expand(len(hidden), -1)], dim=1)
        return TrunkCall(torch.take_along_dim(hidden, at[..., None], dim=1))

    def labels(self, labels: Tensor) -> Tensor:
        """Return the labels of what crosses, whether the texts are longer or shorter.

        Parameters
        ----------
        labels : Tensor
            Shape (B, T + 1), the last of the token that follows the text.

        Returns
        -------
        Tensor
            Shape (B, S + 2), likewise.
        """
        kept = labels[:, -self.crossing - 1 :]
        missing = self.crossing + 1 - kept.shape[1]
        return F.pad(kept, (missing, 0), value=NO_LABEL)


@contextmanager
def attach_summary(model: Any, embeddings: Tensor | None) -> Iterator[Summary | None]:
    """Let only summary positions of a split model's texts cross, while in force.

    Parameters
    ----------
    model : SplitModel
        Gets back its own form afterwards.
    embeddings : Tensor, optional
        Shape (1 + S, D), trained in float32; ``None`` changes nothing.

    Raises
    ------
    PlanError
        If they are not of the model's width, or its head does not tell how it reads.
    """
    if embeddings is None:
        yield None
        return
    table = model.get_input_embeddings().weight
    if embeddings.shape[-1] != table.shape[1]:
        raise PlanError(
            f"summary embeddings of shape {tuple(embeddings.shape)}; this model's have "
            f"{table.shape[1]} numbers each"
        )
    value = embeddings.to(device=table.device, dtype=torch.float32, copy=True)
    model.summary = Summary(value, causal=reads_forward_only(model.head))
    try:
        yield model.summary
    finally:
        model.summary = None


def reads_forward_only(part: nn.Module) -> bool:
    """Tell whether a part's attention is causal.

    Raises
    ------
    PlanError
        If its modules do not say.
    """
    said = {bool(m.is_causal) for m in part.modules() if hasattr(m, "is_causal")}
    if len(said) != 1:
        raise PlanError(
            f"{type(part).__name__}: its attention does not say whether it is causal "
            "(`is_causal`), so nobody knows where summary positions belong; set "
            "summary-positions=0"
        )
    return said.pop()


def _parted(
    learned: Tensor, before: int, text: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return learned[:, :before], text, learned[:, before:]


def _order(inputs: Mapping[str, Any], before: int, after: int) -> Tensor:
    """Where each new position comes from, in the row [first, text, last].

    The first ones stand after a row's padding on the left, so that what a model makes
    of a text does not depend on its batch.
    """
    embeds, mask = inputs["inputs_embeds"], inputs.get("attention_mask")
    rows, length = embeds.shape[:2]
    here = torch.arange(before + length + after, device=embeds.device)
    padding = torch.zeros(rows, 1, dtype=torch.long, device=embeds.device)
    if mask is not None:
        padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    moved = torch.where(here < padding + before, here - padding, here)
    return torch.where(here < padding, here + before, moved)
