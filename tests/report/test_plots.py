# SPDX-License-Identifier: Apache-2.0
"""Plots: XML that shows the data, and takes its colours from the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from atlas_flwr.report.plots import Bars, Line, bar_plot, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def percent(value):
    return f"{100 * value:.0f}"


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture
def lines():
    return [Line("news", {0: 0.2, 1: 0.6}), Line("mean", {0: 0.4, 1: 0.6}, {1: 0.1})]


def test_a_line_plot_names_its_lines_axes_and_references(lines):
    shown = texts(line_plot("Accuracy", lines, {"majority": 0.3}, percent))
    assert {"Accuracy", "news", "mean", "majority", "round", "0", "1", "60"} <= {*shown}


def test_the_height_of_a_point_is_its_value():
    svg = line_plot("t", [Line("a", {0: 0.0, 1: 0.5, 2: 1.0})], {}, percent)
    marks = re.findall(r'<use xlink:href="#\w+" x="[\d.]+" y="([\d.]+)" style="fill: #3b82c4', svg)  # fmt: skip  # noqa: E501
    low, middle, high = map(float, marks)
    assert low - middle == pytest.approx(middle - high)
    assert low > high


def test_bars_are_as_high_as_their_values():
    svg = bar_plot("t", [Bars("up", {"1": 10.0, "2": 20.0})], str)
    paths = re.findall(r'd="([^"]*)"[^>]*style="fill: #3b82c4"', svg)
    ys = [
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)] for path in paths
    ]
    first, second = (max(y) - min(y) for y in ys)
    assert second == pytest.approx(2 * first)


def test_colours_of_text_come_from_the_page(lines):
    svg = line_plot("t", lines, {}, percent)
    assert "var(--ink" in svg
    assert "var(--rule" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg.lower()


def test_titles_and_labels_are_escaped():
    bad = '<b a="1">&$x$'
    svg = line_plot(bad, [Line(bad, {0: 1.0}), Line("b", {0: 2.0})], {}, percent)
    assert ET.fromstring(svg).get("aria-label") == bad
    assert texts(svg).count(bad) == 2


def test_the_same_data_give_the_same_text(lines):
    one, two = (line_plot("t", lines, {}, percent) for _ in range(2))
    assert one == two
    assert "<dc:date>" not in one


def test_nothing_to_plot_is_a_plot_still():
    for svg in (line_plot("t", [], {}, percent), bar_plot("t", [Bars("a", {})], str)):
        assert "t" in texts(svg)


def test_plots_share_no_identifier_that_differs(lines):
    """Several plots stand in one page, where an id must mean one thing."""
    svgs = [
        line_plot("t", lines, {}, percent),
        bar_plot("u", [Bars("a", {"1": 1.0})], str),
    ]
    found = {}
    for svg in svgs:
        for element in ET.fromstring(svg).iter():
            if name := element.get("id"):
                same = found.setdefault(name, ET.tostring(element))
                assert same == ET.tostring(element)
    assert "<style" not in "".join(svgs)
