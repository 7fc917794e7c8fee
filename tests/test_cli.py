# SPDX-License-Identifier: Apache-2.0
"""The command line: what it says, what it starts, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.cli import command, doctor, launch, main
from atlas_flwr.cli.launch import Federation, LaunchError, SuperLink, private_superlink
from atlas_flwr.cli.overrides import app_defaults, checked, parse_overrides
from atlas_flwr.cli.preflight import cleared, placed
from atlas_flwr.cli.processes import ended_by_signals
from atlas_flwr.cli.trials import plan, progress
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.report import (
    Baseline,
    ClientEvaluated,
    RoundEnded,
    RunEnded,
    RunFolder,
    RunStarted,
)
from atlas_flwr.server_apps.checkpoint import Checkpoint, save_checkpoint
from atlas_flwr.server_apps.minima import KEYS
from atlas_flwr.server_apps.progress import PROGRESS_FILE
from atlas_flwr.sites.scripts import toml

ROOT = Path(__file__).parents[1]


def made_run(out, name, accuracy=0.5, complete=True, **keys):
    keys = {key.replace("_", "-"): value for key, value in keys.items()}
    config = load_config({"runs-dir": str(out), "run-name": name, **keys})
    folder = RunFolder.create(config)
    folder.record(RunStarted(0, 2))
    folder.record(Baseline("spam", 0.5, 0.25))
    folder.record(ClientEvaluated(1, "0", "spam", 0, accuracy, 1.0, 10))
    folder.record(RoundEnded(1, 1.0, 10, 20))
    if complete:
        folder.record(RunEnded(1))
    return folder


# --- the entry point ---


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_the_overview_names_every_verb(words, capsys):
    assert main(words) == (0 if words else 2)
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in command.VERBS)


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_tells_its_options(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"usage: atlas-flwr {verb}" in capsys.readouterr().out


def test_a_verb_that_is_not_is_guessed_at(capsys):
    assert main(["docter"]) == 2
    assert "did you mean doctor?" in capsys.readouterr().err


def test_known_errors_come_without_a_traceback(capsys, tmp_path):
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("atlas-flwr report: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("words", ["config", "--help", "plan --help"])
def test_a_reader_that_leaves_early_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "atlas_flwr.cli", *words.split()]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ran.stderr == ""
    assert ran.returncode in (0, 141)  # argparse itself says nothing and leaves with 0


def test_ctrl_c_is_no_error_of_ours(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_overview_needs_no_package_beside_python():
    code = (
        "import sys; from atlas_flwr.cli import main; import atlas_flwr.cli.doctor;"
        "main(['--help']);"
        "heavy = {'torch', 'flwr', 'omegaconf', 'rich', 'psutil', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]", ran.stderr


def test_config_shows_all_keys_or_what_some_resolve_to(capsys):
    assert main(["config"]) == 0
    assert "num-rounds = 3" in capsys.readouterr().out
    assert main(["config", "-c", "num-rounds=7"]) == 0
    assert "num-rounds: 7\n" in capsys.readouterr().out
    assert main(["config", "-c", "num-rounds=0 cut='1/-'"]) == 1
    assert "2 problems" in capsys.readouterr().err


# --- overrides ---


@pytest.mark.parametrize(
    "text",
    [
        "num-rounds=3 cut='2/1'",
        'a="x y" b=true c=-1.5e-3 d=1',
        "tasks='spam,news' devices=''",
    ],
)
def test_overrides_are_read_as_flower_reads_them(text):
    assert parse_overrides([text]) == parse_config_args([text])


def test_text_needs_no_quotes_here_and_later_pairs_win():
    assert parse_overrides(["strategy=fedavg cut=2/1 run-name=", "cut=auto"]) == {
        "strategy": "fedavg",
        "cut": "auto",
        "run-name": "",
    }


def test_overrides_may_come_from_a_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("seed = 3\ncut = '2/1'\n")
    assert parse_overrides([str(path), "seed=4"]) == {"seed": 4, "cut": "2/1"}
    path.write_text("[a]\nb = 1\n")
    with pytest.raises(ConfigError, match="plain value"):
        parse_overrides([str(path)])
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        parse_overrides([str(tmp_path / "missing.toml")])


def test_what_is_no_pair_is_refused():
    with pytest.raises(ConfigError, match="'rounds' is not key=value"):
        parse_overrides(["seed=1 rounds"])


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
        st.one_of(
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(codec="utf-8")),
        ),
    )
)
def test_toml_keeps_every_value(values):
    read = tomllib.loads(toml(values))
    assert read == values
    assert [type(v) for v in read.values()] == [type(v) for v in values.values()]


def test_overrides_are_checked_against_the_app_before_a_start(tmp_path):
    assert checked(ROOT, {"seed": 5})["seed"] == 5
    with pytest.raises(ConfigError, match="did you mean seed"):
        checked(ROOT, {"sed": 5})
    with pytest.raises(ConfigError, match="holds no Flower app"):
        checked(tmp_path, {})
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\na = 1\n")
    assert checked(tmp_path, {"a": 2}) == {"a": 2}
    with pytest.raises(ConfigError, match="b is not a key"):
        checked(tmp_path, {"b": 2})


# --- before a start ---

OURS = "model=tiny tasks=questions,movies"


@pytest.fixture
def never_started(monkeypatch):
    def started(app):
        pytest.fail("started a SuperLink")

    monkeypatch.setattr("atlas_flwr.cli.run.private_superlink", started)


@pytest.mark.parametrize(
    ("config", "clients", "told"),
    [
        ("cut=9/9", 4, ["cut"]),
        ("devices=1KiB", 4, ["devices='1KiB': 1.0 KiB is too little"]),
        ("tasks=/nonexist.yaml", 4, ["'/nonexist.yaml'"]),
        ("codec=zip tasks=nosuch num-rounds=0", 4, ["'zip'", "'nosuch'", "rounds=0"]),
        ("runs-dir=/dev/null/x", 4, ["runs-dir='/dev/null/x'"]),
        ("model=/nonexist", 4, ["model '/nonexist'"]),
        ("resume=/nonexist", 4, ["resume='/nonexist'"]),
        ("seed=1", 0, ["-n 0"]),
        (
            "min-available-nodes=8",
            4,
            ["nodes=8 with 4 clients", "have 8 clients"],
        ),
        ("min-train-nodes=5 cut=9/9", 4, ["min-train-nodes=5", "cut"]),
        (
            "min-train-nodes=3 without-clients=0,2",
            4,
            ["min-train-nodes=3 with 4 clients, of whom 2 take part", "have 5"],
        ),
        ("without-clients=0,1", 2, ["1 problem", "leaves none of the 2 clients"]),
        ("without-clients=0,9,x", 4, ["names 9, x", "are 0 to 3"]),
        ("trunk=local", 4, ["trunk='local'", "set trunk='auto'"]),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_starts(
    config, clients, told, never_started, capsys
):
    words = ["run", str(ROOT), "-n", str(clients), "-c", OURS, "-c", config]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in told)
    assert "Traceback" not in said


@pytest.mark.parametrize("strategy", ["local", "centralized", "atlas"])
def test_minima_that_nobody_asked_for_are_lowered_to_the_clients_there_are(strategy):
    found = cleared(ROOT, parse_overrides([OURS, f"strategy={strategy}"]), clients=1)
    lowered = {key: value for key, value in found.overrides.items() if "nodes" in key}
    assert lowered == dict.fromkeys(KEYS, 1)
    assert len(found.notes) == len(KEYS)
    assert "min-train-nodes is lowered from 2 to 1" in "".join(found.notes)


@pytest.mark.parametrize(
    ("keys", "least"),
    [("strategy=atlas split=none ranks=uniform", 3), ("strategy=fedavg", 2)],
)
def test_fewer_clients_than_a_secure_sum_needs_are_told_before_anything_runs(
    keys, least
):
    given = parse_overrides([OURS, "secure-aggregation=true", *keys.split()])
    with pytest.raises(ConfigError, match=f"a secure sum is of {least} at least"):
        cleared(ROOT, given, clients=least - 1)
    cleared(ROOT, given, clients=least)
    less = {**given, "without-clients": "0"}
    with pytest.raises(ConfigError, match=f"have {least + 1} clients"):
        cleared(ROOT, less, clients=least)


def test_clients_that_are_left_out_are_not_waited_for():
    given = parse_overrides([OURS, "without-clients=0,2"])
    found = cleared(ROOT, given, clients=3)
    assert {key: found.merged[key] for key in KEYS} == dict.fromkeys(KEYS, 1)


def test_paths_are_seen_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    (tmp_path / "bare").touch()
    (tmp_path / "model").mkdir()
    found = placed(
        {
            "tasks": "mine.yaml, spam,~/b.yaml,sub/c.yaml,bare,/d.yaml",
            "model": "model",
            "runs-dir": "runs",
            "resume": "",
            "trunk-access": "a.json, ~/b.json",
            "seed": 1,
        }
    )
    assert found == {
        "tasks": f"{tmp_path}/mine.yaml,spam,{tmp_path}/mine/b.yaml,"
        f"{tmp_path}/sub/c.yaml,{tmp_path}/bare,/d.yaml",
        "model": f"{tmp_path}/model",
        "runs-dir": f"{tmp_path}/runs",
        "resume": "",
        "trunk-access": f"{tmp_path}/a.json,{tmp_path}/mine/b.json",
        "seed": 1,
    }
    assert placed({"model": "tiny", "tasks": "spam"}) == {
        "model": "tiny",
        "tasks": "spam",
    }


def test_a_run_is_not_resumed_with_other_clients_or_from_a_damaged_checkpoint(
    tmp_path, capsys, never_started
):
    folder = made_run(tmp_path, "one", complete=False, model="tiny", tasks="questions")
    folder.record(RunStarted(0, 4, partitions=4))
    (folder.checkpoint_dir / "round-1").mkdir()
    (folder.checkpoint_dir / "round-1" / "state.json").write_text('{"round"')
    words = ["run", str(ROOT), "-n", "4", "-c", f"resume={folder.path}"]
    assert main(words) == 1
    assert "round-1/state.json is damaged" in capsys.readouterr().err
    arrays = ArrayRecord({"a": Array(np.zeros(2, np.float32))})
    save_checkpoint(folder.checkpoint_dir, Checkpoint(1, arrays, {}, {}))
    words[3] = "6"
    assert main(words) == 1
    assert "dealt to 4 clients, and now it is 6" in capsys.readouterr().err


def test_a_run_that_flower_began_is_resumed_with_fewer_clients_than_the_apps_minima(
    tmp_path,
):
    keys = {"model": "tiny", "tasks": "questions"}
    folder = made_run(tmp_path, "one", complete=False, **keys)
    folder.record(RunStarted(0, 1, partitions=1))
    arrays = ArrayRecord({"a": Array(np.zeros(2, np.float32))})
    save_checkpoint(folder.checkpoint_dir, Checkpoint(1, arrays, {}, {}))
    given = {"resume": str(folder.path)}
    found = cleared(ROOT, given, clients=1)
    assert (found.overrides, found.notes) == (given, ())


# --- the doctor ---


def findings():
    return {finding.name: finding for finding in doctor.examine()}


def test_a_missing_package_is_told_with_its_remedy_and_fails(monkeypatch, capsys):
    wanted = ["no-such-thing>=1", "numpy<1", "extra-thing; extra == 'x'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "missing   no-such-thing: not installed" in said
    assert "-> pip install 'no-such-thing>=1'" in said
    assert "wanted <1" in said
    assert "extra-thing" not in said
    assert "missing: no-such-thing, numpy" in said


def test_this_machine_can_run_the_tests_and_hence_all_that_is_needed_is_there():
    missing = [f for f in findings().values() if f.needed and not f.ok]
    assert [f for f in missing if not f.name.startswith("disk")] == []


@pytest.mark.parametrize("cache", ["cache", "my cache (1)"])
def test_texts_that_a_broken_run_recorded_are_told_with_what_removes_them(
    monkeypatch, tmp_path, cache
):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / cache))
    assert doctor._recorded_texts().ok
    kept = ClientStore(tmp_path / cache / "clients" / "0123456789abcdef" / "3")
    kept.save("texts", 0, {"texts": np.zeros(4)})
    assert doctor._recorded_texts().ok
    kept.save("wire", 2, {"ids": np.zeros(4)})
    found = findings()["recorded texts"]
    assert not found.ok
    assert not found.needed
    assert "of 1 run" in found.detail
    _, _, removal = found.remedy.partition(": ")
    subprocess.run(["sh", "-c", removal], check=True)
    assert doctor._recorded_texts().ok
    assert [path.name for path in kept.path.iterdir()] == ["texts-0.npz"]


def test_what_a_killed_client_had_begun_to_record_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))

    class Killed(BaseException):
        pass

    def killed(*args, **arrays):
        raise Killed

    monkeypatch.setattr(np, "savez", killed)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nor does it tidy up
    with pytest.raises(Killed):
        ClientStore(tmp_path / "clients" / "a" / "0").save("wire", 1, {})
    assert "clients/a/*/wire-*" in doctor._recorded_texts().remedy


def test_notes_do_not_fail_and_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv(doctor.DEPENDENCY_SWITCH, raising=False)
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "none"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(doctor.SHARED_PORT[0], str(taken.getsockname()[1]))
        found = findings()
    for name in ("installs at run time", "weights and text", "shared SuperLink"):
        assert not found[name].ok
        assert not found[name].needed
        assert found[name].remedy in found[name].line()
    assert "atlas-flwr fetch" in found["weights and text"].remedy


def test_a_broken_flower_config_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text("[superlink\n")
    assert not findings()["Flower's config"].ok


def test_a_check_that_cannot_be_imported_is_a_finding(monkeypatch):
    def check():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(doctor, "CHECKS", (check,))
    assert findings()["check"].line().startswith("missing   check: No module named")


# --- report and compare on runs that are there ---


def test_report_rebuilds_the_latest_run(tmp_path, capsys):
    folder = made_run(tmp_path, "one", accuracy=0.75)
    assert main(["report", "--runs-dir", str(tmp_path)]) == 0
    assert "75.0" in capsys.readouterr().out
    assert folder.report_path.is_file()
    assert folder.summary_path.is_file()


def test_report_without_a_run_says_how_to_make_one(tmp_path, capsys):
    assert main(["report", "--runs-dir", str(tmp_path)]) == 1
    assert "atlas-flwr run" in capsys.readouterr().err


def test_finished_runs_are_compared(tmp_path, capsys):
    runs = [
        made_run(tmp_path, "a0", 0.6),
        made_run(tmp_path, "f0", 0.5, strategy="fedavg"),
    ]
    out = tmp_path / "out"
    words = ["compare", "--runs", *(str(r.path) for r in runs), "--out", str(out)]
    assert main(words) == 0
    table = (out / "compare.md").read_text()
    assert table in capsys.readouterr().out
    assert "| fedavg | 0 | 50.0 | 50.0 | -10.0 |" in table
    assert "<svg" in (out / "compare.html").read_text()


def test_a_run_that_is_not_finished_is_not_compared(tmp_path, capsys):
    whole = made_run(tmp_path, "a0", 0.6)
    died = made_run(tmp_path, "f0", complete=False, strategy="fedavg", num_rounds=4)
    out = tmp_path / "out"
    runs = [str(whole.path), str(died.path)]
    assert main(["compare", "--runs", *runs, "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert f"{died.path} is not finished: 1 of 4 rounds are done" in told
    assert f"resume='{died.path}'" in told
    assert str(whole.path) not in told
    assert not out.exists()


def test_trials_go_seed_by_seed_and_get_only_what_they_read():
    trials = plan(["atlas", "fedprox"], [0, 1], {"codec": "raw", "proximal-mu": 0.5})
    assert [trial.name for trial in trials] == [
        "atlas-seed0", "fedprox-seed0", "atlas-seed1", "fedprox-seed1"
    ]  # fmt: skip
    assert trials[0].overrides == {"codec": "raw", "strategy": "atlas", "seed": 0}
    assert trials[3].overrides == {"proximal-mu": 0.5, "strategy": "fedprox", "seed": 1}


def test_keys_that_nobody_reads_or_that_are_not_the_users_are_refused():
    with pytest.raises(ConfigError, match="none of fedavg, local reads it"):
        plan(["fedavg", "local"], [0], {"clustering": "none"})
    with pytest.raises(ConfigError, match="compare sets it itself"):
        plan(["atlas"], [0], {"seed": 3})


def test_a_trial_is_begun_resumed_or_skipped_by_what_is_there(tmp_path):
    (trial,) = plan(["atlas"], [0], {"num-rounds": 2})
    defaults, ours = app_defaults(ROOT)
    assert ours

    state = progress(trial, tmp_path, defaults, 2)
    assert state.finished is None
    assert state.overrides["run-name"] == "atlas-seed0"
    assert state.overrides["runs-dir"] == str(tmp_path)

    begun = made_run(tmp_path, "atlas-seed0", complete=False, num_rounds=2)
    state = progress(trial, tmp_path, defaults, 2)
    assert state.overrides["run-name"] == "atlas-seed0-2"

    (begun.checkpoint_dir / "round-1").mkdir()
    state = progress(trial, tmp_path, defaults, 2)
    assert state.overrides["resume"] == str(begun.path)
    assert "run-name" not in state.overrides
    load_config({**defaults, **state.overrides})

    begun.record(RunEnded(2))
    assert progress(trial, tmp_path, defaults, 2).finished == begun


@pytest.mark.parametrize(
    ("rounds", "clients", "words"), [(3, 2, "num-rounds=2"), (2, 9, "2 clients")]
)
def test_a_run_of_another_configuration_is_not_taken_for_it(
    tmp_path, rounds, clients, words
):
    made_run(tmp_path, "atlas-seed0", num_rounds=2)
    (trial,) = plan(["atlas"], [0], {"num-rounds": rounds})
    with pytest.raises(ConfigError, match=words):
        progress(trial, tmp_path, app_defaults(ROOT)[0], clients)


def test_a_trial_is_resumed_with_its_task_file_at_another_path(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    file = f"{tmp_path}/real/a.yaml"
    done = made_run(tmp_path, "fedavg-seed0", strategy="fedavg", tasks=file)
    for place in ("linked", "linked/../real"):
        (trial,) = plan(["fedavg"], [0], {"tasks": f"{tmp_path}/{place}/a.yaml"})
        assert progress(trial, tmp_path, {}, 2).finished == done
    (trial,) = plan(["fedavg"], [0], {"tasks": f"{tmp_path}/a.yaml"})
    with pytest.raises(ConfigError, match="was run with tasks="):
        progress(trial, tmp_path, {}, 2)


def test_a_trial_in_which_not_all_clients_take_part_is_known_again(tmp_path):
    done = made_run(tmp_path, "fedavg-seed0", strategy="fedavg", without_clients="1")
    done.record(RunStarted(1, 1, partitions=2))
    done.record(RunEnded(1))
    (trial,) = plan(["fedavg"], [0], {"without-clients": "1"})
    assert progress(trial, tmp_path, {}, 2).finished == done
    with pytest.raises(ConfigError, match="was run with 2 clients"):
        progress(trial, tmp_path, {}, 1)


@pytest.mark.parametrize("seeds", ["", "x", "-1", "1,,2"])
def test_seeds_are_whole_numbers(seeds, capsys, tmp_path):
    words = ["compare", f"--seeds={seeds}", "--app", str(ROOT), "--out", str(tmp_path)]
    assert main(words) == 1
    assert "must be whole numbers" in capsys.readouterr().err


def test_a_comparison_checks_all_before_it_starts_any(capsys, tmp_path, monkeypatch):
    def started(app):
        pytest.fail("started a SuperLink")

    monkeypatch.setattr("atlas_flwr.cli.compare.private_superlink", started)
    words = ["compare", "--strategies", "atlas,fedavgg", "--app", str(ROOT)]
    config = "model=tiny tasks=questions,nosuch"
    assert main([*words, "-c", config, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "did you mean fedavg?" in told
    assert told.count("'nosuch'") == 1


# --- launching: with stand-ins for Flower's commands ---

FAKE_FLWR = """\
#!{python}
import sys, pathlib
home = pathlib.Path(__import__("os").environ["FLWR_HOME"])
if sys.argv[1] == "list":
    said = home / "asked"
    text = (home / "overrides.toml").read_text()
    ended = "finished:failed" if "fail" in text else "finished:completed"
    status = ended if said.exists() else "running"
    said.touch()
    print("Displaying...\\n" + '{{"runs": [{{"status": "' + status + '"}}]}}')
