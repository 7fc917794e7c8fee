from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import Scaling, attach, extract


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_scale_is_pefts(rank, use_rslora):
    config = LoraConfig(
        r=rank, lora_alpha=6, use_rslora=use_rslora, target_modules=["0"]
    )
    peft = get_peft_model(nn.Sequential(nn.Linear(9, 9)), config)
    wanted = peft.base_model.model[0].scaling["default"]
    assert Scaling(6, use_rslora)(rank) == pytest.approx(wanted)


SCALINGS = [Scaling(), Scaling(None, True), Scaling(6.0), Scaling(6.0, True)]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_attached_adapters_have_the_scale_at_every_rank(scaling):
    module = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(9, 9)}) for _ in range(3)])
    ranks = {"0.q": 1, "1.q": 4, "2.q": 4}
    attach(module, ranks, scaling)
    scales = {name: found.scale for name, found in extract(module).items()}
    assert scales == pytest.approx({name: scaling(r) for name, r in ranks.items()})
    assert not any(f.delta().any() for f in extract(module).values())


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(AdapterError, match="a number above 0"):
        Scaling(alpha)


def test_without_alpha_the_scale_is_one():
    assert [Scaling()(r) for r in (1, 7)] == [1, 1]
    assert torch.tensor(Scaling(2.0)(4)) == 0.5
