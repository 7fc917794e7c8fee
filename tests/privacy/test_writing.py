"""A decoder writes what crossed, whatever its form, and nothing where nothing did."""

from __future__ import annotations

import json

import pytest
import torch

from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.recorded import cases, recordings
from atlas_flwr.config import load_config
from atlas_flwr.data import resolve_model
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import Observation, Recording, parse_defence
from atlas_flwr.privacy.attacks import writing
from atlas_flwr.privacy.attacks.writing import CrossingWriter, nearest
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


def knowledge(texts):
    return Knowledge(
        PublicModel(lambda plan: None, []),
        texts,
        parse_defence("none"),
        codec_named("raw"),
        causal=True,
        frames={"0": ([], [])},
        whole=FILES.whole,
        longest=12,
        summarised=True,
    )


def test_one_vector_a_text_is_enough_where_it_tells_the_text():
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (TEXTS, LENGTH), generator=drawn)
    vectors = torch.randn(TEXTS, 1, WIDTH, generator=drawn)

    def seen(i):
        noise = 0.1 * torch.randn(1, WIDTH, generator=drawn)
        return KnownText(ids[i], vectors[i] + noise)

    with torch.no_grad():
        writer = CrossingWriter(knowledge([seen(i % TEXTS) for i in range(60)]), 40)
    written = [
        writer.tries(Observation("0", 1, 0, "2/1", seen(i).hidden, None, None))[0]
        for i in range(TEXTS)
    ]
    assert written == ids.tolist()


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
    known = PublicModel(
        lambda plan: partition(path, plan), [Recording("0", 1, plan, state, [seen], [])]
    )
    torch.testing.assert_close(known.crossing(seen, ids)[0], seen.hidden)
    knows = knowledge([])
    object.__setattr__(knows, "model", known)
    truth = ids[0].tolist()
    tries = [truth[::-1], truth[:-1], truth, [5, *truth[1:]]]
    assert nearest(knows, seen, tries).tolist() == truth


def test_guesses_of_unlike_length_are_held_against_the_places_of_the_truth():
    assert fitted([[1, 2, 3], [4]], [[0, 0], [0, 0]]) == [[1, 2], [4, -1]]
    assert of_another(["a", "b", "a"], [[1], [2], [3]]) == [[3], [3], [1]]


def test_a_run_whose_summaries_cross_is_recorded_and_read_by_who_can(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(writing, "STEPS", 20)
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


def test_a_prompt_before_each_text_is_still_not_recorded():
    with pytest.raises(Exception, match="adapter='prompt'"):
        load_config({"adapter": "prompt", "record-wire": True})
