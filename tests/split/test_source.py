"""What cannot be cut is refused at once, with what to pass instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitPlan, partition
from tests.families import build

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


def with_lora():
    return get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"]))


def with_prompt():
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    return get_peft_model(build("llama"), config)


def image_config():
    return hf.ViTConfig(**SMALL, image_size=16, patch_size=8)


def image_model():
    return hf.ViTForImageClassification(image_config())


def speech_model():
    config = hf.Wav2Vec2Config(
        **SMALL, conv_dim=(16,), conv_stride=(5,), conv_kernel=(10,),
        num_feat_extract_layers=1, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return hf.Wav2Vec2ForCTC(config)


def image_and_text_model():
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision = {**small, "image_size": 16, "patch_size": 8, "num_attention_heads": 2}
    text = {**small, "vocab_size": 32, "num_attention_heads": 2}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision))


def convolutions():
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    return hf.ResNetForImageClassification(config)


def encoder_decoder():
    small = {"vocab_size": 32, "d_model": 16, "num_layers": 3, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(**small, d_kv=8, d_ff=16))


def encoder_of_one():
    small = {"vocab_size": 32, "d_model": 16, "num_layers": 3, "num_heads": 2}
    return hf.T5EncoderModel(hf.T5Config(**small, d_kv=8, d_ff=16))


REFUSED = {
    "adapters of PEFT": (with_lora, "merge_and_unload"),
    "PEFT's tuner": (lambda: with_lora().base_model, "merge_and_unload"),
    "a prompt of PEFT": (with_prompt, "get_base_model"),
    "a model changed by PEFT": (lambda: with_lora().get_base_model(), "adapters"),
    "a wrapped model": (lambda: torch.nn.DataParallel(build("llama")), r"\.module"),
    "a compiled model": (lambda: torch.compile(build("llama")), "_orig_mod"),
    "an image model": (image_model, "pixel_values, no text"),
    "a speech model": (speech_model, "input_values, no text"),
    "an image model of convolutions": (convolutions, "pixel_values, no text"),
    "a model of images and text": (image_and_text_model, "more than a language model"),
    "an encoder-decoder": (encoder_decoder, "a decoder or an encoder"),
    "the encoder of one": (encoder_of_one, "cannot be cut"),
    "any module": (lambda: torch.nn.Linear(2, 2), "got Linear; pass a transformers"),
    "a state dict": (lambda: build("llama").state_dict(), "got OrderedDict; pass"),
    "a configuration": (lambda: build("llama").config, "got LlamaConfig; pass"),
    "a class": (lambda: hf.LlamaForCausalLM, "got the class LlamaForCausalLM; pass"),
    "nothing": (lambda: None, "got None; pass"),
    "an empty string": (lambda: "", "got ''; pass"),
    "a folder that is not there": (lambda: "./nowhere", "no folder"),
    "a path that is not there": (lambda: Path("/no/where"), "no folder"),
    "a file": (lambda: __file__, "is a file; pass the folder"),
    "a folder without a model": (lambda: Path(__file__).parent, "save_pretrained"),
    "a name the hub lacks": (lambda: "nope/none", "no folder here, and on the hub"),
    "a name no hub could have": (lambda: "a b", "no folder here, and on the hub"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_of_text_is_refused_with_what_to_pass(case, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make, why = REFUSED[case]
    given = make()
    with pytest.raises(PlanError, match=why):
        partition(given, SplitPlan(1, 1))


def test_what_is_said_of_a_peft_model_works():
    prompted, tuned = with_prompt(), with_lora()
    for plain in (prompted.get_base_model(), tuned.merge_and_unload()):
        assert partition(plain, SplitPlan(1, 1)).trunk is not None


def test_a_class_that_makes_no_model_of_a_folders_kind_is_named(tmp_path):
    image_model().save_pretrained(tmp_path)
    made = hf.AutoModelForSequenceClassification
    with pytest.raises(PlanError, match="no model of type 'vit'"):
        partition(tmp_path, SplitPlan(1, 1), auto_class=made)


def test_a_folder_may_be_given_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    build("llama").save_pretrained(tmp_path / "mine")
    assert partition("~/mine", SplitPlan(1, 1)).head is not None


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "nonesuch"}'])
def test_a_configuration_that_cannot_be_read_is_told_with_its_folder(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlanError, match=str(tmp_path)):
        partition(tmp_path, SplitPlan(1, 1))
