# SPDX-License-Identifier: Apache-2.0
"""Tables: the right number in the right row, and text that any terminal shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.report import (
    ClientEvaluated,
    RoundEnded,
    RunStarted,
    final_table,
    round_table,
    summarize,
)
from atlas_flwr.report.table import as_text, number, percent


@pytest.fixture
def summary(config, timeline):
    return summarize(config, timeline)


def row(text, name):
    return next(
        line for line in text.splitlines() if line.split()[:1] == [name]
    ).split()


def test_the_final_table_sets_untrained_majority_and_trained_side_by_side(summary):
    text = final_table(summary)
    assert row(text, "news") == ["news", "20.0", "25.0", "80.0"]
    assert row(text, "spam") == ["spam", "50.0", "75.0", "80.0"]
    assert row(text, "mean") == ["mean", "35.0", "50.0", "80.0"]
    assert "server peak 2.0 GiB" in text
    assert "seed 7" in text


def test_the_final_table_has_scores_that_count_each_class_the_same(config, timeline):
    # The commoner class is answered, rightly most of the time.
    lazy = {"news": (4, 0, 1, 0), "spam": (0, 2, 1, 9)}
    events = [
        (at, replace(e, confusion=lazy[e.task]))
        if isinstance(e, ClientEvaluated)
        else (at, e)
        for at, e in timeline
    ]
    text = final_table(summarize(config, events))
    assert row(text, "accuracy,")[-2:] == ["balanced", "macro-F1"]
    assert row(text, "news")[-2:] == ["50.0", "44.4"]
    assert row(text, "spam")[-2:] == ["45.0", "42.9"]
    assert row(text, "mean")[-2:] == ["47.5", "43.7"]


def test_a_round_has_its_own_numbers(summary):
    text = round_table(summary, 1)
    assert "round 1 of 2" in text
    assert row(text, "news") == ["news", "20.0", "25.0", "70.0", "1.300"]
    assert row(text, "mean") == ["mean", "35.0", "50.0", "70.0", "1.300"]
    assert "11.0 s" in text
    assert "worst client 0 at 40.0 %" in text
    assert "failed" not in text


def test_the_last_round_is_the_default_and_failures_are_told(summary):
    assert round_table(summary) == round_table(summary, 2)
    assert "1 failed" in round_table(summary)


def test_a_round_that_was_not_has_no_table(summary):
    assert round_table(summary, 9) == ""


def test_unknown_numbers_are_dashes_and_a_mean_wants_all_tasks(summary):
    partly = replace(summary, majority={"news": 0.25}, client_peak_bytes=0)
    text = final_table(partly)
    assert row(text, "spam") == ["spam", "50.0", "–", "80.0"]
    assert row(text, "mean")[2] == "–"
    assert "client peak –" in text


def test_text_is_plain_and_names_are_not_markup(summary):
    text = as_text("[red]t[/red]", ["a", "b"], [["[bold]x[/bold]", "1"], ["mean", "2"]])
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text
    assert "[red]t[/red]" in text


def test_numbers_have_fixed_digits():
    assert percent(0.12345) == "12.3"
    assert percent(None) == number(None) == number(float("nan")) == "–"
    assert percent(float("nan")) == percent(float("inf")) == "–"
    assert number(1.23456) == "1.235"
    assert number(123456789.01, 1) == "123456789.0"
    assert number(10.0**26, 1) == "1.0e+26"


@pytest.mark.parametrize(
    ("loss", "told"), [(60.0, "1.1e+26"), (699.0, "3.7e+303"), (800.0, "–")]
)
def test_a_model_that_diverged_leaves_a_table_that_can_be_read(config, loss, told):
    events = [
        RunStarted(0, 1),
        ClientEvaluated(1, "0", "talk", None, 0.1, loss, 4, (), True, 9),
        RoundEnded(1, 1.0, 0, 0),
    ]
    summary = summarize(config, [(float(at), event) for at, event in enumerate(events)])
    lines = [line.split() for line in final_table(summary).splitlines()]
    assert ["talk", "perplexity", "–", told] in lines
