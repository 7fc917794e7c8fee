"""Of a source larger than what is held, an even share is, the same for everybody."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.data import held as held_module
from atlas_flwr.data import load_task, make_shard
from atlas_flwr.data.held import Held
from atlas_flwr.data.tasks import read_examples

TEXTS = st.lists(st.text(max_size=30), unique=True, max_size=60)
WRITTEN = "kind: generation\nprompt: '{q}'\nresponse: '{a}'\n"
CLASSES = "text: [q]\nlabel: a\nlabels: {even: even, odd: odd}\n"
CLASSES += "template: '{text} is'\n"


def filled(texts, limit):
    held = Held(str, limit)
    for text in texts:
        if held.has_room(text):
            held.add(text, len(text))
    return held


@given(TEXTS, st.integers(0, 400), st.randoms())
def test_what_is_held_is_bounded_and_the_same_in_any_order(texts, limit, random):
    held = filled(texts, limit)
    size, count = sum(held.kept.values()), len(held.kept)
    assert size <= limit or count < 12  # whose next bit is the same, by chance
    assert filled(random.sample(texts, len(texts)), limit).kept == held.kept
    if sum(map(len, texts)) <= limit:
        assert [*held.kept] == texts
    assert bool(texts) == bool(count)
    told = [f"{len(texts) - count} beyond"] if count < len(texts) else []
    assert [line[: len(told[0])] for line in held.told()] == told


def test_an_even_share_is_held_from_all_parts_of_a_source():
    texts = [f"{n:05}" for n in range(20_000)]
    kept = [int(text) for text in filled(texts, 30_000).kept]
    assert 2_300 < len(kept) <= 6_000
    for start in range(0, 20_000, 5_000):
        part = sum(start <= n < start + 5_000 for n in kept)
        assert part == pytest.approx(len(kept) / 4, rel=0.15)


@pytest.mark.parametrize("how", [WRITTEN, CLASSES], ids=["written", "classes"])
def test_clients_of_a_file_too_large_to_hold_share_an_even_part_of_it(
    tmp_path, monkeypatch, how
):
    rows = [{"q": f"is {n} even", "a": ("even", "odd")[n % 2]} for n in range(400)]
    lines = [json.dumps(row) for row in rows + rows[:40]]  # some stand there twice
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = {}
    for name, limit in (("whole", 1 << 20), ("part", 1_500)):
        monkeypatch.setattr(held_module, "HELD", limit)
        (tmp_path / f"{name}.yaml").write_text(
            f"path: rows.jsonl\nformat: jsonl\n{how}"
        )
        task = load_task(str(tmp_path / f"{name}.yaml"))
        examined = read_examples(task)
        shards = [make_shard(client, 2, [task]) for client in (0, 1)]
        dealt = [e for shard in shards for e in shard.train + shard.test]
        assert sorted(e.text for e in dealt) == [e.text for e in examined.examples]
        found[name] = examined
    whole, part = found["whole"], found["part"]
    assert len(whole.examples) == 400
    assert "beyond" not in "".join(whole.left_out)
    assert set(part.examples) < set(whole.examples)
    assert 30 < len(part.examples) < 150
    assert "characters that are held in memory" in part.left_out[-1]
