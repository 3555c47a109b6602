"""The diffusion process: its one kernel formula, its noising kernel, its random sources."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from priors.process import Schedule, generators, randn

KINDS = ("vp", "ve", "flow")


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_the_posterior_of_the_forward_process(kind: str) -> None:
    """z_s given z_t and z_0 by Bayes' rule on z_s | z_0 and z_t | z_s."""
    schedule = Schedule(0.05, 30.0, kind)  # type: ignore[arg-type]
    s, t = 0.4, 0.6
    carry, spread = schedule.forward(s, t)
    prior_precision, lever = schedule.sigma(s) ** -2, carry / spread**2
    precision = prior_precision + carry * lever
    kernel = schedule.kernel(t, s)
    assert kernel.variance == pytest.approx(1 / precision, rel=1e-10)
    assert kernel.carry == pytest.approx(lever / precision, rel=1e-10)
    assert kernel.pull == pytest.approx(schedule.alpha(s) * prior_precision / precision, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_kernel_composes_to_the_marginal(kind: str) -> None:
    schedule = Schedule(0.05, 30.0, kind)  # type: ignore[arg-type]
    carry, spread = schedule.forward(0.3, 0.8)
    assert carry * schedule.alpha(0.3) == pytest.approx(schedule.alpha(0.8))
    total = (carry * schedule.sigma(0.3)) ** 2 + spread**2
    assert total == pytest.approx(schedule.sigma(0.8) ** 2)


def test_ddim_step_is_deterministic_and_keeps_the_noise() -> None:
    schedule = Schedule()
    kernel = schedule.kernel(0.7, 0.5, eta=0.0)
    clean, eps = torch.randn(3, 4), torch.randn(3, 4)
    assert kernel.variance == 0
    moved = kernel.mean(schedule.noise(clean, 0.7, eps), clean)
    torch.testing.assert_close(moved, schedule.noise(clean, 0.5, eps))


@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_steps_in_log_signal_to_noise_shrink_linearly(bend: float) -> None:
    schedule = Schedule(0.02, 200.0, bend=bend)
    logs = [math.log(schedule.rho(t)) for t in schedule.grid(9)]
    gaps = [a - b for a, b in pairwise(logs)]
    changes = [a - b for a, b in pairwise(gaps)]
    assert max(changes) == pytest.approx(min(changes), abs=1e-9)
    assert gaps[0] / gaps[-1] == pytest.approx((1 + bend * 7 / 8) / (1 - bend * 7 / 8))
    assert schedule.grid(9)[0] == 1 and schedule.grid(9)[-1] == 0


def test_a_sample_does_not_depend_on_its_batch() -> None:
    like = torch.empty(0)
    five, two = generators(3, range(5)), generators(3, range(3, 5))
    assert torch.equal(randn((4,), five, like)[3:], randn((4,), two, like))


@pytest.mark.parametrize("bad", [(0.0, 1.0), (2.0, 1.0)])
def test_bad_noise_ratios_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="rho_min"):
        Schedule(*bad)
