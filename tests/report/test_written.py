"""Scores and samples of what clients wrote, from events to table and page."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from atlas_flwr.config import load_config
from atlas_flwr.report import (
    ClientEvaluated,
    Clustered,
    RoundEnded,
    RunStarted,
    Summary,
    final_table,
    run_page,
    summarize,
)
from atlas_flwr.report.events import Sampled
from atlas_flwr.report.records import from_record, to_record


def evaluated(number, client, task, scores, scored):
    told = ClientEvaluated(number, client, task, None, 0.5, 2.0, 10)
    more = {"writes": True, "tokens": 100, "scores": scores, "scored": scored}
    return ClientEvaluated(**{**vars(told), **more})


EVENTS = [
    RunStarted(0, 3),
    evaluated(0, "0", "talk", {"chrf": 0.1, "bleu": 0.0}, 2),
    evaluated(0, "1", "talk", {"chrf": 0.4, "bleu": 0.2}, 4),
    evaluated(0, "2", "tales", {"chrf": 0.2}, 1),
    Sampled(0, "0", "talk", 0, "Why?", "So.", "<b>No.</b>"),
    RoundEnded(0, 1.0, 10, 20),
    Clustered(1, {"0": 0, "1": 1, "2": 0}, 2),
    evaluated(1, "0", "talk", {"chrf": 0.5, "bleu": 0.1}, 2),
    evaluated(1, "1", "talk", {"chrf": 0.5, "bleu": 0.4}, 4),
    evaluated(1, "2", "tales", {"chrf": 0.8}, 1),
    Sampled(1, "0", "talk", 0, "Why?", "So.", "So it is."),
    RoundEnded(1, 1.0, 10, 20),
]


@pytest.fixture
def config():
    return load_config({"num-rounds": 1})


@pytest.fixture
def summary(config):
    return summarize(config, [(float(n), event) for n, event in enumerate(EVENTS)])


def test_each_answer_counts_the_same_in_its_task_and_cluster(summary):
    first, last = summary.per_round
    assert first.chrf == pytest.approx({"talk": (0.1 * 2 + 0.4 * 4) / 6, "tales": 0.2})
    assert last.bleu == pytest.approx({"talk": (0.1 * 2 + 0.4 * 4) / 6})
    assert (last.rouge_l, last.exact_match) == ({}, {})
    assert last.client_scores["2"] == {"chrf": 0.8}
    assert last.cluster_scores["0"] == pytest.approx({"chrf": 0.6, "bleu": 0.1})
    assert first.cluster_scores["1"] == {"chrf": 0.4, "bleu": 0.2}


def test_a_summary_comes_back_from_its_file(summary):
    assert Summary.from_json(summary.to_json()) == summary


@pytest.mark.parametrize("event", [EVENTS[1], EVENTS[4]], ids=["scored", "sampled"])
def test_an_event_comes_back_from_its_line(event):
    assert from_record(to_record(event, 1.0)) == event


def test_numbers_that_json_lacks_are_null_at_any_depth():
    scored = replace(EVENTS[1], scores={"perplexity": math.inf, "chrf": 0.5})
    line = json.dumps(to_record(scored, 1.0), allow_nan=False)
    assert json.loads(line)["scores"] == {"perplexity": None, "chrf": 0.5}
    back = from_record(json.loads(line))
    assert math.isnan(back.scores["perplexity"])
    assert back.scores["chrf"] == 0.5


def test_answers_to_one_prompt_stand_side_by_side(summary):
    (sample,) = summary.samples
    assert (sample.base, sample.tuned) == ("<b>No.</b>", "So it is.")
    assert (sample.client, sample.cluster, sample.prompt) == ("0", 0, "Why?")


def test_table_and_page_tell_before_and_after(summary, config):
    lines = final_table(summary).splitlines()
    (chrf,) = [line.split() for line in lines if "talk" in line and "chrf" in line]
    assert chrf == ["talk", "chrf,", "%", "30.0", "50.0"]
    own = [line.split() for line in lines if "cluster 0" in line]
    (cluster,) = [cells for cells in own if "bleu," in cells]
    assert cluster[-2:] == ["0.0", "10.0"]
    page = run_page(summary, config)
    assert "&lt;b&gt;No.&lt;/b&gt;" in page
    assert "So it is." in page
    assert "chrf 80.0" in page


def test_clients_and_clusters_are_told_by_their_numbers(config):
    names = [str(n) for n in range(12)]
    happened = [
        RunStarted(0, 12),
        *(evaluated(0, name, "talk", {"chrf": 0.1}, 1) for name in names),
        *(Sampled(0, name, "talk", 0, "Why?", "So.", "No.") for name in names),
        RoundEnded(0, 1.0, 10, 20),
        Clustered(1, {name: int(name) for name in names}, 12),
        *(evaluated(1, name, "talk", {"chrf": 0.5}, 1) for name in names),
        RoundEnded(1, 1.0, 10, 20),
    ]
    summary = summarize(config, [(float(n), event) for n, event in enumerate(happened)])
    assert [sample.client for sample in summary.samples] == names
    assert list(summary.per_round[-1].cluster_scores) == names
    told = [
        line.split()[1]
        for line in final_table(summary).splitlines()
        if "cluster" in line
    ]
    assert told == names
