# SPDX-License-Identifier: Apache-2.0
"""What a site's folders start is accepted by who is started, or refused beforehand."""

from __future__ import annotations

import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from flwr.common.config import parse_config_args
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_flwr.cli import trunk as lone_trunk
from atlas_flwr.cli.overrides import checked
from atlas_flwr.config import load_config
from atlas_flwr.config.reach_rules import beyond_supernodes
from atlas_flwr.errors import SiteError
from atlas_flwr.sites import read_site, scripts, write_kits
from atlas_flwr.sites.run_configs import for_run
from tests.sites.test_provision import words_of

REPOSITORY = Path(__file__).parents[2]
AWAY = {"host": "server.example.org", "port": 8000}
INSIDE = {**AWAY, "trunk-port": 7001}
ASKING = {**INSIDE, "trunk-mutual": True}
GPU = {"host": "gpu.example.org"}
PEERS = {"trunk": "peers"}
FALLING_BACK = {**PEERS, "peer-fallback": "server"}

# By name: link, trunk, run config; and what is told of those that are refused.
ACCEPTED = {
    "inside": (INSIDE, None, {}),
    "inside, asking": (ASKING, None, {"trunk": "grpc"}),
    "elsewhere": (AWAY, GPU, {"trunk-batch": 4}),
    "elsewhere, asking": (AWAY, {**GPU, "mutual": True}, {}),
    "peers": (AWAY, None, PEERS),
    "peers, falling back on one that asks": (ASKING, None, FALLING_BACK),
}
REFUSED = {
    "peers alone, asking": (
        ({**AWAY, "trunk-mutual": True}, None, PEERS),
        r"trunk-client-ca='ca\.crt'.*leave it out .*is link\.trunk-mutual",
    ),
    "peers alone, listening": (
        (INSIDE, None, PEERS),
        r"trunk-listen=.*listens nowhere.*is link\.listen with link\.trunk-port",
    ),
    "peers elsewhere": ((AWAY, GPU, PEERS), "trunk-access='access.json'.*is trunk:"),
    "whole models": ((INSIDE, None, {"split": "none"}), "there is no trunk"),
    "whole models elsewhere": (
        (AWAY, GPU, {"split": "none"}),
        "for trunk: .* no trunk",
    ),
    "no adapters": ((AWAY, GPU, {"strategy": "fedavg"}), "for trunk: .*'fedavg'"),
    "a simulation's": (
        ({"host": "127.0.0.1"}, None, {"trunk": "ray"}),
        "trunk='ray' .* are SuperNodes",
    ),
    "replicas": ((INSIDE, None, {"trunk-replicas": 2}), "trunk-replicas=2"),
    "metrics elsewhere": (
        (AWAY, GPU, {"trunk-metrics": 9100}),
        "trunk-metrics=9100: .* with --metrics",
    ),
    "nowhere": (({**INSIDE, "host": "0.0.0.0"}, None, {}), r"cannot dial 0\.0\.0\.0"),
    "nowhere else": ((AWAY, {"host": "::"}, {}), "for trunk: .*cannot dial ::"),
}


def described(file, link, trunk, config, node=(), app=REPOSITORY):
    """Read a site of these parts."""
    found = {
        "name": "lab",
        "link": link,
        "nodes": [{"name": "north", "config": dict(node)}],
        "run": {"app": str(app), "config": {"model": "tiny", **config}},
    }
    lone = {} if trunk is None else {"trunk": trunk}
    file.write_text(yaml.safe_dump(found | lone))
    return read_site(file)


@pytest.mark.parametrize(("site", "told"), REFUSED.values(), ids=REFUSED)
def test_what_a_run_or_a_trunk_would_refuse_is_told_in_words_of_the_site(
    tmp_path, site, told
):
    with pytest.raises(SiteError, match=told):
        described(tmp_path / "site.yaml", *site)


