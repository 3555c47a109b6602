"""Show what each operator does: data of a known truth, draws from the posterior, a figure of both.

    python examples/gallery.py --operator tomography --quick      # a minute or two
    python examples/gallery.py                                    # all, trained: hours

A folder of figures, and with several operators a page of them, a row each. Without training
(`--quick`) the draws are those of calibrated guidance on a short chain. An operator that has no
scene below, or `file.py:Class`, is shown with its default prior.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invprob import figures, registry
from invprob.config import TrainConfig
from invprob.observation import Observation
from invprob.policy import Guided
from invprob.posterior import Posterior
from invprob.posterior_training import train
from invprob.settings import changed
from invprob.simulate import draw_truth, simulate

QUICK_STEPS = 20  # of the chain, untrained


@dataclass(frozen=True)
class Scene:
    """What an operator is shown on: a prior, the shape of x where it is free, settings, noise."""

    prior: str = ""  # the operator's own
    shape: tuple[int, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    noise: float | str | None = None

    def observed(self, operator: str, seed: int) -> Observation:
        """Return simulated data of a draw from the prior."""
        cls = registry.operator_class(operator)
        name = self.prior or cls.default_prior
        prior = registry.load_prior(name, self.shape)
        default = cls.default(prior.x_shape)
        instrument = cls.from_config(changed(default.config(), self.settings, cls.remodelled))
        return simulate(
            instrument, draw_truth(prior, seed), self.noise, seed, name, unit=prior.unit
        )


SCENES = {
    "blur": Scene("digits-32", settings={"kind": "motion", "length": 9.0, "angle": 0.6}),
    "born_scattering": Scene("digits-32", settings={"receivers": 60}),
    "burgers": Scene(shape=(32,), settings={"duration": 0.5, "steps": 24}),
    "denoising": Scene("digits-32", noise=0.3),
    "full_waveform": Scene(
        shape=(12, 16),
        settings={"duration": 0.3, "samples": 30, "shots": 2, "receivers": 16, "absorbing": 6},
    ),
    "hdr": Scene("digits-32"),
    "inpainting": Scene("digits-32"),
    "inverse_scattering": Scene(
        "digits-32", settings={"transmitters": 8, "receivers": 60, "contrast": 0.5}
    ),
    "linear": Scene(shape=(16,)),
    "mri": Scene("digits-32"),
    "navier_stokes": Scene("random_field", (32, 32), settings={"steps": 24}),
    "phase_retrieval": Scene("digits-32"),
    "super_resolution": Scene("digits-32"),
    "tomography": Scene(
        "digits-32", settings={"pixel_size": 0.2, "spacing": 0.2}, noise="transmission"
    ),
}


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operator", nargs="+", default=list(registry.names("operators")))
    parser.add_argument("--quick", action="store_true", help="no training, a short chain")
    parser.add_argument("--n", type=int, default=8, help="draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("gallery"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    shown = []
    for name in asked.operator:
        begun = time.monotonic()
        observation = SCENES.get(name, Scene()).observed(name, asked.seed)
        if asked.quick:
            known = observation.prior
            prior = registry.load_prior(known, observation.operator.x_shape)
            posterior = Posterior(observation, prior, known, Guided(prior, QUICK_STEPS), None)
        else:
            posterior = train(observation, config=TrainConfig(seed=asked.seed))
        draws = posterior.draw(asked.n, asked.seed)
        figure = figures.posterior_figure(observation, draws.x)
        file = figures.save(figure, asked.out / f"{name}.png")
        shown.append((observation, draws.x))
        print(
            f"{name}: {time.monotonic() - begun:.0f} s, chi2 per datum {draws.chi2.mean():.2f}, "
            f"{file}", flush=True,
        )  # fmt: skip
    if len(shown) > 1:
        print(figures.save(figures.gallery_figure(shown), asked.out / "operators.png"))


if __name__ == "__main__":
    main()
