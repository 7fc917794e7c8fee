# SPDX-License-Identifier: Apache-2.0
"""What an exported adapter needs to be used elsewhere: classes, prompt, model card.

Weights alone do not say which output is which class, nor how a text was put to a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import AutoConfig

from atlas_flwr.data import Task
from atlas_flwr.train.weights import ModelFiles

__all__ = ["TASKS_FILE", "ModelCard"]

TASKS_FILE = "tasks.json"

_LOADING = """\
from peft import PeftModel
from transformers import {auto}{more}

{config}base = {auto}.from_pretrained("{base}"{given})
model = PeftModel.from_pretrained(base, "{folder}").eval()
"""


@dataclass(frozen=True)
class ModelCard:
    """How the adapters of one folder are to be used.

    Attributes
    ----------
    files : ModelFiles
        The base model.
    tasks : Sequence[Task]
        Those that the adapters were trained on.
    max_length : int
        Longest prompt or text, in tokens.
    summary : str
        File of the summary positions that the texts were read into, if they were.
    notes : Sequence[str]
        What else belongs to the answers, and is not in the folder.
    """

    files: ModelFiles
    tasks: Sequence[Task]
    max_length: int
    summary: str = ""
    notes: Sequence[str] = ()

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each of a classifier's outputs; of several tasks, with the task's."""
        return {i: self._class_name(i) for i in range(self.files.classes)}

    def write(self, folder: Path) -> None:
        """Write ``README.md``, ``tasks.json`` and, of a classifier, ``config.json``."""
        if self.files.classes:
            names = self.class_names
            AutoConfig.from_pretrained(
                self.files.source.path,
                num_labels=self.files.classes,
                id2label=names,
                label2id={name: number for number, name in names.items()},
            ).save_pretrained(folder)
        told = [_told(task) for task in self.tasks]
        given = {"max_length": self.max_length, "tasks": told}
        text = json.dumps(given, indent=2, ensure_ascii=False) + "\n"
        (folder / TASKS_FILE).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(self._text(folder.name), encoding="utf-8")

    def _class_name(self, number: int) -> str:
        have = [task for task in self.tasks if number < len(task.labels)]
        if len(self.tasks) == 1 and have:
            return have[0].labels[number]
        named = [f"{task.name}: {task.labels[number]}" for task in have]
        return ", ".join(named) or f"unused {number}"

    def _text(self, folder: str) -> str:
        source = self.files.source
        head = {"base_model": source.hub_name, "library_name": "peft"}
        lines = ["---", *(f"{k}: {json.dumps(v)}" for k, v in head.items()), "---", ""]
        names = ", ".join(task.name for task in self.tasks)
        lines += [f"# {source.name}, adapted to {names}", ""]
        lines += [f"Adapters for `{source.hub_name}`, trained by atlas-flwr."]
        lines += ["", "```python", self._loading(folder).rstrip(), "```", ""]
        lines += [f"{self._asking()} `{TASKS_FILE}` has the same for programs.", ""]
        lines += self._lacking()
        for task in self.tasks:
            lines += self._section(task)
        return "\n".join(lines)

    def _loading(self, folder: str) -> str:
        classes = bool(self.files.classes)
        return _LOADING.format(
            auto=self.files.auto_class.__name__,
            more=", AutoConfig" if classes else "",
            config=f'config = AutoConfig.from_pretrained("{folder}")\n' * classes,
            # The base may have a classifier of its own, of other classes.
            given=", config=config, ignore_mismatched_sizes=True" * classes,
            base=self.files.source.hub_name,
            folder=folder,
        )

    def _asking(self) -> str:
        length = f"of at most {self.max_length} tokens"
        if not self.files.classes:
            return (
                "Put a text into its task's template; the answer is the label whose "
                "first token, after a blank, is the likeliest next one. Prompts were "
                f"{length}; longer texts were cut, the template never."
            )
        return (
            f"Give the text alone, {length}. `config.json` names the outputs; a "
            "task with fewer classes than there are outputs answers with the best of "
            "its own, which come first."
        )

    def _lacking(self) -> list[str]:
        """Say what PEFT does not load, without which answers differ from the run's."""
        lines = []
        if self.summary:
            lines += [
                f"**Beside PEFT's files:** `{self.summary}` has learned positions that "
                "stood around each text in training, and of a text they alone crossed "
                "the cut (`summary-positions`). PEFT does not load them: the adapters "
                "alone do not answer as in the run.",
                "",
            ]
        for note in self.notes:
            lines += [f"**Not here:** {note}", ""]
        return lines

    def _section(self, task: Task) -> list[str]:
        lines = [f"## {task.name}", ""]
        if task.description:
            lines += [task.description.strip(), ""]
        if task.writes:
            return [*lines, *self._of_generation(task)]
        if not self.files.classes:
            lines += [
                f"Template: `{json.dumps(task.template, ensure_ascii=False)}`",
                "",
            ]
        lines += [f"{i}. {label}" for i, label in enumerate(task.labels)]
        return [*lines, ""]

    def _of_generation(self, task: Task) -> list[str]:
        around = "in the tokenizer's chat template" if task.chat else "as it is"
        if task.completes:
            lines = ["It goes on with plain text.", ""]
        elif task.reading.messages:
            lines = [f"Conversations, {around}.", ""]
        else:
            lines = [f"Prompt, {around}: `{json.dumps(task.reading.prompt)}`", ""]
        if task.system:
            lines += [f"System: `{json.dumps(task.system, ensure_ascii=False)}`", ""]
        return [*lines, "It answers with text, up to the end token.", ""]


def _told(task: Task) -> dict[str, object]:
    known = asdict(task)
    if task.writes:
        own = {key: known[key] for key in ("name", "kind", "chat", "system")}
        if task.reading.messages:
            return {**own, "messages": task.reading.messages, "learn": task.learn}
        return {**own, "prompt": task.prompt, "response": task.reading.response}
    return {key: known[key] for key in ("name", "labels", "raw_labels", "template")}
