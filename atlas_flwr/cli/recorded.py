# SPDX-License-Identifier: Apache-2.0
"""A run's recorded wire, as its attacker holds it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from atlas_flwr.cli.case import Case
from atlas_flwr.cli.strangers import texts_of_others, told_of
from atlas_flwr.errors import DataError
from atlas_flwr.report import RunFolder

if TYPE_CHECKING:
    import torch

    from atlas_flwr.config import RunConfig
    from atlas_flwr.privacy import Recording
    from atlas_flwr.privacy.knowledge import Knowledge, KnownText, PublicModel
    from atlas_flwr.train.weights import ModelFiles

    Prompt = tuple[torch.Tensor, torch.Tensor, slice]  # its own, as sent, untemplated

__all__ = ["cases", "recordings"]

# Texts of these, but for those of the run, are the attacker's own.
PUBLIC = ("tweets", "amazon", "editorials", "movies", "questions", "spam", "news")
TASKS_KNOWN = 3
TEXTS_KNOWN = 700


def recordings(folder: RunFolder) -> list[Recording]:
    """Read what a run has recorded, its clients on this machine included.

    Raises
    ------
    DataError
        If it has recorded nothing, or a file of it is damaged.
    """
    from atlas_flwr.data.arrays import read_arrays
    from atlas_flwr.privacy.observation import ANEW, unpacked
    from atlas_flwr.remedies.wire_recording import gather_wire

    paths = gather_wire(folder.run_id(), folder.path)
    if not paths:
        raise DataError(
            f"{folder.path} has no recorded wire: it was run without record-wire=true "
            "or without a cut, or ended before its first step. Run it anew with "
            "record-wire=true; where its clients were on other machines, bring their "
            f"wire-*.npz to {folder.path / 'wire'}"
        )
    return [unpacked(read_arrays(path, ANEW)) for path in paths]


def cases(
    config: RunConfig,
    found: Sequence[Recording],
    texts: int,
    seed: int,
    known: Sequence[str] = (),
) -> Iterator[Case]:
    """Yield the texts to attack by depth of head, with what their attacker knows.

    Parameters
    ----------
    config : RunConfig
        The run's.
    found : Sequence[Recording]
        What it recorded.
    texts : int
        To attack, of all depths together.
    seed : int
        Draws them.
    known : Sequence[str]
        Tasks whose texts the attacker has, the clients' own left out; by default three
        that are not the run's.
    """
    from atlas_flwr.cli.labelled import trunk_of
    from atlas_flwr.cli.undefended import without_defence
    from atlas_flwr.data import tokenizer_of
    from atlas_flwr.data.tokens import pieces
    from atlas_flwr.privacy.knowledge import PublicModel
    from atlas_flwr.train.weights import ModelFiles

    files = ModelFiles.of(config, "cpu")
    drawn = _drawn(found, texts, seed)
    spans = _private(found)
    for head in sorted({r.plan.head for r in found}):
        mine = [(r, i) for r, i in drawn if r.plan.head == head]
        if not mine:
            continue
        own = [r for r in found if any(r is chosen for chosen, _ in mine)]
        model = PublicModel(files.parts, own, partial(trunk_of, files))
        plans = sorted({str(r.plan) for r in own})
        defended = Case(
            ", ".join(plans),
            _knowledge(config, files, model, own, seed, known),
            [r.observations[i] for r, i in mine],
            [r.truths[i] for r, i in mine],
            [spans[r.client, r.round][i] for r, i in mine],
            partial(pieces, tokenizer_of(files.source)),
        )
        bare = replace(config, defence="none")
        knows = partial(_knowledge, bare, files, model, own, seed, known)
        again = cache(partial(without_defence, defended, knows))
        is_bare = str(defended.knowledge.defence) == "none"
        yield defended if is_bare else replace(defended, undefended=again)


def _drawn(
    found: Sequence[Recording], texts: int, seed: int
) -> list[tuple[Recording, int]]:
    """Draw texts, evenly from all clients and rounds, none twice of a client."""
    rng = random.Random(seed)
    stacks = []
    told: dict[str, set[tuple[int, ...]]] = {}
    for recording in found:
        order = list(range(len(recording.truths)))
        rng.shuffle(order)
        fresh = []
        for i in order:
            text = tuple(recording.truths[i].ids.tolist())
            if text not in told.setdefault(recording.client, set()):
                told[recording.client].add(text)
                fresh.append((recording, i))
        stacks.append(fresh)
    rng.shuffle(stacks)
    picked: list[tuple[Recording, int]] = []
    while len(picked) < texts and any(stacks):
        picked += [stack.pop() for stack in stacks if stack]
    picked = picked[:texts]
    return sorted(picked, key=lambda p: (int(p[0].client), p[0].round, p[1]))


def _private(found: Sequence[Recording]) -> Mapping[tuple[str, int], list[slice]]:
    """Say of each prompt which tokens are not the same in all of its client's."""
    spans: dict[tuple[str, int], list[slice]] = {}
    for client in {r.client for r in found}:
        mine = [r for r in found if r.client == client]
        own = _own_part([t.prompt for r in mine for t in r.truths])
        for r in mine:
            # Of a prompt that is all template one token counts: each has a score.
            spans[client, r.round] = [
                slice(own.start, max(len(t.prompt) + (own.stop or 0), own.start + 1))
                for t in r.truths
            ]
    return spans


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all rows begin with; none where there is one row."""
    if len({tuple(row) for row in rows}) < 2:
        return 0
    count = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def _knowledge(
    config: RunConfig,
    files: ModelFiles,
    model: PublicModel,
    found: Sequence[Recording],
    seed: int,
    known: Sequence[str],
) -> Knowledge:
    from atlas_flwr.data import load_task, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.remedies.wire_defence import defence_of, vocabulary_of
    from atlas_flwr.wire import codec_named

    tokenizer: Any = tokenizer_of(files.source)
    answers: dict[str, Sequence[int]] = {}
    for recording in found:
        task = load_task(config.task_of(int(recording.client)))
        if not task.writes:
            collate = collator_of(files.source, tokenizer, task, config.max_length)
            answers[recording.client] = list(collate.label_ids)
    defence = defence_of(config)
    blank = Knowledge(
        model,
        [],
        defence,
        codec_named(config.recorded_codec),
        files.source.kind == "causal",
        answers,
        seed,
        frames=_frames(found),
        whole=files.whole if files.source.kind == "causal" else None,
        longest=config.max_length,
        summarised=config.summary_positions > 0,
        vocabulary=vocabulary_of(files) if defence.replaces_tokens else None,
    )
    return _with_texts(blank, config, files, found, known)


def _frames(
    found: Sequence[Recording],
) -> Mapping[str, tuple[Sequence[int], Sequence[int]]]:
    """Return what all prompts of a client begin and end with: its task's template."""
    frames: dict[str, tuple[Sequence[int], Sequence[int]]] = {}
    for client in {r.client for r in found}:
        rows = [t.prompt for r in found if r.client == client for t in r.truths]
        own = _own_part(rows)
        frames[client] = rows[0][: own.start], rows[0][own.stop or len(rows[0]) :]
    return frames


