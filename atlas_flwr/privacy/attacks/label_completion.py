# SPDX-License-Identifier: Apache-2.0
"""Reading labels by a few labelled texts of the attacker's own: model completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.adversary import Adversary, Who
from atlas_flwr.privacy.attacks.base import LABEL, Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge, LabelledText
    from atlas_flwr.privacy.observation import Observation

__all__ = ["LabelCompletion"]

STEPS = 1000  # of the solver, at most


class LabelCompletion(Attack):
    """Completes the model by a classifier of its own (after Fu et al., USENIX 2022).

    A server has the trunk. It runs what its own labelled texts would send through the
    public one, fits a logistic regression on what comes out, in place of the tail that
    it does not have, and asks that for what the client sent. It needs no gradient and
    no tail, and reads the text's true class: answers that are changed at random do not
    mislead it. Of the paper's two forms this is the simple one, without MixMatch on
    unlabelled texts.
    """

    name = "label-completion"
    target = LABEL
    reads_summaries = True
    adversary = Adversary(Who.PASSIVE_SERVER, labels=True)
    about = "a classifier behind the public trunk, fitted on a few labelled texts"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want classes, labels that are not sent, and texts of others to learn from."""
        if any(o.answer is None for o in seen):
            return "a vanilla split sends the labels"
        if any(not knowledge.answers.get(o.client) for o in seen):
            return "it is for tasks with classes"
        if knowledge.labelled is None:
            return "it needs labelled texts of the task"
        for client in sorted({o.client for o in seen}):
            if len({text.label for text in knowledge.labelled(client)}) < 2:
                return (
                    f"client {client} has the texts of its task, and leaves none of "
                    "two classes"
                )
        return ""

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess the class of each text."""
        import torch

        assert knowledge.labelled is not None
        found = torch.zeros(len(seen), dtype=torch.long)
        for client in {o.client for o in seen}:
            mine = [i for i, o in enumerate(seen) if o.client == client]
            first = seen[mine[0]]
            own = knowledge.labelled(client)
            behind = own[0].word
            # In training a causal model's label word crosses, too, behind its text.
            sent = [seen[i].hidden[: len(seen[i].hidden) - behind] for i in mine]
            table = _features(knowledge, first, [text.hidden for text in own])
            asked = _features(knowledge, first, sent)
            found[mine] = _classes(table, own, asked)
        return list(found[:, None])


def _features(
    knowledge: Knowledge, seen: Observation, sent: Sequence[Tensor]
) -> Tensor:
    """Return for each text its first, mean and last position behind the trunk."""
    import torch

    deep = [knowledge.model.deep(seen, hidden).float() for hidden in sent]
    return torch.stack([torch.cat([d[0], d.mean(0), d[-1]]) for d in deep])


def _classes(table: Tensor, own: Sequence[LabelledText], asked: Tensor) -> Tensor:
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=STEPS))
    fitted.fit(table.numpy(), [text.label for text in own])
    return torch.tensor(fitted.predict(asked.numpy())).long()
