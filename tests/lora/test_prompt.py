"""Prompts on a whole model are PEFT's prompt tuning; padding does not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import PROMPT_KEY, attach_prompt, prepended
from tests.families import FAMILIES, batch, build

P = 4
CAUSAL = [n for n, (made, _) in FAMILIES.items() if "Sequence" not in made.__name__]
ENCODERS = ["bert", "roberta"]
# PEFT does not know under which key MPT keeps its number of heads.
TOLD = [n for n in CAUSAL + ENCODERS if n != "mpt"]


def drawn(model):
    width = model.get_input_embeddings().weight.shape[1]
    return {PROMPT_KEY: torch.randn(P, width).mul(0.3).numpy()}


def peft_of(model, prompt):
    causal = model.config.num_labels == 2
    made = get_peft_model(
        model,
        PromptTuningConfig(
            task_type="CAUSAL_LM" if causal else "SEQ_CLS", num_virtual_tokens=P
        ),
    )
    value = torch.from_numpy(prompt[PROMPT_KEY])
    made.prompt_encoder["default"].embedding.weight.data = value
    return made


@pytest.mark.parametrize("pad", ["", "right"])
@pytest.mark.parametrize("family", TOLD)
def test_a_prompted_model_computes_what_pefts_computes(family, pad):
    model, given = build(family), batch(family, pad)
    prompt = drawn(model)
    with attach_prompt(model, prompt):
        out = model(**given)
    expected = peft_of(model, prompt)(**given)
    kept = torch.ones(out.logits.shape[:2], dtype=torch.bool)
    if family in CAUSAL:
        kept = torch.cat([torch.ones(3, P), given["attention_mask"]], 1).bool()
    torch.testing.assert_close(out.logits[kept], expected.logits[kept])
    torch.testing.assert_close(out.loss, expected.loss)


@pytest.mark.parametrize("family", [n for n in TOLD if n in CAUSAL])
def test_padding_on_the_left_changes_nothing(family):
    """Not even where a window slides: the prompt is next to its text."""
    model, given = build(family), batch(family, "left")
    prompt, mask = drawn(model), given["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids = given["input_ids"]
    unread = family in ("opt", "bloom")
    own = {} if unread else {"position_ids": positions}
    with attach_prompt(model, prompt):
        padded = model(input_ids=ids, attention_mask=mask, **own).logits
    alone = peft_of(model, prompt)
    for row, tokens, bits in zip(padded, ids, mask, strict=True):
        expected = alone(input_ids=tokens[bits.bool()][None]).logits[0]
        torch.testing.assert_close(row[-len(expected) :], expected)


def test_each_row_has_its_padding_then_the_prompt_then_its_text():
    embeds = torch.arange(1.0, 7.0).reshape(2, 3, 1)
    out = prepended(
        torch.tensor([[-1.0], [-2.0]]),
        {
            "inputs_embeds": embeds,
            "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 0]]),
            "position_ids": torch.tensor([[0, 0, 1], [0, 1, 2]]),
            "labels": torch.tensor([[-100, 7, 8], [9, 9, -100]]),
            "logits_to_keep": 2,
        },
    )
    assert out["inputs_embeds"].squeeze(-1).tolist() == [
        [1, -1, -2, 2, 3],
        [-1, -2, 4, 5, 6],
    ]
    assert out["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert out["position_ids"].tolist() == [[2, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert out["labels"].tolist() == [
        [-100, -100, -100, 7, 8],
        [-100, -100, 9, 9, -100],
    ]
    assert out["logits_to_keep"] == 2


def test_one_row_of_positions_stands_for_all():
    out = prepended(
        torch.zeros(1, 1),
        {"inputs_embeds": torch.ones(2, 2, 1), "position_ids": torch.tensor([[0, 1]])},
    )
    assert out["position_ids"].tolist() == [[0, 1, 2]] * 2


def test_a_model_gets_its_own_form_back():
    model, given = build("llama"), batch("llama")
    before, names = model(**given).logits, dict(model.named_parameters()).keys()
    with attach_prompt(model, drawn(model)) as found:
        assert dict(model.named_parameters()).keys() - names == {PROMPT_KEY}
        assert found[PROMPT_KEY].requires_grad
    assert dict(model.named_parameters()).keys() == names
    assert torch.equal(model(**given).logits, before)


def test_without_a_prompt_nothing_is_attached():
    model = build("llama")
    with attach_prompt(model, {"classifier.weight": np.ones(1)}) as found:
        assert found == {}
        assert not model._forward_pre_hooks


@pytest.mark.parametrize("shape", [(4, 31), (32,)])
def test_a_prompt_of_another_width_is_refused(shape):
    with (
        pytest.raises(AdapterError, match=r"\(P, 32\)"),
        attach_prompt(build("llama"), {PROMPT_KEY: np.ones(shape, np.float32)}),
    ):
        pass


@pytest.mark.parametrize("pad", ["", "left"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "bloom"])
def test_text_is_written_behind_the_prompt_with_a_cache_as_without(family, pad):
    model, given = build(family), batch(family, pad)
    ids, mask = given["input_ids"], given["attention_mask"]

    def written(cached):
        out = model.generate(
            ids,
            attention_mask=mask,
            use_cache=cached,
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.sequences, torch.stack(out.logits)

    plain = written(True)
    with attach_prompt(model, drawn(model)):
        (text, logits), (expected, wanted) = written(True), written(False)
    assert torch.equal(text, expected)
    torch.testing.assert_close(logits, wanted)
    assert (logits - plain[1]).abs().max() > 5e-4  # the prompt is read
