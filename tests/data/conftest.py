"""A cache of the session's own for what needs no download, and tasks in small files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.data import ModelSource, Task, load_task, resolve_model, tokenizer_of

MakeTask = Callable[..., Task]


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(session_cache: Path) -> Iterator[ModelSource]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLAS_CACHE", str(session_cache))
        yield resolve_model("tiny", progress=False)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny: ModelSource) -> Any:
    return tokenizer_of(tiny)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ATLAS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> MakeTask:
    """Write rows and a task file; return the task."""

    def make(rows: list[tuple[str, str]], more: str = "", labels: str = "") -> Task:
        folder = tmp_path_factory.mktemp("task")
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        raw = sorted({label for _, label in rows if label})
        told = "".join(f"  {label}: is{i}{label}\n" for i, label in enumerate(raw))
        path = folder / "own.yaml"
        said = f"labels: {labels}" if labels else f"labels:\n{told}"
        path.write_text(f"format: jsonl\npath: rows.jsonl\n{more}\n{said}\n")
        return load_task(str(path))

    return make
