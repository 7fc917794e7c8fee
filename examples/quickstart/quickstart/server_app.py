"""The server: a trunk in a Ray actor, and the strategy that opens its sessions."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.data import resolve_model
from atlas_flwr.lora import Scaling
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.protocol.profile import Assigned
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies import Atlas
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.outline import Outline
from atlas_flwr.trunk.transports.ray import TrunkSource, start_ray_trunk
from atlas_flwr.types import OptimizerSpec

ALPHA, PLAN = 16.0, SplitPlan(head=1, tail=1)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    path = resolve_model(str(context.run_config["model"])).path
    outline = Outline.of(path)
    trunk = start_ray_trunk("quickstart", TrunkSource(path, PLAN))
    sessions = TrunkSessions(
        host=trunk,
        address=trunk.address,
        optimizer=OptimizerSpec(lr=1e-3),
        layer_block=outline.block_of,
        num_layers=outline.num_layers,
    )
    strategy = Atlas(
        lora_alpha=ALPHA,
        clustering="none",  # one task, one cluster
        aggregation="both",
        fingerprints="gradients",
        assign=lambda profile, importance: Assigned(ranks=8, plan=PLAN),
        sessions=sessions,
    )
    layers = outline.shapes(["all-linear"])
    start = initial_state(layers, rank=8, scaling=Scaling(ALPHA), seed=0)
    strategy.start(
        grid, write_state(start), num_rounds=int(context.run_config["num-rounds"])
    )
    trunk.stop()
