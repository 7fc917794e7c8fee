# SPDX-License-Identifier: Apache-2.0
"""Ways to a trunk: in process, through Ray, over gRPC; and who may take them."""
