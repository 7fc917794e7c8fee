"""The verbs ``generate`` and ``chat``, from a run's folder to answers."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atlas_flwr.cli import main
from atlas_flwr.cli.brought import _in_order
from atlas_flwr.client_apps.app import app
from atlas_flwr.client_apps.same_texts import check_texts
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.data import load_task, make_shard, resolve_model, tokenizer_of
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.errors import ConfigError
from atlas_flwr.lora import load_peft, save_peft
from atlas_flwr.report import RunFolder, RunStarted
from atlas_flwr.server_apps.run import Run
from atlas_flwr.split import SplitPlan
from atlas_flwr.testing import local_grid
from atlas_flwr.train.answers import Answer
from atlas_flwr.train.same_model import described
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.certificates import Authority, run_identity
from atlas_flwr.trunk.transports.grpc import ServeOptions, serve_grpc
from atlas_flwr.trunk.transports.ownership import OwnerService
from tests.serving.conftest import cache_in, made_run
from tests.train import test_ia3, test_prompt

ROWS = [{"prompt": "Count after one"}, {"start": "seven", "id": 3}, {"prompt": "x"}]
LONG = "12"
COVERING = SplitPlan(1, 1)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def answers(folder, prompts, *words, out="answers.jsonl"):
    path = prompts.parent / out
    given = ["--prompts", str(prompts), "--out", str(path), "--max-new-tokens", LONG]
    assert main(["generate", str(folder.path), *given, *words]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole_answer(adapters, prompt):
    """Answer with Transformers and PEFT, unsplit and without padding."""
    source = resolve_model("tiny")
    tokenizer = tokenizer_of(source)
    model = AutoModelForCausalLM.from_pretrained(source.path)
    model = PeftModel.from_pretrained(model, adapters).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=int(LONG), do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_a_clusters_answers_are_pefts_on_the_whole_model(folder, prompts, capsys):
    rows = answers(folder, prompts, "--cluster", "0", "--batch-size", "2")
    adapters = folder.path / "adapters" / "0"
    asked = ["Count after one", "Count after seven:", "x"]
    assert [r["answer"] for r in rows] == [whole_answer(adapters, p) for p in asked]
    assert [{k: r[k] for k in r if k != "answer"} for r in rows] == ROWS
    said = capsys.readouterr().out
    assert "head 2, trunk 3, tail 1 blocks" in said
    assert "3 answers" in said


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_answers_of_vectors_and_prompts_are_pefts(kind, folder, tmp_path, prompts):
    source = resolve_model("tiny")
    bare = AutoModelForCausalLM.from_pretrained(source.path)
    state = {"ia3": test_ia3.start, "prompt": test_prompt.start}[kind](bare)
    save_peft(tmp_path / kind, state, base_model=source.hub_name, causal=True)
    way = ["--adapters", str(tmp_path / kind), "--batch-size", "1"]
    asked = ["Count after one", "x"]
    prompts.write_text("\n".join(json.dumps({"prompt": p}) for p in asked))
    rows = answers(folder, prompts, *way, "--beside-base")
    assert [r["answer"] for r in rows] == [
        whole_answer(tmp_path / kind, p) for p in asked
    ]
    assert all(r["answer"] != r["base"] for r in rows)


def test_clusters_clients_and_the_base_answer_otherwise(folder, prompts):
    prompts.write_text(json.dumps(ROWS[0]))
    ways = (["--cluster", "0"], ["--cluster", "1"], ["--client", "3"], ["--base"])
    texts = [answers(folder, prompts, *way)[0]["answer"] for way in ways]
    assert len(set(texts)) == 4


def write_advice(root, rows=12):
    """Write the rows of one of the run's tasks, which it names and has not."""
    made = [
        {"problem": f"problem {n}", "detail": "", "advice": f"advice {n}"}
        for n in range(rows)
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))


@pytest.fixture
def own_run(tmp_path, monkeypatch):
    """A run whose task files and clients' memories may be changed."""
    cache_in(tmp_path, monkeypatch)
    return made_run(tmp_path)


