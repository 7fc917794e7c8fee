from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import Prepend, Replace, Sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from atlas_flwr.data import (
    CausalCollator,
    ClassifierCollator,
    Example,
    ModelSource,
    Task,
    load_task,
)
from atlas_flwr.errors import DataError
from tests.data.conftest import MakeTask

_EXAMPLES = [
    Example("so good", 1),
    Example("", 0),
    Example("a very much longer text than that", 0),
    Example("naïve — 12", 1),
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("movies")


@pytest.fixture(scope="module")
def model(tiny: ModelSource) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.path).eval()


class _Letters:
    """A tokenizer without a pad token; texts begin, and end, with token 1."""

    bos_token_id = eos_token_id = 1
    pad_token_id = None

    def __call__(
        self, text: Any, add_special_tokens: bool = True, **ignored: Any
    ) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self._one(t, add_special_tokens) for t in text]}
        return {"input_ids": self._one(text, add_special_tokens)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [chr(i - 3) for i in ids]

    def _one(self, text: str, special: bool) -> list[int]:
        ids = [3 + ord(letter) for letter in text]
        if text.startswith(" is") and len(text) > 3:
            ids[0] = ids[3]
        return [1, *ids] if special else ids


def _sentencepiece() -> Any:
    """A tokenizer that puts a blank of its own before what it is given."""
    words = ["a", "good", "bad", "Label", ":"]
    pieces = ["<unk>", "</s>", "\u2581", "\n", *words, *(f"\u2581{w}" for w in words)]
    letters = [chr(c) for c in range(33, 127) if chr(c) not in words]
    scores = [(piece, -1.0 - 0.1 * i) for i, piece in enumerate([*pieces, *letters])]
    made = Tokenizer(Unigram(scores, unk_id=0))
    blank = "\u2581"
    made.normalizer = Sequence([Prepend(blank), Replace(" ", blank)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>"
    )


def test_words_differ_though_a_tokenizer_begins_all_alike(make_task: MakeTask) -> None:
    tokenizer = _sentencepiece()
    alone = [
        tokenizer(f" {w}", add_special_tokens=False)["input_ids"]
        for w in ("good", "bad")
    ]
    assert alone[0][0] == alone[1][0]  # what was taken for the word's first token
    labels = "{x: good, y: bad}"
    task = make_task([("a", "x"), ("aa", "y")], 'template: "{text}\\nLabel:"', labels)
    collate = CausalCollator(tokenizer, task, 24)
    examples = [Example("a", 0), Example("a", 1)]
    batch = collate(examples)
    for row, word in enumerate(("good", "bad")):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        together = tokenizer(f"a\nLabel: {word}", add_special_tokens=False)["input_ids"]
        assert ids == together
    assert len(set(collate.label_ids)) == 2


def _written(tokenizer: Any, ids: torch.Tensor, mask: torch.Tensor) -> str:
    return str(tokenizer.decode(ids[mask.bool()]))


def test_a_row_says_the_template_and_the_labels_word(
    tiny_tokenizer: Any, task: Task
) -> None:
    batch = CausalCollator(tiny_tokenizer, task, 64)(_EXAMPLES)
    for i, example in enumerate(_EXAMPLES):
        word = f" {task.labels[example.label]}"
        whole = _written(tiny_tokenizer, batch.input_ids[i], batch.attention_mask[i])
        assert whole == task.template.replace("{text}", example.text) + word
        said = batch.labels[i] != -100
        assert tiny_tokenizer.decode(batch.input_ids[i][said]) == word
        assert torch.equal(batch.labels[i][said], batch.input_ids[i][said])
    assert batch.targets.tolist() == [e.label for e in _EXAMPLES]
    assert batch.causal
    assert len(batch) == len(_EXAMPLES)


@given(st.lists(texts, min_size=1, max_size=4), st.integers(16, 40))
def test_only_the_text_is_cut_and_only_to_the_longest(
    tiny_tokenizer: Any, task: Task, texts: list[str], max_length: int
) -> None:
    collate = CausalCollator(tiny_tokenizer, task, max_length)
    batch = collate([Example(text, 0) for text in texts], prompt=True)
    ending = task.template.replace("{text}", "")
    lengths = batch.attention_mask.sum(1)
    assert batch.input_ids.shape[1] == int(lengths.max()) <= max_length
    for i in range(len(texts)):
        whole = _written(tiny_tokenizer, batch.input_ids[i], batch.attention_mask[i])
        assert whole.endswith(ending)
    assert bool((batch.labels == -100).all())
    assert batch.logits_to_keep == 1


def test_padding_changes_no_logit(tiny_tokenizer: Any, task: Task, model: Any) -> None:
    collate = CausalCollator(tiny_tokenizer, task, 64)

    def last(examples: list[Example]) -> torch.Tensor:
        batch = collate(examples, prompt=True)
        with torch.no_grad():
            logits: torch.Tensor = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=batch.logits_to_keep,
            ).logits[:, -1]
        return logits

    alone = torch.cat([last([example]) for example in _EXAMPLES])
    torch.testing.assert_close(last(_EXAMPLES), alone, rtol=0, atol=1e-5)


def test_the_kept_logits_are_all_that_the_loss_needs(
    tiny_tokenizer: Any, task: Task, model: Any
) -> None:
    batch = CausalCollator(tiny_tokenizer, task, 64)(_EXAMPLES)
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
    }
    whole = model(**given, labels=batch.labels)
    kept = model(
        **given,
        labels=batch.labels[:, -batch.logits_to_keep :],
        logits_to_keep=batch.logits_to_keep,
    )
    torch.testing.assert_close(kept.loss, whole.loss)


