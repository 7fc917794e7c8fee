# SPDX-License-Identifier: Apache-2.0
"""Arguments of the verbs that put a run's adapters to use."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_flwr.cli.brought import BroughtRun, add_run
from atlas_flwr.errors import ConfigError
from atlas_flwr.report import dealt_to

if TYPE_CHECKING:
    from atlas_flwr.config import RunConfig
    from atlas_flwr.serving import Chosen, Decoding, Prompts, Served
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.outline import Outline
    from atlas_flwr.train.weights import ModelFiles
    from atlas_flwr.trunk.transports.access import Access

__all__ = ["Ready", "add_adapters", "add_decoding", "ready"]


@dataclass(frozen=True)
class Ready:
    """All that was found good, before anything heavy is loaded.

    Attributes
    ----------
    folder : BroughtRun
        The run's.
    config : RunConfig
        Its configuration, on this machine's device.
    files, outline : ModelFiles, Outline
        Its model.
    picked : Chosen
        The adapters.
    plan : SplitPlan
        The cut.
    trunk : str or Access
        Where the trunk runs.
    prompts : Prompts
        Makes tokens.
    decoding : Decoding
        How tokens are chosen.
    clients : int
        That the run's texts are dealt to.
    """

    folder: BroughtRun
    config: RunConfig
    files: ModelFiles
    outline: Outline
    picked: Chosen
    plan: SplitPlan
    trunk: str | Access
    prompts: Prompts
    decoding: Decoding
    clients: int

    @property
    def title(self) -> str:
        """What answers, in a line, and what hides a prompt from its trunk."""
        from atlas_flwr.serving.guarding import told_of_defence

        blocks = self.outline.num_layers
        tail = self.plan.tail or 0
        parts = [f"head {self.plan.head}", f"trunk {blocks - self.plan.head - tail}"]
        parts += [f"tail {tail}"] if tail else []
        trunk = self.trunk if isinstance(self.trunk, str) else self.trunk.address
        answers = (
            f"{self.files.source.name}, {self.picked.title}, of {self.folder.path} · "
            f"{', '.join(parts)} blocks, trunk {trunk}"
        )
        return "\n".join([answers, *told_of_defence(self.config, self.trunk)])

    def of_base(self) -> Ready:
        """Return the same with the model as it was before training."""
        from atlas_flwr.lora import AdapterState

        base = replace(self.picked, title="the base model", state=AdapterState())
        return replace(self, picked=base)

    @contextmanager
    def served(self) -> Iterator[Served]:
        """Load the model."""
        from atlas_flwr.serving import served

        given = (self.files, self.outline, self.config, self.picked, self.plan)
        with served(*given, self.trunk) as found:
            yield found


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """Add what chooses the run, its adapters, cut and trunk."""
    add_run(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--client", metavar="N", help="its cluster's, and its own")
    which.add_argument("--cluster", metavar="N", help="a folder of RUN/adapters")
    which.add_argument("--adapters", metavar="DIR", type=Path, help="in PEFT's format")
    which.add_argument("--base", action="store_true", help="the model before training")
    parser.add_argument("--cut", help="HEAD/TAIL, e.g. 2/1 or 2/- (default: the run's)")
    parser.add_argument(
        "--trunk",
        choices=["local", "ray"],
        help="an engine in this process behind frames (local, the default), or an "
        "actor in another one",
    )
    parser.add_argument(
        "--trunk-access",
        metavar="FILE",
        help="access.json of an `atlas-flwr trunk` that serves this model elsewhere",
    )
    parser.add_argument("--device", help="cpu or cuda (default: the run's)")


def add_decoding(parser: argparse.ArgumentParser, longest: int) -> None:
    """Add how tokens are chosen."""
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=longest)
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0: the likeliest"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")


def ready(given: argparse.Namespace) -> Ready:
    """Find everything that was asked for.

    Raises
    ------
    AtlasError
        With what is wrong, and what there is.
    """
    from atlas_flwr.data import resolve_model, tokenizer_of
    from atlas_flwr.data.preparation import known_positions
    from atlas_flwr.serving import Choice, Decoding, Prompts, chosen
    from atlas_flwr.serving.guarding import check_defended
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.weights import ModelFiles
    from atlas_flwr.trunk.transports.access import Access

    far = given.trunk_access
    if far == "":
        raise ConfigError(["--trunk-access is empty: name the file, or leave it out"])
    if far and given.trunk:
        raise ConfigError(
            [
                f"--trunk {given.trunk} with --trunk-access: the trunk of {far} is "
                "elsewhere; leave one of the two out"
            ]
        )
    drafts = getattr(given, "drafts", 0)  # of `generate` alone
    decoding = Decoding(given.max_new_tokens, given.temperature, given.seed, drafts)
    folder = BroughtRun.named(given)
    config = folder.config()
    with folder.elsewhere("model"):
        resolve_model(config.model, progress=False)
    files = ModelFiles.of(config, given.device)
    outline = files.outline()
    choice = Choice(given.client, given.cluster, given.adapters, given.base)
    picked = chosen(folder, config, choice, files, outline)
    plan = SplitPlan.parse(given.cut) if given.cut else picked.plan
    plan.check(outline.num_layers)
    tokenizer: Any = tokenizer_of(files.source)
    known = known_positions(outline.model.config)
    taken = given.max_new_tokens + picked.learned_positions
    most = None if known is None else known - taken
    if most is not None and most < 1:
        raise ConfigError(
            [
                f"max-new-tokens={given.max_new_tokens}: the model knows {known} "
                f"positions, a prompt's among them; at most "
                f"{given.max_new_tokens + most - 1}"
            ]
        )
    prompts = Prompts(tokenizer, picked.forms, most)
    trunk = given.trunk or "local" if far is None else Access.read(far)
    check_defended(config, plan, trunk)
    args = (folder, config, files, outline, picked, plan, trunk)
    return Ready(*args, prompts, decoding, dealt_to(folder))
