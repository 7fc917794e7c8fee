# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr generate``: answers of a run's adapters to prompts."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_flwr.cli.adapters import Ready, add_adapters, add_decoding, ready
from atlas_flwr.errors import ConfigError, DataError

if TYPE_CHECKING:
    from atlas_flwr.serving import Answer
    from atlas_flwr.wire import ByteMeter

__all__ = ["main"]

ANSWER, BASE = "answer", "base"  # what is written beside a row's own fields
OTHERWISE = "generated-"


@dataclass(frozen=True)
class Asked:
    """A prompt.

    Attributes
    ----------
    row : Mapping[str, Any]
        What its answer is written with.
    ids : list[int]
        Its tokens.
    """

    row: Mapping[str, Any]
    ids: list[int]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    given = _parser().parse_args(arguments)
    _check(given)
    found = ready(given)
    asked = _asked(given, found)
    names = _names(asked)
    print(found.title)
    for name, other in names.items():
        if other != name and (name == ANSWER or given.beside_base):
            print(f"prompts have a field {name!r}: what is written is {other!r}")
    base: list[Answer] = []
    if given.beside_base:
        with found.of_base().served() as served:
            base = list(_answers(served.model, found, asked, given.batch_size))
    with found.served() as served:
        begun = time.perf_counter()
        answers = _answers(served.model, found, asked, given.batch_size)
        rows = _rows(asked, answers, base, names)
        written = _write(given.out, rows) if given.out else _print(rows)
        seconds = time.perf_counter() - begun
        print(_cost(len(asked), given.out, written, seconds, served.meter))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas-flwr generate",
        description="Answer prompts with a run's adapters, through the split model. "
        "Each line of a file of prompts is a JSON object, with `prompt`, which is put "
        "as it is, or with the fields of a task that the adapters were trained on.",
    )
    add_adapters(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompts", metavar="FILE", type=Path)
    prompts.add_argument(
        "--held-out",
        metavar="N",
        type=int,
        help="the first N test prompts of --client, dealt again from its task",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: the terminal"
    )
    parser.add_argument(
        "--beside-base",
        action="store_true",
        help="answer with the model before training, too",
    )
    add_decoding(parser, longest=128)
    parser.add_argument("--batch-size", metavar="N", type=int, default=8)
    parser.add_argument(
        "--drafts",
        metavar="N",
        type=int,
        default=0,
        help="tokens guessed from the text itself, for fewer round trips; with "
        "--batch-size 1",
    )
    return parser


def _check(given: argparse.Namespace) -> None:
    problems = []
    if given.drafts and given.batch_size != 1:
        problems.append(
            f"drafts={given.drafts} with batch-size={given.batch_size}: must be 1"
        )
    if given.batch_size < 1:
        problems.append(f"batch-size={given.batch_size}: at least 1 prompt at once")
    if given.held_out is not None and given.held_out < 1:
        problems.append(f"held-out={given.held_out}: at least 1 prompt")
    if given.held_out is not None and given.client is None:
        problems.append("held-out: whose prompts? Name the client with --client")
    if given.beside_base and given.base:
        problems.append("beside-base with base: both are the model before training")
    if problems:
        raise ConfigError(problems)
    if given.out is not None and given.out.is_dir():
        raise DataError(f"{given.out} is a folder; --out is the file to be written")
    if given.out is not None and not given.out.parent.is_dir():
        raise DataError(f"no folder {given.out.parent} for {given.out}")
    if given.out is not None:
        _check_writable(given.out)


def _check_writable(path: Path) -> None:
    """Refuse now what could not be written after minutes of answers."""
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise DataError(
            f"{path} cannot be written: {place} is not this user's to write"
        )


def _asked(given: argparse.Namespace, found: Ready) -> list[Asked]:
    """Return the prompts, from a file or from a client's tests."""
    from atlas_flwr.data import load_task
    from atlas_flwr.serving import held_out, read_prompts

    if given.held_out is None:
        rows = read_prompts(given.prompts, found.prompts)
        return [Asked(row, found.prompts.ids(row)) for row in rows]
    with found.folder.elsewhere("tasks"):
        for name in found.config.task_list:
            load_task(name)
    tests = held_out(
        found.folder.run_id(),
        found.config,
        found.files.source,
        found.prompts.tokenizer,
        int(given.client),
        found.clients,
        given.held_out,
    )
    # Cut as where the client was scored: what is dealt cannot be written shorter.
    fitting = found.prompts.fitting
    return [
        Asked({"prompt": t.text, "reference": t.reference}, fitting(t.ids))
        for t in tests
    ]


def _answers(
    model: Any, found: Ready, asked: Sequence[Asked], batch_size: int
) -> Iterator[Answer]:
    from atlas_flwr.serving import answered

    ids = [prompt.ids for prompt in asked]
    return answered(model, found.prompts.tokenizer, ids, found.decoding, batch_size)


def _names(asked: Sequence[Asked]) -> dict[str, str]:
    """Return what answers are called, so that no field of a row is lost."""
    taken = {name for prompt in asked for name in prompt.row}
    found = {}
    for name in (ANSWER, BASE):
        found[name] = name
        while found[name] in taken:
            found[name] = OTHERWISE + found[name]
    return found


def _rows(
    asked: Sequence[Asked],
    answers: Iterator[Answer],
    base: Sequence[Answer],
    names: Mapping[str, str],
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield what is written of each prompt, and the tokens of its answer."""
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        before = {names[BASE]: base[number].text} if base else {}
        yield {**prompt.row, **before, names[ANSWER]: answer.text}, answer.tokens


def _write(path: Path, rows: Iterator[tuple[dict[str, Any], int]]) -> int:
    """Write a JSON object a line; return the tokens."""
    total = 0
    with path.open("w", encoding="utf-8") as out:
        for row, tokens in rows:
            out.write(_line(row) + "\n")
            total += tokens
    return total


def _line(row: Mapping[str, Any]) -> str:
    """Write a row, also one with half a character in a field that nothing reads."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def _print(rows: Iterator[tuple[dict[str, Any], int]]) -> int:
    """Show prompts and answers below one another; return the tokens."""
    total = 0
    for row, tokens in rows:
        wide = max(map(len, row))
        print()
        for name, value in row.items():
            said = str(value).strip().encode(errors="replace").decode() or "(nothing)"
            print(
                f"  {name:<{wide}}  " + f"\n{' ' * (wide + 4)}".join(said.split("\n"))
            )
        total += tokens
    print()
    return total


def _cost(
    prompts: int, out: Path | None, written: int, seconds: float, meter: ByteMeter
) -> str:
    each = max(written, 1)
    return (
        f"{prompts} answer{'s' * (prompts != 1)}{f' in {out}' if out else ''} · "
        f"{written} tokens, "
        f"{written / seconds:.1f} a second · bytes a token: "
        f"{meter.total_up / each:,.0f} up, {meter.total_down / each:,.0f} down"
    )
