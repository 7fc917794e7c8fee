from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
)

from atlas_flwr.data import (
    CausalCollator,
    ModelSource,
    load_task,
    prepare,
    resolve_model,
    task_names,
    tokenizer_of,
)
from atlas_flwr.errors import DataError

CLASSIFICATIONS = [name for name in task_names() if load_task(name).labels]


def _folder(path: Path, config: Any, architecture: str) -> str:
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("config", "architecture", "kind"),
    [
        (LlamaConfig, "LlamaForCausalLM", "causal"),
        (GPT2Config, "GPT2LMHeadModel", "causal"),
        (LlamaConfig, "", "causal"),
        (BertConfig, "BertForMaskedLM", "classifier"),
        (BertConfig, "BertModel", "classifier"),
        (BertConfig, "", "classifier"),
        (DistilBertConfig, "", "classifier"),
        (LlamaConfig, "LlamaForSequenceClassification", "classifier"),
    ],
)
def test_a_folder_is_a_decoder_or_an_encoder_by_its_config(
    config: Any, architecture: str, kind: str, tmp_path: Path
) -> None:
    name = _folder(tmp_path, config(), architecture)
    assert resolve_model(name) == ModelSource(name, name, kind, name)  # type: ignore[arg-type]


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_a_name_that_no_hub_gives_is_told_with_those_that_are_known() -> None:
    with pytest.raises(DataError, match="Allowed: smollm2, minilm, tiny"):
        resolve_model("nobody/no-such-model")


def test_tiny_models_are_the_same_wherever_they_are_made(
    tiny: ModelSource, own_cache: Path
) -> None:
    again = resolve_model("tiny", progress=False)
    assert again.path != tiny.path
    first = (Path(tiny.path) / "model.safetensors").read_bytes()
    assert (Path(again.path) / "model.safetensors").read_bytes() == first


def test_a_tiny_tokenizer_gives_back_any_text(tiny_tokenizer: Any) -> None:
    text = "Naïve — “so” 12 badly\n\t日本 🙂"
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_a_tiny_model_tells_the_classes_of_every_shipped_task_apart(
    name: str, tiny_tokenizer: Any
) -> None:
    task = load_task(name)
    ids = CausalCollator(tiny_tokenizer, task, 48).label_ids
    assert len(set(ids)) == len(task.labels)


def test_tiny_bert_classifies(own_cache: Path) -> None:
    source = resolve_model("tiny-bert", progress=False)
    model = AutoModelForSequenceClassification.from_pretrained(source.path)
    made = tokenizer_of(source)("some text", return_tensors="pt")
    assert model(**made).logits.shape == (1, 2)


def test_preparing_twice_makes_once(own_cache: Path, make_task: Any) -> None:
    task = make_task([("x", "a"), ("y", "b")])
    path = str(Path(task.reading.path).parent / "own.yaml")
    made, tasks = prepare("tiny-bert", [path], progress=False)
    stamp = (Path(made.path) / "model.safetensors").stat().st_mtime_ns
    assert prepare("tiny-bert", [path], progress=False) == (made, tasks)
    assert (Path(made.path) / "model.safetensors").stat().st_mtime_ns == stamp


def test_preparing_refuses_a_length_that_the_model_lacks(
    own_cache: Path, make_task: Any
) -> None:
    task = make_task([("x", "a"), ("y", "b")])
    path = str(Path(task.reading.path).parent / "own.yaml")
    with pytest.raises(DataError, match="max-length to 128 or less"):
        prepare("tiny-bert", [path], max_length=129, progress=False)


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    return resolve_model("smollm2", progress=False)


def _perplexity(source: ModelSource, texts: list[str]) -> float:
    tokenizer = tokenizer_of(source)
    model = AutoModelForCausalLM.from_pretrained(source.path).eval()
    loss, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :256]
        with torch.no_grad():
            loss += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return math.exp(loss / count)


@pytest.mark.slow
def test_smollm2_reads_news_and_not_shuffled_words(smollm2: ModelSource) -> None:
    articles = replace(load_task("news").reading, max_lines=0)
    texts = [" ".join(row.text.split()) for row in articles.rows()][::200]
    words = [text.split() for text in texts]
    shuffled = [" ".join(random.Random(0).sample(w, len(w))) for w in words]
    read = _perplexity(smollm2, texts)
    assert read < 35  # 32 measured; 27 with whole articles; random weights have 56,000
    assert _perplexity(smollm2, shuffled) > 20 * read


@pytest.mark.slow
def test_smollm2_is_saved_as_an_ordinary_float32_model(smollm2: ModelSource) -> None:
    config = json.loads((Path(smollm2.path) / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    tokenizer = tokenizer_of(smollm2)
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_every_label_is_one_token_of_smollm2_and_another(
    name: str, smollm2: ModelSource
) -> None:
    tokenizer, task = tokenizer_of(smollm2), load_task(name)
    assert len(set(CausalCollator(tokenizer, task, 48).label_ids)) == len(task.labels)
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in task.labels)


@pytest.mark.parametrize("name", ["nope/none", "none"])
def test_a_hub_that_is_out_of_reach_is_told_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*given: object, **named: object) -> None:
        pytest.fail("asked the hub, which retries for half a minute")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("atlas_flwr.data.models.getproxies", dict)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)
    with pytest.raises(DataError, match=r"out of reach.*smollm2, minilm.*local folder"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "said"), [("smollm2 ", "did you mean 'smollm2'"), ("a b", "no such names")]
)
def test_a_name_that_no_hub_can_have_is_told_with_the_nearest(
    name: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        resolve_model(name)
