"""Tensors that checkpoints store otherwise than models have them are put together."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.split.cut import skeleton
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.trunk import LocalTrunk
from tests.families import FAMILIES, batch, build

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = ["mixtral", "qwen3-moe"]
CONVERTED = {
    **{name: FAMILIES[name][1] for name in EXPERTS},
    "one of each expert": hf.PhimoeConfig(**SMALL, num_local_experts=4),
    "one of all experts": hf.GraniteMoeConfig(**SMALL, num_local_experts=4),
    "one of several": hf.HrmTextConfig(**SMALL, head_dim=8),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_every_tensor_of_a_folder_is_the_models(kind, tmp_path):
    model = hf.AutoModelForCausalLM.from_config(CONVERTED[kind])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    source = CheckpointTensors(tmp_path, skeleton(type(model), model.config))
    expected = model.state_dict()
    for name in source.names:
        assert torch.equal(source.get(name), expected[name]), name
    assert set(expected) - set(source.names) <= set(model.all_tied_weights_keys)


def test_these_folders_do_store_tensors_otherwise(tmp_path):
    """Or the test above shows nothing."""
    for kind, config in CONVERTED.items():
        model = hf.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / kind)
        with safe_open(tmp_path / kind / "model.safetensors", "pt") as shard:
            assert set(shard.keys()) - set(model.state_dict()), kind


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plan", [SplitPlan(2, 1), SplitPlan(1, None)], ids=str)
@pytest.mark.parametrize("family", EXPERTS)
def test_a_split_model_from_a_folder_equals_the_unsplit_one(
    family, plan, dtype, tmp_path
):
    build(family).save_pretrained(tmp_path)
    made = FAMILIES[family][0]
    whole = made.from_pretrained(tmp_path, dtype=dtype or torch.float32).eval()
    parts = partition(tmp_path, plan, dtype=dtype)
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
    given = batch(family, "left")
    expected, got = whole(**given), split(**given)
    kept = given["attention_mask"].bool()
    assert torch.equal(got.logits[kept], expected.logits[kept])
    assert torch.equal(got.loss, expected.loss)


def test_a_folder_that_lacks_an_expert_is_refused(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    index = tmp_path / "model.safetensors.index.json"
    lines = index.read_text().splitlines()
    kept = [line for line in lines if "layers.0.block_sparse_moe.experts.3" not in line]
    assert len(kept) == len(lines) - 3
    index.write_text("\n".join(kept))
    with pytest.raises(PlanError, match=r"has shape \(3, .*says \(4, "):
        partition(tmp_path, SplitPlan(1, 1))
