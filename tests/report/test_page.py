# SPDX-License-Identifier: Apache-2.0
"""Pages: well formed, whole in one file, with the figures in them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from atlas_flwr.report import (
    compare,
    comparison_page,
    run_page,
    summarize,
    write_report,
)
from atlas_flwr.report.page import Membership

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checked(HTMLParser):
    """Collect text, tags and what they load; fail on tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in {"src", "href", "srcset", "data"}]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def read(html):
    page = Checked()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def summary(config, timeline):
    return summarize(config, timeline)


def test_a_run_page_is_well_formed_and_loads_nothing(summary, config):
    html = run_page(summary, config)
    page = read(html)
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)|<script", html)
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_a_run_page_has_the_figures(summary, config):
    page = read(run_page(summary, config))
    cells = [word for word in page.words if word]
    for figure in ("80.0 %", "50.0 %", "2.0 GiB", "332.0 MiB", "2.0 KiB"):
        assert figure in cells
    news = cells.index("news")
    assert cells[news : news + 4] == ["news", "20.0", "25.0", "80.0"]
    assert "seed: 7" in "".join(page.words)


def test_a_run_page_tells_each_clients_share_in_clusters(summary, config):
    cells = [word for word in read(run_page(summary, config)).words if word]
    clients = cells[cells.index("share in clusters, %") :]
    for client, told in {"0": "0: 75.0, 1: 25.0", "1": "1: 100.0", "2": "–"}.items():
        task, cluster = summary.true_tasks[client], str(summary.clusters[client])
        row = [client, task, cluster, told]
        assert any(clients[i : i + 4] == row for i in range(len(clients)))


def test_a_page_suits_phones_and_dark_rooms(summary, config):
    html = run_page(summary, config)
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html


def test_names_from_outside_cannot_put_markup_in(summary, config):
    evil = "<script>alert(1)</script>"
    tasks = dict.fromkeys(summary.true_tasks, evil)
    html = run_page(replace(summary, model=evil, true_tasks=tasks), config)
    assert "<script" not in html
    read(html)


def test_membership_counts_tasks_by_cluster(summary):
    found = Membership.of(summary)
    assert found.tasks == ("news", "spam")
    assert found.counts == {0: (2, 0), 1: (0, 2)}
    assert found.order == ("0", "2", "1", "3")
    assert found.cell("0", "2") == "c t"
    assert found.cell("0", "1") == ""
    assert "adjusted Rand index 1.00" in found.verdict


def test_one_cluster_over_two_tasks_shows_what_is_wrong(summary):
    found = Membership.of(replace(summary, clusters=dict.fromkeys("0123", 0)))
    assert found.cell("0", "1") == "c"
    assert found.counts == {0: (2, 2)}


def test_a_large_federation_is_counted_but_not_drawn(summary):
    clients = [str(i) for i in range(1000)]
    large = replace(
        summary,
        clusters={c: int(c) % 3 for c in clients},
        true_tasks=dict.fromkeys(clients, "news"),
    )
    found = Membership.of(large)
    assert found.order == ()
    assert sum(count for (count,) in found.counts.values()) == 1000


def test_a_run_that_has_only_begun_has_a_page(config):
    page = read(run_page(summarize(config, []), config))
    assert any("not finished" in word for word in page.words)


def test_a_report_is_rebuilt_from_the_events_alone(folder):
    path = write_report(folder)
    assert path == folder.report_path
    before = path.read_text()
    path.unlink()
    folder.summary_path.unlink()
    assert write_report(folder).read_text() == before


def test_a_comparison_page_is_well_formed_and_has_the_rows(summary, config):
    fedavg = replace(config, strategy="fedavg")
    worse = replace(summary, strategy="fedavg")
    page = read(comparison_page(compare([(config, summary), (fedavg, worse)])))
    assert page.loads == []
    assert "fedavg" in page.words
    assert "+0.0" in page.words
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_a_comparison_tells_each_runs_clusters_and_its_time(summary, config):
    page = comparison_page(compare([(config, summary)]))
    assert "Who was clustered with whom" in page
    assert "adjusted Rand index 1.00" in page
    assert "Time of a run, s" in page


def test_a_comparisons_long_cells_break_lines_and_its_page_is_wide(summary, config):
    """Cells keep to one line else, and were cut off at 1280 pixels."""
    html = comparison_page(compare([(config, summary)]))
    rule = re.search(r"th\.words, td\.words \{(.*?)\}", html, re.DOTALL)
    assert "white-space: normal" in rule[1]
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", html)
    long = [attributes for attributes, text in cells if len(text) > 24]
    assert "2 news | 2 spam" in html
    long += [attributes for attributes, text in cells if " | " in text]
    assert len(long) == 2  # the clusters, and how well they agree with the tasks
    assert all('class="words"' in attributes for attributes in long)
    width = re.search(r"main\.wide \{ max-width: (\d+)rem; \}", html)
    assert '<main class="wide">' in html
    assert int(width[1]) * 16 >= 1280
