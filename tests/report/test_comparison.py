# SPDX-License-Identifier: Apache-2.0
"""Comparisons: means and spreads over seeds, and differences seed by seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.config import load_config
from atlas_flwr.errors import DataError
from atlas_flwr.report import compare, compare_folders, markdown, summarize
from atlas_flwr.report.comparison import Measure


@pytest.fixture
def run(timeline):
    def make(strategy, seed, mean, **keys):
        config = load_config({"strategy": strategy, "seed": seed, **keys})
        summary = summarize(config, timeline)
        last = replace(summary.per_round[-1], mean_accuracy=mean)
        return config, replace(summary, per_round=(*summary.per_round[:-1], last))

    return make


def test_a_measure_is_mean_and_sample_deviation():
    assert Measure.of([0.5, None, 0.7, 0.9]) == Measure(
        pytest.approx(0.7), pytest.approx(0.2), 3
    )
    assert Measure.of([0.5]) == Measure(0.5, None, 1)
    assert Measure.of([None]) is None


def test_differences_are_paired_by_seed_and_want_shared_seeds(run):
    runs = [
        run("atlas", 0, 0.8), run("atlas", 1, 0.6),
        run("fedavg", 1, 0.5), run("fedavg", 0, 0.7), run("fedavg", 2, 0.0),
        run("local", 5, 0.9),
    ]  # fmt: skip
    atlas, fedavg, local = compare(runs).methods
    assert fedavg.seeds == (0, 1, 2)
    assert fedavg.difference.mean == pytest.approx(-0.1)
    assert fedavg.difference.spread == pytest.approx(0.0, abs=1e-12)
    assert fedavg.difference.count == 2
    assert fedavg.mean_accuracy.mean == pytest.approx(0.4)
    assert atlas.difference is None
    assert local.difference is None


def test_methods_of_one_strategy_are_told_apart_by_what_differs(run):
    runs = [
        run("atlas", 0, 0.8),
        run("atlas", 0, 0.7, clustering="none"),
        run("fedavg", 0, 0.5),
    ]
    names = [method.name for method in compare(runs).methods]
    assert names == ["atlas clustering=kmeans", "atlas clustering=none", "fedavg"]


def test_folder_names_and_seeds_do_not_make_methods(run):
    runs = [run("atlas", 0, 0.8), run("atlas", 1, 0.6, **{"run-name": "other"})]
    (method,) = compare(runs).methods
    assert method.name == "atlas"
    assert method.curve[2].mean == pytest.approx(0.7)
    assert method.accuracy["news"] == Measure(
        pytest.approx(0.8), pytest.approx(0.0, abs=1e-12), 2
    )


def test_of_a_repeated_run_the_later_counts(run):
    (method,) = compare([run("atlas", 0, 0.1), run("atlas", 0, 0.9)]).methods
    assert method.mean_accuracy == Measure(0.9, None, 1)


def test_nothing_cannot_be_compared():
    with pytest.raises(DataError, match="at least one run"):
        compare([])


def test_markdown_is_a_table_with_baselines_and_a_row_a_method(run):
    text = markdown(compare([run("atlas", 0, 0.8), run("fedavg", 0, 0.75)]))
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 2 + 2
    fedavg = [cell.strip() for cell in table[-1].split("|")]
    assert fedavg[1:8] == ["fedavg", "0", "80.0", "80.0", "75.0", "-5.0", "50.0"]
    majority = [cell.strip() for cell in table[2].split("|")]
    assert majority[1:6] == ["majority class", "", "25.0", "75.0", "50.0"]
    assert "paired by seed" in text


def test_folders_are_compared_by_their_events(folder):
    (method,) = compare_folders([folder]).methods
    assert method.bytes_up == Measure(2010.0, None, 1)


def test_tasks_given_by_path_are_called_by_name(run):
    runs = [
        run("fedavg", 0, 0.5, tasks="elsewhere/own.yaml,spam"),
        run("fedavg", 0, 0.7, tasks="spam"),
    ]
    names = [method.name for method in compare(runs).methods]
    assert names == ["fedavg tasks=own,spam", "fedavg tasks=spam"]


def test_one_task_file_at_two_paths_is_one_task(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    places = ("real", "linked", "linked/../real")
    (method,) = compare(
        [
            run("fedavg", seed, 0.5, tasks=f"{tmp_path / place}/own.yaml,spam")
            for seed, place in enumerate(places)
        ]
    ).methods
    assert method.seeds == (0, 1, 2)
    assert method.name == "fedavg"


def test_a_link_to_a_task_file_has_data_of_its_own_beside_it(run, tmp_path):
    for place in ("real", "other"):
        (tmp_path / place).mkdir()
    (tmp_path / "other" / "own.yaml").symlink_to("../real/own.yaml")
    files = [f"{tmp_path / place}/own.yaml" for place in ("real", "other")]
    runs = [run("fedavg", seed, 0.5, tasks=file) for seed, file in enumerate(files)]
    assert len(compare(runs).methods) == 2


def test_tasks_of_one_name_are_told_apart_by_their_paths(run):
    runs = [run("fedavg", 0, 0.5, tasks=f"/{place}/own.yaml") for place in "ab"]
    names = [method.name for method in compare(runs).methods]
    assert names == ["fedavg tasks=/a/own.yaml", "fedavg tasks=/b/own.yaml"]