elif "refuse" in (home / "overrides.toml").read_text():
    print("no such key")
    sys.exit(1)
else:
    print("args", sys.argv[2:])
    print("Successfully started run 42")
    print("Successfully installed app to its folder")
    print("training...")
    if "loudly" in (home / "overrides.toml").read_text():
        print("ERROR :  the trunk is gone")
    if "plainly" in (home / "overrides.toml").read_text():
        print("error: Ray is gone")
    said = __import__("os").environ.get("ATLAS_PROGRESS")
    if said:
        pathlib.Path(said).write_text("{{}}")
"""


@pytest.fixture
def fake_tool(monkeypatch, tmp_path):
    def install(name, text):
        path = tmp_path / f"fake-{name}"
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
        real = launch._tool
        monkeypatch.setattr(
            launch, "_tool", lambda asked: str(path) if asked == name else real(asked)
        )

    return install


@pytest.fixture
def superlink(tmp_path, fake_tool, monkeypatch):
    fake_tool("flwr", FAKE_FLWR)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    home = tmp_path / "home"
    home.mkdir()
    return SuperLink(tmp_path, home, os.environ | {"FLWR_HOME": str(home)})


def test_a_run_is_passed_its_config_and_waited_for(superlink, capsys):
    federation = Federation(4, 2, extra="verbose=true")
    assert superlink.run({"seed": 1}, federation) == "finished:completed"
    said = capsys.readouterr().out
    assert "training..." in said
    assert (
        "num-supernodes=4 client-resources-num-cpus=2 client-resources-num-gpus=0.0 "
        "verbose=true"
    ) in said
    assert "overrides.toml" in said


def test_what_flower_says_of_every_run_is_shown_on_request_only(superlink, capsys):
    quiet = replace(superlink, verbose=False)
    assert quiet.run({"seed": 1}, Federation()) == "finished:completed"
    assert capsys.readouterr().out == "training...\n"
    superlink.run({"seed": 1}, Federation())
    assert "Successfully installed app" in capsys.readouterr().out
    with pytest.raises(LaunchError):
        quiet.run({"refuse": True}, Federation())
    assert "no such key" in capsys.readouterr().out  # whoever fails tells all


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ("loudly", "the trunk is gone"),
        ("plainly", "Ray is gone"),
        ("mutely", "without a word"),
    ],
)
def test_a_failed_run_has_a_last_word(superlink, capsys, how, last):
    status = replace(superlink, verbose=False).run({"fail": how}, Federation())
    assert status == "finished:failed"
    said = capsys.readouterr().out.splitlines()
    assert last in said[-1]
    assert len(said) == 2


@pytest.mark.parametrize(("verbose", "level"), [(False, "WARNING"), (True, "INFO")])
def test_flower_is_quiet_and_nothing_is_drawn_where_nobody_looks(
    tmp_path, fake_superlink, monkeypatch, verbose, level
):
    monkeypatch.delenv("FLWR_LOG_LEVEL", raising=False)
    with private_superlink(tmp_path, verbose) as superlink:
        assert superlink.environment["FLWR_LOG_LEVEL"] == level
        assert superlink.environment["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
        assert "ATLAS_PROGRESS" not in superlink.environment


def test_in_a_terminal_a_run_says_where_its_progress_is_to_be_drawn_from(
    tmp_path, fake_superlink, monkeypatch
):
    monkeypatch.setattr(launch.sys.stdout, "isatty", lambda: True)
    with private_superlink(tmp_path) as superlink:
        path = Path(superlink.environment["ATLAS_PROGRESS"])
        assert path.parent == superlink.home
    assert launch.PROGRESS_FILE == PROGRESS_FILE


def test_progress_is_drawn_below_what_is_said(superlink, tmp_path, capsys):
    drawn = replace(
        superlink,
        verbose=False,
        environment={
            **superlink.environment,
            "ATLAS_PROGRESS": str(tmp_path / "progress.json"),
        },
    )
    assert drawn.run({}, Federation()) == "finished:completed"
    assert "training..." in capsys.readouterr().out


def test_a_run_that_flower_refuses_is_an_error(superlink, capsys):
    with pytest.raises(LaunchError, match=r"started no run \(exit code 1\)"):
        superlink.run({"refuse": True}, Federation())
    assert "no such key" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["run", "compare"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("cpus", "0"), ("cpus", "-2"), ("gpus", "-0.5"), ("gpus", "nan"), ("gpus", "inf")],
)
def test_what_ray_cannot_reserve_is_refused_at_once(verb, option, value, capsys):
    assert main([verb, f"--client-{option}", value]) == 1
    assert f"--client-{option} {value}" in capsys.readouterr().err


def test_federation_config_is_as_flower_reads_it():
    read = parse_config_args([Federation(3, 2, 0.5).text()])
    assert read == {
        "num-supernodes": 3,
        "client-resources-num-cpus": 2,
        "client-resources-num-gpus": 0.5,
    }


def test_a_superlink_that_dies_at_once_is_told_with_its_log(tmp_path, fake_tool):
    fake_tool("flower-superlink", "#!/bin/sh\necho port is taken\nexit 7\n")
    with (
        pytest.raises(LaunchError, match=r"(?s)exit code 7:.*port is taken"),
        private_superlink(tmp_path),
    ):
        pytest.fail("it did not start")


FAKE_SUPERLINK = """\
#!{python}
import http.server, os, pathlib, subprocess, sys
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path("pids").write_text(f"{{os.getpid()}} {{child.pid}}")
pathlib.Path("env").write_text(os.environ["{switch}"])
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Ok).serve_forever()
"""


@pytest.fixture
def fake_superlink(fake_tool):
    switch = doctor.DEPENDENCY_SWITCH
    fake_tool("flower-superlink", FAKE_SUPERLINK.replace("{switch}", switch))


def alive(path):
    return [int(p) for p in path.read_text().split() if psutil.pid_exists(int(p))]


def test_nothing_is_left_of_a_superlink_not_even_what_left_its_session(
    tmp_path, fake_superlink
):
    with private_superlink(tmp_path) as superlink:
        assert len(alive(tmp_path / "pids")) == 2
        assert (tmp_path / "env").read_text() == "1"
        config = tomllib.loads((superlink.home / "config.toml").read_text())
        name = config["superlink"]["default"]
        assert config["superlink"][name]["address"].startswith("127.0.0.1:")
    assert alive(tmp_path / "pids") == []
    assert not superlink.home.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_an_error_ends_the_superlink_too(tmp_path, fake_superlink, error):
    with pytest.raises(error), private_superlink(tmp_path):
        raise error([]) if error is ConfigError else error
    assert alive(tmp_path / "pids") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_superlink_and_the_handlers_are_put_back(
    tmp_path, fake_superlink, number
):
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup's is to be ignored
    try:
        with pytest.raises(SystemExit) as left, private_superlink(tmp_path):
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)
    assert left.value.code == 128 + number
    assert alive(tmp_path / "pids") == []


def test_a_second_signal_does_not_disturb_the_ending():
    ended = []

    def work():
        with ended_by_signals(), ExitStack() as stack:
            stack.callback(ended.append, "all")
            stack.callback(signal.raise_signal, signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)

    with pytest.raises(SystemExit):
        work()
    assert ended == ["all"]


def test_an_impatient_second_ctrl_c_leaves_nothing_running(
    tmp_path, fake_superlink, monkeypatch
):
    wait = psutil.wait_procs

    def impatient(*given, **named):
        signal.raise_signal(signal.SIGINT)
        return wait(*given, **named)

    monkeypatch.setattr(psutil, "wait_procs", impatient)
    with pytest.raises(KeyboardInterrupt), private_superlink(tmp_path):
        raise KeyboardInterrupt
    assert alive(tmp_path / "pids") == []


def test_a_closed_terminal_does_not_end_what_nohup_protects():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# --- launching: with Flower itself ---

TRIVIAL = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "trivial"
version = "0.1.0"
description = "x"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "trivial.server:app"
clientapp = "trivial.client:app"
[tool.flwr.app.config]
word = "hello"
fail = false
""",
    "trivial/__init__.py": "",
    "trivial/server.py": """\
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    if context.run_config["fail"]:
        raise RuntimeError("told to fail")
    print("the word is", repr(context.run_config["word"]), flush=True)
""",
    "trivial/client.py": """\
from flwr.clientapp import ClientApp
app = ClientApp()
""",
}


