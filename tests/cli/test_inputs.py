"""Files and settings that users get wrong are told in a sentence, and early."""

from __future__ import annotations

import json
import os
import sys

import pytest

from atlas_flwr.cli import doctor, generate, trunk
from atlas_flwr.cli.overrides import app_defaults, parse_overrides
from atlas_flwr.cli.processes import piped
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.trunk.transports.certificates import run_identity

LATIN = 'run-name = "café"\n'.encode("latin-1")


def test_a_run_config_in_another_encoding_is_told(tmp_path):
    (tmp_path / "own.toml").write_bytes(LATIN)
    with pytest.raises(ConfigError, match=r"own\.toml.*utf-8"):
        parse_overrides([str(tmp_path / "own.toml")])


@pytest.mark.parametrize(
    "text", [LATIN, b"tool = 1", b"[tool]\nflwr = 3", b"[tool.flwr]\napp = 1"]
)
def test_a_folder_without_an_app_is_told_whatever_its_file_has(tmp_path, text):
    (tmp_path / "pyproject.toml").write_bytes(text)
    with pytest.raises(ConfigError, match="holds no Flower app"):
        app_defaults(tmp_path)


def test_half_a_character_in_a_log_ends_no_run():
    said = r"import sys; sys.stdout.buffer.write(b'a\xff\nb\n')"
    with piped([sys.executable, "-c", said], os.environ) as process:
        assert list(process.stdout) == ["a\N{REPLACEMENT CHARACTER}\n", "b\n"]
    assert process.returncode == 0


def test_a_row_with_half_a_character_is_written_as_it_came(tmp_path, capsys):
    row = {"prompt": "a", "note": "\ud800", "answer": "ä"}
    assert generate._write(tmp_path / "out", iter([(row, 3)])) == 3
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8")) == row
    generate._print(iter([(row, 3)]))
    assert capsys.readouterr().out.split()[-4:] == ["note", "?", "answer", "ä"]


def test_where_nothing_can_be_written_is_told_before_anything_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    given = generate._parser().parse_args(
        ["--prompts", "p", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(DataError, match="cannot be written"):
        generate._check(given)


def test_a_trunks_own_certificate_and_key_must_fit_before_anything_is_loaded(tmp_path):
    one, other = run_identity("a.example"), run_identity("a.example")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(one.certificate)
    key.write_bytes(other.key)
    with pytest.raises(ConfigError, match=r"--cert.*not of this key"):
        trunk._own_identity(cert, key, None)
    key.write_bytes(one.key)
    assert trunk._own_identity(cert, key, None).key == one.key


@pytest.mark.parametrize("told", ["abc", "70000", "-1"])
def test_the_doctor_tells_of_a_port_that_is_none(monkeypatch, told):
    monkeypatch.setenv(doctor.SHARED_PORT[0], told)
    found = doctor._shared_superlink()
    assert (found.ok, found.needed) == (False, False)
    assert told in found.detail


def test_the_doctor_tells_of_a_config_of_flowers_that_is_no_text(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_bytes(LATIN)
    assert not doctor._flower_home().ok
