# SPDX-License-Identifier: Apache-2.0
"""``python -m atlas_flwr.cli``, for where the script is not on the path."""

import sys

from atlas_flwr.cli.command import main

sys.exit(main())
