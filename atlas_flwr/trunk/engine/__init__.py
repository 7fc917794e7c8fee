# SPDX-License-Identifier: Apache-2.0
"""The engine: one frozen base, sessions with adapters on it, calls joined in passes."""
