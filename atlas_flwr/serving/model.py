# SPDX-License-Identifier: Apache-2.0
"""A split model with chosen adapters: head and tail here, the trunk as a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.config import RunConfig
from atlas_flwr.lora import Scaling
from atlas_flwr.serving.choice import Chosen
from atlas_flwr.serving.guarding import check_kept, defended
from atlas_flwr.serving.lasting import LastingTrunk
from atlas_flwr.serving.trunks import answering
from atlas_flwr.split import SplitModel, SplitPlan
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import FramedTrunk, TrunkHost, connect
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.types import OptimizerSpec
from atlas_flwr.wire import ByteMeter

__all__ = ["Served", "served"]

SESSION = "served"


@dataclass(frozen=True)
class Served:
    """A model that can be asked.

    Attributes
    ----------
    model : SplitModel
        With its adapters.
    meter : ByteMeter
        What it sent to its trunk, and received.
    host : TrunkHost
        The trunk.
    """

    model: SplitModel
    meter: ByteMeter
    host: TrunkHost


@contextmanager
def served(
    files: ModelFiles,
    outline: Outline,
    config: RunConfig,
    picked: Chosen,
    plan: SplitPlan,
    trunk: str | Access = "local",
) -> Iterator[Served]:
    """Load both sides, and join them.

    Parameters
    ----------
    files, outline : ModelFiles, Outline
        The model.
    config : RunConfig
        Its run's: scaling, codec and defence.
    picked : Chosen
        The adapters.
    plan : SplitPlan
        The cut.
    trunk : str or Access
        A key of :data:`~atlas_flwr.serving.TRUNKS`, or the way to an ``atlas-flwr
        trunk`` on another machine.

    Yields
    ------
    Served
        In evaluation mode.
    """
    plan.check(outline.num_layers)
    with answering(files, outline, plan, trunk) as endpoint:
        host = endpoint.host
        sessions = TrunkSessions(
            host,
            endpoint.address,
            OptimizerSpec(),
            outline.block_of,
            outline.num_layers,
        )

        def open_session() -> FramedTrunk:
            return connect(
                endpoint.address,
                sessions.open(SESSION, plan, picked.state),
                ca=endpoint.ca or None,
                codec=config.recorded_codec,  # the same answers, however fast a link
                spares_padding=True,
                shown=endpoint.shown,
            )

        def reopen() -> FramedTrunk:
            host.ping()  # one that was started anew may hold another model
            return open_session()

        with closing(LastingTrunk(open_session(), reopen)) as link:
            parts = files.parts(plan)
            mine = sessions.on_client(plan, picked.state)
            scaling = Scaling(config.lora_alpha, config.use_rslora)
            way = defended(link, config, trunk)
            with adapted_split(parts.head, parts.tail, way, mine, scaling) as adapted:
                model = adapted.model
                assert isinstance(model, SplitModel)
                model.train(mode=False)
                check_kept(model, config, trunk)
                yield Served(model, link.meter, host)
        sessions.close(SESSION)
