"""Whether data are in the unit of a prior: their peak beside that of its draws, as seen."""

from __future__ import annotations

import torch

from invprob.observation import Observation
from priors.base import Prior


def scale_ratio(observation: Observation, prior: Prior) -> float:
    """Return the peak of the kept data over that which draws of the prior give, their median."""
    noise, operator = observation.noise, observation.operator
    typical = noise.expected(operator(prior.decode(prior.draw(16, seed=0))))
    kept = noise.kept(operator.y_shape)
    peaks = torch.where(kept, typical, 0.0).abs().flatten(1).amax(1)
    return float(torch.where(kept, observation.y, 0.0).abs().max() / peaks.median())


def scale_warning(observation: Observation, prior: Prior) -> str:
    """Return a warning where the data lie far off the prior's scale, else an empty string."""
    ratio = scale_ratio(observation, prior)
    if 0.1 < ratio < 10:
        return ""
    return (
        f"the data peak at {ratio:.2g} times what this prior and operator give: rescale the data "
        "and their noise to the prior's unit (`invprob import --flux-scale`)"
    )
