from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    ModernBertConfig,
    ModernBertModel,
)
from transformers import LlamaForCausalLM as Llama

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitPlan, load_parts, part_info, partition, trunk_view
from atlas_flwr.split.passes import run_blocks
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.types import Side
from tests.families import FAMILIES, build


@pytest.fixture
def saved(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    return model, tmp_path


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "gpt2", "bert", "opt", "bloom", "mpt"]
)
def test_parts_from_a_folder_equal_parts_from_memory(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    made = FAMILIES[family][0]
    loaded = partition(tmp_path, SplitPlan(2, 1), auto_class=made)
    shared = partition(model, SplitPlan(2, 1))
    for side in ("head", "trunk", "tail"):
        found = dict(getattr(loaded, side).named_parameters())
        expected = dict(getattr(shared, side).named_parameters())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_each_side_reads_only_its_own_tensors(saved, monkeypatch):
    _, folder = saved
    read: list[str] = []
    original = CheckpointTensors.read

    def spy(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(CheckpointTensors, "read", spy)
    load_parts(folder, SplitPlan(1, 1), sides=(Side.HEAD, Side.TAIL))
    blocks = {name.split(".")[2] for name in read if ".layers." in name}
    assert blocks == {"0", "4"}
    assert len(read) == len(set(read))
    read.clear()
    load_parts(folder, SplitPlan(1, 1), sides=(Side.TRUNK,))
    assert {name.split(".")[2] for name in read} == {"1", "2", "3"}


def test_parts_share_the_tensors_of_a_model_in_memory():
    model = build("llama")
    parts = partition(model, SplitPlan(1, 1))
    first = model.model.layers[0].mlp.up_proj.weight
    assert parts.head.layers[0].mlp.up_proj.weight.data_ptr() == first.data_ptr()


def test_names_go_to_the_whole_model_and_back():
    model = build("gpt2")
    names = {name for name, _ in model.named_parameters()}
    for part in vars(partition(model, SplitPlan(2, 1))).values():
        info = part_info(part)
        for local, _ in part.named_parameters():
            name = info.global_name(local)
            assert name in names or name == "lm_head.weight"
            assert info.local_name(name) == local


def test_a_name_of_another_side_has_no_local_name():
    head = partition(build("llama"), SplitPlan(2, 1)).head
    info = part_info(head)
    assert info.local_name("model.layers.2.mlp.up_proj") is None
    assert info.local_name("lm_head") is None


def test_a_view_of_the_trunk_runs_fewer_blocks_on_the_same_weights():
    model = build("gemma3")
    trunk = partition(model, SplitPlan(1, 1)).trunk
    view = trunk_view(trunk, 2, 4)
    alone = partition(model, SplitPlan(2, 1)).trunk
    hidden = torch.randn(2, 9, 32)
    assert torch.equal(
        run_blocks(view, inputs_embeds=hidden), run_blocks(alone, inputs_embeds=hidden)
    )
    assert view.layers[0] is trunk.layers[1]


def test_a_view_outside_the_trunk_is_refused():
    trunk = partition(build("llama"), SplitPlan(2, 1)).trunk
    with pytest.raises(PlanError, match=r"\[2, 4\)"):
        trunk_view(trunk, 1, 3)


def test_a_new_classifier_is_the_same_for_all_and_follows_the_seed(tmp_path):
    build("llama").save_pretrained(tmp_path)

    def score(seed):
        return load_parts(
            tmp_path,
            SplitPlan(1, 1),
            sides=(Side.TAIL,),
            auto_class=AutoModelForSequenceClassification,
            config_overrides={"num_labels": 7},
            seed=seed,
        ).tail.score.weight

    assert score(1).shape == (7, 32)
    assert torch.equal(score(1), score(1))
    assert not torch.equal(score(1), score(2))


def test_a_model_with_adapters_is_refused():
    from atlas_flwr.lora import Scaling, attach

    model = build("llama")
    attach(model, {"model.layers.0.mlp.up_proj": 2}, Scaling(4.0))
    with pytest.raises(PlanError, match="before adapters"):
        partition(model, SplitPlan(1, 1))


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=3, num_heads=2)
    with pytest.raises(PlanError, match="decoder or an encoder"):
        partition(T5ForConditionalGeneration(config), SplitPlan(1, 1))


def test_a_module_that_is_no_part_says_so():
    with pytest.raises(PlanError, match="partition"):
        part_info(torch.nn.Linear(2, 2))


PEAK = """
    import sys
    from atlas_flwr.split import SplitPlan, load_parts
    from atlas_flwr.split.passes import run_blocks
    from atlas_flwr.train.memory import PeakMeter
    from atlas_flwr.types import Side
    import torch

    torch.set_num_threads(1)
    load_parts(sys.argv[2], SplitPlan(1, 1), sides=(Side.HEAD,))  # imports, once
    with PeakMeter() as meter:
        part = load_parts(sys.argv[1], SplitPlan(1, 1), sides=(Side.HEAD,)).head
        with torch.no_grad():
            run_blocks(part, input_ids=torch.zeros(1, 4, dtype=torch.long))
    print(sum(p.numel() * 4 for p in part.parameters()), meter.peak_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_heads_peak_memory_is_its_own_tensors_plus_a_constant(saved, tmp_path):
    big = LlamaConfig(
        vocab_size=100,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
    )
    folder = tmp_path / "big"
    Llama(big).save_pretrained(folder)
    script = textwrap.dedent(PEAK)
    command = [sys.executable, "-c", script, str(folder), str(saved[1])]
    own, peak = map(int, subprocess.check_output(command, text=True).split()[-2:])
    whole = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert whole > 8 * own
    assert peak < own + 16 * 2**20


def test_only_the_shards_of_a_sides_own_tensors_are_opened(saved):
    model, folder = saved
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    heads = re.compile(r"layers\.0\.|embed")
    shards = index["weight_map"].items()
    needed = {shard for name, shard in shards if heads.search(name)}
    for shard in {shard for _, shard in shards} - needed:
        (folder / shard).unlink()
    parts = load_parts(folder, SplitPlan(1, 1), sides=(Side.HEAD,))
    first = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(parts.head.layers[0].mlp.up_proj.weight, first)
    with pytest.raises(OSError, match="does not appear to have a file"):
        load_parts(folder, SplitPlan(1, 1), sides=(Side.TRUNK,))


def test_names_of_old_and_of_bare_checkpoints_are_understood(tmp_path):
    model = build("bert")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .removeprefix("bert."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    model.config.save_pretrained(tmp_path)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    made = FAMILIES["bert"][0]
    head = load_parts(tmp_path, SplitPlan(1, 1), auto_class=made).head
    for name, value in head.named_parameters():
        assert torch.equal(value, model.get_parameter(f"bert.{name}")), name


def test_buffers_that_old_checkpoints_store_are_not_read(tmp_path):
    model = build("gpt2")
    tensors = {
        k: v.clone() for k, v in model.state_dict().items() if "lm_head" not in k
    }
    for block in range(5):
        tensors[f"transformer.h.{block}.attn.bias"] = torch.zeros(1, 1, 64, 64)
    model.config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    parts = partition(tmp_path, SplitPlan(1, 1), auto_class=FAMILIES["gpt2"][0])
    ids = torch.randint(3, 61, (2, 7))
    with torch.no_grad():
        hidden = run_blocks(
            parts.trunk, inputs_embeds=run_blocks(parts.head, input_ids=ids)
        )
        expected = model.transformer(ids, output_hidden_states=True).hidden_states[4]
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_tied_weights_stay_one_tensor_in_another_dtype(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    made = FAMILIES[family][0]
    parts = load_parts(tmp_path, SplitPlan(1, 1), auto_class=made, dtype=torch.bfloat16)
    table = parts.head.get_input_embeddings().weight
    out = parts.tail.get_output_embeddings().weight
    assert table.dtype == torch.bfloat16
    assert table.data_ptr() == out.data_ptr()


def test_buffers_follow_a_model_that_was_cast():
    model = build("llama").to(torch.float64)
    parts = partition(model, SplitPlan(1, 1))
    ids = torch.randint(3, 61, (2, 7))
    with torch.no_grad():
        hidden = run_blocks(parts.head, input_ids=ids)
        expected = model.model(ids, output_hidden_states=True).hidden_states[1]
    assert torch.equal(hidden, expected)


def test_computed_buffers_have_the_asked_dtype_not_the_stored_one(tmp_path):
    made = FAMILIES["gemma3"][0]
    build("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    model = made.from_pretrained(tmp_path, dtype=torch.float32).eval()
    head = load_parts(tmp_path, SplitPlan(1, 1), dtype=torch.float32).head
    ids = torch.randint(3, 61, (2, 7))
    with torch.no_grad():
        expected = model.model(ids, output_hidden_states=True).hidden_states[1]
        assert torch.equal(run_blocks(head, input_ids=ids), expected)


def test_a_new_norm_of_a_classifier_starts_as_the_identity(tmp_path):
    settings = {"global_attn_every_n_layers": 2, "local_attention": 4}
    config = ModernBertConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, pad_token_id=0, norm_bias=True, **settings,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(tmp_path)
    made = AutoModelForSequenceClassification
    tail = load_parts(tmp_path, SplitPlan(1, 1), auto_class=made).tail
    assert torch.equal(tail.head.norm.weight, torch.ones(32))
    assert torch.equal(tail.classifier.bias, torch.zeros(2))


def test_a_classifier_of_another_size_is_made_anew(tmp_path):
    build("bert").save_pretrained(tmp_path)
    made = AutoModelForSequenceClassification
    overrides = {"num_labels": 9}
    tail = load_parts(
        tmp_path, SplitPlan(1, 1), auto_class=made, config_overrides=overrides
    ).tail
    assert tail.classifier.weight.shape == (9, 32)


def test_a_missing_language_model_head_is_not_made_up(tmp_path):
    build("llama").model.save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"lm_head\.weight"):
        partition(tmp_path, SplitPlan(1, 1), auto_class=Llama)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_view_of_a_vanilla_trunk_serves_u_shaped_clients(family):
    model = build(family)
    trunk = partition(model, SplitPlan(1, None)).trunk
    alone = partition(model, SplitPlan(2, 1)).trunk
    view = trunk_view(trunk, 2, 4)
    hidden = torch.randn(2, 9, 32)
    with torch.no_grad():
        got = run_blocks(view, inputs_embeds=hidden)
        assert torch.equal(got, run_blocks(alone, inputs_embeds=hidden))
    names = {n for n, _ in alone.named_parameters()}
    assert names == {n for n, _ in view.named_parameters()}
    assert part_info(view) == part_info(alone)
