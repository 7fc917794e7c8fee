"""Arrays as PEFT itself writes them: what Atlas averages, what it refuses and why."""

from __future__ import annotations

import logging

import numpy as np
import peft
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import FedAvg
from peft import (
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from atlas_flwr.errors import AdapterError
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.strategies import Atlas
from tests.families import build
from tests.strategies.test_drop_in import (
    ALONE,
    PAIR,
    WRAPPERS,
    answering,
    moved,
    started,
)

LAYER = {"target_modules": ["q_proj"]}
PROMPT = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

AVERAGED = {
    "IA3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "OFT": peft.OFTConfig(**LAYER, oft_block_size=8, r=0),
    "VeRA": peft.VeraConfig(**LAYER, r=4),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt": peft.PromptTuningConfig(**PROMPT),
    "prefix": peft.PrefixTuningConfig(**PROMPT),
}
REFUSED = {
    "DoRA": (peft.LoraConfig(**LAYER, r=2, use_dora=True), "use_dora=False"),
    "LoHa": (peft.LoHaConfig(**LAYER, r=2), "factor of LoHa"),
    "LoKr": (peft.LoKrConfig(**LAYER, r=2), "factor of LoKr"),
    "AdaLoRA": (
        peft.AdaLoraConfig(**LAYER, init_r=2, total_step=9, tinit=1, tfinal=1),
        "another kind",
    ),
    "biases": (peft.LoraConfig(**LAYER, r=2, lora_bias=True), "another kind"),
    "embeddings": (
        peft.LoraConfig(target_modules=["embed_tokens"], r=2),
        "another kind",
    ),
    "experts": (
        peft.LoraConfig(**LAYER, target_parameters=EXPERTS, r=2),
        "experts as one parameter",
    ),
}


def arrays_of(config, family="llama"):
    model = get_peft_model(build(family), config)
    found = get_peft_model_state_dict(model)
    return {key: value.detach().numpy() for key, value in found.items()}


@pytest.mark.parametrize("kind", AVERAGED)
def test_what_is_no_lora_is_averaged_as_by_fedavg(kind):
    values = arrays_of(AVERAGED[kind])
    ours, _ = started(Atlas(**ALONE), answering(moved), values, rounds=2)
    theirs, _ = started(
        FedAvg(fraction_evaluate=0.0), answering(moved), values, rounds=2
    )
    assert list(ours.arrays) == list(values)
    for key, expected in theirs.arrays.items():
        got = ours.arrays[key].numpy()
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", AVERAGED)
def test_it_clusters_clients_too(kind):
    def apart(sent, number):
        sign = 1 if number % 2 else -1
        return {k: v + np.float32(sign) for k, v in sent.items()}

    strategy = Atlas(num_clusters=2, fraction_evaluate=0.0)
    started(strategy, answering(apart), arrays_of(AVERAGED[kind]), nodes=4, rounds=2)
    found = strategy.clusters
    assert found["1000"] == found["1014"] != found["1007"] == found["1021"]


OTHERS = {
    "AdaMSS": peft.AdamssConfig(**LAYER),
    "C3A": peft.C3AConfig(**LAYER, block_size=4),
    "DEFT": peft.DeftConfig(**LAYER),
    "FourierFT": peft.FourierFTConfig(**LAYER, n_frequency=20),
    "HiRA": peft.HiraConfig(**LAYER),
    "HRA": peft.HRAConfig(**LAYER),
    "OFT": AVERAGED["OFT"],
    "OSF": peft.OSFConfig(**LAYER),
    "PSOFT": peft.PsoftConfig(**LAYER),
    "SHiRA": peft.ShiraConfig(**LAYER, r=2),
    "WaveFT": peft.WaveFTConfig(**LAYER, n_frequency=20),
}


def merged_change(config, arrays):
    """Return what arrays make of the weights."""
    torch.manual_seed(0)
    model, before = build("llama"), build("llama").state_dict()
    torch.manual_seed(0)
    whole = get_peft_model(model, config)
    set_peft_model_state_dict(whole, arrays)
    after = whole.merge_and_unload().state_dict()
    return {k: after[k].double() - v.double() for k, v in before.items() if k in after}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_taken_without_a_word_has_an_exact_mean(kind):
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), OTHERS[kind])
    start = get_peft_model_state_dict(model)
    drawn = torch.Generator().manual_seed(0)
    two = [
        {
            k: v + 0.3 * torch.randn(v.shape, generator=drawn) * v.is_floating_point()
            for k, v in start.items()
        }
        for _ in range(2)
    ]
    mean = {k: (v + two[1][k]) / 2 for k, v in two[0].items()}
    *each, got = (merged_change(OTHERS[kind], arrays) for arrays in (*two, mean))
    expected = {k: (v + each[1][k]) / 2 for k, v in each[0].items()}
    error = sum(float((got[k] - v).norm() ** 2) for k, v in expected.items())
    size = sum(float(v.norm() ** 2) for v in expected.values())
    is_exact = error < 1e-6 * size
    try:
        layout = Layout.of(ArrayRecord({k: Array(v.numpy()) for k, v in start.items()}))
    except AdapterError:
        assert not is_exact
    else:
        assert bool(layout.nearly) != is_exact


