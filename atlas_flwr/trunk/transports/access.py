# SPDX-License-Identifier: Apache-2.0
"""What a ServerApp needs to own a trunk on another machine: a file that is carried."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from atlas_flwr.errors import ConfigError
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.private_files import write_private

__all__ = ["Access"]

ALWAYS = {"address", "ca", "secret"}
MUTUAL = {"certificate", "key"}  # where the trunk asks for certificates


@dataclass(frozen=True)
class Access:
    """The way to a trunk, and what proves its owner.

    Attributes
    ----------
    address : str
        ``grpcs://HOST:PORT``.
    ca : str
        Its authority's certificate, PEM; empty for the system's authorities.
    secret : str
        The owner's.
    certificate, key : str
        What the owner shows a trunk that asks for certificates, PEM; empty else.
    """

    address: str
    ca: str
    secret: str = field(repr=False)
    certificate: str = ""
    key: str = field(default="", repr=False)

    @property
    def shown(self) -> Credentials | None:
        """What the owner shows a trunk that asks for certificates."""
        if not self.certificate:
            return None
        return Credentials(self.certificate.encode(), self.key.encode())

    def write(self, path: Path) -> None:
        """Write it for the file's owner alone."""
        write_private(path, self.to_json().encode())

    @classmethod
    def read(cls, path: str | Path, *, checked: bool = True) -> Access:
        """Read what was written.

        Parameters
        ----------
        path : str or Path
            Of the file.
        checked : bool
            Look at its certificate, if there is one.

        Raises
        ------
        ConfigError
            If the file is not there, or something else, or its certificate is no use.
        """
        try:
            found = cls.parse(Path(path).expanduser().read_text(encoding="utf-8"))
            if checked and found.shown:
                found.shown.check(datetime.now(UTC))
        except (OSError, ValueError) as error:
            raise _refused(path, str(error)) from None
        return found

    def to_json(self) -> str:
        """Write it as text."""
        told = asdict(self)
        return json.dumps(
            {k: told[k] for k in told if told[k] or k in ALWAYS}, indent=1
        )

    @classmethod
    def parse(cls, text: str) -> Access:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is something else.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) not in (ALWAYS, ALWAYS | MUTUAL):
            raise ValueError(f"it has not the entries {', '.join(sorted(ALWAYS))}")
        return cls(**{key: str(value) for key, value in found.items()})


def _refused(path: str | Path, why: str) -> ConfigError:
    return ConfigError(
        [
            f"trunk-access={str(path)!r} cannot be read: {why}. It is the file "
            "access.json that `atlas-flwr trunk` writes: copy it to this machine"
        ],
        ["trunk-access"],
    )
