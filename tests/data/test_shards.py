from __future__ import annotations

import operator
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data import (
    Example,
    Shard,
    Task,
    load_examples,
    load_task,
    majority_accuracy,
    make_shard,
)
from atlas_flwr.data import shards as shards_module
from atlas_flwr.errors import DataError
from tests.data.conftest import MakeTask

_SIZES = (8, 31, 200)
Tasks = dict[int, Task]


@pytest.fixture(scope="module")
def tasks(make_task: MakeTask) -> Tasks:
    """Three tasks of three classes, the first of which is four times as common."""

    @lru_cache
    def of_size(size: int) -> Task:
        raw = "aaaabc"
        return make_task([(f"text {i}", raw[i % len(raw)]) for i in range(size)])

    return {size: of_size(size) for size in _SIZES}


def _all(task: Task, clients: int, **more: Any) -> list[Shard]:
    return [make_shard(i, clients, [task], **more) for i in range(clients)]


@given(
    size=st.sampled_from(_SIZES),
    share=st.floats(0, 1),
    alpha=st.none() | st.floats(1e-3, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_shards_part_the_text_among_all_clients_and_leave_none_empty(
    tasks: Tasks, size: int, share: float, alpha: float | None, seed: int
) -> None:
    task = tasks[size]
    clients = max(int(share * (size // 4)), 1)
    shards = _all(task, clients, alpha=alpha, seed=seed)
    dealt = [e for shard in shards for e in (*shard.train, *shard.test)]
    assert sorted(dealt, key=lambda e: e.text) == list(load_examples(task))
    assert all(shard.train and shard.test for shard in shards)


@given(alpha=st.none() | st.floats(0.05, 10), seed=st.integers(0, 99))
def test_the_seed_alone_decides(tasks: Tasks, alpha: float | None, seed: int) -> None:
    once = _all(tasks[200], 5, alpha=alpha, seed=seed)
    shards_module._made.cache_clear()
    assert once == _all(tasks[200], 5, alpha=alpha, seed=seed)
    assert once != _all(tasks[200], 5, alpha=alpha, seed=seed + 1)


def test_a_share_is_dealt_once_for_all_messages_and_for_each_client_alone(
    tasks: Tasks,
) -> None:
    once, other = _all(tasks[200], 2, train_examples=9)
    assert make_shard(0, 2, [tasks[200]], train_examples=9) is once
    assert set(once.train).isdisjoint(other.train)
    assert len(make_shard(0, 2, [tasks[200]], train_examples=8).train) == 8


def test_a_test_text_of_one_client_is_a_training_text_of_none(tasks: Tasks) -> None:
    shards = _all(tasks[200], 7, alpha=0.1)
    tests = {e.text for shard in shards for e in shard.test}
    trains = {e.text for shard in shards for e in shard.train}
    assert not tests & trains


def test_a_limit_takes_that_many_of_the_same_share(tasks: Tasks) -> None:
    whole = make_shard(1, 4, [tasks[200]])
    some = make_shard(1, 4, [tasks[200]], train_examples=5, test_examples=2)
    assert (some.train, some.test) == (whole.train[:5], whole.test[:2])


def test_clients_take_the_tasks_in_turn(tasks: Tasks) -> None:
    several = list(tasks.values())
    taken = [make_shard(i, 5, several).task for i in range(5)]
    assert taken == [*several, *several[:2]]


def test_a_small_alpha_skews_the_classes_and_a_large_one_does_not(
    tasks: Tasks,
) -> None:
    def commonest_share(alpha: float) -> float:
        shares = []
        for shard in _all(tasks[200], 5, alpha=alpha):
            counts = Counter(e.label for e in shard.train)
            shares.append(max(counts.values()) / len(shard.train))
        return sum(shares) / len(shares)

    assert commonest_share(0.05) > 0.8
    assert commonest_share(1e4) == pytest.approx(4 / 6, abs=0.08)


def test_tests_are_even_or_have_their_own_clients_proportions(tasks: Tasks) -> None:
    def shares(examples: tuple[Example, ...]) -> list[float]:
        counts = Counter(e.label for e in examples)
        return [counts[label] / len(examples) for label in range(3)]

    def distances(skewed: bool) -> list[float]:
        pairs = [
            (shares(shard.train), shares(shard.test))
            for shard in _all(tasks[200], 5, alpha=0.3, skew_tests=skewed)
        ]
        return [sum(map(abs, map(operator.sub, *pair))) for pair in pairs]

    assert max(distances(skewed=True)) < 0.2
    assert max(distances(skewed=False)) > 0.5


def test_a_balanced_task_has_as_many_examples_of_each_class(
    make_task: MakeTask,
) -> None:
    rows = [(f"text {i}", "a" if i % 5 else "b") for i in range(100)]
    shards = _all(make_task(rows, "balance: true"), 3)
    dealt = [e.label for shard in shards for e in (*shard.train, *shard.test)]
    assert Counter(dealt) == {0: 20, 1: 20}


def test_too_many_clients_are_told_the_largest_number_that_works(
    tasks: Tasks,
) -> None:
    with pytest.raises(DataError, match=r"at most 7 .* num-supernodes to 7"):
        make_shard(0, 8, [tasks[31]])
    assert len(_all(tasks[31], 7)) == 7
    with pytest.raises(DataError, match="num-supernodes to 14"):
        make_shard(0, 15, [tasks[31], tasks[200]])
    assert make_shard(13, 14, [tasks[31], tasks[200]]).test


@pytest.mark.parametrize("client", [-1, 3])
def test_a_client_out_of_range_is_refused(tasks: Tasks, client: int) -> None:
    with pytest.raises(DataError, match=f"no client {client} of 3"):
        make_shard(client, 3, [tasks[31]])


def test_the_majority_is_that_of_the_training_text() -> None:
    train = [Example("a", 1), Example("b", 1), Example("c", 0)]
    test = [Example("d", 0), Example("e", 1), Example("f", 0), Example("g", 0)]
    assert majority_accuracy(train, test) == 0.25


def test_the_answers_to_one_prompt_stay_in_one_share(tmp_path: Path) -> None:
    rows = [f"ask {i % 12}\tanswer {i}" for i in range(60)]
    (tmp_path / "rows.tsv").write_text("ask\tsay\n" + "\n".join(rows))
    (tmp_path / "talk.yaml").write_text(
        "kind: generation\nformat: tsv\npath: rows.tsv\n"
        "prompt: '{ask}'\nresponse: '{say}'\n"
    )
    shards = _all(load_task(str(tmp_path / "talk.yaml")), 3)
    shares = [{e.text for e in part} for s in shards for part in (s.train, s.test)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == 12


@pytest.mark.parametrize("clients", [1, 2])
def test_texts_that_nobody_can_share_are_told_without_advice_that_does_not_help(
    tmp_path: Path, clients: int
) -> None:
    (tmp_path / "rows.tsv").write_text("ask\tsay\nsame\tone\nsame\ttwo\n")
    (tmp_path / "talk.yaml").write_text(
        "kind: generation\nformat: tsv\npath: rows.tsv\n"
        "prompt: '{ask}'\nresponse: '{say}'\n"
    )
    with pytest.raises(DataError, match=r"none can.*add more texts") as told:
        _all(load_task(str(tmp_path / "talk.yaml")), clients)
    assert "num-supernodes" not in str(told.value)