def test_lora_is_added_up_as_products():
    values = arrays_of(peft.LoraConfig(**LAYER, r=2, modules_to_save=["lm_head"]))
    result, grid = started(Atlas(**ALONE), answering(moved), values)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    keys = (f"{layer}.lora_B.weight", f"{layer}.lora_A.weight")
    trained = [moved(values, number) for number in range(len(grid.contexts))]
    products = [t[keys[0]] @ t[keys[1]] for t in trained]
    expected = np.average(products, axis=0, weights=[1, 2, 3])
    B, A = (result.arrays[key].numpy() for key in keys)
    np.testing.assert_allclose(B @ A, expected, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_exact_sum_is_refused_with_the_reason(kind):
    config, why = REFUSED[kind]
    values = arrays_of(config, "mixtral" if kind == "experts" else "llama")
    with pytest.raises(AdapterError, match=why):
        started(Atlas(**ALONE), answering(moved), values)


MIXED = {"z.weight": np.ones(2, np.float32), **PAIR, "a.bias": np.ones(1, np.float32)}


def private(strategy, caplog, **settings):
    """Train a round behind Flower's local privacy; return how far each array moved."""
    mod = LocalDpMod(**settings, sensitivity=1.0, delta=1e-5)
    app = answering(moved, mods=[mod])
    np.random.seed(0)
    with caplog.at_level(logging.ERROR):
        result, _ = started(strategy, app, MIXED)
    assert "Mod" not in caplog.text  # which would say that it refuses the reply
    return {k: result.arrays[k].numpy() - MIXED[k] for k in ("z.weight", "a.bias")}


def test_flowers_local_privacy_finds_arrays_in_their_order_and_clips_them(caplog):
    free = private(Atlas(**ALONE), caplog, clipping_norm=1e9, epsilon=1e12)
    clipped = private(Atlas(**ALONE), caplog, clipping_norm=0.5, epsilon=1e12)
    theirs = private(
        FedAvg(fraction_evaluate=0.0), caplog, clipping_norm=0.5, epsilon=1e12
    )
    for key, value in theirs.items():
        np.testing.assert_allclose(clipped[key], value, atol=1e-5)
        assert np.linalg.norm(clipped[key]) < 0.5 < np.linalg.norm(free[key])


def test_its_noise_reaches_the_sum(caplog):
    noisy = private(Atlas(**ALONE), caplog, clipping_norm=0.5, epsilon=1e-3)
    assert max(np.abs(value).max() for value in noisy.values()) > 100


def two_kinds(sent, number):
    sign = 1 if number % 2 else -1
    return {k: v + np.float32(sign) for k, v in sent.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_flowers_privacy_wrappers_are_refused_round_clusters(wrapper):
    inner = Atlas(num_clusters=2, fraction_evaluate=0.0)
    app = answering(two_kinds, {i: {"norm_bit": 1} for i in range(4)})
    strategy = wrapper(inner, **WRAPPERS[wrapper] | {"num_sampled_clients": 4})
    with pytest.raises(AdapterError, match="each cluster, or client, here has arrays"):
        started(strategy, app, PAIR, nodes=4, rounds=2)


def test_local_privacy_works_with_clusters():
    mod = LocalDpMod(clipping_norm=9, sensitivity=1e-3, epsilon=1, delta=1e-5)
    strategy = Atlas(num_clusters=2, fraction_evaluate=0.0)
    app = answering(two_kinds, mods=[mod])
    started(strategy, app, PAIR, nodes=4, rounds=2)
    found = strategy.clusters
    assert found["1000"] == found["1014"] != found["1007"] == found["1021"]
