# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr chat``: talk to a run's adapters in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from atlas_flwr.cli.adapters import add_adapters, add_decoding, ready
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.serving import Conversation
    from atlas_flwr.wire import ByteMeter

__all__ = ["main"]

HELP = """\
/reset  forget what was said
/bytes  what crossed the cut so far
/exit   leave; so do Ctrl-D, and Ctrl-C where nothing is being written
Ctrl-C ends an answer that is being written."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr chat",
        description="Talk to a run's adapters: head and tail run here, the trunk as a "
        "service, and one position crosses a token.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_adapters(parser)
    add_decoding(parser, longest=256)
    given = parser.parse_args(arguments)

    from atlas_flwr.serving import Conversation

    found = ready(given)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # told as what it is, later
    if sys.stdin.isatty() and find_spec("readline"):  # there is none on Windows
        import_module("readline")  # input() then edits lines, and knows those before
    with found.served() as served:
        talk = Conversation(served.model, found.prompts, found.decoding)
        print(f"{found.title}\n{talk.style} · /help\n", flush=True)
        converse(talk, served.meter)
        talk.reset()
    return 0


def converse(talk: Conversation, meter: ByteMeter) -> None:
    """Ask for questions, and answer them, until the user leaves."""
    tokens = 0
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if said in ("/exit", "/quit"):
            return
        if said == "/reset":
            talk.reset()
            print("forgotten\n")
        elif said == "/bytes":
            print(crossed(meter, tokens) + "\n")
        elif said.startswith("/"):
            print(HELP + "\n")
        elif said:
            tokens += answer(talk, said)


def answer(talk: Conversation, question: str) -> int:
    """Answer a question as it is written; return the number of tokens."""
    begun = time.perf_counter()
    try:
        talk.ask(question, lambda piece: print(piece, end="", flush=True))
    except DataError as error:
        print(f"{error} · /reset forgets what was said\n")
        return 0
    except KeyboardInterrupt:
        print(" ...")
    seconds = time.perf_counter() - begun
    print(f"\n[{talk.written} tokens, {talk.written / seconds:.1f} a second]\n")
    return talk.written


def crossed(meter: ByteMeter, tokens: int) -> str:
    """Say what crossed the cut."""
    up, down = meter.total_up, meter.total_down
    each = f", {up / tokens:,.0f} and {down / tokens:,.0f} a token" if tokens else ""
    return f"{up:,} bytes up, {down:,} down{each}, prompts included"
