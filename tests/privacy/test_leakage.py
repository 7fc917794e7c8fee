"""``plan --leakage``: what a server would read of the tasks, cut by cut."""

from __future__ import annotations

import re

import pytest

from atlas_flwr.budget import Rates
from atlas_flwr.cli.leakage import _prompts, check_leakage, leakage_by_cut
from atlas_flwr.config import load_config
from atlas_flwr.data import tokenizer_of
from atlas_flwr.errors import ConfigError
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.train.weights import ModelFiles


def rows_of(texts, **changes):
    given = {"model": "tiny", "tasks": "questions,movies", "max-head": 2, **changes}
    config = load_config(given)
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    told = leakage_by_cut(config, files, rule, Rates(1e9, 1e9, 1e8), texts)
    return [re.split(r"  +", line.strip()) for line in told.splitlines()[3:]]


def shown(texts=4, **changes):
    rows = rows_of(texts, **changes)
    return {row[0]: [float(cell) for cell in row[1:3]] for row in rows}


def test_at_each_cut_it_says_what_is_read():
    read = shown()
    assert read.keys() == {"1/1", "2/1"}
    # The tiny model's weights are random: who runs it reads it all, by any cut.
    assert all(verified > 90 for _, verified in read.values())


def test_a_cut_takes_the_same_memory_alone_and_among_others():
    def mib(cut):
        return {row[0]: row[5] for row in rows_of(1, cut=cut, tasks="questions")}

    among = mib("1/1,1/4")
    assert among == mib("1/1") | mib("1/4")
    assert among["1/1"] != among["1/4"]


@pytest.mark.parametrize("adapter", ["ia3", "prompt"])
def test_the_memory_is_that_of_the_adapters_there_are(adapter):
    given = {"adapter": adapter, "cut": "1/1", "tasks": "questions"}
    (row,) = rows_of(1, **given)
    config = load_config({"model": "tiny", **given})
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    assert row[5] == f"{rule.assignment(None).estimate.total / (1 << 20):.0f}"


def test_the_largest_rank_is_that_of_all_where_all_have_one():
    ranks = {"ranks": "uniform", "lora-rank": 32, "lora-ranks": "2"}
    given = {**ranks, "cut": "1/1", "tasks": "questions"}
    (row,) = rows_of(1, **given)
    config = load_config({"model": "tiny", **given})
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    assert row[5] == f"{rule.assignment(None).estimate.total / (1 << 20):.0f}"


@pytest.mark.slow
def test_noise_as_large_as_what_is_sent_hides_some_of_it():
    (plain,), (noisy,) = (
        shown(cut="1/1", defence=defence).values() for defence in ("none", "gaussian:3")
    )
    assert max(noisy) < max(plain) / 2


def test_what_a_run_would_mask_is_masked():
    def numbers(**changes):
        config = load_config({"model": "tiny", "tasks": "spam", **changes})
        files = ModelFiles.of(config)
        decode = tokenizer_of(files.source).decode
        (texts,) = _prompts(config, files, 8)
        return {"".join(re.findall(r"\d", decode(b.own_ids[0]))) for b in texts}

    assert len(numbers()) > 2
    assert not "".join(numbers(defence="mask")).strip("0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "none"}, "split='none': every client trains the whole model"),
        ({"strategy": "fedavg"}, "strategy='fedavg': every client trains the whole"),
        ({"strategy": "local"}, "strategy='local': every client trains the whole"),
        ({"summary-positions": 2}, "summary-positions=2: summaries alone cross"),
    ],
)
def test_where_no_token_crosses_there_is_nothing_to_read(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_leakage(load_config({"model": "tiny", **changes}))
