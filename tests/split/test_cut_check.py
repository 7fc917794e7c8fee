"""A model is cut exactly, or it is refused; it is never cut wrongly."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitModel, SplitPlan, load_parts, partition
from atlas_flwr.trunk import LocalTrunk
from atlas_flwr.types import Side

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
OLDER = {"vocab_size": 61, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

EXACT = {
    "inverse-layer-scale": hf.GPT2Config(**OLDER, scale_attn_by_inverse_layer_idx=True),
    "no-rope-layers": hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0, 1, 0]),
    "alibi": hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=4, n_head=4),
    "experts": hf.Qwen3MoeConfig(**GROUPED, **MOE),
    "state-space": hf.MambaConfig(
        vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=4
    ),
    "projections": hf.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "use_cache known to the base alone": hf.GraniteMoeConfig(**SIZES),
    "as-many-ids-as-blocks": hf.LlamaConfig(**GROUPED, eos_token_id=[2, 3, 4, 5]),
}
REFUSED = {
    "scaled embeddings": (
        hf.GraniteConfig(**SIZES, num_key_value_heads=2, embedding_multiplier=3.0),
        "before its first block",
    ),
    "a norm before and after": (hf.NanoChatConfig(**SIZES), "norm comes before its"),
    "a part of another model": (
        hf.PegasusConfig(vocab_size=61, d_model=32, decoder_layers=4, pad_token_id=0),
        "where its embeddings are",
    ),
    "computed positions": (hf.CTRLConfig(**OLDER, dff=48), "before its first block"),
    "relative positions": (
        hf.DebertaV2Config(**SIZES, **RELATIVE, position_buckets=8),
        "rel_embeddings",
    ),
    "bias of all blocks": (hf.MPNetConfig(**SIZES), "relative_attention_bias"),
    "one block for all": (hf.AlbertConfig(**SIZES), "0 lists of 4 blocks"),
    "embeddings into each block": (
        hf.Zamba2Config(
            vocab_size=61,
            hidden_size=32,
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            num_attention_heads=4,
            mamba_d_state=4,
            mamba_headdim=8,
            n_mamba_heads=8,
            num_mem_blocks=1,
            hybrid_layer_ids=[1, 3],
        ),
        "given something else",
    ),
    "blocks that hand on a state": (
        hf.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=4),
        "does not run on hidden states and a mask alone",
    ),
    "more than language": (
        hf.Gemma3Config(text_config=GROUPED, vision_config={"num_hidden_layers": 2}),
        "more than a language model",
    ),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("plan", [SplitPlan(2, 1), SplitPlan(1, None)], ids=str)
def test_an_unusual_model_is_cut_exactly(name, plan):
    model = hf.AutoModelForCausalLM.from_config(EXACT[name]).eval()
    parts = partition(model, plan)
    made = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
    ids = torch.randint(6, 61, (2, 7))
    with torch.no_grad():
        expected, got = model(ids, labels=ids), made(ids, labels=ids)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_a_cut_would_break_is_refused_before_weights_are_read(
    name, tmp_path
):
    config, why = REFUSED[name]
    config.save_pretrained(tmp_path)  # and no weights
    encodes = type(config) in hf.AutoModelForSequenceClassification._model_mapping
    causal = type(config) in hf.AutoModelForCausalLM._model_mapping
    made = hf.AutoModelForCausalLM
    if encodes and not causal:
        made = hf.AutoModelForSequenceClassification
    with pytest.raises(PlanError, match=why):
        load_parts(tmp_path, SplitPlan(1, 1), sides=(Side.HEAD,), auto_class=made)


def test_a_projection_encoder_is_cut_exactly():
    config = hf.ElectraConfig(**SIZES, embedding_size=16)
    model = hf.ElectraForSequenceClassification(config).eval()
    parts = partition(model, SplitPlan(1, 1))
    made = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
    ids = torch.randint(6, 61, (2, 7))
    with torch.no_grad():
        assert torch.equal(made(ids).logits, model(ids).logits)
