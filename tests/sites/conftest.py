# SPDX-License-Identifier: Apache-2.0
"""Folders of a small site."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from atlas_flwr.sites import read_site, write_kits


@pytest.fixture
def kits(tmp_path: Path):
    """Make the folders of a site, with parts of its description changed."""

    def made(out: str = "site", authority: Path | None = None, **changes) -> Path:
        described = {
            "name": "lab",
            "link": {"host": "127.0.0.1", "port": 18000, "listen": "127.0.0.1"},
            "nodes": [{"name": "north"}, {"name": "south"}],
            "run": {"config": {"model": "tiny"}},
            **changes,
        }
        file = tmp_path / "site.yaml"
        file.write_text(yaml.safe_dump(described))
        write_kits(read_site(file), tmp_path / out, authority)
        return tmp_path / out

    return made
