# SPDX-License-Identifier: Apache-2.0
"""The error tree.

::

    AtlasError
    ├── ConfigError          the run configuration; carries every problem at once
    ├── SiteError            a deployment's description; likewise
    ├── PlanError            an illegal cut
    ├── BudgetError          a device too small for any plan
    ├── DataError            text, tasks, downloads
    ├── AdapterError         LoRA factors that do not fit
    ├── WireError            bytes that are not a frame
    ├── ResumeError          a run that cannot be continued
    ├── StorageError         a run's folder that cannot be written
    ├── RoundError           a round of which nothing valid came
    └── TrunkError           the server's side of the model
        ├── SessionError     no such session, or it was evicted
        ├── CacheLost        texts that the trunk has not, or no more: send them again
        ├── TrunkBusy        over a limit: try again later
        │   └── TooFast      more calls a second than are borne
        └── TrunkLost        the trunk is gone, and its state with it
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = [
    "AdapterError",
    "AtlasError",
    "BudgetError",
    "CacheLost",
    "ConfigError",
    "DataError",
    "PlanError",
    "ResumeError",
    "RoundError",
    "SessionError",
    "SiteError",
    "StorageError",
    "TooFast",
    "TrunkBusy",
    "TrunkError",
    "TrunkLost",
    "WireError",
]


class AtlasError(Exception):
    """Base class of everything that this library raises on purpose."""


class ConfigError(AtlasError, ValueError):
    """A run configuration that cannot work.

    Parameters
    ----------
    problems : Sequence[str]
        One sentence each: what was wrong, what was given, what is allowed.
    keys : Collection[str]
        Keys of the run config that they are about, where that is known.
    """

    def __init__(self, problems: Sequence[str], keys: Collection[str] = ()) -> None:
        self.problems = tuple(problems)
        self.keys = frozenset(keys)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} in the run config:\n{lines}"
        )

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.problems, self.keys)


class StorageError(AtlasError, OSError):
    """A file of a run's cannot be written: the disk is full, or not ours to write."""


class SiteError(AtlasError, ValueError):
    """A deployment that is described wrongly, or whose folders are not whole.

    Parameters
    ----------
    problems : Sequence[str]
        One sentence each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(["", *(f"  - {text}" for text in self.problems)]))

    def __reduce__(self) -> tuple[type[SiteError], tuple[object, ...]]:
        return type(self), (self.problems,)


class PlanError(AtlasError, ValueError):
    """A cut that the model does not allow."""


class BudgetError(AtlasError, ValueError):
    """A memory budget in which nothing fits."""


class DataError(AtlasError, ValueError):
    """Text, task definitions or downloads that cannot be used.

    Parameters
    ----------
    *problems : str
        What is wrong; a paragraph each.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[DataError], tuple[object, ...]]:
        return type(self), tuple(self.problems)


class AdapterError(AtlasError, ValueError):
    """LoRA factors whose shapes, ranks or names do not fit."""


class WireError(AtlasError, ValueError):
    """Bytes that are not a frame of this library, or of another codec."""


class ResumeError(AtlasError, ValueError):
    """A run folder that cannot be continued."""


class RoundError(AtlasError, RuntimeError):
    """A round of which nothing valid came: nobody has learned anything in it."""


class TrunkError(AtlasError, RuntimeError):
    """The trunk refused or failed a call."""


class SessionError(TrunkError):
    """The session is unknown to the trunk: never opened, closed, or evicted."""


class CacheLost(TrunkError):
    """The trunk has no cache of these texts, or one of another turn."""


class TrunkBusy(TrunkError):
    """The trunk is over one of its limits; the same call may succeed later."""


class TooFast(TrunkBusy):
    """More calls a second than a trunk takes from one session, or one address."""


class TrunkLost(TrunkError):
    """The trunk cannot be reached any more; what it held is lost."""
