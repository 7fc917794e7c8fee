# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a round, what each is given, and what is said in it."""