@pytest.mark.slow
def test_flower_runs_an_app_and_tells_how_it_went(tmp_path, capsys):
    for name, text in TRIVIAL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    word = "a \"b\" 'c', d"
    with private_superlink(tmp_path) as superlink:
        federation = Federation(num_supernodes=2)
        assert superlink.run({"word": word}, federation) == "finished:completed"
        assert superlink.run({"fail": True}, federation) == "finished:failed"
    said = capsys.readouterr().out
    assert f"the word is {word!r}" in said
    assert "told to fail" in said


@pytest.mark.slow
def test_what_only_the_serverapp_knows_is_the_last_word_and_no_traceback(
    tmp_path, capsys
):
    wrong = {"model": "tiny", "devices": "1KiB", "runs-dir": str(tmp_path)}
    with private_superlink(ROOT) as superlink:
        assert superlink.run(wrong, Federation(num_supernodes=2)) == "finished:failed"
    said = capsys.readouterr().out
    assert "Traceback" not in said
    assert "unhandled" not in said
    assert "devices='1KiB': 1.0 KiB is too little" in said.strip().splitlines()[-1]


def test_plan_shows_cuts_ranks_and_memory_and_refuses_what_is_too_small(capsys):
    config = "model='tiny' devices='100KiB,15MiB,1GiB'"
    rates = ["--client-gflops", "1", "--trunk-gflops", "10"]
    assert main(["plan", str(ROOT), "-c", config, *rates]) == 1
    out = capsys.readouterr().out
    assert "a device of 0.1 MiB holds no part of this model" in out
    assert "1024 MiB: cut 4/1" in out
    assert "self_attn.q_proj  8 8 8 8 8 8" in out


