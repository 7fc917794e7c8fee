# SPDX-License-Identifier: Apache-2.0
"""The summary against numbers worked out by hand from the events in conftest."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from atlas_flwr.errors import DataError
from atlas_flwr.report import (
    ClientEvaluated,
    ClientTrained,
    RoundEnded,
    RunEnded,
    RunStarted,
    Summary,
    summarize,
    summarize_folder,
)
from atlas_flwr.report.events import PeersPaired, TrunkRestarted


@pytest.fixture
def summary(config, timeline):
    return summarize(config, timeline)


def test_accuracy_of_a_task_is_weighted_by_test_examples(summary):
    # news: clients 0 (10 examples) and 2 (30): (10 * .4 + 30 * .8) / 40 = .7
    first, last = summary.evaluated
    assert first.accuracy == pytest.approx({"news": 0.7, "spam": 0.7})
    assert last.accuracy == pytest.approx({"news": 0.8, "spam": 0.8})
    assert last.loss == pytest.approx({"news": 1.2, "spam": 1.2})


def test_the_mean_counts_each_task_the_same(summary):
    assert [r.mean_accuracy for r in summary.evaluated] == pytest.approx([0.7, 0.8])
    assert summary.final.mean_loss == pytest.approx(1.2)


def test_the_worst_client_and_the_spread_are_of_clients(summary):
    last = summary.final
    assert (last.worst_client, last.worst_accuracy) == ("0", 0.5)
    # Deviations from .75: .25, .15, .15, .05; mean square .0275.
    assert last.spread == pytest.approx(math.sqrt(0.0275))
    assert list(last.client_accuracy) == ["0", "1", "2", "3"]


def test_train_loss_is_the_mean_over_clients(summary):
    assert summary.per_round[2].train_loss == pytest.approx(0.5 + 1.5)


def test_what_peers_carried_is_counted_by_host(summary):
    assert summary.carried == {"3": 2, "2": 1}
    assert summary.peers_lost == {"3": "off"}
    assert (summary.peer_moves, summary.sat_out) == (2, 2)


def test_shares_in_clusters_are_those_of_the_last_clustering(summary):
    assert summary.memberships["0"] == {"0": 0.75, "1": 0.25}
    older = summary.to_json()
    del older["memberships"]  # summaries of before there were any
    assert Summary.from_json(older) == replace(summary, memberships={})


def test_bytes_are_the_sums_over_rounds(summary):
    assert (summary.bytes_up, summary.bytes_down) == (2010, 1220)


def test_peaks_are_the_largest(summary):
    assert summary.client_peak_bytes == 332 << 20
    assert [r.skipped for r in summary.per_round] == [0, 4 * 1, 4 * 2]
    assert [r.held_back for r in summary.per_round] == [0, 0.01, 0.02]
    assert summary.client_peaks["0"] == 302 << 20
    assert summary.server_peak_bytes == 2 << 30


def test_the_run_is_described(summary):
    assert summary.strategy == "atlas"
    assert (summary.seed, summary.rounds, summary.num_clients) == (7, 2, 4)
    assert summary.clusters == {"0": 0, "1": 1, "2": 0, "3": 1}
    assert summary.true_tasks == {"0": "news", "1": "spam", "2": "news", "3": "spam"}
    assert summary.ranks == {"0": 2, "1": 4, "2": 8, "3": 16}
    assert summary.plans["0"] == "2/1"
    assert summary.plans["3"] == "1/1"
    assert summary.majority == {"news": 0.25, "spam": 0.75}
    assert summary.untrained == pytest.approx({"news": 0.2, "spam": 0.5})
    assert summary.clustering == {
        "k": 2, "silhouette": 0.8, "ari": 1.0, "nmi": 1.0, "purity": 1.0
    }  # fmt: skip
    assert summary.finished


def test_wall_time_is_from_first_to_last_event(summary, timeline):
    assert summary.wall_seconds == len(timeline) - 1


def test_a_resumed_run_counts_neither_pause_nor_rounds_done_again(config, timeline):
    ends = [i for i, (_, e) in enumerate(timeline) if isinstance(e, RoundEnded)]
    cut = ends[-1]
    second_round = [(at, e) for at, e in timeline if e.round == 2]
    stray = ClientEvaluated(2, "9", "news", 0, 0.0, 9.0, 1000)
    resumed = [
        *timeline[:cut],
        (timeline[cut][0], stray),
        (9000.0, RunStarted(1, 4)),
        *((at + 9000.0, event) for at, event in second_round),
    ]
    whole, again = summarize(config, timeline), summarize(config, resumed)
    assert again.per_round == whole.per_round
    assert again.bytes_up == whole.bytes_up
    first = timeline[cut][0] - timeline[0][0]
    second = second_round[-1][0]
    assert again.wall_seconds == pytest.approx(first + second)


def test_a_run_taken_up_for_more_rounds_is_not_finished(config, timeline):
    continued = [*timeline, (5000.0, RunStarted(2, 4))]
    assert not summarize(config, continued).finished
    assert summarize(config, [*continued, (5001.0, RunEnded(2))]).finished


def test_a_run_without_events_has_an_empty_summary(config):
    empty = summarize(config, [])
    assert empty.final is None
    assert empty.rounds == empty.bytes_up == 0
    assert Summary.from_json(empty.to_json()) == empty


def test_rounds_that_were_not_evaluated_are_told_apart(config, timeline):
    thinned = [
        (at, e)
        for at, e in timeline
        if not (isinstance(e, ClientEvaluated) and e.round == 2)
    ]
    summary = summarize(config, thinned)
    assert summary.rounds == 2
    assert summary.final.round == 1
    assert summary.per_round[2].mean_accuracy is None


def test_json_has_the_names_others_read_and_comes_back_equal(folder):
    summary = summarize_folder(folder)
    data = json.loads(folder.summary_path.read_text())
    named = (
        "strategy model seed rounds num_clients clusters true_tasks ranks plans "
        "bytes_up bytes_down client_peak_bytes server_peak_bytes wall_seconds "
        "per_round final majority untrained finished"
    )
    assert set(named.split()) <= data.keys()
    assert data["final"]["accuracy"] == data["per_round"][-1]["accuracy"]
    assert Summary.from_json(data) == summary


def test_a_diverged_run_has_a_summary_in_strict_json(config, timeline):
    broken = [
        (at, replace(e, loss=math.nan) if isinstance(e, ClientEvaluated) else e)
        for at, e in timeline
    ]
    data = json.loads(json.dumps(summarize(config, broken).to_json(), allow_nan=False))
    assert data["final"]["mean_loss"] is None
    assert math.isnan(Summary.from_json(data).final.loss["news"])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 99}, "atlas-flwr report"), ({"clusters": None}, "without clusters")],
)
def test_a_summary_of_another_kind_is_refused(summary, change, words):
    data = summary.to_json() | change
    kept = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(DataError, match=words):
        Summary.from_json(kept)


def test_a_written_tasks_means_are_over_its_tokens_whoever_has_them(config):
    timeline = [
        (0.0, RunStarted(0, 2)),
        (1.0, ClientEvaluated(1, "0", "talk", 0, 0.5, 1.0, 8, (), True, 10)),
        (2.0, ClientEvaluated(1, "1", "talk", 0, 0.0, 3.0, 8, (), True, 90)),
        (3.0, RoundEnded(1, 1.0, 0, 0)),
    ]
    (told,) = summarize(config, timeline).per_round
    assert told.loss["talk"] == pytest.approx((10 * 1.0 + 90 * 3.0) / 100)
    assert told.accuracy["talk"] == pytest.approx(0.05)
    assert told.perplexity["talk"] == pytest.approx(math.exp(2.8))


def evaluation(client="0", examples=3, **more):
    return ClientEvaluated(1, client, "t", None, 0.5, 0.1, examples, **more)


def summed(config, *events):
    timeline = enumerate([RunStarted(0, 2), *events])
    return summarize(config, [(float(at), event) for at, event in timeline])


def test_a_client_that_wrote_on_no_example_has_no_perplexity(config):
    (last,) = summed(config, evaluation(examples=0, writes=True)).per_round
    assert (last.accuracy, last.perplexity) == ({}, {})


def test_who_tells_of_other_classes_than_most_does_not_count(config):
    good = [evaluation(c, confusion=(2, 0, 1, 1)) for c in "02"]
    (expected,) = summed(config, *good).per_round
    odd = evaluation("1", confusion=(1,) * 9)
    (found,) = summed(config, odd, *good).per_round
    assert found.macro_f1 == expected.macro_f1
    assert found.balanced_accuracy == expected.balanced_accuracy


def test_what_a_lost_trunk_had_of_a_round_is_void(config):
    def trained(client):
        return ClientTrained(1, client, "t", None, float(client), 1, 1, 1.0, 1, 1)

    away = [trained("0"), trained("4"), evaluation("4"), PeersPaired(1, "train", {})]
    again = [trained("0"), evaluation("0"), RoundEnded(1, 1.0, 1, 1)]
    lost = TrunkRestarted(0, "gone")
    (found,) = summed(config, *away, lost, *again).per_round
    (expected,) = summed(config, *again).per_round
    assert found == expected
    assert summed(config, *away, lost, *again).trunk_restarts == 1


def test_so_is_what_it_had_of_the_evaluation_before_the_first(config):
    before = [replace(evaluation(client), round=0) for client in "04"]
    lost, again = TrunkRestarted(-1, "gone"), before[0]
    (found,) = summed(config, *before, lost, again).per_round
    assert [*found.client_accuracy] == ["0"]
    kept = summed(config, *before, TrunkRestarted(0, "gone")).per_round
    assert [*kept[0].client_accuracy] == ["0", "4"]
