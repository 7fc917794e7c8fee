# SPDX-License-Identifier: Apache-2.0
"""A client's training: its model, a step, a round, evaluation."""
