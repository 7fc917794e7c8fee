# SPDX-License-Identifier: Apache-2.0
"""Padding that does not cross: rows of real positions, and back.

Attention masks padding out, so that nothing depends on it, and the gradient there is
zero. What is left out here comes back as zeros.

Letters: B texts, T positions, N of them real, D numbers each.
"""

from __future__ import annotations

from torch import Tensor

from atlas_flwr.errors import WireError

__all__ = ["check_spared", "padded", "spare_mask", "unpadded"]


def spare_mask(mask: Tensor | None) -> Tensor | None:
    """Return a mask as bool (B, T), on the CPU, if there is padding to spare.

    On the CPU, so that whoever indexes by it need not wait for a GPU to count.

    Parameters
    ----------
    mask : Tensor, optional
        Shape (B, T), 1 where there is a token. Masks of another form, additive ones for
        instance, spare nothing.
    """
    if mask is None or mask.dim() != 2 or mask.is_floating_point():
        return None
    real = mask.cpu() != 0
    return None if bool(real.all()) or not bool(real.any()) else real


def unpadded(values: Tensor, real: Tensor) -> Tensor:
    """Return the rows (N, D) of real positions, of values (B, T, D)."""
    return values[real]


def padded(rows: Tensor, real: Tensor) -> Tensor:
    """Put rows (N, D) back to their places; zeros elsewhere.

    Raises
    ------
    WireError
        If there are more or fewer rows than the mask has real positions.
    """
    count = int(real.sum())
    if rows.dim() != 2 or len(rows) != count:
        raise WireError(
            f"rows of shape {tuple(rows.shape)} for a mask with {count} real positions"
        )
    values = rows.new_zeros(*real.shape, rows.shape[-1])
    values[real] = rows
    return values


def check_spared(grad: Tensor, real: Tensor, whose: str) -> None:
    """Refuse a gradient that is not zero where it is not to cross.

    Parameters
    ----------
    grad : Tensor
        Shape (B, T, D).
    real : Tensor
        Bool, shape (B, T).
    whose : str
        The part of the model that made it, for the message.

    Raises
    ------
    WireError
        If the part reads padding: then what came without it was wrong.
    """
    lost = grad[~real]
    if bool((lost.isfinite() & (lost != 0)).any()):
        raise WireError(
            f"the {whose} of this model reads the padding of its texts, which does not "
            "cross the cut: set batch-size=1 and eval-batch-size=1, which leave none, "
            "or choose a model whose attention masks it out"
        )