@pytest.mark.parametrize("parts", ACCEPTED.values(), ids=ACCEPTED)
def test_run_and_trunk_take_the_files_that_they_are_started_with(
    tmp_path, monkeypatch, parts
):
    _, trunk, config = parts
    site, served = tmp_path / "site", []
    write_kits(described(tmp_path / "site.yaml", *parts), site)
    started = tomllib.loads((site / "link" / "run.toml").read_text())
    assert not [*beyond_supernodes(load_config(checked(REPOSITORY, started)))]
    if trunk:
        monkeypatch.setattr(
            lone_trunk, "serve", lambda config, *_: served.append(config)
        )
        monkeypatch.chdir(site / "trunk")
        options = [w for w in words_of(site / "trunk")[4:-1] if w.strip()]
        lone_trunk.main([str(REPOSITORY), *options])
        assert served[0].trunk_listen == "0.0.0.0:7001"
        assert served[0].trunk_batch == config.get("trunk-batch", 0)


HOSTS = st.sampled_from(
    ["127.0.0.1", "a.example.org", "0.0.0.0", "::1", "fe80::1%eth0"]
)
LISTENS = st.sampled_from(["0.0.0.0", "127.0.0.1", "::", "10.0.0.1"])
CHOICES = {
    "trunk": ["auto", "grpc", "peers", "ray"],
    "split": ["u-shaped", "vanilla", "none"],
    "strategy": ["atlas", "splitlora", "fedavg"],
    "server-adapters": ["own", "shared"],
    "peer-fallback": ["server", "none"],
    "trunk-batch": [0, 4],
    "trunk-metrics": [0, 9100],
    "trunk-rate": [0, 1000],
    "codec": ["raw", "int8"],
}
CONFIGS = st.lists(
    st.sampled_from([(key, word) for key, words in CHOICES.items() for word in words]),
    max_size=3,
).map(dict)


def sections(**optional):
    return st.fixed_dictionaries({"host": HOSTS}, optional=optional)


LINKS = sections(
    **{"trunk-port": st.just(7001), "trunk-mutual": st.booleans(), "listen": LISTENS}
)
TRUNKS = st.none() | sections(mutual=st.booleans(), listen=LISTENS)
FEW = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)


@FEW
@given(LINKS, TRUNKS, CONFIGS)
def test_a_run_takes_what_any_accepted_site_starts_it_with(
    tmp_path, link, trunk, config
):
    try:
        site = described(tmp_path / "site.yaml", link, trunk, config)
    except SiteError:
        return
    started = tomllib.loads(scripts.toml(for_run(site)))
    assert not [*beyond_supernodes(load_config(started))]
    assert started["model"] == "tiny"


LINES = st.text().filter(lambda text: "\n" not in text)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
KEYS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@FEW
@given(st.dictionaries(KEYS, st.booleans() | NUMBERS | LINES, max_size=3))
def test_flower_reads_a_node_config_as_the_site_has_it(tmp_path, config):
    site = described(tmp_path / "site.yaml", INSIDE, None, {}, config)
    assert node_config(site) == {"partition-id": 0, "num-partitions": 1, **config}


def node_config(site):
    script = scripts.node_start(site.nodes[0], 0, site)
    words = shlex.split(script[script.index("exec ") :])
    return parse_config_args([words[words.index("--node-config") + 1]])


@pytest.mark.parametrize("text", ['a "b" c', "\\", '\\"', "'", "a=b c", "\x7f", ""])
def test_quotes_and_the_like_reach_a_node(tmp_path, text):
    site = described(tmp_path / "site.yaml", INSIDE, None, {}, {"data": text})
    assert node_config(site)["data"] == text


@pytest.mark.parametrize("value", ["\ud800", 2**63, "a\nb", [1], None])
def test_a_value_that_no_script_or_message_carries_is_refused(tmp_path, value):
    with pytest.raises(SiteError, match=r"nodes\[0\]\.config\.data is .*of one line"):
        described(tmp_path / "site.yaml", INSIDE, None, {}, {"data": value})


def test_a_script_names_the_apps_folder_as_one_word(tmp_path):
    app = "/a 'b' & c;d"
    site = described(tmp_path / "site.yaml", AWAY, GPU, {}, app=app)
    for script in (scripts.run_start(site), scripts.trunk_start(site.trunk, site)):
        (word,) = (word for word in script.splitlines() if "ATLAS_APP:-" in word)
        word = word[word.index('"$') : word.index('}"') + 2]
        found = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True)
        assert found.stdout.decode() == app
