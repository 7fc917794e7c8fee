# SPDX-License-Identifier: Apache-2.0
r"""An auxiliary tail, so that a client need not wait for the trunk at every step.

After FSL-SAGE (arXiv 2505.23182). Of every k + 1 steps one goes over the cut and trains
as ever. Its smashed data z and the trunk's gradient g by them are kept, and a model of
the client's own learns to estimate that gradient,

.. math:: \min_a \| \beta \nabla_z F_a(z) - g \|^2 .

In the k steps that follow, the head is trained with the estimate alone, and nothing is
sent; trunk and tail rest.

The auxiliary model F_a is the client's tail right behind its head, with a bridge of low
rank between, z + (z A^T) B^T: so it takes a few more numbers, and no more modules. What
deviates from the paper: the bridge begins anew in every round instead of being averaged
by the server, and the scale beta >= 0, which is the best one in closed form, lets a
poor estimate move the head little.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from atlas_flwr.data import Batch
from atlas_flwr.split import SplitModel
from atlas_flwr.split.crossing import with_gradient
from atlas_flwr.split.passes import end_model, run_blocks, takes_positions
from atlas_flwr.train.step import batch_loss, device_of, model_inputs
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import TrunkCall, TrunkClient

__all__ = ["AuxiliaryTail", "Bridge"]

RANK = 16
ALIGNING_STEPS = 8
LEARNING_RATE = 0.01


class Bridge(nn.Module):
    """z + (z A^T) B^T, at first z.

    Parameters
    ----------
    width : int
        D.
    seed : int
        Draws A; B is zero.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(
            RANK, width, generator=torch.Generator().manual_seed(seed)
        ).div(width**0.5)
        self.A = nn.Parameter(drawn)
        self.B = nn.Parameter(torch.zeros(width, RANK))

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply it to hidden states of shape (B, T, D)."""
        change = hidden.float() @ self.A.T @ self.B.T
        return hidden + change.to(hidden.dtype)


class _Listening(PassingTrunk):
    """A trunk of which the last step's smashed data and gradient are kept."""

    def __init__(self, trunk: TrunkClient) -> None:
        super().__init__(trunk)
        self.hidden: Tensor | None = None
        self.gradient: Tensor | None = None

    def forward(self, call: TrunkCall) -> Tensor:
        self.hidden = call.hidden
        return self.trunk.forward(call)

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        back = self.trunk.backward(step, grad)
        self.gradient = None if back is None else back.to(grad.device)
        return self.gradient


class AuxiliaryTail:
    """The losses of the steps that do not go over the cut: k of k + 1.

    Parameters
    ----------
    model : SplitModel
        U-shaped. Its trunk is listened to from now on.
    local_steps : int
        k.
    seed : int
        Of the bridge.
    """

    def __init__(self, model: SplitModel, local_steps: int, seed: int) -> None:
        self.model = model
        self.local_steps = local_steps
        width, device = model.config.get_text_config().hidden_size, device_of(model)
        self.bridge = Bridge(width, seed).to(device)
        self.scale = torch.zeros((), device=device)
        self._trunk = model.trunk = _Listening(model.trunk)
        self._steps = torch.optim.AdamW(
            self.bridge.parameters(), lr=LEARNING_RATE, weight_decay=0.0
        )
        self._last: Batch | None = None

    def crosses(self, index: int) -> bool:
        """Tell whether step ``index``, counted from 0, goes over the cut."""
        return index % (self.local_steps + 1) == 0

    def heard(self, batch: Batch) -> None:
        """Learn from the step of this batch, which goes over the cut, before others."""
        self._last = batch

    def estimated_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a step that stays; its backward pass trains the head."""
        model = self.model
        if self._last is not None:
            self._align(model.tail, self._last)
            self._last = None
        hidden = run_blocks(model.head, **model_inputs(model, batch))
        loss, estimate = self._estimate(model.tail, hidden, batch, create_graph=False)
        return with_gradient(hidden, loss, self.scale.to(estimate) * estimate)

    def _align(self, tail: Any, batch: Batch) -> None:
        """Let the estimate come near the trunk's last gradient."""
        hidden, wanted = self._trunk.hidden, self._trunk.gradient
        assert hidden is not None
        assert wanted is not None
        wanted = wanted.float()  # squares of half precision would vanish
        parameters = list(self.bridge.parameters())
        for _ in range(ALIGNING_STEPS):
            _, found = self._estimate(tail, hidden, batch, create_graph=True)
            # At the best scale the miss is |g|^2 (1 - cos^2); the sign matters too.
            pair = found.float().flatten(), wanted.flatten()
            miss = 1 - F.cosine_similarity(*pair, dim=0)
            grads = torch.autograd.grad(miss, parameters)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            self._steps.step()
        found = self._estimate(tail, hidden, batch, create_graph=False)[1].float()
        best = (found * wanted).sum() / found.square().sum().clamp_min(1e-30)
        self.scale = best.clamp_min(0)

    def _estimate(
        self, tail: Any, hidden: Tensor, batch: Batch, *, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the auxiliary loss and its gradient by the smashed data."""
        leaf = hidden.detach().requires_grad_()
        # Fused attention cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            joined = _Joined(self.bridge, tail, leaf)
            loss = batch_loss(joined, batch)
            (found,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
        return loss.detach(), found


class _Joined(nn.Module):
    """Bridge and tail, behind smashed data that are there already."""

    def __init__(self, bridge: Bridge, tail: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.bridge = bridge
        self.tail = tail
        self._hidden = hidden

    @property
    def takes_positions(self) -> bool:
        return takes_positions(self.tail)

    def get_output_embeddings(self) -> nn.Module | None:
        tail: Any = self.tail
        found: nn.Module | None = tail.get_output_embeddings()
        return found

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> Any:
        return end_model(
            self.tail,
            self.bridge(self._hidden),
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs.get("position_ids"),
            logits_to_keep=logits_to_keep,
        )
