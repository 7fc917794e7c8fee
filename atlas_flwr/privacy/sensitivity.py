# SPDX-License-Identifier: Apache-2.0
r"""How strongly what crosses follows the text: the Fisher metric of privacy-aware SFL.

Of a head :math:`f(x)`, :math:`x` the :math:`d` numbers of a text's embeddings, it is

.. math:: \psi = \operatorname{tr}(J^\top J) / d, \qquad J = \partial f / \partial x,

(IEEE IoT-J 2025, 10.1109/JIOT.2025.3600269), here by Hutchinson's estimate, the mean of
:math:`\lVert J^\top v \rVert^2` over random signs :math:`v`. It asks how far small
changes of the text move what crosses, not whether two texts can be told apart.

Shapes: T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas_flwr.split.passes import run_blocks

__all__ = ["fisher_metric"]


@torch.enable_grad()
def fisher_metric(
    head: Any, ids: Tensor, *, draws: int, generator: torch.Generator
) -> float:
    """Estimate a head's metric on one text.

    Parameters
    ----------
    head : PreTrainedModel
        A part with the embeddings.
    ids : Tensor
        Shape (T,).
    draws : int
        Of random signs; each costs a backward pass.
    generator : torch.Generator
        Draws them.
    """
    embeds = head.get_input_embeddings()(ids[None]).detach().requires_grad_()
    hidden = run_blocks(head, inputs_embeds=embeds)
    numbers, total = embeds.numel(), 0.0
    for _ in range(draws):
        drawn = torch.randint(2, hidden.shape, generator=generator)
        signs = (2 * drawn - 1).to(hidden)
        (back,) = torch.autograd.grad(hidden, embeds, signs, retain_graph=True)
        total += float(back.double().square().sum())
    return total / (draws * int(numbers))
