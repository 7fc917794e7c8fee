# SPDX-License-Identifier: Apache-2.0
"""ATLAS's ServerApp."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured strategy and leave a run folder."""
    from atlas_flwr.errors import AtlasError
    from atlas_flwr.log import end_with, plain_output
    from atlas_flwr.server_apps.run import Run

    with plain_output():
        try:
            given = grid.run.override_config
            Run.begin(context.run_config, given).execute(grid)
        except AtlasError as error:
            end_with(error)
            raise
