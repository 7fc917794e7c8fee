# SPDX-License-Identifier: Apache-2.0
"""Files of arrays that outlive a process, and may be damaged by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["read_arrays"]


def read_arrays(path: Path, advice: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of an ``.npz`` file.

    Parameters
    ----------
    path : Path
        The file.
    advice : str
        How to mend it, for the error.

    Raises
    ------
    DataError
        If it is damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (AttributeError, BadZipFile, EOFError, OSError, ValueError):
        raise DataError(f"{path} is damaged, or is another file: {advice}") from None