@pytest.fixture
def moved(folder, tmp_path):
    """The run on another machine: its model and its task files lie elsewhere."""
    here = Path(shutil.copytree(folder.path, tmp_path / "brought"))
    text = (here / "config.yaml").read_text()
    old = str(folder.path.parents[1])
    assert old in text
    text = text.replace("model: tiny", "model: /elsewhere/model").replace(old, "/gone")
    (here / "config.yaml").write_text(text)
    return RunFolder(here)


def test_a_run_that_was_moved_says_which_option_names_its_model(moved, capsys):
    assert main(["chat", str(moved.path), "--cluster", "0"]) == 1
    said = capsys.readouterr().err
    assert "/elsewhere/model has no config.json" in said
    assert "say where with --model" in said


def test_a_run_that_was_moved_answers_as_before(moved, folder, prompts, capsys):
    model = ["--model", resolve_model("tiny").path]
    for way in (["--cluster", "0"], ["--base"]):
        there = answers(folder, prompts, *way)
        assert answers(moved, prompts, *way, *model) == there
    few = ["generate", str(moved.path), "--client", "3", "--held-out", "1", *model]
    assert main([*few, "--max-new-tokens", "2"]) == 1
    said = capsys.readouterr().err
    assert "task '/gone/counting.yaml': neither a file" in said
    assert "say where with --tasks" in said
    root = folder.path.parents[1]
    write_advice(root)
    few += ["--max-new-tokens", "2", "--tasks"]
    shown = []
    for order in (("counting", "advice"), ("advice", "counting")):
        assert main([*few, ",".join(str(root / f"{n}.yaml") for n in order)]) == 0
        shown.append(re.findall("prompt .*", capsys.readouterr().out))
    assert shown[0] == shown[1]
    assert "problem" in shown[0][0]


@pytest.mark.parametrize(
    "files", ["advice", "advice,advice", "counting,advise", "counting,advice,counting"]
)
def test_task_files_that_are_not_the_runs_are_refused(files, folder, capsys):
    tasks = ",".join(f"/here/{name}.yaml" for name in files.split(","))
    words = ["--client", "3", "--held-out", "1", "--tasks", tasks]
    assert main(["generate", str(folder.path), *words]) == 1
    said = capsys.readouterr().err
    assert f"names {files.replace(',', ', ')}, " in said
    assert "where the run's tasks are counting, advice" in said


def test_tasks_of_one_name_in_two_folders_are_known_by_their_order():
    had = ["/there/a/talk.yaml", "/there/b/talk.yaml"]
    assert _in_order("x/talk.yaml,y/talk.yaml", had) == "x/talk.yaml,y/talk.yaml"
    for given in ("x/talk.yaml", "x/talk.yaml,x/talk.yaml"):
        with pytest.raises(ConfigError, match="give each once"):
            _in_order(given, had)
    with pytest.raises(ConfigError, match="talk, other, talk: give them in this order"):
        _in_order("talk.yaml,b/talk.yaml,other.yaml", ["talk", "other", "b/talk.yaml"])


def test_answers_stand_beside_the_base_models(folder, prompts):
    beside = answers(folder, prompts, "--cluster", "0", "--beside-base")
    tuned = answers(folder, prompts, "--cluster", "0")
    base = answers(folder, prompts, "--base")
    assert [r["answer"] for r in beside] == [r["answer"] for r in tuned]
    assert [r["base"] for r in beside] == [r["answer"] for r in base]


def test_a_clients_test_prompts_are_answered_as_it_was_scored(folder, capsys):
    given = ["--client", "3", "--max-new-tokens", LONG]
    write_advice(folder.path.parents[1])
    assert main(["generate", str(folder.path), *given, "--held-out", "2"]) == 0
    said = capsys.readouterr().out
    config = folder.config()
    shard = make_shard(3, 4, [load_task(name) for name in config.task_list])
    asked = [(example.text, example.answer) for example in shard.test[:2]]
    shown = re.findall(r"prompt +(.*)\n +reference +(.*)\n +answer ", said)
    assert shown == [(text.strip(), answer) for text, answer in asked]
    assert "base" not in said