def _own_part(rows: Sequence[Sequence[int]]) -> slice:
    """Return what is not the same in all rows; its end is counted from theirs."""
    before = _common(rows)
    after = _common([row[before:][::-1] for row in rows])
    return slice(before, -after or None)


def _with_texts(
    blank: Knowledge,
    config: RunConfig,
    files: ModelFiles,
    found: Sequence[Recording],
    known: Sequence[str],
) -> Knowledge:
    """Run other texts through the clients' heads."""
    import torch

    from atlas_flwr.cli.labelled import OWN_SECRET, labelled_texts
    from atlas_flwr.data import load_task, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.privacy.defences.scale import usual_size
    from atlas_flwr.privacy.knowledge import KnownText
    from atlas_flwr.remedies.wire_defence import read_through

    others = [n for n in PUBLIC if n not in config.task_list][:TASKS_KNOWN]
    names = known or others
    each = TEXTS_KNOWN // len(names)
    told = told_of(config, found)
    tokenizer: Any = tokenizer_of(files.source)
    prompts: list[Prompt] = []
    for name in names:
        plain = collator_of(files.source, tokenizer, load_task(name), config.max_length)
        collate = read_through(plain, blank.defence, files, OWN_SECRET)
        texts = texts_of_others(
            name, collate, told, blank.defence, seed=blank.seed, prompt=True
        )
        rows = [(text.own_ids[0], text.input_ids) for text, *_ in islice(texts, each)]
        own = _own_part([ids.tolist() for ids, _ in rows])
        prompts += [(ids, sent, own) for ids, sent in rows]
    crossed: list[KnownText] = []
    heads = [r.observations[0] for r in found]
    with torch.no_grad():
        dealt = _dealt([blank.frames[seen.client] for seen in heads], prompts)
        for seen, its in zip(heads, dealt, strict=True):
            through = seen.client, seen.round
            for ids, sent, own in its:
                hidden = blank.model.crossing(seen, sent)[0].float()
                crossed.append(KnownText(ids, hidden, own, sent[0], through))
    usual = usual_size(torch.cat([text.hidden for text in crossed]))
    knows = replace(blank, scale=usual)
    generator = torch.Generator().manual_seed(blank.seed)
    received = [
        replace(text, hidden=knows.crossed(text.hidden, generator)) for text in crossed
    ]
    held = cache(partial(labelled_texts, config, files, knows, found))
    return replace(knows, known=received, labelled=held)


def _dealt(
    frames: Sequence[tuple[Sequence[int], Sequence[int]]], prompts: Sequence[Prompt]
) -> Iterator[Sequence[Prompt]]:
    """Deal texts to heads in turn: those of a client's template, or all if none is."""
    framed = [
        (ids[: own.start].tolist(), ids[own.stop :].tolist() if own.stop else [])
        for ids, _, own in prompts
    ]
    kinds = [([*before], [*after]) for before, after in frames]
    wanted = [kind if kind in framed else None for kind in kinds]
    for turn, kind in enumerate(wanted):
        fit = [p for p, its in zip(prompts, framed, strict=True) if kind in (None, its)]
        sharers = [i for i, other in enumerate(wanted) if other == kind]
        yield fit[sharers.index(turn) :: len(sharers)]
