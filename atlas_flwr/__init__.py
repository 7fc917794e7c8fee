# SPDX-License-Identifier: Apache-2.0
"""ATLAS on Flower: federated split fine-tuning of language models."""

__version__ = "0.1.0"
