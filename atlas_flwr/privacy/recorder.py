# SPDX-License-Identifier: Apache-2.0
"""Keeps what crosses the cut while a client trains, beside the texts it came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from atlas_flwr.data import Batch
from atlas_flwr.privacy.observation import Observation, Truth, as_received
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import NO_LABEL, LossReply, Role, TrunkCall
from atlas_flwr.wire import Codec

__all__ = ["RecordingTrunk", "truth_of"]


@dataclass
class RecordingTrunk(PassingTrunk):
    """Hand calls on to the trunk, and keep a copy of those of training steps.

    What is kept is what the trunk decodes, so that a lossy codec loses here, too.

    Parameters
    ----------
    trunk : TrunkClient
        Where calls go; nothing else may stand between.
    codec : Codec
        The connection's.
    client : str
        Whose texts these are.
    round : int
        Server round.
    cut : str
        The client's.
    limit : int
        Bytes after which nothing more is kept.

    Attributes
    ----------
    observations, truths : list
        What has been kept.
    """

    codec: Codec
    client: str
    round: int
    cut: str
    limit: int
    observations: list[Observation] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    _batch: Batch | None = None
    _bytes: int = 0
    _open: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Let what crosses meanwhile come from a batch."""
        before, self._batch = self._batch, batch
        try:
            yield
        finally:
            self._batch = before

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks, and keep what went there and came back."""
        answer = self.trunk.forward(call)
        self._keep(call, answer)
        return answer

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step, and keep the gradient that went there."""
        back = self.trunk.backward(step, grad)
        if step in self._open:
            first, mask = self._open.pop(step)
            for row, real in enumerate(mask):
                kept = self.observations[first + row]
                sent = self._decoded(grad[row].cpu()[real], Role.GRADIENT)
                self.observations[first + row] = replace(kept, gradient=sent)
        return back

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model in the trunk, and keep what went there."""
        reply = self.trunk.loss(call, labels, logits_to_keep)
        self._keep(call, None)
        return reply

    def _keep(self, call: TrunkCall, answer: Tensor | None) -> None:
        batch, step = self._batch, call.step
        if batch is None or step is None or self._bytes >= self.limit:
            return
        hidden = call.hidden.detach().cpu()
        mask = real_positions(call).cpu()
        first = len(self.observations)
        for row, real in enumerate(mask):
            back = None if answer is None else answer[row].detach().cpu()[real]
            self.observations.append(
                Observation(
                    self.client,
                    self.round,
                    step,
                    self.cut,
                    self._decoded(hidden[row][real], Role.ACTIVATION),
                    None if back is None else self._decoded(back, Role.ACTIVATION),
                    None,
                )
            )
            self.truths.append(truth_of(batch, row))
        if answer is not None:
            self._open[step] = first, mask
        self._bytes += int(mask.sum()) * hidden.shape[-1] * 4 * (3 if self._open else 1)

    def _decoded(self, values: Tensor, role: Role) -> Tensor:
        return as_received(self.codec, values, role)


def truth_of(batch: Batch, row: int) -> Truth:
    """Return what one of a batch's texts is."""
    real = batch.attention_mask[row] != 0
    ids = batch.own_ids[row]
    answer = torch.zeros_like(real)
    if batch.causal and not batch.looks_ahead:
        answer = batch.labels[row] != NO_LABEL
    labels = batch.targets if batch.truths is None else batch.truths
    return Truth(ids[real], answer[real], int(labels[row]))