def test_plan_shows_who_would_carry_the_trunk_for_whom(capsys):
    config = "model='tiny' trunk='peers' peer-memory='9MB,0,3800KB,0' tasks='spam'"
    rates = ["--client-gflops", "1", "--trunk-gflops", "10"]
    given = ["-c", f"{config} device-order='cycle'", "-n", "4", *rates]
    assert main(["plan", str(ROOT), *given]) == 0
    out = capsys.readouterr().out
    assert "peers: 2 of 4 clients lend memory; the trunk has 4 blocks" in out
    assert "0 [blocks 1 to 4, 5 of 9 MiB]: carries 0" in out
    assert "nobody has room for 1, 2, 3, who take turns" in out


def test_plan_shows_what_a_step_takes_over_the_links_that_are_said(capsys):
    lent = "peer-memory='1GB,0' peer-links='10Mbit/s,2Mbit/s' device-order='cycle'"
    step = "tasks='spam' batch-size=8 max-length=32"
    rates = ["--client-gflops", "1", "--trunk-gflops", "10"]
    given = ["-c", f"model='tiny' trunk='peers' {lent} {step}", "-n", "2", *rates]
    assert main(["plan", str(ROOT), *given]) == 0
    shown = capsys.readouterr().out
    found = re.search(r"carries 0, 1; (\S+) s a step", shown)
    bits = 4 * 32 * 8 * 32 * 32  # of 32 numbers a token, four times; little computed
    assert float(found[1]) == pytest.approx(bits / 2e6 + bits / 10e6, rel=0.1)


