# SPDX-License-Identifier: Apache-2.0
"""Which adapters of a run are to answer: a client's, a cluster's, others, or none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import RunConfig
from atlas_flwr.data import load_task
from atlas_flwr.errors import AdapterError, DataError
from atlas_flwr.lora import PROMPT_KEY, AdapterState, ia3_vectors, load_peft
from atlas_flwr.lora.ia3 import scaled_layers
from atlas_flwr.ordering import by_number
from atlas_flwr.remedies import kept_elsewhere
from atlas_flwr.remedies.personal_layers import all_kept
from atlas_flwr.report import RunFolder, Summary, summarize_folder
from atlas_flwr.server_apps.export import SUMMARY_FILE
from atlas_flwr.server_apps.model_card import TASKS_FILE
from atlas_flwr.serving.prompts import PromptForm
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.weights import ModelFiles

__all__ = ["Choice", "Chosen", "chosen"]

ALL = "all"


@dataclass(frozen=True)
class Choice:
    """What the user wants; at most one of it.

    Attributes
    ----------
    client, cluster : str, optional
        Of the run.
    adapters : Path, optional
        A folder in PEFT's format.
    base : bool
        The model as it was before training.
    """

    client: str | None = None
    cluster: str | None = None
    adapters: Path | None = None
    base: bool = False


@dataclass(frozen=True)
class Chosen:
    """Adapters, and how they are to be used.

    Attributes
    ----------
    title : str
        What they are, for people.
    state : AdapterState
        Empty for the base model.
    plan : SplitPlan
        The cut they were trained over, if one is known.
    forms : Sequence[PromptForm]
        Of the tasks to be answered by text that they were trained on.
    """

    title: str
    state: AdapterState
    plan: SplitPlan
    forms: Sequence[PromptForm]

    @property
    def learned_positions(self) -> int:
        """Positions of a prompt that stands before each text."""
        return len(self.state.dense.get(PROMPT_KEY, ()))


def chosen(
    folder: RunFolder,
    config: RunConfig,
    choice: Choice,
    files: ModelFiles,
    outline: Outline,
) -> Chosen:
    """Find the adapters that were asked for; nothing heavy is loaded.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    config : RunConfig
        Its configuration, on this machine.
    choice : Choice
        Nothing at all is enough where the run has one folder of adapters.
    files : ModelFiles
        The run's model.
    outline : Outline
        Its shapes.

    Raises
    ------
    DataError
        If there is no such client or cluster (it says which there are), or the model
        writes no text.
    AdapterError
        If the adapters cannot be read, or are of another model.
    """
    if files.source.kind != "causal":
        raise DataError(
            f"{folder.path} is a run of {files.source.name}, which sorts texts into "
            "classes and writes none: there is nothing to chat with. Its adapters' "
            "folders say how to load them; for text, train a decoder such as "
            "model='smollm2'"
        )
    run = summarize_folder(folder)
    if choice.base:
        forms = _every_form(folder, config)
        return Chosen("the base model", AdapterState(), _plan(config, run, ()), forms)
    if choice.adapters is not None:
        path, title, members = choice.adapters, str(choice.adapters), list[str]()
    else:
        path, title, members = _place(folder, choice, run)
    if (path / SUMMARY_FILE).is_file():
        raise DataError(
            f"{path}: trained with summary-positions, which end in one label and write "
            "no text; choose another run"
        )
    state = load_peft(path)
    if choice.client is not None:
        state = state.merged(_own(folder, config, choice.client))
    _check_fit(state, outline, title)
    return Chosen(title, state, _plan(config, run, members), _forms(path))


def _place(
    folder: RunFolder, choice: Choice, run: Summary
) -> tuple[Path, str, list[str]]:
    """Return the adapters' folder, what they are, and whose cuts count."""
    root = folder.path / "adapters"
    there = sorted((p.name for p in root.glob("*/")), key=by_number)
    if not there:
        raise DataError(
            f"{folder.path} has no adapters: a run writes them when it has ended; "
            "finish it with `atlas-flwr run -c \"resume='...'\"`, or take --base"
        )
    if choice.client is not None:
        group = _group(folder, choice.client, run, there)
        return root / group, _title(f"client {choice.client}", group), [choice.client]
    name = choice.cluster
    if name is None and len(there) > 1:
        raise DataError(
            f"{folder.path} has adapters of {_listed(there)}: choose one with "
            "--cluster, or a client's with --client"
        )
    name = there[0] if name is None else name
    if name not in there:
        raise DataError(
            f"no adapters of cluster {name} in {folder.path}; there are "
            f"{_listed(there)}"
        )
    members = [c for c, found in run.clusters.items() if str(found) == name]
    return root / name, "all clients" if name == ALL else f"cluster {name}", members


