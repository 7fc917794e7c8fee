# SPDX-License-Identifier: Apache-2.0
"""A conversation: what was said, its tokens, and the cache that it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from atlas_flwr.data.chats import chat_template_text
from atlas_flwr.data.fields import unwritable
from atlas_flwr.data.tokens import token_ids
from atlas_flwr.data.turns import ASSISTANT, SYSTEM, USER, Turn
from atlas_flwr.errors import DataError
from atlas_flwr.serving.prompts import PromptForm, Prompts
from atlas_flwr.split import SplitModel
from atlas_flwr.split.split_cache import SplitCache
from atlas_flwr.train.answers import Decoding
from atlas_flwr.train.step import device_of

__all__ = ["Conversation"]


class _Stream(TextStreamer):
    """Hands text on as soon as it is whole words or characters."""

    def __init__(self, tokenizer: Any, heard: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.heard = heard
        self.tokens: list[int] = []
        self._begun = False

    def put(self, value: Tensor) -> None:
        """Take new tokens; the first are the prompt's."""
        if self._begun:
            self.tokens += value.flatten().tolist()
        self._begun = True
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand it on."""
        if text:
            self.heard(text)


@dataclass
class Conversation:
    """Ask a model, and remember what was said.

    The model's own chat template is put around all turns where the tokenizer has one,
    unless the adapters were trained on a task's template without it: then that is put
    around each question, which is answered alone. A model with neither writes on.

    What has crossed once does not cross again, as long as the new turns only follow the
    old ones.

    Parameters
    ----------
    model : SplitModel
        In evaluation mode.
    prompts : Prompts
        The tokenizer, and forms of the tasks.
    decoding : Decoding
        How tokens are chosen.

    Attributes
    ----------
    turns : list[Turn]
        What was said.
    written : int
        Tokens of the last answer.
    """

    model: SplitModel
    prompts: Prompts
    decoding: Decoding
    turns: list[Turn] = field(default_factory=list, init=False)
    written: int = field(default=0, init=False)
    _text: str = field(default="", init=False)
    _ids: list[int] = field(default_factory=list, init=False)
    _cache: SplitCache | None = field(default=None, init=False)
    _asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.reset()

    @property
    def form(self) -> PromptForm | None:
        """The template that each question is put into, if it is a task's."""
        form = next(iter(self.prompts.forms), None)
        return None if form is None or form.chat else form

    @property
    def style(self) -> str:
        """How questions are put, for people."""
        if self.form is not None:
            return f"each question alone, in the template of task {self.form.name}"
        if self._chats:
            return "the model's chat template"
        return "no chat template: the model writes on from what stands there"

    @property
    def _chats(self) -> bool:
        return bool(getattr(self.prompts.tokenizer, "chat_template", None))

    def reset(self) -> None:
        """Forget all turns."""
        form = next((f for f in self.prompts.forms if f.system), None)
        self.turns = [Turn(SYSTEM, form.system)] if form else []
        self._text, self._ids = "", []
        self._drop_cache()

    def ask(self, question: str, heard: Callable[[str], object]) -> str:
        """Answer a question.

        Parameters
        ----------
        question : str
            What the user says.
        heard : Callable[[str], object]
            Called with each new piece of the answer.

        Raises
        ------
        DataError
            If it is no text, or too long with all that was said before; it then counts
            as not said.

        Returns
        -------
        str
            The answer. Where ``KeyboardInterrupt`` ends it, what came until then counts
            as said.
        """
        if why := unwritable(question):
            raise DataError(f"that is no text: it has {why}")
        before = list(self.turns), self._text
        ids = self._put(question)
        if why := self.prompts.fault(ids):
            self.turns, self._text = before
            raise DataError(f"with what was said before, that is {why}")
        stream = _Stream(self.prompts.tokenizer, heard)
        whole = False
        try:
            self._generate(ids, stream)
            whole = True
        finally:
            answer = self._said(ids, stream.tokens)
            if not whole:  # between head and tail, perhaps
                self._drop_cache()
        return answer

    def _put(self, question: str) -> list[int]:
        """Return the tokens of all that the model is to read."""
        form, tokenizer = self.form, self.prompts.tokenizer
        if form is not None:
            first, *rest = form.fields
            text = form.text({first: question, **dict.fromkeys(rest, "")})
            return self.prompts.plain(text)
        self.turns.append(Turn(USER, question))
        if not self._chats:
            text = self._text + question
        else:
            text = chat_template_text(tokenizer, self.turns)
        if self._ids and text.startswith(self._text):
            more = text[len(self._text) :]
            ids = self._ids + token_ids(tokenizer, more)
        elif self._chats:
            ids = self.prompts.chat(self.turns)
        else:
            ids = self.prompts.plain(text)
        self._text = text
        return ids

    def _said(self, ids: list[int], new: list[int]) -> str:
        """Take note of an answer."""
        tokenizer = self.prompts.tokenizer
        answer: str = tokenizer.decode(new, skip_special_tokens=True)
        if self.form is None:
            self.turns.append(Turn(ASSISTANT, answer))
            self._text += tokenizer.decode(new, skip_special_tokens=False)
        self._ids, self.written = [*ids, *new], len(new)
        return answer

    def _generate(self, ids: list[int], stream: _Stream) -> None:
        settings = self.decoding.settings(self.prompts.tokenizer, self.model)
        given = torch.tensor([ids], device=device_of(self.model))
        torch.manual_seed(self.decoding.seed + self._asked)
        self._asked += 1
        if self.model.keeps_cache:
            settings["past_key_values"] = self._cache_for(ids)
        mask = torch.ones_like(given)
        self.model.generate(given, attention_mask=mask, streamer=stream, **settings)

    def _cache_for(self, ids: list[int]) -> SplitCache:
        """Return the cache of what stands before, or an empty one."""
        cache = self._cache
        if cache is not None:
            past = int(cache.get_seq_length())
            if past < len(ids) and self._ids[:past] == ids[:past]:
                return cache
        self._drop_cache()
        self._cache = self.model.new_cache()
        return self._cache

    def _drop_cache(self) -> None:
        if self._cache is not None:
            self._cache.close()
        self._cache = None
