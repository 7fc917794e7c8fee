"""The Fisher metric of a head, against its whole Jacobian."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.data import resolve_model
from atlas_flwr.privacy.sensitivity import fisher_metric
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.split.passes import run_blocks


@pytest.mark.parametrize("model", ["tiny", "tiny-bert"])
def test_it_is_the_mean_square_of_the_jacobian(model):
    if model == "tiny":
        parts = partition(resolve_model(model).path, SplitPlan(2, 1))
    else:
        from transformers import AutoModelForSequenceClassification

        parts = partition(
            AutoModelForSequenceClassification.from_pretrained(
                resolve_model(model).path
            ),
            SplitPlan(2, 1),
        )
    head, ids = parts.head.eval(), torch.tensor([5, 40, 9])
    embeds = head.get_input_embeddings()(ids[None]).detach()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: run_blocks(head, inputs_embeds=x), embeds
    )
    wanted = float(jacobian.square().sum()) / embeds.numel()
    drawn = torch.Generator().manual_seed(0)
    found = fisher_metric(head, ids, draws=300, generator=drawn)
    assert found == pytest.approx(wanted, rel=0.05)
