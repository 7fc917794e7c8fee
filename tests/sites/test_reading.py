"""Site files with mistakes that YAML itself would let pass, or trip over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from atlas_flwr.cli import main
from atlas_flwr.errors import SiteError
from atlas_flwr.sites import read_site, write_kits
from atlas_flwr.sites.kits import within_authority
from atlas_flwr.trunk.transports.certificates import Authority

SITE = (
    "link: {host: 127.0.0.1}\nnodes:\n  - name: north\nrun: {config: {model: tiny}}\n"
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.yaml").write_text(SITE)
    return read_site(tmp_path / "site.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"name: 2026-02-30\n{SITE}", "cannot be read: day is out of range"),
        (f"{SITE}link: {{host: 10.0.0.1}}\n", "'link' stands twice"),
        (
            SITE.replace("{config", '{app: "/opt/\\ud800", config'),
            "run.app is",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(tmp_path, text, told):
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(SiteError, match=told):
        read_site(tmp_path / "site.yaml")


def test_where_folders_cannot_be_made_is_told(tmp_path, site):
    (tmp_path / "file").write_text("")
    with pytest.raises(SiteError, match=r"--out .*file/out cannot be written"):
        write_kits(site, tmp_path / "file" / "out")


def kept(folder, life):
    made = Authority.made("lab CA", life)
    folder.mkdir()
    (folder / "ca.crt").write_bytes(made.certificate)
    (folder / "ca.key").write_bytes(made.key)
    return folder


@pytest.mark.parametrize("life", [timedelta(minutes=-1), timedelta(hours=23)])
def test_an_authority_that_ends_signs_nothing_new(tmp_path, site, life):
    with pytest.raises(SiteError, match=r"--authority.*it ends at.*leave it out"):
        write_kits(site, tmp_path / "out", kept(tmp_path / "authority", life))
    assert not (tmp_path / "out").exists()


def test_certificates_last_no_longer_than_what_signs_them(tmp_path, site, capsys):
    authority = kept(tmp_path / "authority", timedelta(days=40, hours=1))
    given = [str(tmp_path / "site.yaml"), "--out", str(tmp_path / "out")]
    assert main(["provision", *given, "--authority", str(authority)]) == 0
    assert "valid for 40 days" in capsys.readouterr().out
    shown = (tmp_path / "out" / "link" / "server.pem").read_bytes()
    ends = x509.load_pem_x509_certificate(shown).not_valid_after_utc
    assert timedelta(days=39) < ends - datetime.now(UTC) < timedelta(days=40, hours=1)
    short = replace(site, days=7)
    assert within_authority(short, authority) == short
