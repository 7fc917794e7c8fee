"""An attack is tried on the texts that have what it reads, and scored on that alone."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from atlas_flwr.cli.case import Case
from atlas_flwr.privacy import Observation, Truth, parse_defence
from atlas_flwr.privacy.attacks.base import LABEL, RESPONSE, TEXT, Attack
from atlas_flwr.privacy.knowledge import Knowledge, KnownText
from atlas_flwr.wire import codec_named

IDS = torch.arange(10, 16)


class Reading(Attack):
    """Reads all but the last token of each text, or class 1."""

    name, about = "reading", "reads"

    def __init__(self, target):
        self.target = target
        self.clients = []

    def read(self, knowledge, seen):
        self.clients = [o.client for o in seen]
        if self.target == LABEL:
            return [torch.tensor([1]) for _ in seen]
        return [torch.cat([IDS[:-1], torch.tensor([0])]) for _ in seen]


def case(classes=("0",)):
    """Client 0 sorts into classes, and client 1 writes the last two tokens."""
    hidden = torch.zeros(len(IDS), 2)
    seen = [Observation(c, 1, 0, "2/1", hidden, hidden, hidden) for c in "01"]
    learned = torch.tensor([False] * 4 + [True] * 2)
    knows = Knowledge(
        None,
        [KnownText(IDS, hidden)],
        parse_defence("none"),
        codec_named("raw"),
        causal=True,
        answers=dict.fromkeys(classes, (5, 6)),
    )
    truths = [Truth(IDS, learned, 1), Truth(IDS, learned, 0)]
    own = [slice(1, 3)] * 2
    return Case("2/1", knows, seen, truths, own, lambda ids: [f" {n}" for n in ids])


def test_labels_are_read_of_tasks_with_classes_and_responses_of_others():
    for target, client, share in ((LABEL, "0", 1.0), (RESPONSE, "1", 0.5)):
        attack = Reading(target)
        found = case().attacked(attack, 0)
        assert attack.clients == [client]
        assert (found.texts, found.token_accuracy) == (1, share)


def test_of_a_text_the_prompts_own_part_counts_and_the_response():
    found = case().attacked(Reading(TEXT), 0)
    assert found.tokens == 2 + 4
    assert found.token_accuracy == 5 / 6
    assert found.names == 6  # all are numbers
    assert found.names_read == 5 / 6


def test_a_text_is_bounded_by_what_the_same_attack_reads_of_it_undefended():
    class Sharp(Reading):
        def read(self, knowledge, seen):
            return [IDS if o.hidden.any() else IDS * 0 for o in seen]

    bare = case()
    seen = [replace(o, hidden=o.hidden + 1) for o in bare.seen]
    defended = replace(bare, undefended=lambda: replace(bare, seen=seen))
    found = defended.bounded(Sharp(TEXT), 0)
    assert (found.token_accuracy, found.upper_bound) == (0, 1)
    dull = defended.bounded(Reading(TEXT), 0)
    assert dull.upper_bound == dull.token_accuracy == 5 / 6
    for one, target in ((bare, TEXT), (defended, LABEL), (defended, RESPONSE)):
        assert one.bounded(Reading(target), 0).upper_bound == 1


def test_where_no_text_has_it_it_is_said():
    assert case("01").attacked(Reading(RESPONSE), 0) == "it is for tasks with responses"
    assert case("").attacked(Reading(LABEL), 0) == "it is for tasks with classes"


def test_a_guess_of_tokens_is_not_of_what_all_templates_say():
    known = [KnownText(torch.tensor([99, 14, 99]), IDS, slice(1, 2))] * 2
    found = replace(case(), knowledge=replace(case().knowledge, known=known))
    # Of the six that count one is 14.
    assert found.attacked(Reading(TEXT), 0).baseline == 1 / 6


def test_a_guess_of_labels_knows_whose_they_are_as_who_names_groups_does():
    class Grouped(Reading):
        names_labels = False

        def read(self, knowledge, seen):
            return [torch.tensor([0]) for _ in seen]

    one = case("01")
    # Of client 0 all are of class 1, and of client 1 of class 0: groups tell nothing.
    found = one.attacked(Grouped(LABEL), 0)
    assert found.token_accuracy == found.baseline == 1


def test_texts_of_which_no_token_counts_are_neither_read_whole_nor_counted():
    """A response may lie beyond max-length."""
    one, none = case(""), torch.zeros(len(IDS), dtype=torch.bool)
    truths = [Truth(IDS, none, 0), one.truths[1]]
    found = replace(one, truths=truths).attacked(Reading(RESPONSE), 0)
    assert (found.texts, found.tokens, found.exact_texts) == (1, 2, 0)
    assert found.token_accuracy == found.rouge_l == 0.5
    assert found.interval == (0.5, 0.5)
    empty = replace(one, truths=[truths[0]] * 2).attacked(Reading(RESPONSE), 0)
    assert empty == "of none of these texts a token counts"


def test_of_a_conversation_every_question_counts():
    ids, turns = torch.arange(10, 18), torch.tensor([False, False, True, True] * 2)
    hidden = torch.zeros(len(ids), 2)
    seen = replace(case().seen[1], hidden=hidden, answer=hidden, gradient=hidden)

    class Whole(Reading):
        def read(self, knowledge, seen):
            return [ids for _ in seen]

    class Written(Reading):
        writes = True

        def read(self, knowledge, seen):
            return [ids[~turns][1:] for _ in seen]

    # Of the prompt's four tokens the template says the first.
    one = replace(
        case(), seen=[seen], truths=[Truth(ids, turns, 0)], private=[slice(1, 4)]
    )
    for attack, count in ((Whole(TEXT), 7), (Whole(RESPONSE), 4), (Written(TEXT), 3)):
        found = one.attacked(attack, 0)
        assert (found.tokens, found.token_accuracy) == (count, 1)


def test_a_guess_of_groups_is_named_as_they_are():
    drawn = random.Random(0)

    class Chance(Reading):
        names_labels = False

        def read(self, knowledge, seen):
            return [torch.tensor([drawn.randrange(2)]) for _ in seen]

    one, labels = case("0"), [0, 1] * 4
    truths = [replace(one.truths[0], label=label) for label in labels]
    several = replace(
        one, seen=[one.seen[0]] * 8, truths=truths, private=[slice(1, 3)] * 8
    )
    found = [several.attacked(Chance(LABEL), seed) for seed in range(200)]
    told = fmean(score.token_accuracy for score in found)
    # Of four texts of each class, whatever is guessed, some half are right; but the
    # better of two names of each group is chosen.
    assert told > 0.6
    assert fmean(score.baseline for score in found) == pytest.approx(told, abs=0.03)
