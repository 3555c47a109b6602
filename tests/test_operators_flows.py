"""Flows and waves against closed forms, another integrator, and the orders that theory promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from operators._absorbing import by_numba, by_torch, damped_laplacian, layer
from operators._evolution import evolve, in_groups, steps_needed
from operators.burgers import Burgers
from operators.errors import NumericalError
from operators.full_waveform import FullWaveform
from operators.navier_stokes import NavierStokes

AXIS = np.arange(16) * (2 * math.pi / 16)
Y, X = np.meshgrid(AXIS, AXIS, indexing="ij")
SWIRL = 1.5 * np.cos(X + 2 * Y) + np.sin(2 * X - Y) * np.cos(X)


def orders(errors: list[float]) -> np.ndarray:
    return np.log2(np.array(errors[:-1]) / errors[1:])


def after(a: NavierStokes | Burgers, x: np.ndarray) -> np.ndarray:
    return np.asarray(a(torch.from_numpy(x)[None])[0])


def test_taylor_green_vortices_decay() -> None:
    vortices = 2 * np.cos(X) * np.cos(Y)
    a = NavierStokes((16, 16), reynolds=10, forcing=0, duration=2, subsampling=1, steps=80)
    decayed = vortices * math.exp(-2 * 2 / 10)
    np.testing.assert_allclose(after(a, vortices), decayed, rtol=2e-5, atol=1e-9)


def test_forcing_alone_drives_the_laminar_flow() -> None:
    a = NavierStokes((16, 16), reynolds=20, forcing=3, duration=1, subsampling=2, steps=100)
    laminar = -3 / (16 / 20) * (1 - math.exp(-16 / 20)) * np.cos(4 * Y)
    np.testing.assert_allclose(after(a, 0 * Y), laminar[::2, ::2], atol=1e-4)


def test_turbulence_is_that_of_another_integrator() -> None:
    k = np.fft.fftfreq(16, 1 / 16)
    ky, kx = k[:, None] * (abs(k) < 8)[:, None], k * (abs(k) < 8)
    square = np.maximum(k[:, None] ** 2 + k**2, 1e-9)
    kept = (abs(k) < 16 / 3)[:, None] & (abs(k) < 16 / 3)

    def slope(_: float, w: np.ndarray) -> np.ndarray:
        """In flux form, div(u w), which is the advective one where no product is cut off."""
        spectrum = np.fft.fft2(w.reshape(16, 16))
        psi = np.where(k[:, None] ** 2 + k**2 > 0, spectrum / square, 0)
        flows = [np.fft.ifft2(1j * ky * psi).real, np.fft.ifft2(-1j * kx * psi).real]
        fluxes = [np.fft.fft2(flow * w.reshape(16, 16)) for flow in flows]
        change = -(1j * kx * fluxes[0] + 1j * ky * fluxes[1]) * kept - spectrum * square / 50
        return (np.fft.ifft2(change).real - 4 * np.cos(4 * Y)).ravel()

    theirs = solve_ivp(slope, (0, 0.5), SWIRL.ravel(), rtol=1e-9, atol=1e-10).y[:, -1]
    a = NavierStokes((16, 16), reynolds=50, duration=0.5, subsampling=1, steps=400)
    np.testing.assert_allclose(after(a, SWIRL), theirs.reshape(16, 16), atol=2e-4)
    # and the number of steps that it takes by itself is enough
    own = NavierStokes((16, 16), reynolds=50, duration=0.5, subsampling=1)
    np.testing.assert_allclose(after(own, SWIRL), theirs.reshape(16, 16), atol=0.02)


def test_flow_is_third_order_in_time() -> None:
    found = [after(NavierStokes((16, 16), steps=n), SWIRL) for n in (20, 40, 80, 640)]
    errors = [float(np.abs(f - found[-1]).max()) for f in found[:-1]]
    np.testing.assert_allclose(orders(errors), 3, atol=0.15)


def test_fast_flows_are_followed_in_the_steps_that_they_ask_for() -> None:
    """Vorticity of 40, whose finest modes an explicit step may well blow up."""
    a, exact = NavierStokes((16, 16)), NavierStokes((16, 16), steps=2000)
    found = after(a, 12 * SWIRL)
    np.testing.assert_allclose(found, after(exact, 12 * SWIRL), atol=0.02 * np.abs(found).max())


@pytest.mark.parametrize("points", [128, 512])
def test_the_finest_waves_die_as_viscosity_says(points: int) -> None:
    """However stiff they are: of k = 63 exp(-nu k^2 T) is 1e-172."""
    k = points // 2 - 1
    wave = 0.02 * np.cos(k * np.arange(points) * (2 * math.pi / points))
    assert np.abs(after(Burgers(points, subsampling=1), wave)).max() < 1e-5


def hopf_cole(x: float, viscosity: float, duration: float) -> float:
    """u(x, T) for u(x, 0) = sin x, whose integral is 1 - cos x: a ratio of integrals over y."""

    def weight(y: float) -> float:
        return math.exp(-((x - y) ** 2 / (4 * duration) + (1 - math.cos(y)) / 2) / viscosity)

    span = 8 * math.sqrt(2 * viscosity * duration)
    top = quad(lambda y: (x - y) / duration * weight(y), x - span, x + span, limit=200)[0]
    return float(top / quad(weight, x - span, x + span, limit=200)[0])


def test_steepening_wave_is_hopf_and_coles_and_third_order_in_time() -> None:
    x = np.sin(np.arange(128) * (2 * math.pi / 128))
    exact = np.array([hopf_cole(2 * math.pi * i / 16, 0.1, 1.5) for i in range(16)])
    errors = [
        float(np.abs(after(Burgers(128, 0.1, 1.5, 8, steps), x) - exact).max())
        for steps in (12, 24, 48)
    ]
    assert errors[-1] < 1e-5
    np.testing.assert_allclose(orders(errors), 3, atol=0.25)


def test_laplacian_is_fourth_order() -> None:
    errors = []
    for n in (16, 32, 64):
        at = np.linspace(0, 1, n, endpoint=False)
        image = torch.from_numpy(np.sin(3 * at[:, None] + 5 * at)[None])
        still = torch.zeros(2, n, n, dtype=torch.float64)
        undamped = layer(still, still, 1.0, 0)
        found, _ = damped_laplacian(image, still[None], undamped)
        errors.append(float((found * n**2 + 34 * image)[:, 2:-2, 2:-2].abs().max()))
    np.testing.assert_allclose(orders(errors), 4, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_has_an_exact_adjoint_and_is_the_same_on_other_devices(dtype: torch.dtype) -> None:
    a = FullWaveform((7, 5), duration=0.1, absorbing=3)
    inside, damped = a._inside.to(dtype), (a._damping.sum(0) > 0).to(dtype)
    generator = torch.Generator().manual_seed(0)

    def fields() -> tuple[torch.Tensor, torch.Tensor]:
        p, *w = torch.randn(3, 2, *a._padded, generator=generator, dtype=dtype) * inside
        return p, torch.stack(w, 1) * damped

    (p, w), (v, u) = fields(), fields()
    for way in (by_numba, by_torch):
        (q, new), (back, older) = way(p, w, a._absorbing, False), way(v, u, a._absorbing, True)
        one = float((q * v).sum() + (new * u).sum())
        assert one == pytest.approx(float((back * p).sum() + (older * w).sum()), rel=1e-5)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-12
    for transposed in (False, True):
        one, other = (way(p, w, a._absorbing, transposed) for way in (by_numba, by_torch))
        for left, right, where in zip(one, other, (inside, inside * damped), strict=True):
            left, right = left * where, right * where
            torch.testing.assert_close(left, right, rtol=tolerance, atol=10 * tolerance)


def homogeneous(a: FullWaveform) -> np.ndarray:
    """Gathers where c is the same everywhere: the wavelet and the Green's function in the plane,

    p = 1 / (2 pi) integral over theta > 0 of s(t - r / c cosh theta)
    """
    c = 1e3 * float(a.velocity(torch.zeros(1)))
    (_, columns), (_, places) = a._along_the_surface(1), a._along_the_surface(a.receivers)
    distance = a.pixel_size * np.abs(places - columns[0])[:, None, None]
    time = (np.arange(a.samples) + 1)[:, None] * a.duration / a.samples
    theta, width = np.linspace(0, 6, 3000, retstep=True)
    late = time - distance / c * np.cosh(theta) - 1.5 / a.frequency
    phase = (math.pi * a.frequency * late) ** 2
    waves = (1 - 2 * phase) * np.exp(-phase)
    return np.asarray(np.trapezoid(waves, dx=width, axis=2).T / (2 * math.pi))


def test_waves_in_even_ground_are_green_and_second_order_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = []
    for courant in (0.5, 0.25):
        monkeypatch.setattr("operators.full_waveform.COURANT", courant)
        a = FullWaveform(
            (40, 80), frequency=3, duration=0.8, samples=40, shots=1, receivers=5, depth=20,
            absorbing=40,
        )  # fmt: skip
        heard = a(torch.zeros(1, *a.x_shape, dtype=torch.float64))[0, 0].numpy()
        exact, far = homogeneous(a), [0, 1, 3, 4]  # the shot's own pixel is singular
        errors.append(float(np.abs(heard - exact)[:, far].max() / np.abs(exact[:, far]).max()))
    assert errors[1] < 1e-4
    np.testing.assert_allclose(orders(errors), 2, atol=0.3)


def test_waves_leave_without_an_echo() -> None:
    near, far = (
        FullWaveform((24, 32), duration=0.7, samples=35, shots=1, receivers=4, absorbing=width)
        for width in (15, 60)
    )
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 24, 32))).float()
    x[:, :2] = x[:, -2:] = x[..., :2] = x[..., -2:] = 0.0  # the same on both sides of the edge
    heard, without = near(x), far(x)
    assert (heard - without).abs().max() < 0.01 * without.abs().max()


def test_each_item_has_its_own_number_of_steps() -> None:
    counts = steps_needed(torch.tensor([0.0, 16.1, 100.0, math.nan]), 16)
    assert counts == [16, 32, 128, 16]
    x = torch.arange(4.0)[:, None]
    grouped = in_groups(lambda items, n: items * n, x, counts)
    assert torch.equal(grouped[:, 0], x[:, 0] * torch.tensor(counts))
    with pytest.raises(NumericalError, match="scale the prior down"):
        Burgers(64)(torch.full((1, 64), 1e6))


@pytest.mark.parametrize("small", [0, 2**22])
def test_gradients_hold_few_states(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n steps, sqrt(n) states are kept; those between are computed again, unless all fit."""
    monkeypatch.setattr("operators._evolution.SMALL", small)
    kept = []

    def step(n: int, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (torch.sin(state[0]) * 1.1,)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        (end,), _ = evolve(step, (x,), 100)
    assert len(kept) <= 20 if small == 0 else len(kept) == 100
    (gradient,) = torch.autograd.grad(end.sum(), x)
    z, slope = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(100):
        slope, z = slope * 1.1 * torch.cos(z), torch.sin(z) * 1.1
    torch.testing.assert_close(gradient, slope)
