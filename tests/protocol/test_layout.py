"""Which arrays a federation can exchange, and which it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.protocol.layout import Layout


def arrays_of(config):
    """What a client that trains with PEFT would send."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    state = get_peft_model_state_dict(get_peft_model(model, config))
    return ArrayRecord({k: Array(v.detach().numpy()) for k, v in state.items()})


def test_pefts_lora_is_read_as_factors():
    layout = Layout.of(arrays_of(LoraConfig(r=2, target_modules=["0", "2"])))
    assert len(layout.layers) == 2
    assert not layout.dense


def test_ia3_is_averaged_which_is_exact_as_it_is_linear_in_its_vector():
    config = IA3Config(target_modules=["0"], feedforward_modules=[])
    layout = Layout.of(arrays_of(config))
    assert not layout.layers
    assert len(layout.dense) == 1


def test_dora_is_refused_with_the_reason():
    with pytest.raises(AdapterError, match="neither a sum of such products nor a mean"):
        Layout.of(arrays_of(LoraConfig(r=2, target_modules=["0"], use_dora=True)))


def test_lora_of_an_embedding_is_refused():
    arrays = ArrayRecord({"e.lora_embedding_A": Array(np.zeros((2, 5), np.float32))})
    with pytest.raises(AdapterError, match="Adapt linear layers only"):
        Layout.of(arrays)


@given(r=st.integers(1, 4), alpha=st.floats(0.5, 32), own=st.floats(0.5, 32))
def test_what_is_written_is_read_back_at_any_scale(r, alpha, own):
    config = LoraConfig(r=4, target_modules=["0"])
    layout = Layout.of(arrays_of(config), Scaling(alpha))
    name = next(iter(layout.layers))
    factors = LoraFactors(torch.randn(r, 5), torch.randn(4, r), 0.7)
    folded = {name: LoraFactors(torch.randn(2, 5), torch.randn(4, 2), 0.3)}
    theirs = Scaling(own)
    written = layout.write(AdapterState({name: factors}, folded=folded), theirs)
    found = layout.read(written, "x", theirs)
    torch.testing.assert_close(
        found.factors[name].delta(), factors.delta(), rtol=1e-4, atol=1e-5
    )
    assert found.factors[name].scale == theirs(r)
    torch.testing.assert_close(found.folded[name].delta(), folded[name].delta())
