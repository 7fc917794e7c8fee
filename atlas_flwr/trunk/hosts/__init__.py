# SPDX-License-Identifier: Apache-2.0
"""A trunk on several hosts: replicas, chains, and peers, whom guests can check."""