def test_words_of_several_tokens_are_kept_whole(make_task: Any) -> None:
    task = make_task([("x", "a"), ("y", "b")], 'template: "{text} is"')
    batch = CausalCollator(_Letters(), task, 32)(_EXAMPLES)
    assert batch.logits_to_keep == len(" is0a") + 1
    assert int((batch.labels[0] != -100).sum()) == len(" is1b")


def test_a_model_that_expects_a_first_token_gets_it_once(make_task: Any) -> None:
    task = make_task([("x", "a"), ("y", "b")], 'template: "Say {text} is"')
    collate = CausalCollator(_Letters(), task, 12)
    batch = collate([Example("a text to be cut", 0)], prompt=True)
    ids = batch.input_ids[0].tolist()
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert len(ids) == 12


def test_padding_is_told_by_the_mask_and_not_by_the_token(make_task: Any) -> None:
    task = make_task([("x", "a"), ("y", "b")], 'template: "{text} is"')
    batch = CausalCollator(_Letters(), task, 64)(_EXAMPLES, prompt=True)
    lengths = [1 + len(e.text) + len(" is") for e in _EXAMPLES]
    assert batch.attention_mask.sum(1).tolist() == lengths
    positions = batch.position_ids
    assert positions is not None
    for i, length in enumerate(lengths):
        assert positions[i, -length:].tolist() == list(range(length))
        assert not positions[i, :-length].any()


def test_words_that_begin_alike_are_refused_by_name(
    tiny_tokenizer: Any, make_task: Any
) -> None:
    task = make_task([("x", "a"), ("y", "b")])
    with pytest.raises(DataError, match="'is0a' and 'is1b'"):
        CausalCollator(tiny_tokenizer, task, 64)


def test_a_length_that_leaves_no_text_is_refused(
    tiny_tokenizer: Any, task: Task
) -> None:
    with pytest.raises(DataError, match="max-length=11 leaves no token"):
        CausalCollator(tiny_tokenizer, task, 11)


def test_a_classifier_gets_text_and_class(tiny_tokenizer: Any, task: Task) -> None:
    batch = ClassifierCollator(tiny_tokenizer, task, 10)(_EXAMPLES)
    assert batch.labels.tolist() == batch.targets.tolist() == [1, 0, 0, 1]
    assert batch.input_ids.shape == (4, 10)
    assert batch.attention_mask.sum(1).tolist() == [
        min(len(tiny_tokenizer(e.text)["input_ids"]), 10) for e in _EXAMPLES
    ]
    assert not batch.causal
    assert batch.logits_to_keep == 0
