"""The tuned public model writes what crossed, whatever its form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.recorded import cases, recordings
from atlas_flwr.config import load_config
from atlas_flwr.data import resolve_model
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import ATTACKS, Observation, Recording, parse_defence
from atlas_flwr.privacy.attacks import writing
from atlas_flwr.privacy.attacks.writing import CrossingWriter
from atlas_flwr.privacy.knowledge import Knowledge, KnownText, PublicModel
from atlas_flwr.privacy.scores import fitted, of_another
from atlas_flwr.split import (
    SUMMARY_KEY,
    SplitModel,
    SplitPlan,
    attach_summary,
    partition,
)
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.types import TrunkClient
from atlas_flwr.wire import codec_named
from tests.privacy.test_attack import recorded

TEXTS, LENGTH, WIDTH = 4, 4, 12
FILES = ModelFiles(resolve_model("tiny"), 0, torch.float32, "cpu", 0)
THROUGH = "0", 1


def knowledge(texts, sent=(), model=None, seed=0):
    plan = SplitPlan(2, 1)
    recording = Recording("0", 1, plan, AdapterState({}), sent, [])
    return Knowledge(
        model or PublicModel(lambda plan: None, [recording]),
        texts,
        parse_defence("none"),
        codec_named("raw"),
        causal=True,
        frames={"0": ([], [])},
        whole=FILES.whole,
        longest=12,
        summarised=True,
        seed=seed,
    )


def crossed(step, hidden):
    return Observation("0", 1, step, "2/1", hidden, None, None)


def test_one_vector_a_text_is_enough_though_the_head_moves_by_more_than_texts_differ():
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (TEXTS, LENGTH), generator=drawn)
    vectors = torch.randn(TEXTS, 1, WIDTH, generator=drawn)

    def given(i, moved=0.0):
        noise = 0.1 * torch.randn(1, WIDTH, generator=drawn)
        return KnownText(ids[i], vectors[i] + noise + moved, through=THROUGH)

    moves = 20 * torch.randn(2, 1, WIDTH, generator=drawn)
    # Each step's texts are twice as many as there are kinds, in turn.
    sent = [
        crossed(step, given(i % TEXTS, moves[step]).hidden)
        for step in range(2)
        for i in range(2 * TEXTS)
    ]
    known = [given(i % TEXTS) for i in range(60)]
    with torch.no_grad():
        writer = CrossingWriter(knowledge(known, sent), 100)
    written = [writer.tries(seen)[0] for seen in sent]
    assert written == 4 * ids.tolist()


def nine_texts():
    """Texts that an attacker knows, and what crossed of them."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (9, LENGTH), generator=drawn)
    known = [
        KnownText(own, torch.randn(1, WIDTH, generator=drawn), through=THROUGH)
        for own in ids
    ]
    sent = [crossed(0, text.hidden) for text in known]
    return known, sent


def test_what_it_writes_is_told_by_its_seed_and_nothing_else():
    known, sent = nine_texts()

    def tries(seed, state):
        torch.manual_seed(state)
        return CrossingWriter(knowledge(known, sent, seed=seed), 3).tries(sent[0])

    assert tries(0, 0) == tries(0, 1) != tries(1, 0)


def test_it_writes_what_it_thinks_whatever_the_checkpoint_likes_better():
    known, sent = nine_texts()
    writer = CrossingWriter(knowledge(known, sent), 1)
    plain = writer.tries(sent[0])

    writer.model.generation_config.repetition_penalty = 5.0
    writer.model.generation_config.min_p = 0.9

    assert writer.tries(sent[0]) == plain


def test_texts_of_steps_of_one_are_held_against_those_of_the_steps_around():
    sent = [crossed(step, torch.zeros(1, WIDTH)) for step in range(10)]
    model = knowledge([], sent).model
    assert [o.step for o in model.around(sent[5], 3)] == [4, 5, 6]
    assert [o.step for o in model.around(sent[0], 3)] == [0, 1, 2]
    assert len(model.around(sent[0], 99)) == 10


@pytest.mark.parametrize("count", [0, 1])
def test_a_head_that_no_other_texts_went_through_is_told_before_any_training(count):
    text = KnownText(torch.arange(4), torch.zeros(1, WIDTH), through=THROUGH)
    others = [replace(text, through=("1", 1))] * 9
    seen = [crossed(0, text.hidden)]
    writer = ATTACKS["writer"]
    said = writer.unfit_for(knowledge([text] * count + others), seen)
    assert f"knows what {count} other texts send, and needs 2" in said
    assert not writer.unfit_for(knowledge([text] * 2 + others), seen)


class Received(Exception):
    pass


class Receiving(TrunkClient):
    def forward(self, call):
        raise Received(call.hidden)

    def backward(self, step, grad):
        raise NotImplementedError

    def loss(self, call, labels, logits_to_keep=0):
        raise NotImplementedError


