"""Correction of weighted draws to equal-weight ones by systematic importance resampling."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from invprob.posterior import Draws


def resample(draws: Draws, seed: int) -> Draws:
    """Return as many draws of equal weight, chosen in proportion to the path weights."""
    n = len(draws.log_weight)
    weights = np.exp(draws.log_weight - draws.log_weight.max())
    where = (np.arange(n) + np.random.default_rng(seed).random()) / n
    picks = np.searchsorted(np.cumsum(weights / weights.sum()), where).clip(0, n - 1)
    return Draws(**{field.name: getattr(draws, field.name)[picks] for field in fields(draws)})
