# SPDX-License-Identifier: Apache-2.0
"""Reading labels: the directions of gradients fall into groups, one for a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.adversary import Adversary, Who
from atlas_flwr.privacy.attacks.base import LABEL, Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["LabelClusters"]


class LabelClusters(Attack):
    """Clusters each client's gradients by direction (after arXiv 2102.08504).

    It knows no weights: only how many classes there are. Which group is which class is
    taken to be known, so that it is scored by the best assignment of one to the other.
    """

    name = "label-clusters"
    target = LABEL
    reads_summaries = True
    names_labels = False
    adversary = Adversary(
        Who.PASSIVE_SERVER, weights=False, adapters=False, texts=False, defence=False
    )
    about = "gradients grouped by direction; groups named as is best for the attacker"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want gradients of several texts a class."""
        if any(o.gradient is None for o in seen):
            return "it needs the tail's gradients, and not all of these texts have one"
        for client in {o.client for o in seen}:
            classes = len(knowledge.answers.get(client, ()))
            if not classes:
                return "it is for tasks with classes"
            count = sum(o.client == client for o in seen)
            if count < 2 * classes:
                return (
                    f"of client {client} there are {count} texts to attack, and "
                    f"{classes} classes want {2 * classes}; raise --texts, or record "
                    "more steps"
                )
        return ""

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Return the number of each text's group."""
        import torch
        import torch.nn.functional as F

        from atlas_flwr.clustering import cluster

        found = torch.zeros(len(seen), dtype=torch.long)
        for client in {o.client for o in seen}:
            mine = [i for i, o in enumerate(seen) if o.client == client]
            largest = []
            for i in mine:
                grad = seen[i].gradient
                assert grad is not None
                largest.append(F.normalize(grad[grad.norm(dim=1).argmax()], dim=0))
            count = len(knowledge.answers[client])
            rows = torch.stack(largest).numpy()
            labels = cluster(rows, k=count, seed=knowledge.seed).labels
            found[mine] = torch.tensor([int(n) for n in labels])
        return list(found[:, None])