def test_a_clients_prompt_leaves_its_answer_room(folder, monkeypatch):
    """What a file's prompts are refused for, a client's would fail by."""
    asked = []

    def answered(model, tokenizer, ids, decoding, batch_size):
        asked.extend(ids)
        return iter([Answer("", 1)] * len(ids))

    monkeypatch.setattr("atlas_flwr.train.answers.answered", answered)
    monkeypatch.setattr("atlas_flwr.serving.answered", answered, raising=False)
    write_advice(folder.path.parents[1])
    known = 2048  # as the tiny model's configuration says
    words = ["generate", str(folder.path), "--client", "3", "--held-out", "1"]
    assert main([*words, "--max-new-tokens", str(known - 5)]) == 0
    (few,) = asked
    assert len(few) == 5
    assert main([*words, "--max-new-tokens", "8"]) == 0
    assert len(asked[1]) > 5
    assert asked[1][-5:] == few


HELD_OUT = ["--client", "3", "--held-out", "2", "--max-new-tokens", "2"]


def dealt(folder, clients):
    """Deal the texts of client 3 as a process that begins does."""
    read_examples.cache_clear()
    make_shard.__globals__["_made"].cache_clear()
    tasks = [load_task(name) for name in folder.config().task_list]
    return make_shard(3, clients, tasks)


def test_texts_that_the_client_was_not_scored_on_are_refused(own_run, capsys, caplog):
    write_advice(own_run.path.parents[1])
    assert main(["generate", str(own_run.path), *HELD_OUT]) == 0
    assert "remembers none of that client's" in caplog.text
    store = ClientStore.of(own_run.run_id(), 3)
    check_texts([dealt(own_run, 4)], lambda: store)
    caplog.clear()
    assert main(["generate", str(own_run.path), *HELD_OUT]) == 0
    assert "remembers none" not in caplog.text
    write_advice(own_run.path.parents[1], rows=16)
    dealt(own_run, 4)
    capsys.readouterr()
    assert main(["generate", str(own_run.path), *HELD_OUT]) == 1
    said = capsys.readouterr().err
    assert "rows.jsonl has changed" in said
    assert "may be among its tests now" in said


def test_texts_are_dealt_again_to_those_who_were_not_connected_too(own_run, capsys):
    write_advice(own_run.path.parents[1], rows=40)
    own_run.record(RunStarted(1, 4, partitions=6))
    shard = dealt(own_run, 6)
    assert main(["generate", str(own_run.path), *HELD_OUT]) == 0
    said = capsys.readouterr().out
    asked = re.findall(r"prompt +(.*)", said)
    assert asked == [example.text.strip() for example in shard.test[:2]]
    assert asked != [example.text.strip() for example in dealt(own_run, 4).test[:2]]


@pytest.mark.parametrize("cut", ["1/2", "3/-"])
def test_the_cut_changes_no_answer(folder, prompts, cut):
    here = answers(folder, prompts, "--cluster", "0")
    assert answers(folder, prompts, "--cluster", "0", "--cut", cut) == here


def test_drafts_change_no_answer(folder, prompts):
    alone = ["--cluster", "0", "--batch-size", "1"]
    here = answers(folder, prompts, *alone)
    assert answers(folder, prompts, *alone, "--drafts", "4") == here


