"""What a client makes of its texts once, it has in the messages that follow."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import Example, load_task, resolve_model

EXAMPLE = Example("hello\n", answer="and so on")


def batches_of(path: Path, round: int = 1) -> ClientBatches:
    source = replace(resolve_model("tiny"), path=str(path))
    return ClientBatches(RunConfig(), Identity(0, 2, None), source, round)


def test_rows_are_cut_into_tokens_once_for_all_messages(tmp_path: Path) -> None:
    path = shutil.copytree(resolve_model("tiny").path, tmp_path / "model")
    task = load_task("dialog")
    first = batches_of(path).collator(task)
    assert batches_of(path, round=2).collator(task) is first
    assert first.row(EXAMPLE) is first.row(replace(EXAMPLE))
    assert first.row(EXAMPLE) is not first.row(replace(EXAMPLE, answer="but no"))


def test_a_tokenizer_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = shutil.copytree(resolve_model("tiny").path, tmp_path / "model")
    task = load_task("dialog")
    first = batches_of(path).collator(task)
    os.utime(path / "tokenizer.json", ns=(1, 1))
    assert batches_of(path).collator(task) is not first


@given(st.integers(0, 300), st.integers(1, 300))
def test_as_many_examples_are_taken_as_may_be_and_evenly(count: int, most: int) -> None:
    taken = [int(e.text) for e in ClientBatches._some(numbered(count), most)]
    assert len(taken) == min(count, most)
    steps = {b - a for a, b in pairwise(taken)}
    assert not steps or max(steps) - min(steps) <= 1
    assert min(steps, default=1) > 0


def numbered(count: int) -> list[Example]:
    return [Example(str(number)) for number in range(count)]


@pytest.mark.parametrize("count", [4, 5, 11, 12, 13, 40])
def test_no_example_is_in_two_parts_of_a_fingerprint(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """However few a client has: their difference says how sure a fingerprint is."""
    made = batches_of(Path(resolve_model("tiny").path))
    config = replace(made.config, fingerprint_batches=12, fingerprint_parts=4)
    made = replace(made, config=config)
    monkeypatch.setattr(ClientBatches, "_own", lambda self: numbered(count))
    monkeypatch.setattr(ClientBatches, "collator", lambda self, task: list)
    found = [[e.text for e in batch] for batch in made.to_sketch()]
    assert len(found) == min(count, 12)
    told = [text for batch in found for text in batch]
    assert len(set(told)) == len(told)
