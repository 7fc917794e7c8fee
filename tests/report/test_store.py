# SPDX-License-Identifier: Apache-2.0
"""The run folder: nothing is lost, and half-written lines do no harm."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError, DataError, ResumeError, StorageError
from atlas_flwr.report import ClientEvaluated, RoundEnded, RunFolder, latest_run
from atlas_flwr.report.events import EVENTS
from atlas_flwr.report.privacy import privacy_rows
from atlas_flwr.report.records import from_record, to_record


def new_folder(tmp_path, **keys):
    keys = {key.replace("_", "-"): value for key, value in keys.items()}
    return RunFolder.create(load_config({"runs-dir": str(tmp_path), **keys}))


def test_two_runs_of_the_same_second_get_two_folders(tmp_path):
    paths = {new_folder(tmp_path).path for _ in range(4)}
    assert len(paths) == 4
    assert all("-atlas" in path.name for path in paths)


def test_a_name_overrides_the_time_and_is_taken_once(tmp_path):
    assert new_folder(tmp_path, run_name="mine").path == tmp_path / "mine"
    with pytest.raises(ConfigError, match="resume="):
        new_folder(tmp_path, run_name="mine")


def test_an_opened_folder_gives_back_configuration_and_events(folder, timeline):
    opened = RunFolder.open(folder.path)
    assert opened.config().num_rounds == 2
    assert list(opened.events()) == timeline


def test_what_is_no_run_folder_is_not_opened(tmp_path):
    with pytest.raises(ResumeError, match="not a run folder"):
        RunFolder.open(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(cut=st.integers(1, 60))
def test_a_torn_last_line_is_passed_over_and_then_replaced(tmp_path, cut):
    made = new_folder(tmp_path)
    kept, torn, later = (RoundEnded(n, 1.0, 2, 3) for n in (1, 2, 3))
    made.record(kept)
    whole = made.metrics_path.stat().st_size
    made.record(torn)
    with made.metrics_path.open("r+b") as file:
        file.truncate(whole + cut)
    assert [event for _, event in made.events()] == [kept]
    made.record(later)
    assert [event for _, event in made.events()] == [kept, later]


def test_any_other_broken_line_is_an_error_that_tells_where(folder):
    lines = folder.metrics_path.read_text().splitlines()
    folder.metrics_path.write_text("\n".join([lines[0], lines[1][:9], lines[2], ""]))
    with pytest.raises(DataError, match="jsonl:2"):
        folder.records()


@pytest.mark.parametrize("line", ["[1]", '{"time": 1}', '{"event": "baseline"}'])
def test_lines_that_are_no_events_are_refused(folder, line):
    folder.metrics_path.write_text(line + "\n")
    with pytest.raises(DataError, match="not an event"):
        folder.records()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.yaml", b"a: [", "config.yaml is damaged"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml is damaged"),
        ("metrics.jsonl", b"\x80\x81 no event", "no event in it"),
        ("metrics.jsonl", b'{"event": 1, "time": 1}\n', "jsonl:1: not an event"),
        (
            "metrics.jsonl",
            b'{"event": "round-ended", "time": 1, "round": "x"}\n',
            "jsonl:1: a 'round-ended' event with round='x', which is no int",
        ),
        ("privacy.json", b'{"x', "privacy.json is damaged"),
        ("privacy.json", b'[{"attack": "linear"}]', "privacy.json is damaged"),
    ],
)
def test_a_damaged_file_is_named_in_a_sentence(folder, file, content, told):
    (folder.path / file).write_bytes(content)
    with pytest.raises(DataError, match=told):
        folder.config(), list(folder.events()), privacy_rows(folder)


def test_events_of_later_versions_are_kept_but_not_read(folder, timeline):
    with folder.metrics_path.open("a") as file:
        file.write('{"event": "comet", "time": 1, "round": 3}\n')
    assert len(folder.records()) == len(timeline) + 1
    assert list(folder.events()) == timeline


def test_every_kind_of_event_survives_json(events):
    assert {type(event) for event in events} == set(EVENTS.values())
    for event in events:
        assert from_record(json.loads(json.dumps(to_record(event, 1.0)))) == event


def test_an_event_without_a_field_is_refused():
    with pytest.raises(DataError, match="'round-ended' event is incomplete"):
        from_record({"event": "round-ended", "time": 1, "round": 1})


def test_a_diverged_loss_is_strict_json_and_reads_as_nan(tmp_path):
    made = new_folder(tmp_path)
    made.record(ClientEvaluated(1, "0", "spam\u2028\n", None, 0.5, math.inf, 8))
    json.loads(made.metrics_path.read_text(), parse_constant=pytest.fail)
    ((_, event),) = made.events()
    assert math.isnan(event.loss)
    assert event.task == "spam\u2028\n"


def test_a_summary_is_replaced_whole_and_leaves_no_draft(folder):
    folder.write_summary({"a": 1})
    before = set(folder.path.iterdir())
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"a": math.nan})
    assert json.loads(folder.summary_path.read_text()) == {"a": 1}
    folder.write_summary({"a": 2})
    assert json.loads(folder.summary_path.read_text()) == {"a": 2}
    assert set(folder.path.iterdir()) == before


def test_the_latest_run_is_the_one_begun_last(tmp_path):
    assert latest_run(tmp_path) is None
    new_folder(tmp_path, run_name="b")
    second = new_folder(tmp_path, run_name="a")
    stamp = second.path.stat().st_mtime + 5
    os.utime(second.path / "config.yaml", (stamp, stamp))
    assert latest_run(tmp_path) == second


def test_a_folder_keeps_an_id_that_no_other_has(tmp_path):
    first, second = new_folder(tmp_path), new_folder(tmp_path)
    assert first.run_id() == RunFolder.open(first.path).run_id() != second.run_id()


def test_a_folder_of_an_older_version_without_an_id_is_told(tmp_path):
    folder = new_folder(tmp_path)
    (folder.path / "run-id").unlink()
    with pytest.raises(ResumeError, match="an older version made it"):
        folder.run_id()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_is_said_with_the_way_on(tmp_path):
    made = new_folder(tmp_path)
    made.metrics_path.unlink()
    made.metrics_path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"metrics.jsonl.*No space left.*resume="):
        made.record(RoundEnded(1, 1.0, 2, 3))
