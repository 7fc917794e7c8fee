# SPDX-License-Identifier: Apache-2.0
"""The entry point: find the verb, run it, turn its errors into words."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from atlas_flwr import __version__
from atlas_flwr.errors import AtlasError

__all__ = ["VERBS", "main"]

# Each is a module of this package with ``main(arguments) -> exit code``, imported only
# when asked for: `doctor` has to run where half of the packages are missing.
VERBS: Mapping[str, str] = {
    "doctor": "check this machine: packages, memory, Flower, what is downloaded",
    "fetch": "download and convert a model and tasks, so that runs start at once",
    "config": "show every configuration key with its default and advice",
    "plan": "show the cut, ranks, memory and time that devices would get",
    "run": "run the app in a simulation on a SuperLink of its own",
    "provision": "make a folder of keys and scripts for each machine of a deployment",
    "trunk": "serve a run's trunk on this machine, for runs elsewhere",
    "generate": "answer a file of prompts with a run's adapters",
    "chat": "talk to a run's adapters in the terminal",
    "attack": "read a run's texts from what crossed the cut, as its server could",
    "report": "rebuild a run's summary and page from its events",
    "compare": "run strategies over seeds, or take finished runs, and compare them",
}
INTERRUPTED = 130
READER_LEFT = 141  # as a shell says of what SIGPIPE ended
WRONG_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``atlas-flwr``; return its exit code.

    Parameters
    ----------
    arguments : Sequence[str], optional
        Words after the command's name; ``None`` takes the process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return run_words(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us, e.g. `head`, has enough. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT


def run_words(words: Sequence[str]) -> int:
    """Run a verb, or tell about them."""
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if words else WRONG_USAGE
    if words[0] in {"-V", "--version"}:
        print(f"atlas-flwr {__version__}")
        return 0
    if words[0] not in VERBS:
        print(unknown(words[0]), file=sys.stderr)
        return WRONG_USAGE
    return run_verb(words[0], words[1:])


def run_verb(verb: str, rest: Sequence[str]) -> int:
    """Run one verb; say what went wrong without a traceback where it is known."""
    try:
        module = importlib.import_module(f"atlas_flwr.cli.{verb}")
        code: int = module.main(rest)
    except AtlasError as error:
        print(f"atlas-flwr {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"atlas-flwr {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def usage() -> str:
    """Return the overview of verbs."""
    width = max(map(len, VERBS))
    verbs = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: atlas-flwr VERB ...",
            "",
            *verbs,
            "",
            "`atlas-flwr VERB --help` tells a verb's options.",
        ]
    )


def unknown(verb: str) -> str:
    """Return what to say of a verb that there is not."""
    close = get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"
    return f"atlas-flwr: {verb!r} is no verb; {hint}"
