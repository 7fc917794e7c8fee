# SPDX-License-Identifier: Apache-2.0
"""What a ServerApp needs to own a trunk on another machine: a file that is carried."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from atlas_flwr.errors import ConfigError

__all__ = ["Access"]


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
    """

    address: str
    ca: str
    secret: str = field(repr=False)

    def write(self, path: Path) -> None:
        """Write it for the file's owner alone."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Access:
        """Read what was written.

        Raises
        ------
        ConfigError
            If the file is not there, or something else.
        """
        try:
            return cls.parse(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _refused(path, str(error)) from None

    def to_json(self) -> str:
        """Write it as text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def parse(cls, text: str) -> Access:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is something else.
        """
        found, wanted = json.loads(text), {f.name for f in fields(cls)}
        if not isinstance(found, dict) or set(found) != wanted:
            raise ValueError(f"it has not the entries {', '.join(sorted(wanted))}")
        return cls(**{key: str(value) for key, value in found.items()})


def _refused(path: str | Path, why: str) -> ConfigError:
    return ConfigError(
        [
            f"trunk-access={str(path)!r} cannot be read: {why}. It is the file "
            "access.json that `atlas-flwr trunk` writes: copy it to this machine"
        ],
        ["trunk-access"],
    )
