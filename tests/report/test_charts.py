# SPDX-License-Identifier: Apache-2.0
"""Which of a run's numbers its plots show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.report import charts, summarize

MIB = 1 << 20


@pytest.mark.parametrize("clients", [charts.MOST_BARS, 127, 130, 1000])
def test_of_many_clients_as_many_are_shown_as_fit_with_the_largest(
    clients, config, timeline, monkeypatch
):
    peaks = {str(n): (clients - n) * MIB for n in range(clients)}
    summary = replace(summarize(config, timeline), client_peaks=peaks)
    shown = []
    monkeypatch.setattr(charts, "bar_plot", lambda title, bars, _: shown.append(bars))
    charts._memory(summary)
    (bars,) = shown[0]
    heights = {k: h for k, h in bars.heights.items() if k != "server"}
    assert len(heights) <= charts.MOST_BARS
    assert list(heights.values()) == sorted(heights.values(), reverse=clients < 65)
    assert max(heights, key=heights.get) == "0"
