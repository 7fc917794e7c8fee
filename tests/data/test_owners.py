"""Rows that belong to somebody lie on one client."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.data import Example, load_examples, load_task, make_shard, prepare
from atlas_flwr.data.owners import dealt_by_owner, one_sided
from atlas_flwr.errors import DataError

FILE = """
format: jsonl
path: rows.jsonl
client: speaker
labels: {a: good, b: bad}
"""
SIZES = {"ann": 12, "bob": 8, "cy": 6, "di": 4}


def task_of(folder, sizes, drop=""):
    rows = [
        {"text": f"{who} says {n}", "label": "ab"[n % 2], "speaker": who}
        for who, count in sizes.items()
        for n in range(count)
    ]
    if drop:
        del rows[0][drop]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "said.yaml").write_text(FILE)
    return load_task(str(folder / "said.yaml"))


def test_nobodys_rows_lie_on_two_clients_and_none_is_lost(tmp_path):
    task = task_of(tmp_path, SIZES)
    shards = [make_shard(client, 3, [task], seed=1) for client in range(3)]
    owners = [{e.owner for e in (*s.train, *s.test)} for s in shards]
    assert sum(map(len, owners)) == len(set.union(*owners)) == len(SIZES)
    everything = [e for s in shards for e in (*s.train, *s.test)]
    assert Counter(everything) == Counter(load_examples(task))
    for shard in shards:
        assert shard.test
        assert len(shard.test) == max(1, int(len(shard.train + shard.test) * 0.25))


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_the_fullest_client_has_little_more_than_it_must(sizes, sharers, seed):
    examples = [
        Example(f"{who} {n}", owner=str(who))
        for who, size in enumerate(sizes)
        for n in range(size)
    ]
    if len(sizes) < sharers:
        with pytest.raises(DataError, match=f"has {len(sizes)} values"):
            dealt_by_owner(examples, sharers, "who", "said", seed)
        return
    shares = dealt_by_owner(examples, sharers, "who", "said", seed)
    # Graham's bound for longest processing time first.
    least = max(max(sizes), -(-sum(sizes) // sharers))
    assert max(map(len, shares)) <= least * 4 / 3 + max(sizes) / 3


def test_a_client_with_one_row_cannot_be_tested(tmp_path):
    task = task_of(tmp_path, {"ann": 6, "bob": 1})
    with pytest.raises(DataError, match="'bob' has one example alone"):
        make_shard(0, 2, [task])


def test_rows_of_nobody_are_named(tmp_path):
    with pytest.raises(DataError, match=r"without a field 'speaker' \(line 1\)"):
        load_examples(task_of(tmp_path, SIZES, drop="speaker"))


def test_it_is_said_where_one_has_almost_all(tmp_path):
    task = task_of(tmp_path, {"ann": 60, "bob": 3})
    other = tmp_path / "other"
    other.mkdir()
    told = one_sided(load_examples(task), "speaker", "said")
    assert "'ann' has 60 of 63 examples" in told
    assert not one_sided(load_examples(task_of(other, SIZES)), "speaker", "said")


def test_the_log_says_it_before_a_run(tmp_path, tiny, monkeypatch):
    told = []
    monkeypatch.setattr(
        "atlas_flwr.data.preparation.log", lambda level, text, *more: told.append(more)
    )
    task_of(tmp_path, {"ann": 60, "bob": 3})
    prepare("tiny", [str(tmp_path / "said.yaml")], progress=False)
    assert "they lie on one client" in told[0][0]