def test_plan_says_that_a_run_which_nobody_can_carry_would_end(capsys):
    config = "model='tiny' trunk='peers' peer-memory='1KiB,0' tasks='spam'"
    rates = ["--client-gflops", "1", "--trunk-gflops", "10"]
    assert main(["plan", str(ROOT), "-c", config, "-n", "4", *rates]) == 0
    assert "nobody has room for any client" in capsys.readouterr().out


def test_plan_shows_a_round_which_alone_takes_a_clients_own_path(capsys):
    config = "model='tiny' tasks='spam' local-steps=30 trunk-queue='fifo'"
    rates = ["--client-gflops", "0.01", "--trunk-gflops", "0.01", "--mbits", "1"]
    given = ["-c", config, "--round", "-n", "1", "--spread", "1", *rates]
    assert main(["plan", str(ROOT), *given]) == 0
    shown = capsys.readouterr().out.partition("a round of 1 clients")[2]
    head, _, *rows = shown.splitlines()
    path = head.split()[-2]
    assert float(path.replace(",", "")) > 10
    whole = [row.lstrip("* ").split() for row in rows]
    assert [row[2] for row in whole if row[1] == "1"] == [path] * 3
    assert [row for row in rows if row.startswith("*")] == [rows[0]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--round", "--spread", "0.5"], "--spread 0.5: must be at least 1"),
        (["--round", "--spread", "nan"], "--spread nan: must be at least 1"),
        (["--round", "--spread", "1e308"], "at most 1e+06"),
        (["--round", "--trunks", "0"], "--trunks 0: must be at least 1"),
        (["--round", "-n", "0"], "-n 0: must be at least 1"),
        (["--spread", "2"], "--spread: is read with --round alone"),
        (["--trunks", "2"], "--trunks: is read with --round alone"),
        (["--mbits", "0"], "--mbits 0: must be above 0, and finite"),
        (["--trunk-gflops", "0"], "--trunk-gflops 0: must be above 0"),
        (["--client-gflops", "inf"], "--client-gflops inf: must be above 0"),
        (["--leakage", "0"], "--leakage 0: at least 1 text"),
    ],
)
def test_plan_refuses_numbers_that_are_none_and_options_that_nothing_reads(
    wrong, said, capsys
):
    assert main(["plan", str(ROOT), "-c", "model='tiny'", *wrong]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("keys", ["strategy='fedavg'", "split='none'"])
def test_a_trunk_that_no_client_would_call_is_not_served(keys, tmp_path, capsys):
    given = ["-c", f"model='tiny' {keys}", "--folder", str(tmp_path / "trunk")]
    assert main(["trunk", str(ROOT), *given]) == 1
    assert "there is no trunk to serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    "keys", ["strategy='fedavg'", "split='none'", "trunk='peers' peer-memory='1GiB'"]
)
def test_plan_shows_no_round_of_a_trunk_that_the_run_has_not(keys, capsys):
    config = f"model='tiny' tasks='spam' {keys}"
    assert main(["plan", str(ROOT), "-c", config, "--round"]) == 1
    assert f"--round with {keys.split()[0]}: " in capsys.readouterr().err


def test_plan_shows_cuts_of_adapters_that_have_no_rank(capsys):
    config = "model='tiny' adapter='ia3' devices='15MiB,1GiB'"
    rates = ["--client-gflops", "1", "--trunk-gflops", "10"]
    assert main(["plan", str(ROOT), "-c", config, *rates]) == 0
    out = capsys.readouterr().out
    assert "1024 MiB: cut 4/1" in out
    assert "q_proj" not in out


@pytest.mark.parametrize(
    ("strategies", "told"),
    [([], "nothing to compare"), (["atlas", "atlas"], "atlas more than once")],
)
def test_a_comparison_of_nothing_or_of_one_with_itself_is_refused(strategies, told):
    with pytest.raises(ConfigError, match=told):
        plan(strategies, [0], {})
