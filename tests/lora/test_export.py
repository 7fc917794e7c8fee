from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    Scaling,
    attach,
    attach_ia3,
    extract,
    ia3_key,
    ia3_shapes,
    linear_names,
    load,
    load_peft,
    save_peft,
)
from atlas_flwr.train.model import adapted_whole
from tests.families import CLASSES, build

HEADS = {
    "bert": ("classifier.",),
    "distilbert": ("pre_classifier.", "classifier."),
    "roberta": ("classifier.",),
    "llama-classifier": ("score.",),
}
FAMILIES = ["llama", "gpt2", *HEADS]


def adapt(model, family):
    """Draw adapters of mixed ranks and a classifier, and put them on the model."""
    attach(
        model, {n: 1 + i % 3 for i, n in enumerate(linear_names(model))}, Scaling(6.0)
    )
    drawn = {
        name: LoraFactors(torch.randn_like(f.A), 0.1 * torch.randn_like(f.B), 0.4)
        for name, f in extract(model).items()
    }
    load(model, drawn)
    dense = {}
    for key, value in model.named_parameters():
        if key.startswith(HEADS.get(family, ("-",))):
            torch.nn.init.normal_(value)
            dense[key] = value.detach().numpy()
    return AdapterState(drawn, dense)


def save(folder, state, family, base="x"):
    save_peft(folder, state, base_model=str(base), causal=family not in HEADS)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_is_saved_and_computes_the_same(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path / "whole")
    state = adapt(model, family)
    save(tmp_path / "adapter", state, family, tmp_path / "whole")
    extra = {"num_labels": CLASSES} if family in HEADS else {}
    whole = type(model).from_pretrained(tmp_path / "whole", **extra)
    loaded = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
    ids = torch.randint(3, 61, (2, 9))
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_can_be_read_back(family, tmp_path):
    state = adapt(build(family), family)
    save(tmp_path, state, family)
    found = load_peft(tmp_path)
    assert set(found.factors) == set(state.factors)
    for name, factors in state.factors.items():
        assert found.factors[name].rank == factors.rank
        torch.testing.assert_close(found.factors[name].delta(), factors.delta())
    assert {k: v.tolist() for k, v in found.dense.items()} == {
        k: v.tolist() for k, v in state.dense.items()
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read_at_pefts_own_scales(rslora, tmp_path):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={r"layers\.[01]\.self_attn\.q_proj": 3},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    model = get_peft_model(build("llama"), config)
    model.save_pretrained(str(tmp_path))
    found = load_peft(tmp_path).factors
    assert len(found) == 10
    for name, factors in found.items():
        layer = model.base_model.model.get_submodule(name)
        torch.testing.assert_close(factors.delta(), layer.get_delta_weight("default"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "llama-classifier"])
def test_peft_loads_ia3_and_computes_the_same(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path / "whole")
    drawn = {
        name: torch.empty(shape).uniform_(0.5, 1.5).numpy()
        for name, shape in ia3_shapes(model).items()
    }
    attach_ia3(model, drawn)
    dense = {ia3_key(name): value for name, value in drawn.items()}
    for key, value in model.named_parameters():
        if key.startswith(HEADS.get(family, ("-",))):
            torch.nn.init.normal_(value)
            dense[key] = value.detach().numpy()
    save(tmp_path / "adapter", AdapterState({}, dense), family, tmp_path / "whole")
    extra = {"num_labels": CLASSES} if family in HEADS else {}
    whole = type(model).from_pretrained(tmp_path / "whole", **extra)
    loaded = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
    ids = torch.randint(3, 61, (2, 9))
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_ia3_and_prompts_of_peft_are_read_as_peft_applies_them(kind, tmp_path):
    model = build("llama-classifier")
    fresh = copy.deepcopy(model)
    made = {
        "ia3": IA3Config(task_type="SEQ_CLS", init_ia3_weights=False),
        "prompt": PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    }[kind]
    adapted = get_peft_model(model, made)
    for value in adapted.parameters():
        if value.requires_grad:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    adapted.save_pretrained(str(tmp_path))
    given = {"input_ids": torch.randint(3, 61, (2, 9))}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    expected = adapted.eval()(**given).logits
    state = load_peft(tmp_path)
    with adapted_whole(fresh, state, Scaling()) as found:
        torch.testing.assert_close(found.model(**given).logits, expected)
    save(tmp_path / "ours", state, "llama-classifier")
    again = load_peft(tmp_path / "ours").dense
    assert again.keys() == state.dense.keys()
    assert all(np.array_equal(again[key], v) for key, v in state.dense.items())


def test_adapters_of_two_kinds_are_not_saved_together(tmp_path):
    lora = adapt(build("llama"), "llama").factors
    key = ia3_key("model.layers.0.mlp.down_proj")
    both = AdapterState(lora, {key: np.ones((1, 48), np.float32)})
    with pytest.raises(AdapterError, match="this has two"):
        save(tmp_path, both, "llama")


def test_an_empty_adapter_is_not_saved(tmp_path):
    with pytest.raises(AdapterError, match="no adapter"):
        save(tmp_path, AdapterState(), "llama")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="in PEFT's format"):
        load_peft(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", "{"),
        ("adapter_config.json", '{"peft_type": "OF_TOMORROW"}'),
        ("adapter_config.json", "[]"),
        ("adapter_model.safetensors", "version https://git-lfs.github.com/spec/v1"),
    ],
)
def test_a_damaged_file_of_an_adapter_is_named(name, content, tmp_path):
    save(tmp_path, adapt(build("llama"), "llama"), "llama")
    (tmp_path / name).write_text(content)
    with pytest.raises(AdapterError, match=f"{name} is .*copy it again"):
        load_peft(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("bias", "all"), ("peft_type", "LOHA")]
)
def test_adapters_that_factors_cannot_express_are_refused(key, value, tmp_path):
    save(tmp_path, adapt(build("llama"), "llama"), "llama")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(AdapterError, match=f"{key}|{value}"):
        load_peft(tmp_path)