def test_what_is_drawn_is_drawn_again_from_the_same_seed(folder, prompts):
    drawn = [
        answers(folder, prompts, "--cluster", "0", "--temperature", "1.5", *seed)
        for seed in ([], [], ["--seed", "1"])
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_wrong_is_told_before_anything_is_loaded(
    folder, prompts, capsys, monkeypatch
):
    monkeypatch.setattr("atlas_flwr.serving.served", None)
    out = ["--prompts", str(prompts), "--out", "a.jsonl"]
    for words, message in (
        (["--cluster", "8", *out], "there are 0, 1"),
        (["--cluster", "0", "--cut", "5/1", *out], "none to the trunk"),
        (["--cluster", "0", "--temperature", "-1", *out], "temperature=-1.0"),
        (["--cluster", "0", "--max-new-tokens", "0", *out], "max-new-tokens=0"),
        (["--cluster", "0", "--max-new-tokens", "2048", *out], "at most 2047"),
        (["--cluster", "0", "--batch-size", "0", *out], "batch-size=0"),
        (["--cluster", "0", "--drafts", "4", *out], "with batch-size=8: must be 1"),
        (["--cluster", "1", *out], "line 2 has start, id"),
        (["--prompts", str(prompts), "--out", "no/where"], "no folder no"),
        (["--prompts", str(prompts), "--out", "."], "is a folder"),
        (["--held-out", "3"], "Name the client with --client"),
        (["--client", "3", "--held-out", "0"], "held-out=0"),
        (["--base", "--beside-base", *out], "both are the model before"),
    ):
        assert main(["generate", str(folder.path), *words]) == 1
        assert message in capsys.readouterr().err


def chat(monkeypatch, capsys, folder, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    words = ["chat", str(folder.path), "--client", "3", "--max-new-tokens", LONG]
    assert main(words) == 0
    return capsys.readouterr().out


def test_a_chat_answers_tells_bytes_forgets_and_ends(folder, monkeypatch, capsys):
    said = chat(
        monkeypatch, capsys, folder, "hello", "/bytes", "/reset", "/what", "hello"
    )
    answer = "[12 tokens"
    assert said.count(answer) == 2
    assert "bytes up" in said
    assert "forgotten" in said
    assert "/exit" in said
    first, second = (part.splitlines()[-2] for part in said.split(answer)[:2])
    assert first == second


def test_a_chat_ends_at_exit(folder, monkeypatch, capsys):
    assert "tokens" not in chat(monkeypatch, capsys, folder, "/exit", "hello")


def test_an_interrupted_answer_is_not_the_end(folder, monkeypatch, capsys):
    from atlas_flwr.trunk.engine.engine import TrunkEngine

    calls, extend = [], TrunkEngine.extend

    def interrupted(self, *args):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return extend(self, *args)

    monkeypatch.setattr(TrunkEngine, "extend", interrupted)
    said = chat(monkeypatch, capsys, folder, "hello", "hello")
    assert "[3 tokens" in said
    assert "[12 tokens" in said


def test_a_finished_run_answers(tmp_path, capsys):
    config = {
        "model": "tiny",
        "tasks": "dialog",
        "strategy": "fedavg",
        "runs-dir": str(tmp_path / "runs"),
        "num-rounds": 1,
        "local-steps": 2,
        "max-length": 32,
        "train-examples": 8,
        "test-examples": 2,
        "score-examples": 0,
    }
    with local_grid(app, 2, run_config=config) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    path = begun.folder.path / "adapters" / "all"
    assert any(f.B.abs().sum() > 0 for f in load_peft(path).factors.values())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Hello"}))
    (row,) = answers(begun.folder, prompts, "--client", "1")
    assert row["answer"] == whole_answer(path, "Hello")


@contextmanager
def trunk_elsewhere(folder, path, dtype=None, asks=None):
    """Serve the run's trunk over TLS; yield its engine."""
    config = folder.config()
    files = ModelFiles.of(replace(config, dtype=dtype or config.dtype))
    engine, identity = files.trunk(COVERING).engine(), run_identity("127.0.0.1")
    told = described(files, files.outline(), COVERING, "1")
    owner = OwnerService(engine, "s" * 32, told)
    options = ServeOptions(
        identity=identity, client_ca=asks.certificate if asks else None
    )
    own = asks.credentials("ServerApp") if asks else None
    pair = (own.certificate.decode(), own.key.decode()) if own else ()
    with serve_grpc(engine, options, owner) as address:
        Access(address, identity.ca.decode(), "s" * 32, *pair).write(path)
        yield engine


@pytest.mark.parametrize("asks", [None, Authority.made("site")], ids=["tls", "mutual"])
def test_a_trunk_on_another_machine_answers_the_same_and_keeps_nothing(
    folder, prompts, tmp_path, capsys, asks
):
    here = answers(folder, prompts, "--cluster", "0")
    access = tmp_path / "access.json"
    with trunk_elsewhere(folder, access, asks=asks) as engine:
        chosen = ["--cluster", "0", "--trunk-access", str(access)]
        assert answers(folder, prompts, *chosen, out="far.jsonl") == here
        assert (engine.stats().sessions, engine.stats().caches) == (0, 0)
    assert "trunk grpcs://127.0.0.1:" in capsys.readouterr().out


def test_a_defence_stands_before_a_trunk_elsewhere_and_says_what_it_leaves(
    folder, prompts, tmp_path, capsys
):
    own = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    text = own.config_path.read_text()
    own.config_path.write_text(text.replace("defence: none", "defence: mask+topk:0.25"))
    here, plain = (answers(f, prompts, "--cluster", "0") for f in (own, folder))
    assert here == plain  # nothing leaves, so nothing is changed
    assert "of the run" not in capsys.readouterr().out
    access, sent = tmp_path / "access.json", []
    with trunk_elsewhere(own, access) as engine:
        extend = engine.extend

        def seen(token, call, *rest):
            sent.append((call.hidden == 0).float().mean())
            return extend(token, call, *rest)

        engine.extend = seen
        way = ["--cluster", "0", "--batch-size", "1", "--trunk-access", str(access)]
        assert answers(own, prompts, *way, out="far.jsonl") != here
        given = ["--prompts", str(prompts), *way, "--cut", "2/-"]
        assert main(["generate", str(own.path), *given]) == 1
    assert torch.tensor(sent).eq(0.75).all()
    said = capsys.readouterr()
    assert "defence topk:0.25 of the run changes what leaves here" in said.out
    assert "WARNING: defence mask of the run" in said.out
    assert "reads every answer" in said.err


def test_a_trunk_elsewhere_of_another_model_does_not_answer(
    folder, prompts, tmp_path, capsys
):
    access = tmp_path / "access.json"
    given = ["--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")]
    given += ["--cluster", "0", "--trunk-access", str(access)]
    with trunk_elsewhere(folder, access, dtype="bfloat16"):
        assert main(["generate", str(folder.path), *given]) == 1
    assert "dtype 'bfloat16' (run: 'float32')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trunk-access", ""), "--trunk-access is empty"),
        (("--trunk-access", "a.json", "--trunk", "ray"), "leave one of the two out"),
    ],
)
def test_one_trunk_is_named_or_none(folder, prompts, words, said, capsys):
    given = ["--prompts", str(prompts), "--cluster", "0", *words]
    assert main(["generate", str(folder.path), *given]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_trunk_in_another_process_answers_the_same(folder, prompts):
    here = answers(folder, prompts, "--cluster", "0")
    far = answers(folder, prompts, "--cluster", "0", "--trunk", "ray", out="far.jsonl")
    assert far == here


def test_no_field_of_a_prompt_is_lost(folder, tmp_path, capsys):
    rows = [{"prompt": "a", "answer": "mine", "base": 1}, {"prompt": "b"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    got = answers(folder, path, "--cluster", "0", "--beside-base")
    assert got[0].keys() == {*rows[0], "generated-answer", "generated-base"}
    assert (got[0]["answer"], got[0]["base"]) == ("mine", 1)
    assert "what is written is 'generated-answer'" in capsys.readouterr().out


def test_what_cannot_be_answered_ends_no_conversation(folder, capsys, monkeypatch):
    said = f"half \udcff\n{'a ' * 3000}\nhello\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    given = ["--cluster", "0", "--max-new-tokens", LONG]
    assert main(["chat", str(folder.path), *given]) == 0
    told = capsys.readouterr().out
    assert "no text: it has half a character" in told
    assert "tokens, and with the answer's the model knows" in told
    assert told.count(" a second]") == 1
