"""What does not fit together is told before anything starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from atlas_flwr.data.preparation import prepare
from atlas_flwr.errors import DataError

SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3}
KIND = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(**SMALL, n_head=2, n_positions=64)),
    "opt": (
        hf.OPTForCausalLM,
        hf.OPTConfig(
            **SMALL,
            num_attention_heads=2,
            ffn_dim=16,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
        ),
    ),
    "mpt": (hf.MptForCausalLM, hf.MptConfig(**SMALL, n_heads=2, max_seq_len=64)),
    "roberta": (
        hf.RobertaForSequenceClassification,
        hf.RobertaConfig(
            **SMALL,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        ),
    ),
}


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    def made(kind: str, **changes: Any) -> str:
        model_class, config = KIND[kind]
        config.vocab_size = max(len(tiny_tokenizer), 300)
        for key, value in changes.items():
            setattr(config, key, value)
        model_class(config).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return made


@pytest.mark.parametrize("kind", KIND)
def test_a_text_and_its_label_may_just_fill_the_model_s_positions(
    kind: str, folder: Any
) -> None:
    """The most that is allowed runs; one more would look beyond the table."""
    path = folder(kind)
    with pytest.raises(DataError, match="set max-length to ") as error:
        prepare(path, ["spam"], max_length=64, progress=False)
    most = int(str(error.value).split("set max-length to ")[1].split()[0])
    assert most < 64
    prepare(path, ["spam"], max_length=most, progress=False)
    with pytest.raises(DataError):
        prepare(path, ["spam"], max_length=most + 1, progress=False)
    with pytest.raises(DataError):
        prepare(path, ["spam"], max_length=most, learned_positions=1, progress=False)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(folder: Any) -> None:
    path = Path(folder("gpt2"))
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(500)])
    tokenizer.save_pretrained(path)
    with pytest.raises(DataError, match="resize"):
        prepare(str(path), ["spam"], max_length=24, progress=False)


def test_all_that_is_wrong_with_a_model_and_its_tasks_is_told_at_once(
    folder: Any, make_task: Any
) -> None:
    path = Path(folder("gpt2", quantization_config={"quant_method": "awq"}))
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(500)])
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(path)
    alike = make_task([("a", "0"), ("b", "1")], labels="{'0': zebra, '1': zoo}")
    own = str(Path(alike.reading.path).parent / "own.yaml")
    with pytest.raises(DataError) as error:
        prepare(str(path), ["nonesuch", own], max_length=99, progress=False)
    wanted = (
        "task 'nonesuch': neither a file",
        "its weights are quantised",
        "resize these",
        "neither a pad token nor an end token",
        "begin with the same token",
        "knows 64 positions",
    )
    assert len(error.value.problems) == len(wanted)
    for part, problem in zip(wanted, error.value.problems, strict=True):
        assert part in problem


def test_a_template_too_long_and_words_alike_are_told_together(make_task: Any) -> None:
    alike = make_task([("a", "0"), ("b", "1")], labels="{'0': zebra, '1': zoo}")
    own = str(Path(alike.reading.path).parent / "own.yaml")
    with pytest.raises(DataError) as error:
        prepare("tiny", [own], max_length=2, progress=False)
    assert ["same token" in p for p in error.value.problems] == [True, False]
    assert "leaves no token for the text" in error.value.problems[1]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    model_class, config = KIND["gpt2"]
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="save_pretrained"):
        prepare(str(tmp_path), ["spam"], max_length=24, progress=False)


def test_what_is_left_out_of_a_user_s_file_is_said(
    tmp_path: Path, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "".join(f"text {i},{i % 2}\n" for i in range(9))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}lonely,\n")
    task = tmp_path / "own.yaml"
    task.write_text(
        "format: csv\npath: rows.csv\non_bad_rows: drop\nlabels: {'0': a, '1': b}\n"
    )
    with caplog.at_level(logging.WARNING):
        prepare("tiny", [str(task)], progress=False)
    assert "1 without a label (line 11)" in caplog.text


@pytest.mark.parametrize(
    ("filler", "known", "told"),
    [
        ("<pad>", 0, ""),
        (None, 0, "its tokenizer has no pad token"),
        ("<eos>", 0, "makes of token 2, and its configuration takes for token 0"),
        ("<pad>", None, "makes of token 0, and its configuration takes for token None"),
    ],
)
def test_a_decoder_that_classifies_knows_what_texts_are_filled_with(
    filler: str | None,
    known: int | None,
    told: str,
    tmp_path: Path,
    tiny_tokenizer: Any,
) -> None:
    words = {"vocab_size": len(tiny_tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = hf.LlamaConfig(
        **words, **sizes, num_hidden_layers=3, num_labels=2, pad_token_id=known
    )
    hf.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = filler
    tokenizer.save_pretrained(tmp_path)
    if told:
        with pytest.raises(DataError, match=told):
            prepare(str(tmp_path), ["spam"], progress=False)
    else:
        prepare(str(tmp_path), ["spam"], progress=False)
