# SPDX-License-Identifier: Apache-2.0
"""What works round any strategy: grids in front of Flower's, and resuming."""
