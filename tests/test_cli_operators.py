"""Every operator through the commands: simulated, shown, and put through a sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from invprob import registry
from invprob.comparison import compare
from invprob.observation import Observation
from tests.conftest import document

VECTORS = ("linear", "burgers")  # operators whose x is one
CHEAPER = {"full_waveform": "--set samples=12 --set duration=0.2 --set absorbing=4"}
USUAL = "random_field --size 12"


# a mask and complex data, a map of the noise, vectors, a composition; the rest are slow
DEFAULT = ("mri", "black_hole", "burgers", "blur+inpainting")
EACH = [
    pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow)
    for name in (*registry.names("operators"), "blur+inpainting")
]


@pytest.mark.parametrize("name", EACH)
def test_every_operator_is_simulated_and_compared(folder: Path, name: str) -> None:
    prior = "gaussian --size 8" if name in VECTORS else USUAL
    command = f"simulate --operator {name} --prior {prior} {CHEAPER.get(name, '')}"
    made = document(f"{command} --seed 2 --out {name}.h5")
    assert Path(made["figure"]).stat().st_size > 500
    observation = Observation.read(f"{name}.h5")
    mean = observation.operator(observation.y.new_tensor(observation.truth)[None])
    kept = observation.noise.kept(observation.operator.y_shape).numpy()
    residual = observation.noise.whitened(observation.y, mean).numpy()[0][kept]
    spread = 5 / np.sqrt(2 * kept.sum())
    assert abs(np.sqrt(np.square(residual).mean()) - 1) < spread  # the noise is what is stated
    (result,) = compare(observation, baselines=("dps:steps=4",), n=2)
    assert np.isfinite(result.draws.chi2).all() and result.scores["network_evaluations"] == 4
