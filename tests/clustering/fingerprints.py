"""Made fingerprints, whose tasks are known."""

from __future__ import annotations

import numpy as np


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def mixture(k, each, *, noise=0.4, seed=0, dim=64):
    """Fingerprints of k tasks, with a large part in common, tasks alternating."""
    rng = np.random.default_rng(seed)
    tasks = np.arange(k * each) % k
    centres = unit(rng.standard_normal((k, dim)))
    common = unit(rng.standard_normal((1, dim)))
    spread = noise * rng.standard_normal((k * each, dim)) / dim**0.5
    return unit(common + centres[tasks] + spread), tasks


def in_parts(k, each, *, noise=0.4, seed=0, dim=64, parts=4, decay=3.0, between=1.0):
    """The same in parts, whose means have that noise, more in some dimensions."""
    rng = np.random.default_rng(seed)
    tasks = np.arange(k * each) % k
    centres = between * unit(rng.standard_normal((k, dim)))
    common = unit(rng.standard_normal(dim))
    scales = np.exp(-decay * np.arange(dim) / dim)
    scales *= noise * parts**0.5 / np.linalg.norm(scales)
    drawn = scales * rng.standard_normal((k * each, parts, dim))
    return common + centres[tasks][:, None] + drawn, tasks