def _group(folder: RunFolder, client: str, run: Summary, there: Collection[str]) -> str:
    """Return the folder that a client's adapters are in."""
    clients = {*run.clusters, *run.true_tasks, *run.plans}
    if run.clusters and client in clients - run.clusters.keys() and ALL not in there:
        raise DataError(
            f"client {client} of {folder.path} was in no cluster at last: choose one "
            f"with --cluster, of {_listed(sorted(there, key=by_number))}"
        )
    # Where there are clusters, folders have their numbers.
    own = str(run.clusters[client]) if client in run.clusters else client
    found = next((name for name in (own, ALL) if name in there), None)
    if client not in clients or found is None:
        known = sorted(clients, key=by_number)
        raise DataError(
            f"no client {client} in {folder.path}; there are {_listed(known)}"
        )
    return found


def _title(client: str, group: str) -> str:
    return client if group == ALL else f"{client}, of cluster {group}"


def _own(folder: RunFolder, config: RunConfig, client: str) -> AdapterState:
    """Read the layers that a client kept to itself, if it did."""
    kept = all_kept(ClientStore.of(folder.run_id(), int(client)))
    notes = kept_elsewhere(config)
    if kept is None and notes:
        raise DataError(
            f"{'; '.join(notes)} Those of client {client} are not on this machine, but "
            "in its own cache folder: run this there, or take its cluster as others "
            "know it, with --cluster"
        )
    return kept or AdapterState()


def _check_fit(state: AdapterState, outline: Outline, title: str) -> None:
    modules = dict(outline.model.named_modules())
    for name, found in state.factors.items():
        weight = getattr(modules.get(name), "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        if shape not in (found.shape, found.shape[::-1]):
            what = "no such layer" if shape is None else f"one of shape {shape}"
            raise AdapterError(
                f"{title}: an adapter of shape {found.shape} for layer {name!r}; the "
                f"run's model has {what}: it is of another model"
            )
    try:
        scaled_layers(outline.model, ia3_vectors(state.dense))
    except AdapterError as error:
        raise AdapterError(f"{title} is of another model: {error}") from None
    width = outline.model.get_input_embeddings().weight.shape[1]
    prompt = state.dense.get(PROMPT_KEY)
    if prompt is not None and prompt.shape[1:] != (width,):
        raise AdapterError(
            f"{title}: a prompt of shape {prompt.shape}; the run's model has "
            f"embeddings of {width} numbers: it is of another model"
        )


def _plan(config: RunConfig, run: Summary, members: Sequence[str]) -> SplitPlan:
    """Return the cut that most members have, or else the run's."""
    plans = [p for c in members or run.plans if (p := run.plans.get(c))]
    if plans:
        return SplitPlan.parse(Counter(plans).most_common(1)[0][0])
    if config.fixed_cuts:
        return SplitPlan(*config.fixed_cuts[0])
    return SplitPlan(1, None if config.split == "vanilla" else 1)


def _forms(path: Path) -> list[PromptForm]:
    """Read how the tasks in an exported folder put their prompts."""
    if not (path / TASKS_FILE).is_file():
        return []
    try:
        told = json.loads((path / TASKS_FILE).read_text(encoding="utf-8"))
        found = [PromptForm.told(task) for task in told["tasks"]]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{path / TASKS_FILE} is damaged ({type(error).__name__}: {error}): bring "
            "it back, or remove it, and give prompts as they are"
        ) from None
    return [form for form in found if form is not None]


def _every_form(folder: RunFolder, config: RunConfig) -> list[PromptForm]:
    """Read how a run's tasks put their prompts, in its order.

    The adapters' folders tell it also where the task files are not.
    """
    exported = (folder.path / "adapters").glob("*/")
    told = {form.name: form for path in exported for form in _forms(path)}
    names = [Path(task).stem for task in folder.config().task_list]
    if told:
        return sorted(told.values(), key=lambda form: names.index(form.name))
    found = map(PromptForm.of, map(load_task, config.task_list))
    return [form for form in found if form is not None]


def _listed(names: Sequence[str]) -> str:
    most = 20
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
