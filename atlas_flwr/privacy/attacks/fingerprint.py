# SPDX-License-Identifier: Apache-2.0
"""Telling a client's task and its balance of labels by its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atlas_flwr.privacy.attacks.base import SketchAttack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.privacy.attacks.base import Shadows

__all__ = ["Fingerprint"]

PENALTIES = tuple(10.0**power for power in range(-4, 5))


class Fingerprint(SketchAttack):
    """Compares a client's sketch with those of clients that the attacker makes up.

    These are of public texts of the tasks that it thinks possible, by the public model
    at the shared start, of many balances of labels (property inference by shadows,
    after Ateniese et al., arXiv 1306.4447). A task's are told by the nearest mean, and
    a balance by ridge regression; noise that clients add is added to the shadows, too.
    """

    name = "fingerprint"
    about = "fingerprints of clients made up of public texts: whose is most like this?"

    def task(self, sketch: NDArray[Any], shadows: Mapping[str, Shadows]) -> str:
        """Return the task whose shadows' mean is nearest, about the mean of all."""
        import numpy as np

        from atlas_flwr.clustering.rows import Rows

        means = [_directions(one.sketches).mean(0) for one in shadows.values()]
        origin = np.mean(means, axis=0)
        row = Rows.of(sketch[None], origin).values[0]
        centres = [
            Rows.of(one.sketches, origin).values.mean(0) for one in shadows.values()
        ]
        away = [float(((row - centre) ** 2).sum()) for centre in centres]
        return [*shadows][int(np.argmin(away))]

    def balance(self, sketch: NDArray[Any], shadows: Shadows) -> NDArray[Any]:
        """Return a regression's answer, as shares.

        The penalty is that by which each half's shadows are told best by the other's.
        """
        import numpy as np

        rows = _directions(shadows.sketches)
        middle, usual = rows.mean(0), shadows.shares.mean(0)
        x, y, second = rows - middle, shadows.shares - usual, shadows.second

        def missed(penalty: float) -> float:
            halves = (
                x[half] @ _weights(x[~half], y[~half], penalty) - y[half]
                for half in (second, ~second)
            )
            return sum(float((off**2).sum()) for off in halves)

        weights = _weights(x, y, min(PENALTIES, key=missed))
        found = (_directions(sketch[None])[0] - middle) @ weights + usual
        found = np.maximum(found, 1e-9)
        shares: NDArray[Any] = found / found.sum()
        return shares


def _weights(x: NDArray[Any], y: NDArray[Any], penalty: float) -> NDArray[Any]:
    """Return the weights (D, classes) of a ridge regression of y (N, classes).

    By as many equations as there are rows, which are fewer than an update's numbers.
    """
    import numpy as np

    square = x @ x.T + penalty * np.eye(len(x))
    weights: NDArray[Any] = x.T @ np.linalg.solve(square, y)
    return weights


def _directions(sketches: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over each sketch's parts (N, P, D), of unit norm: (N, D)."""
    import numpy as np

    means = np.asarray(sketches, np.float64).mean(1)
    rows: NDArray[Any] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return rows
