# SPDX-License-Identifier: Apache-2.0
r"""Sums of low-rank products from linear sketches of each: no product is shown alone.

Shapes: m outputs, n inputs, R the most that the rank of the sum can be, s = R + 4,
t = s + 4. With :math:`\Omega` (n, s) and :math:`\Psi` (m, t), Gaussian and the same for
all, client k makes

.. math:: Y_k = s_k B_k (A_k \Omega), \qquad Z_k = (\Psi^T s_k B_k) A_k

from its factors, without the (m, n) product. Both are linear: weighted sums of them are
the sketches Y, Z of :math:`X = \sum_k p_k s_k B_k A_k`. From these the generalised
Nyström formula (Nakatsukasa, arXiv 2009.11392) gives X back, exactly where its rank is
R at most:

.. math:: X = Y (\Psi^T Y)^+ Z = Q (\Psi^T Q)^+ Z, \qquad Q R = Y

The second form (Tropp et al., SIAM J. Matrix Anal. Appl. 38(4), 2017, section 4) is the
one computed: what the rounding of sums has added to Y is a few directions of Q more,
which Z does not have, and nothing small is inverted.

Where the sketches have more numbers than X itself, X is the sketch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.spectrum import in_canonical_form
from atlas_flwr.seeds import derive_seed

__all__ = ["Probes", "sketch_shapes"]

# More directions than the sum can have, for Y and again for Z: without, rounding is
# blown up a hundredfold (docs/decisions/secure-sketches.md).
OVERSAMPLED = 4
# What Y and Z say of X twice may differ by so much, relatively, beside the rounding.
_TOLERANCE = 1e-6


def sketch_shapes(shape: tuple[int, int], rank: int) -> dict[str, tuple[int, int]]:
    """Return what is sent of a layer, by name: both sketches, or the product.

    Parameters
    ----------
    shape : tuple[int, int]
        (m, n).
    rank : int
        The most that the sum's rank can be.
    """
    m, n = shape
    s = rank + OVERSAMPLED
    t = s + OVERSAMPLED
    if m * s + t * n >= m * n:
        return {"product": shape}
    return {"left": (t, n), "right": (m, s)}


@dataclass(frozen=True)
class Probes:
    """Omega and Psi of one layer; both empty where the product itself is sent.

    Attributes
    ----------
    name : str
        The layer's.
    rank : int
        The most that the sum's rank can be.
    right, left : Tensor
        Shapes (n, s) and (m, t), float64.
    """

    name: str
    rank: int
    right: Tensor
    left: Tensor

    @classmethod
    def drawn(cls, name: str, shape: tuple[int, int], rank: int, seed: int) -> Probes:
        """Draw them, by the seed and the layer's name."""
        m, n = shape
        shapes = sketch_shapes(shape, rank)
        s = shapes["right"][1] if "right" in shapes else 0
        t = shapes["left"][0] if "left" in shapes else 0
        generator = torch.Generator().manual_seed(derive_seed(seed, "probes", name))
        numbers = torch.randn(n * s + m * t, generator=generator, dtype=torch.float64)
        return cls(name, rank, numbers[: n * s].view(n, s), numbers[n * s :].view(m, t))

    def sketched(self, product: LoraFactors) -> dict[str, Tensor]:
        """Sketch one product, in float64; by name, as :func:`sketch_shapes` has them.

        Raises
        ------
        AdapterError
            If the factors are not finite.
        """
        product.check_finite(self.name)
        B = product.scale * product.B.detach().double()
        A = product.A.detach().double()
        if not self.right.shape[1]:
            return {"product": B @ A}
        return {"left": (self.left.T @ B) @ A, "right": B @ (A @ self.right)}

    def rebuilt(self, sums: Mapping[str, Tensor], rounding: float) -> LoraFactors:
        """Return the product whose sketches these are, in canonical form.

        Parameters
        ----------
        sums : Mapping[str, Tensor]
            Weighted sums of what :meth:`sketched` returned.
        rounding : float
            How far each of their numbers may be off.

        Raises
        ------
        AdapterError
            If both sketches are not of one matrix of that rank: somebody has drawn
            other probes, or sketched something else.
        """
        if "product" in sums:
            u, S, vt = torch.linalg.svd(sums["product"], full_matrices=False)
            return in_canonical_form(u, S, vt.T, self.rank)
        Y, Z = sums["right"], sums["left"]
        Q = torch.linalg.qr(Y)[0]
        core = torch.linalg.lstsq(self.left.T @ Q, Z).solution
        self._check(Y, Z, self.left.T @ (Q @ core), rounding)
        u, S, vt = torch.linalg.svd(core, full_matrices=False)
        return in_canonical_form(Q @ u, S, vt.T, self.rank)

    def _check(self, Y: Tensor, Z: Tensor, again: Tensor, rounding: float) -> None:
        """Refuse sketches of two matrices, or of one of a higher rank."""
        twice = self.left.T @ Y - Z @ self.right
        numbers = float(self.left.norm() * self.right.norm())
        allowed = _TOLERANCE * float(Z.norm() * self.right.norm()) + rounding * numbers
        odd = float(twice.norm()) / max(allowed, 1e-300)
        beyond = float((Z - again).norm())
        allowed = _TOLERANCE * float(Z.norm()) + 1e3 * rounding * Z.numel() ** 0.5
        odd = max(odd, beyond / max(allowed, 1e-300))
        if not odd <= 1:
            raise AdapterError(
                f"layer {self.name!r}: the sums of both sketches differ by {odd:.1e} "
                "times what rounding can do: they are not of one product of rank "
                f"{self.rank}. Do all clients have the same version of atlas-flwr and "
                "PyTorch?"
            )
