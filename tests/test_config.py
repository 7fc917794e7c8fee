# SPDX-License-Identifier: Apache-2.0
"""The run configuration: what it refuses, and that nothing is lost on the way."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.config import (
    RunConfig,
    describe,
    format_bytes,
    from_yaml,
    load_config,
    options,
    parse_bytes,
    parse_cut,
    split_list,
    to_yaml,
)
from atlas_flwr.config.schema import FIRST, groups
from atlas_flwr.config.unread import unread_keys
from atlas_flwr.errors import ConfigError

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def app_config():
    return tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]


def complaints(run_config, **options):
    with pytest.raises(ConfigError) as caught:
        load_config(run_config, **options)
    return caught.value.problems


def test_pyproject_has_every_key_with_the_default_of_the_schema():
    schema = {f.name.replace("_", "-"): f.default for f in fields(RunConfig)}
    declared = app_config()
    assert declared == schema
    assert {k: type(v) for k, v in declared.items()} == {
        k: type(v) for k, v in schema.items()
    }


def test_pyproject_as_it_is_loads_to_the_defaults():
    assert load_config(app_config()) == RunConfig() == load_config({})


@pytest.mark.parametrize("key", sorted(options()))
def test_every_key_gives_advice_in_whole_sentences(key):
    text = options()[key].help
    assert len(text.split()) >= 8
    assert text[-1] == "."


def test_description_names_every_key_and_wraps():
    text = describe(width=80)
    assert all(f"{key} = " in text for key in options())
    assert max(len(line) for line in text.splitlines() if line[:1] == " ") <= 80


def test_description_has_each_key_in_one_group_the_ten_first_in_front():
    headings = [line for line in describe().splitlines() if line.startswith("# ")]
    grouped = [key for keys in groups().values() for key in keys]
    assert sorted(grouped) == sorted(options())
    assert headings == [f"# {about}" for about in groups()]
    assert grouped[:10] == list(FIRST)


SECURE_ATLAS = {"secure-aggregation": True, "split": "none", "ranks": "uniform"}
REFUSED = [
    ({"num_rounds": 1}, "num_rounds is not a key; did you mean num-rounds?"),
    ({"lora-rnk": 1}, "lora-rnk is not a key; did you mean lora-rank?"),
    ({"zzz": 1}, "zzz is not a key; `atlas-flwr config` lists all"),
    ({"num-rounds": "3"}, "num-rounds='3': must be a whole number, not str"),
    ({"num-rounds": 3.0}, "num-rounds=3.0: must be a whole number, not float"),
    ({"num-rounds": True}, "num-rounds=True: must be a whole number, not bool"),
    ({"trunk-recompute": 1}, "trunk-recompute=1: must be true or false, not int"),
    ({"learning-rate": "a"}, "learning-rate='a': must be a number, not str"),
    ({"model": False}, "model=False: must be text, not bool"),
    (
        {"strategy": "fedavgg"},
        "strategy='fedavgg': must be one of atlas, fedavg, fedprox, local, "
        "centralized, flexlora, flora, hetlora, hsplitlora, mira, oracle, splitlora; "
        "did you mean fedavg?",
    ),
    ({"trunk": "smoke"}, "trunk='smoke': must be one of auto, ray, grpc, local"),
    ({"num-rounds": 0}, "num-rounds=0: must be at least 1"),
    ({"fraction-train": 0.0}, "fraction-train=0.0: must be above 0 and at most 1"),
    ({"fraction-evaluate": 1.5}, "fraction-evaluate=1.5: must be above 0 and at"),
    ({"learning-rate": float("nan")}, "learning-rate=nan: must be finite and above 0"),
    ({"round-timeout": float("inf")}, "round-timeout=inf: must be finite and above 0"),
    ({"peer-timeout": float("inf")}, "peer-timeout=inf: must be finite and "),
    (
        {"robust": "norm-bound", "update-bound": float("inf")},
        "update-bound=inf: must be finite and at least 1",
    ),
    ({"update-bound": 3.0}, "update-bound=3.0: robust='none' does not read it"),
    (
        {"robust": "norm-bound", "bad-share": 0.1},
        "bad-share=0.1: robust='norm-bound' does not read it",
    ),
    ({"label-skew": -0.1}, "label-skew=-0.1: must be at least 0"),
    ({"lora-rank": 257}, "lora-rank=257: must be at least 1 and at most 256"),
    ({"lora-ranks": "2,x"}, "lora-ranks='2,x': 'x' is not a rank; ranks are whole"),
    ({"lora-ranks": "0,2"}, "'0' is not a rank"),
    ({"lora-ranks": "-1"}, "'-1' is not a rank"),
    ({"lora-ranks": "300"}, "'300' is not a rank; ranks are whole numbers from 1 to"),
    ({"lora-ranks": "4,4"}, "lora-ranks='4,4': names 4 more than once"),
    ({"lora-ranks": ""}, "lora-ranks='': must be a comma list with no empty item"),
    ({"tasks": "spam,,news"}, "tasks='spam,,news': must be a comma list"),
    ({"tasks": "spam,spam"}, "tasks='spam,spam': names spam more than once"),
    ({"lora-targets": "all-linear,q_proj"}, "all-linear includes every other name"),
    ({"model": " "}, "model='': must not be empty"),
    ({"devices": "320"}, "devices='320': '320' is not a byte size: write a positive"),
    ({"devices": "1GiB,"}, "devices='1GiB,': '' is not a byte size"),
    ({"cut": "2"}, "cut='2': '2' is not a cut: write HEAD/TAIL"),
    ({"cut": "0/1"}, "cut='0/1': '0/1' is not a cut"),
    ({"cut": "2/0"}, "cut='2/0': '2/0' is not a cut"),
    ({"cut": "2/-"}, "cut='2/-' has no tail, and split='u-shaped' ends the model on"),
    ({"split": "vanilla", "cut": "2/1"}, "has a tail, and split='vanilla' ends the"),
    ({"num-clusters": 9}, "num-clusters=9: more than max-clusters=8; lower it or"),
    ({"clustering": "none", "num-clusters": 2}, "num-clusters=2: clustering='none'"),
    ({"clustering": "none", "recluster-every": 2}, "recluster-every=2: clustering="),
    (
        {"clustering": "none", "balanced-clusters": True},
        "balanced-clusters=true: clustering='none' keeps all clients in one",
    ),
    ({"strategy": "fedavg", "aggregation": "mean"}, "strategy='fedavg' does not read"),
    ({"strategy": "local", "cut": "2/1"}, "cut='2/1': strategy='local' does not read"),
    ({"proximal-mu": 0.2}, "proximal-mu=0.2: strategy='atlas' does not read it, only"),
    ({"strategy": "fedprox", "proximal-mu": 0.0}, "fedprox without its pull is fedavg"),
    (
        {"dtype": "bfloat16"},
        "what is folded into dtype='bfloat16' is lost",
    ),
    ({"strategy": "flora", "dtype": "bfloat16"}, "strategy='flora': what is folded"),
    ({"strategy": "mira"}, "mira without its graph step is local training"),
    ({"strategy": "flora", "mixing": 0.5}, "only atlas and mira do"),
    ({"split": "none", "cut": "2/1"}, "split='none' cuts nothing"),
    (
        {"split": "none", "codec": "int8"},
        "codec='int8': with split='none' every client",
    ),
    (
        {"split": "none", "trunk": "peers", "peer-memory": "1GiB"},
        "peer-memory='1GiB', trunk='peers': with split='none' every client",
    ),
    ({"split": "none", "trunk-access": "a.json"}, "and there is no trunk"),
    ({"strategy": "fedavg", "max-head": 2}, "max-head=2: strategy='fedavg' does not"),
    ({"strategy": "mira", "max-clusters": 9}, "max-clusters=9: strategy='mira' does"),
    ({"trunk": "ray", "trunk-listen": "0.0.0.0:1"}, "trunk='ray' listens nowhere"),
    ({"trunk": "peers", "trunk-listen": "0.0.0.0:1"}, "trunk='peers' listens nowhere"),
    ({"peer-memory": "1GiB"}, "peer-memory='1GiB': is read with trunk='peers' alone"),
    ({"trunk": "peers", "peer-memory": "big,0"}, "'big' is not a byte size"),
    ({"trunk": "peers", "peer-speeds": "1"}, "has 1 items, and peer-memory 0"),
    ({"trunk": "peers", "peer-memory": "0", "peer-speeds": "-1"}, "'-1' is no speed"),
    ({"trunk": "peers", "peer-memory": "0", "peer-links": "20"}, "'20' is no link"),
    ({"trunk": "peers", "peer-links": "1Gbit/s"}, "peer-links='1Gbit/s': has 1 items"),
    ({"trunk": "peers", "peer-trust": "a,b+"}, "peer-trust='a,b+': has an empty name"),
    ({"trunk": "ray", "trunk-client-ca": "a.crt"}, "that could ask for certificates"),
    (
        {"trunk-access": "a.json", "trunk-client-ca": "a.crt"},
        "the trunk of trunk-access asks for certificates if it was started with",
    ),
    ({"trunk": "ray", "trunk-rate": 7}, "trunk-rate=7: with trunk='ray' the ServerApp"),
    ({"trunk": "peers", "trunk-rate": 7}, "with trunk='peers' the ServerApp serves no"),
    ({"trunk": "peers", "trunk-client-ca": "a.crt"}, "that could ask for certificates"),
    ({"trunk-queue": "lifo"}, "trunk-queue='lifo': it must be one of fifo, longest"),
    ({"trunk": "peers", "peer-checks": 0.1, "codec": "int8"}, "an own computation is"),
    ({"trunk": "peers", "trunk-access": "a.json"}, "with trunk='peers' clients carry"),
    (
        {"trunk": "peers", "strategy": "splitlora", "server-adapters": "shared"},
        "server-adapters='shared' is one adapter that all clients step",
    ),
    ({"min-cluster-size": 3}, "min-cluster-size=3: a round may begin with fewer"),
    (
        {"min-cluster-size": 3, "min-available-nodes": 5, "fraction-train": 0.5},
        "may draw 2 of 5 clients to train; raise min-train-nodes to 3",
    ),
    ({"min-cluster-size": 2, "aggregation": "none"}, "no updates are added up"),
    ({"min-cluster-size": 2, "balanced-clusters": True}, "are not balanced"),
    ({"staleness-cutoff": 1}, "staleness-cutoff=1: with quorum=1.0 a round waits"),
    ({"quorum": 0.5, "staleness-exponent": -1.0}, "must be at least 0"),
    (
        {"quorum": 0.5, "staleness-exponent": 1.0, "strategy": "hetlora"},
        "staleness-exponent=1.0: with strategy='hetlora' all that is late is dropped",
    ),
    (
        {"quorum": 0.5, "staleness-exponent": 1.0, "staleness-cutoff": 0},
        "staleness-exponent=1.0: with staleness-cutoff=0 all that is late is dropped",
    ),
    ({"quorum": 0.5, "strategy": "centralized"}, "is one client, for which a round"),
    ({"trunk-replicas": 0}, "trunk-replicas=0: must be at least 1"),
    *(
        ({key: value, "trunk-access": "a.json"}, f"{key}={value!r}: the trunk of trunk")
        for key, value in {
            "trunk-batch": 2,
            "trunk-device": "cuda",
            "trunk-limit": "1GiB",
            "trunk-queue": "fair",
            "trunk-rate": 7,
            "trunk-recompute": True,
            "trunk-threads": 1,
        }.items()
    ),
    (
        {"trunk-access": "a.json,b.json", "trunk-address": "grpcs://a:1"},
        "is one address, and trunk-access names 2 trunks",
    ),
    *(
        ({"trunk-access": listed}, f"trunk-access={listed!r}: name different files")
        for listed in ("a.json,a.json", "a.json,", ",a.json")
    ),
    ({"trunk-replicas": 2, "trunk": "grpc"}, "are actors of a simulation's Ray"),
    (
        {
            "trunk-replicas": 2,
            "strategy": "splitlora",
            "server-adapters": "shared",
        },
        "in one place, and other replicas would idle",
    ),
    ({"trunk-listen": "0.0.0.0:7001"}, "clients cannot dial 0.0.0.0"),
    ({"trunk-listen": "localhost"}, "trunk-listen='localhost': has no port"),
    ({"trunk-advertise": "a b"}, "'a b' is not HOST or HOST:PORT"),
    ({"test-skew": True}, "test-skew=true: with label-skew=0.0 training and test"),
    ({"fingerprint-batches": 2}, "fingerprint-batches=2 for fingerprint-parts=4"),
    (
        {"train-examples": 8, "batch-size": 8},
        "fingerprint-batches=12: a client has only train-examples=8",
    ),
    (
        {"strategy": "splitlora", "server-adapters": "shared"},
        "clients that train one adapter have one cut and one rank",
    ),
    (
        {"strategy": "splitlora", "trunk-merge": 2},
        "trunk-merge=2: with server-adapters='own' every client trains an adapter of",
    ),
    (
        {"split": "vanilla", "skip-gradients": 0.5},
        "skip-gradients=0.5: with split='vanilla' no client sends a gradient",
    ),
    ({"split": "none", "skip-gradients": 0.5}, "with split='none' no client sends"),
    ({"skip-gradients": 1.5}, "skip-gradients=1.5: must be at least 0 and at most 1"),
    (
        {"strategy": "hetlora", "rank-penalty": 0.1},
        "rank-penalty=0.1: with rank-decay=1.0 there is nothing to prune",
    ),
    ({"strategy": "hetlora", "rank-decay": 0.0}, "rank-decay=0.0: must be above 0 and"),
    ({"rank-decay": 0.5}, "rank-decay=0.5: strategy='atlas' does not read it, only"),
    (
        {"secure-aggregation": True, "strategy": "local"},
        "every client has adapters of its own; set strategy='atlas', 'fedavg' or",
    ),
    (
        {"secure-aggregation": True, "ranks": "uniform"},
        "with split='u-shaped': the trunk sees each client's hidden states",
    ),
    (
        {"secure-aggregation": True, "split": "none"},
        "with ranks='budget': what the largest rank alone can learn is one client's",
    ),
    (
        {**SECURE_ATLAS, "aggregation": "none"},
        "with aggregation='none': what is summed are products; set aggregation='both'",
    ),
    ({**SECURE_ATLAS, "robust": "trimmed"}, "it weighs each client's update, which a"),
    (
        {"secure-aggregation": True, "strategy": "fedavg", "quorum": 0.5},
        "secure-aggregation=true with quorum=0.5: masks cancel in the sum of all",
    ),
    ({"fingerprint-epsilon": -1.0}, "fingerprint-epsilon=-1.0: must be at least 0"),
    ({"fingerprint-delta": 0.0}, "fingerprint-delta=0.0: must be above 0"),
    (
        {"fingerprint-epsilon": 8.0, "strategy": "fedavg"},
        "strategy='fedavg' does not read it",
    ),
    ({"trunk-session-memory": "lots"}, "trunk-session-memory='lots'"),
    (
        {"trunk-session-memory": "8MiB", "ranks": "device"},
        "with ranks='device' nothing keeps a client's adapters within it",
    ),
    ({"trunk-limit": "1GiB,2GiB"}, "trunk-limit='1GiB,2GiB'"),
    ({"adapter": "dora"}, "adapter='dora': must be one of"),
    ({"prompt-tokens": 4}, "prompt-tokens=4: adapter='lora' has none, only prompt"),
    ({"adapter": "prompt", "strategy": "hetlora"}, "is a method for LoRA's factors"),
    ({"adapter": "ia3", "strategy": "flora"}, "'flora' is a method for LoRA's factors"),
    ({"adapter": "ia3", "ranks": "device"}, "ranks='device': adapter='ia3' does not"),
    ({"adapter": "ia3", "lora-rank": 4}, "lora-rank=4: adapter='ia3' does not read"),
    ({"adapter": "ia3", "mixing": 0.5}, "mixing=0.5: adapter='ia3' does not read it"),
    ({"adapter": "ia3", "aggregation": "fold"}, "'fold' is done to LoRA's products"),
    ({"adapter": "ia3", "personal": "tail"}, "personal='tail': works with LoRA only"),
    ({"adapter": "prompt", "auxiliary-steps": 1}, "auxiliary-steps=1: works with LoRA"),
    (
        {"split": "vanilla", "personal": "both"},
        "the trunk has the tail",
    ),
    ({"split": "none", "personal": "head"}, "whole models have no sides"),
    (
        {"strategy": "hetlora", "rank-decay": 0.5, "personal": "tail"},
        "the server keeps pruned ranks by what clients send",
    ),
    ({"split": "vanilla", "auxiliary-steps": 1}, "a head whose tail is on the client"),
    ({"split": "vanilla", "align": 0.1}, "align=0.1: with split='vanilla' the loss is"),
    ({"devices": "1GiB", "auxiliary-steps": 2}, "the memory model does not count"),
    ({"skip-gradients": 0.5, "auxiliary-steps": 2}, "every gradient that crosses"),
    ({"ema": 0.1, "aggregation": "mean"}, "ema=0.1: products are averaged, and"),
    ({"ema": 1.0}, "ema=1.0: must be at least 0 and at most 0.99"),
    (
        {"prune-data": 0.1, "strategy": "centralized"},
        "clients prune their own data, and centralized pools it",
    ),
    ({"mixing-decay": 0.5}, "with mixing=0.0 there is nothing to decay"),
    ({"quorum": 0.0}, "quorum=0.0: must be above 0"),
    ({"train-examples": 4}, "batch-size=8: a client has only train-examples=4"),
    ({"dtype": "float16"}, "CPUs train in float32 or bfloat16"),
    ({"run-name": "../up"}, "run-name='../up': must be a plain folder name"),
    ({"resume": "no/such/run"}, "resume='no/such/run': no run folder is there"),
    ({"resume": "a", "run-name": "b"}, "a continued run keeps its folder; give one"),
]


@pytest.mark.parametrize(("run_config", "sentence"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_is_wrong_is_said(run_config, sentence):
    assert any(sentence in problem for problem in complaints(run_config))


def test_all_problems_are_reported_at_once():
    wrong = {"nope": 1, "seed": "x", "num-rounds": 0, "cut": "2/-", "trunk": "smoke"}
    problems = complaints(wrong)
    assert len(problems) == len(wrong)
    assert "5 problems in the run config" in str(ConfigError(problems))


def test_a_wrong_value_causes_no_contradictions_of_its_default():
    # With its default, u-shaped, this cut would be a contradiction as well.
    (problem,) = complaints({"split": "vanila", "cut": "2/-"})
    assert "did you mean vanilla?" in problem


def test_words_of_other_layers_can_be_checked_with_the_rest():
    problems = complaints(
        {"codec": "rwa", "tasks": "spam,spma", "seed": -1},
        known={"codec": ("raw", "int8"), "tasks": ("spam", "news")},
    )
    assert len(problems) == 3
    assert any("codec: 'rwa' must be one of raw, int8" in p for p in problems)
    assert any(
        "'spma' must be one of spam, news; did you mean spam?" in p for p in problems
    )


ACCEPTED = [
    {"split": "vanilla", "cut": "2/-"},
    {"lora-ranks": 4},
    {"learning-rate": 1},
    {"ranks": "uniform", "aggregation": "mean"},
    {"aggregation": "truncate", "dtype": "bfloat16"},
    {"strategy": "mira", "mixing": 0.3, "aggregation": "truncate"},
    {"strategy": "flora", "split": "none"},
    {
        "strategy": "splitlora",
        "server-adapters": "shared",
        "trunk-merge": 4,
        "cut": "2/1",
        "ranks": "uniform",
    },
    {"strategy": "fedavg", "devices": "1GiB", "lora-rank": 4},
    {"devices": "1GiB", "align": 0.1},
    {"strategy": "fedprox", "secure-aggregation": True},
    SECURE_ATLAS,
    {"strategy": "mira", "mixing": 0.3, "fingerprint-epsilon": 400.0},
    {"adapter": "ia3"},
    {"personal": "head", "split": "vanilla"},
    {"align": 0.1, "strategy": "fedavg", "prune-data": 0.5},
    {"auxiliary-steps": 3, "personal": "both", "ema": 0.5},
    {"adapter": "prompt", "prompt-tokens": 4, "split": "none"},
    {"adapter": "ia3", "strategy": "fedprox", "devices": "1GiB"},
    {"adapter": "ia3", "aggregation": "none", "dtype": "bfloat16"},
    {"train-examples": 0},
    {"strategy": "hetlora", "rank-decay": 0.5, "rank-penalty": 0.1},
    {"skip-gradients": 0.5, "codec": "raw"},
    {"dtype": "float16", "device": "cuda", "aggregation": "truncate"},
    {"lora-targets": "q_proj, v_proj"},
]


@pytest.mark.parametrize("run_config", ACCEPTED, ids=str)
def test_what_makes_sense_is_accepted(run_config):
    config = load_config(run_config)
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("key", "value", "unread", "read"),
    [
        ("lora-rank", 4, {}, {"ranks": "uniform"}),
        ("lora-rank", 4, {"strategy": "flora"}, {"strategy": "fedavg"}),
        ("lora-ranks", "2,4", {"ranks": "uniform"}, {}),
        ("max-head", 3, {"cut": "2/1"}, {}),
        ("fingerprint-delta", 1e-6, {}, {"fingerprint-epsilon": 1.0}),
    ],
)
def test_a_key_that_was_given_in_vain_is_told(key, value, unread, read):
    in_vain, used = (load_config({key: value, **more}) for more in (unread, read))
    (told,) = unread_keys(in_vain, {key, *unread})
    assert told.startswith(f"{key} has no effect: ")
    assert list(unread_keys(in_vain, unread)) == []
    assert list(unread_keys(used, {key, *read})) == []


def test_a_run_folder_can_be_resumed_and_its_yaml_read_after_it_is_gone(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(RunConfig()))
    config = load_config({"resume": str(tmp_path)})
    (tmp_path / "config.yaml").unlink()
    assert from_yaml(to_yaml(config)) == config


def test_lists_come_parsed():
    config = load_config(
        {
            "tasks": "spam, news",
            "lora-ranks": "8,2",
            "devices": "320MiB,1GiB",
            "cut": "3/2",
            "lora-targets": "q_proj,v_proj",
        }
    )
    assert config.task_list == ("spam", "news")
    assert config.rank_choices == (2, 8)
    assert config.device_bytes == (320 * 2**20, 2**30)
    assert config.fixed_cut == (3, 2)
    assert config.target_list == ("q_proj", "v_proj")
    assert RunConfig().fixed_cut is None
    assert RunConfig().device_bytes == ()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1


@given(
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-9, 1.0),
    flag=st.booleans(),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}", fullmatch=True),
)
def test_yaml_keeps_every_value_and_its_type(seed, rate, flag, name):
    config = replace(
        RunConfig(), seed=seed, learning_rate=rate, trunk_recompute=flag, run_name=name
    )
    assert from_yaml(to_yaml(config)) == config


def test_yaml_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="must be a mapping"):
        from_yaml("- a\n- b\n")


@pytest.mark.parametrize("keys", [{"strategy": "fedavg"}, {"split": "none"}])
def test_a_run_that_began_with_another_default_can_be_read(keys):
    began = to_yaml(load_config({"tasks": "spam", **keys}))
    assert "codec: auto" in began
    assert from_yaml(began.replace("codec: auto", "codec: raw")).codec == "raw"
    with pytest.raises(ConfigError, match="codec='raw'"):
        load_config({"tasks": "spam", **keys, "codec": "raw"})


def test_a_run_that_began_with_what_nothing_reads_can_be_read():
    began = to_yaml(load_config({"clustering": "none", "ranks": "device"}))
    for key, old, new in (
        ("balanced-clusters", "false", "true"),
        ("trunk-session-memory", "''", "8MiB"),
    ):
        then = began.replace(f"{key}: {old}", f"{key}: {new}")
        assert then != began
        from_yaml(then)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("2KB", 2000), ("2KiB", 2048), ("1.5 GiB", 3 * 2**29), ("1tib", 2**40)],
)
def test_byte_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "12", "0MiB", "-1MiB", "1 parsec", "MiB", "1e3MB", "9" * 400 + "MB"]
)
def test_what_is_no_byte_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a byte size"):
        parse_bytes(text)


@given(st.integers(1, 2**49))
def test_written_byte_sizes_are_read_back_to_their_precision(size):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.051)


@pytest.mark.parametrize(
    ("size", "told"),
    [(1023.7, "1.0 KiB"), (2**20 - 1, "1.0 MiB"), (1023.9 * 2**20, "1023.9 MiB")],
)
def test_a_size_that_rounds_up_to_the_next_unit_is_written_in_it(size, told):
    assert format_bytes(size) == told


def test_cuts_and_lists_are_read():
    assert parse_cut("2/1") == (2, 1)
    assert parse_cut(" 12/- ") == (12, None)
    assert split_list(" a , b,") == ("a", "b", "")
    assert split_list("  ") == ()


def test_each_device_has_the_cut_in_its_place_or_that_of_all():
    several = load_config({"devices": "1GiB,2GiB", "cut": "1/1,3/1"})
    assert several.kinds == ((2**30, "1/1"), (2**31, "3/1"))
    assert several.fixed_cut is None
    assert several.fixed_cuts == ((1, 1), (3, 1))
    alike = load_config({"devices": "1GiB,2GiB", "cut": "3/1"})
    assert alike.kinds == ((2**30, "3/1"), (2**31, "3/1"))
    assert load_config({"cut": "1/1,3/1"}).kinds == ((None, "1/1"), (None, "3/1"))
    assert load_config({}).kinds == ((None, "auto"),)
    assert load_config({}).fixed_cuts == ()


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        ("1/1,2/1", "names 2 cuts, and devices='1GiB,2GiB,3GiB' 3 devices"),
        ("1/1,2/1,", "'' is not a cut"),
        ("1/1,auto,2/1", "'auto' is not a cut"),
        ("", "names no cut"),
        ("1/1,2/-,2/1", "has no tail"),
    ],
)
def test_cuts_that_fit_no_device_are_refused(cut, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config({"devices": "1GiB,2GiB,3GiB", "cut": cut})


def test_importing_the_configuration_pulls_in_neither_torch_nor_flower():
    code = (
        "import sys; from atlas_flwr.config import load_config; load_config({});"
        "print(sorted({'torch', 'flwr', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize("text", ["${seed}", "${HOME}/runs", "a ${no such} b", "???"])
def test_text_means_itself_and_no_other_key(text):
    config = load_config({"model": text, "runs-dir": text})
    assert (config.model, config.runs_dir) == (text, text)
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trunk-access", "access.json"),
        ("trunk-advertise", "here"),
        ("trunk-batch", 4),
        ("trunk-client-ca", "ca.crt"),
        ("trunk-limit", "1GiB"),
        ("trunk-listen", "127.0.0.1:1"),
        ("trunk-metrics", 9100),
        ("trunk-queue", "fair"),
        ("trunk-rate", 7),
        ("trunk-recompute", True),
        ("trunk-replicas", 2),
    ],
)
@pytest.mark.parametrize("without", [{"strategy": "fedavg"}, {"split": "none"}])
def test_what_is_said_of_a_trunk_is_refused_where_there_is_none(key, value, without):
    said = " ".join(complaints({key: value, **without}))
    assert f"{key}={value!r}" in said
    assert "does not read it" in said or "there is no trunk" in said