def test_the_attackers_summaries_are_the_clients_and_the_true_text_is_the_nearest():
    path, plan, drawn = FILES.source.path, SplitPlan(2, 1), torch.Generator()
    parts = partition(path, plan)
    learned = torch.randn(3, parts.head.config.hidden_size, generator=drawn)
    model = SplitModel(parts.head, parts.tail, Receiving()).eval()
    ids = torch.arange(20, 31)[None]
    with attach_summary(model, learned), pytest.raises(Received) as sent:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    (hidden,) = sent.value.args
    seen = Observation("0", 1, 0, "2/1", hidden[0].detach(), None, None)
    state = AdapterState({}, {SUMMARY_KEY: learned.numpy()})
    sent = Recording("0", 1, plan, state, [seen], [])
    known = PublicModel(lambda plan: partition(path, plan), [sent])
    torch.testing.assert_close(known.crossing(seen, ids)[0], seen.hidden)
    truth = ids[0].tolist()
    tries = [truth[::-1], truth[:-1], truth, [5, *truth[1:]], []]
    # Of one text alone what is usual is itself: as if the head had moved so far.
    usual = [KnownText(ids[0], seen.hidden, through=THROUGH) for _ in range(2)]
    usual[1:] = [replace(usual[0], hidden=known.crossing(seen, ids + 40)[0])]
    around = replace(sent, observations=[seen, crossed(0, usual[1].hidden)])
    known.recordings = [around]
    writer = CrossingWriter(knowledge(usual, model=known), 1)
    assert writer.nearest(seen, tries).tolist() == truth
    assert writer.nearest(seen, [[]]).tolist() == [0]


def test_guesses_of_unlike_length_are_held_against_the_places_of_the_truth():
    assert fitted([[1, 2, 3], [4]], [[0, 0], [0, 0]]) == [[1, 2], [4, -1]]
    assert of_another(["a", "b", "a"], [[1], [2], [3]]) == [[3], [3], [1]]


def test_a_run_whose_summaries_cross_is_recorded_and_read_by_who_can(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(writing, "STEPS", 5)
    monkeypatch.setattr(writing, "TRIES", 4)
    monkeypatch.setattr("atlas_flwr.cli.recorded.TEXTS_KNOWN", 40)
    folder = recorded(tmp_path, **{"summary-positions": 2, "cut": "2/1"})
    for found in recordings(folder):
        for seen, truth in zip(found.observations, found.truths, strict=True):
            assert len(seen.hidden) == len(seen.gradient) == 3
            assert len(truth.ids) > 3
    own = {tuple(t.ids.tolist()) for r in recordings(folder) for t in r.truths}
    (case,) = cases(folder.config(), recordings(folder), 4, 0, ["questions", "movies"])
    known = [tuple(text.ids.tolist()) for text in case.knowledge.known]
    assert len(known) == 40
    assert not own & set(known)
    frames = case.knowledge.frames
    for text in case.knowledge.known:  # each through a head of a client of its task
        after = text.ids[text.private.stop :].tolist()
        assert after == list(frames[text.through[0]][1])
    words = ["attack", str(folder.path), "--texts", "4", "--attacks"]
    words += ["linear,writer,label-gradient", "--known", "movies"]
    assert run_words(words) == 0
    said = capsys.readouterr().out
    assert "linear at cut 2/1: left out, it reads one position for each token" in said
    writer, label = json.loads((folder.path / "privacy.json").read_text())
    assert writer["attack"] == "writer"
    assert writer["rouge_l_of_another"] <= 1
    assert writer["baseline"] <= writer["token_accuracy"] + 0.2
    assert label["token_accuracy"] > 0.95  # its gradient tells the label, as ever


def test_a_crossing_of_all_positions_is_read_better_than_another_texts():
    drawn = torch.Generator().manual_seed(0)
    head = partition(FILES.source.path, SplitPlan(1, 1)).head
    ids = torch.randint(10, 22, (168, 3), generator=drawn)
    hidden = head(input_ids=ids, use_cache=False).last_hidden_state.detach()
    texts = [
        KnownText(own, rows, through=THROUGH)
        for own, rows in zip(ids, hidden, strict=True)
    ]
    sent = [crossed(0, text.hidden) for text in texts[160:]]
    knows = replace(knowledge(texts[:160], sent), summarised=False)
    with torch.no_grad():
        writer = CrossingWriter(knows, 100)
        shown = [writer.shown(seen) for seen in sent]

        def loss(rows):
            pairs = zip(texts[160:], rows, strict=True)
            return float(writer([replace(t, hidden=row) for t, row in pairs]))

        own, another = loss(shown), loss(shown[1:] + shown[:1])
    assert own < another - 0.1, (own, another)


def test_a_prompt_before_each_text_is_still_not_recorded():
    with pytest.raises(Exception, match="adapter='prompt'"):
        load_config({"adapter": "prompt", "record-wire": True})
