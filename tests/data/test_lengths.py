"""What is told of examples that are longer than the limit."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_flwr.data import ModelSource
from atlas_flwr.data.lengths import LOOKED_AT, lengths_of, warn_of_cuts
from tests.data.test_generation import GOOD, task_of


def row(words: int, answer: str = "2") -> dict[str, str]:
    return {"instruction": "Add. " * words, "input": "", "output": answer}


def test_lengths_are_those_of_the_rows_that_are_learned(
    tmp_path: Any, tiny_tokenizer: Any
) -> None:
    task = task_of(tmp_path, [row(n) for n in range(1, 11)])
    found = lengths_of(tiny_tokenizer, task, 48)
    text = "Add. " * 10 + "\n\nAnswer: 2"
    own = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tiny_tokenizer.eos_token_id is not None
    begins = tiny_tokenizer("a")["input_ids"]
    plain = tiny_tokenizer("a", add_special_tokens=False)["input_ids"]
    assert len(found.whole) == 10
    assert found.whole[-1] == len(own) + len(begins) - len(plain) + end


def test_what_a_limit_cuts_of_a_users_task_is_logged(
    tmp_path: Any,
    tiny: ModelSource,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = task_of(tmp_path, [row(1), row(2), row(40), row(3, "long " * 60)])
    longest = lengths_of(tiny_tokenizer, task, 48).whole[-1]
    said: list[str] = []
    heard = "atlas_flwr.data.lengths.log"
    monkeypatch.setattr(heard, lambda _, form, *given: said.append(form % given))
    own = [str(tmp_path / "mine.yaml")]
    warn_of_cuts(tiny, own, longest)
    assert said == []
    warn_of_cuts(tiny, own, 48)
    (warning,) = said
    assert "2 of 4 examples" in warning
    assert "longer than max-length=48" in warning
    assert "and 1 a part of the answer" in warning
    assert f"all within {longest}" in warning


def test_only_some_of_many_examples_are_looked_at(
    tmp_path: Any, tiny_tokenizer: Any
) -> None:
    text = GOOD + "on_bad_rows: drop\n"
    task = task_of(tmp_path, [row(1, f"a{n}") for n in range(700)], text)
    looked = len(lengths_of(tiny_tokenizer, task, 48).whole)
    assert LOOKED_AT / 2 < looked <= LOOKED_AT
