# SPDX-License-Identifier: Apache-2.0
"""An ordinary Flower app: LoRA fine-tuning of a whole language model."""
