"""Defences of what a client has: answers at random, and words replaced."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.recorded import recordings
from atlas_flwr.data import Example, load_task, make_shard
from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.defences.mask import masked
from atlas_flwr.remedies import client_hooks
from tests.privacy.test_attack import recorded
from tests.remedies.test_chain import now

SECRET = b"s" * 32
MANY = 4000


def answered(epsilon, label, classes, secret=SECRET, count=MANY):
    found = parse_defence(f"labels:{epsilon}")
    given = [Example(f"text {n}", label) for n in range(count)]
    return found.examples(given, classes, secret, learned=True)


@pytest.mark.parametrize(("epsilon", "classes"), [(0.5, 2), (1.0, 6), (3.0, 4)])
def test_answers_are_as_probable_as_epsilon_says_and_no_other_is_likelier(
    epsilon, classes
):
    odds = []
    for label in (0, classes - 1):
        counts = Counter(e.label for e in answered(epsilon, label, classes))
        odds.append([counts[o] / MANY for o in range(classes)])
        kept = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
        rest = (1 - kept) / (classes - 1)
        wanted = [kept if o == label else rest for o in range(classes)]
        assert odds[-1] == pytest.approx(wanted, abs=4 * (0.25 / MANY) ** 0.5)
    one, other = odds
    ratios = [max(a / b, b / a) for a, b in zip(one, other, strict=True)]
    assert max(ratios) < math.exp(epsilon) * 1.25  # what was drawn strays a little


def test_an_answer_is_the_same_in_all_rounds_and_another_clients_is_not():
    one, again = answered(1, 0, 2), answered(1, 0, 2)
    assert one == again
    assert one != answered(1, 0, 2, secret=b"t" * 32)
    assert all(e.truth == 0 for e in one)


def test_copies_of_a_text_are_answered_by_draws_of_their_own():
    copies = [Example("the same text", 0)] * MANY
    found = parse_defence("labels:1").examples(copies, 2, SECRET, learned=True)
    kept = math.e / (math.e + 1)
    share = sum(e.label == 0 for e in found) / MANY
    assert share == pytest.approx(kept, abs=4 * (0.25 / MANY) ** 0.5)


def test_what_is_scored_keeps_its_labels():
    found = parse_defence("labels:0.1")
    tests = [Example("a", 1), Example("b", 0)]
    assert found.examples(tests, 2, SECRET, learned=False) == tests


class Kept:
    def __init__(self):
        self.found = None

    def save(self, name, server_round, arrays):
        self.found = dict(arrays)

    def load(self, name, *, before):
        return self.found


def test_a_clients_secret_is_drawn_once_and_its_shard_answered_by_it():
    shard = make_shard(0, 2, [load_task("questions")], train_examples=60)

    def hooks(kept):
        context = now(defence="labels:1")
        object.__setattr__(context, "store", lambda: kept)
        return client_hooks(context)

    kept = Kept()
    one, again = hooks(kept).own(shard), hooks(kept).own(shard)
    assert one.train == again.train
    assert one.test == shard.test
    assert [e.truth for e in one.train] == [e.label for e in shard.train]
    assert one.train != hooks(Kept()).own(shard).train


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Call 07786 200117 now", "Call 00000 000000 now"),
        ("ask Ann-Marie O'Neil, or Bob", "ask Name, or Name"),
        ("write to a.b@c.org or www.x.com/y", "write to mail or link"),
        ("What is the capital of France ?", "What is the capital of Name ?"),
        ("ask Özil, or Łukasz Żal of Ørsted", "ask Name, or Name of Name"),
        ("with Άννα, Иван Петров, Ẁyn", "with Name, Name, Name"),
        ("nothing of the kind. Then more", "nothing of the kind. Then more"),
    ],
)
def test_numbers_addresses_and_names_are_replaced(text, wanted):
    assert masked(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels", "strength of labels"),
        ("labels:0", "must be a number above 0"),
        ("labels:21", "at most 20"),
        ("mask:1", "mask has no strength"),
        ("tokens:1e9", "at most 20"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        parse_defence(text)


def test_a_run_sends_answers_alone_and_records_the_truth(tmp_path):
    folder = recorded(tmp_path, defence="labels:0.1+mask", **{"local-steps": 6})
    agree = []
    for found in recordings(folder):
        for truth in found.truths:
            (said,) = truth.ids[truth.answer].tolist()[:1]
            agree.append((found.client, truth.label, said))
    by_label = {(client, label, said) for client, label, said in agree}
    assert len(by_label) > len({(client, label) for client, label, _ in agree})
    words = ["attack", str(folder.path), "--attacks", "label-gradient", "--texts", "16"]
    assert run_words(words) == 0
    (read,) = json.loads((folder.path / "privacy.json").read_text())
    assert read["defence"] == "labels:0.1+mask"
    assert read["token_accuracy"] < 0.8
