# SPDX-License-Identifier: Apache-2.0
"""Tasks whose answer is text: what their files may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from atlas_flwr.data.templates import template_fields

if TYPE_CHECKING:
    from atlas_flwr.data.definitions import Definition

__all__ = ["GENERATION", "generation_problems"]

GENERATION = "generation"
_OF_CLASSES = ("balance", "above", "text", "label", "template", "max_chars")


def generation_problems(given: Definition, preset: Definition) -> Iterator[str]:
    """Yield what is wrong with a task file of this kind; ``preset`` says nothing."""
    for key in ("prompt", "response"):
        template = getattr(given, key)
        if not template.strip():
            yield f"`{key}` is missing: a template such as '{{instruction}}'"
            continue
        try:
            fields = template_fields(template)
        except ValueError as error:
            yield f"`{key}`: {error}"
            continue
        if not fields:
            yield f"`{key}` names no field of a row; write {{name}} for one"
    if given.system and not given.chat:
        yield "`system` goes into a chat template; set `chat: true`, or use `prompt`"
    if given.format in ("lines", "folder"):
        yield f"`format: {given.format}` has no fields for `prompt` and `response`"
    for key in _OF_CLASSES:
        if getattr(given, key) != getattr(preset, key):
            yield f"`{key}` is for classifications; leave it out"
    if given.labels:
        yield "`labels` are for classifications; leave them out"
