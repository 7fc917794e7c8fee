# SPDX-License-Identifier: Apache-2.0
"""What a caller wants cut: a model in memory, a folder, or a hub's name.

Everything else is refused here, with what to pass instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import modeling_auto

from atlas_flwr.errors import PlanError

__all__ = ["described", "source_of"]

TAKEN = (
    "pass a transformers.PreTrainedModel, a folder that save_pretrained() made, or a "
    "name on the hub"
)


def source_of(given: Any) -> PreTrainedModel | str:
    """Return a model in memory, or the folder or hub's name that stands for one.

    Parameters
    ----------
    given : Any
        What the caller passed.

    Raises
    ------
    PlanError
        If it is neither, or there is no model in that folder.
    """
    if isinstance(given, PreTrainedModel):
        return given
    if isinstance(given, str | Path) and str(given).strip():
        return _place(str(given))
    raise PlanError(_instead(given))


def described(source: PreTrainedModel | str, auto_class: Any = None) -> tuple[Any, Any]:
    """Return a model's configuration, and the class that makes it.

    Parameters
    ----------
    source : PreTrainedModel or str
        See :func:`source_of`.
    auto_class : optional
        What a stored model is made with, instead of the class that it names.

    Raises
    ------
    PlanError
        If a stored model's configuration cannot be read.
    """
    if isinstance(source, PreTrainedModel):
        return source.config, type(source)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        where = "in" if Path(source).is_dir() else "no folder here, and on the hub"
        why = " ".join(str(error).split())
        raise PlanError(f"no model {source!r}: {where} {why}; {TAKEN}") from None
    return config, auto_class or _named_class(config)


def _place(given: str) -> str:
    folder = Path(given).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return str(folder)
        raise PlanError(
            f"{given!r} has no config.json; save a model there with save_pretrained()"
        )
    if folder.exists():
        raise PlanError(f"{given!r} is a file; pass the folder that the model is in")
    if given.startswith((".", "/", "~")):
        raise PlanError(f"{given!r} is no folder (seen from {Path.cwd()}); {TAKEN}")
    return given


def _instead(given: Any) -> str:
    """Say what to pass instead of something that is not a model or where one is."""
    kind = given.__name__ if isinstance(given, type) else type(given).__name__
    if isinstance(given, PeftModel | BaseTuner):
        return f"{kind} has adapters of PEFT in it; {_without_adapters(given)}"
    for inner in ("module", "_orig_mod"):  # DataParallel, DDP; torch.compile
        if isinstance(given, nn.Module) and isinstance(
            getattr(given, inner, None), PreTrainedModel
        ):
            return f"{kind} wraps a model; pass the model in it (.{inner})"
    got = f"the class {kind}" if isinstance(given, type) else kind
    if given is None or isinstance(given, str):
        got = repr(given)
    return f"a model to cut was expected, got {got}; {TAKEN}"


def _without_adapters(given: PeftModel | BaseTuner) -> str:
    then = "then attach adapters to the parts (atlas_flwr.lora.attach)"
    if isinstance(given, PeftModel) and given.active_peft_config.is_prompt_learning:
        return f"pass get_base_model(), {then}"
    return (
        "pass merge_and_unload() to keep what they have learned in the weights, or "
        f"unload() to drop it; {then}"
    )


def _named_class(config: Any) -> Any:
    """Return the class that the configuration names, or the causal one."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        mapping = modeling_auto.MODEL_MAPPING_NAMES.values()
        if found is not None and name not in mapping:
            return found
    return AutoModelForCausalLM
