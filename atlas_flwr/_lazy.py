# SPDX-License-Identifier: Apache-2.0
"""Lazy package exports (PEP 562), so that importing ``atlas_flwr`` stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` for a package that exports lazily.

    Flower imports a ServerApp's and a ClientApp's module from two threads at once,
    and its CLI imports them only to read a version; torch must not be pulled in by
    either.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    exports : Mapping[str, str]
        Public name to the submodule that defines it: relative to the package, or in
        full where another room defines it.

    Returns
    -------
    tuple[Callable[[str], Any], Callable[[], list[str]]]
        The module's ``__getattr__`` and ``__dir__``.
    """

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = exports[name]
        module = home if home.startswith("atlas_flwr.") else f"{package}.{home}"
        return getattr(importlib.import_module(module), name)

    def __dir__() -> list[str]:
        return sorted(exports)

    return __getattr__, __dir__
