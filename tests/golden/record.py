"""Record what small runs learn, so that a change can show that it changes nothing.

``python -m tests.golden.record FILE`` writes the runs of ``tests/runs_on_devices.py``
to a file: their losses in full, and a digest of the bits of what was learned. Two files
made on one machine, before a change and after it, have to be the same. The repository
keeps the losses alone (``tests/golden/losses.json``), since the last bits depend on the
machine; ``python -m tests.golden.record --keep`` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.numpy import load_file

from tests.runs_on_devices import RUNS, losses

KEPT = Path(__file__).parent / "losses.json"


def digest(folder: Path) -> str:
    """Hash the arrays of all adapters that a run has exported."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(path.relative_to(folder).as_posix().encode())
        for name, array in sorted(load_file(path).items()):
            found.update(name.encode())
            found.update(array.tobytes())
    return found.hexdigest()


def record(name: str) -> dict[str, object]:
    """Do one run; return its losses, and what it learned."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = losses(Path(folder), **RUNS[name], run_name="golden")
        return {"losses": found, "learned": digest(Path(folder) / "golden")}


def main() -> None:
    """Record every run."""
    records = {}
    for name in RUNS:
        records[name] = record(name)
        print(name, flush=True)
    if sys.argv[1] == "--keep":
        kept = {name: found["losses"] for name, found in records.items()}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    else:
        Path(sys.argv[1]).write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
