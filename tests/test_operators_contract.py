"""One contract for every operator in the folder; a new operator adds its row to INSTANCES."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invprob import registry
from operators._compiled import compiled
from operators._conjugate_gradients import conjugate_gradients
from operators._sparse import SparseMatrix
from operators.base import ForwardOperator, LinearOperator
from operators.black_hole import BlackHole
from operators.blur import Blur
from operators.born_scattering import BornScattering
from operators.burgers import Burgers
from operators.denoising import Denoising
from operators.errors import InvprobError, ObservationError, UnknownName
from operators.full_waveform import FullWaveform
from operators.hdr import HDR
from operators.inpainting import Inpainting
from operators.inverse_scattering import InverseScattering
from operators.lensing import EPL, SIE, SIS, Lensing, Shear
from operators.linear import Linear
from operators.mri import MRI
from operators.navier_stokes import NavierStokes
from operators.noise import Gaussian
from operators.phase_retrieval import PhaseRetrieval
from operators.super_resolution import SuperResolution
from operators.tomography import Tomography

RNG = np.random.default_rng(5)
KERNEL = RNG.random((3, 5))
LENS = (SIE(0.5, 0.7, 0.4, 0.02, -0.03, 0.01), EPL(0.2, 0.9, 1.0, 2.1), Shear(0.03, -0.04))
STATIONS = 6.4e6 * np.array([[1, 0.1, 0], [0.9, 0, 0.4], [0.9, -0.4, 0], [0.7, 0.5, 0.5]])
SMALL = {"image_shape": (9, 8), "pixel_scale": 0.15, "source_shape": (6, 7)}

INSTANCES: dict[str, list[Callable[[], ForwardOperator]]] = {
    "denoising": [lambda: Denoising((5, 4)), lambda: Denoising((6,))],
    "inpainting": [
        lambda: Inpainting((6, 5)),
        lambda: Inpainting((6, 5), kind="box", box=(1, 2, 3, 2)),
        lambda: Inpainting((6, 5), kind="random", fraction=0.4, seed=3),
        lambda: Inpainting((4, 3), keep=np.arange(12).reshape(4, 3) % 3 > 0),
    ],
    "blur": [
        lambda: Blur((7, 6)),
        lambda: Blur((6, 9), kind="motion", length=4.5, angle=0.7),
        lambda: Blur((7, 6), kernel=KERNEL, border="zero"),
        lambda: Blur((4, 3), kernel=RNG.random((7, 5))),
    ],
    "linear": [lambda: Linear(RNG.standard_normal((4, 6))), lambda: Linear(np.ones((3, 2)))],
    "lensing": [
        lambda: Lensing(LENS, **SMALL, source_pixel_scale=0.1, psf=KERNEL),  # type: ignore[arg-type]
        lambda: Lensing((SIS(0.4),), (8, 8), 0.15, (6, 6), 0.1, None, 3),
        lambda: Lensing(LENS, (5, 6), 0.2, (2, 4, 3), 0.2, RNG.random((2, 3, 3))),
    ],
    "phase_retrieval": [lambda: PhaseRetrieval((6, 5)), lambda: PhaseRetrieval((4, 7), 1.3)],
    "super_resolution": [
        lambda: SuperResolution((6, 8), 2),
        lambda: SuperResolution((6, 9), 3, "bicubic"),
    ],
    "tomography": [
        lambda: Tomography((6, 5), views=4, spacing=1.3),
        lambda: Tomography((5, 7), "fan", views=3, detectors=8, pixel_size=0.5),
    ],
    "mri": [
        lambda: MRI((6, 5), coils=2, acceleration=2),
        lambda: MRI((4, 5, 2), sampled=np.arange(20).reshape(4, 5) % 3 > 0),
        lambda: MRI((5, 4), sensitivities=RNG.standard_normal((3, 5, 4, 2))),
    ],
    "born_scattering": [lambda: BornScattering((5, 4), 2, 3)],
    "inverse_scattering": [
        lambda: InverseScattering((4, 5), 2, 3, pixel_size=1.0, contrast=0.3),
    ],
    "black_hole": [
        lambda: BlackHole((5, 4), times=2, floor=0.1),
        lambda: BlackHole((4, 4), stations=STATIONS, first_hour=-1, last_hour=1, times=1, floor=1),
    ],
    "burgers": [lambda: Burgers(8), lambda: Burgers(6, 0.02, 0.5, 3, steps=4)],
    "navier_stokes": [
        lambda: NavierStokes((10, 8)),
        lambda: NavierStokes((6, 6), 50.0, 0.0, 0.5, 3, steps=5),
    ],
    "full_waveform": [
        lambda: FullWaveform((5, 4), duration=0.2, samples=4, shots=2, receivers=3, absorbing=2),
    ],
    "hdr": [lambda: HDR((6, 5)), lambda: HDR((5, 5), 0.8, "clip", psf=KERNEL)],
}
BAD: dict[str, list[dict[str, Any]]] = {
    "denoising": [{"shape": (0, 3)}, {"shape": 3}, {"shape": (2.5,)}],
    "inpainting": [
        {"shape": (4,)},
        {"shape": (4, 4), "kind": "boxx"},
        {"shape": (4, 4), "kind": "random", "fraction": 1.5},
        {"shape": (4, 4), "kind": "array"},
        {"shape": (4, 4), "box": (3, 0, 2, 1)},
        {"shape": (4, 4), "box": (0, 0, 4, 4)},
        {"shape": (4, 4), "box": (0.5, 0, 2, 2)},
        {"shape": (4, 4), "kind": "random", "seed": 2.7},
        {"shape": (4, 4), "keep": np.ones((3, 4), dtype=bool)},
        {"shape": (4, 4), "keep": np.full((4, 4), 0.5)},
    ],
    "blur": [
        {"shape": (4, 4), "fwhm": -1},
        {"shape": (4, 4), "fwhm": math.nan},
        {"shape": (4, 4), "border": "reflect"},
        {"shape": (4, 4), "kernel": np.ones((4, 3))},
        {"shape": (4, 4), "kernel": np.full((3, 3), np.inf)},
        {"shape": (4, 4), "kind": "motion", "length": 0},
        {"shape": (4, 4), "angle": "steep"},
    ],
    "linear": [{"matrix": [[1.0, math.nan]]}, {"matrix": [1.0, 2.0]}, {"matrix": [["a"]]}],
    "lensing": [
        {"lens": ()},
        {"lens": "[{]"},
        {"lens": [{"model": "NFW"}]},
        {"lens": [{"model": "NFW", "Rs": 0.0, "alpha_Rs": 1.0}]},
        {"lens": [{"model": "Multipole", "m": 1, "a_m": 0.1, "phi_m": 0.0}]},
        {"lens": [{"model": "Multipole", "m": 2.5, "a_m": 0.1, "phi_m": 0.0}]},
        {"lens": [{"model": "SIS", "theta": 1.0}]},
        {"lens": LENS, "pixel_scale": 0},
        {"lens": LENS, "source_pixel_scale": math.inf},
        {"lens": LENS, "supersampling": 0},
        {"lens": LENS, "supersampling": 1.5},
        {"lens": LENS, "image_shape": (8,)},
        {"lens": LENS, "psf": np.ones((4, 3))},
        {"lens": LENS, "psf": np.full((3, 3), math.nan)},
        {"lens": LENS, "psf": np.ones((2, 3, 3))},
        {"lens": LENS, "source_shape": (2, 4, 4), "psf": np.ones((3, 3, 3))},
        {"lens": LENS, "source_shape": (4,)},
        {"lens": LENS, "z_lens": 0.5, "z_source": 0.4},
        {"lens": LENS, "cosmology": "Planck99"},
        {"lens": [{"model": "SIE", "velocity_dispersion": 250, "q": 1, "phi": 0}]},
        {"lens": [{"model": "SIE", "theta_E": 1, "e1": 0.1, "q": 1}]},
        {"lens": [{"model": "SIE", "theta_E": 1, "q": 1, "phi": 0, "position_angle": 0}]},
        {"lens": [{"model": "Shear", "gamma": 0.1, "phi": 0, "gamma1": 0.1}]},
    ],
    "phase_retrieval": [
        {"shape": (4,)},
        {"shape": (4, 4), "oversampling": 0.9},
        {"shape": (4, 4), "oversampling": math.nan},
        {"shape": (4, 4), "oversampling": 100},
    ],
    "super_resolution": [
        {"shape": (4,)},
        {"shape": (6, 6), "factor": 4},
        {"shape": (6, 6), "factor": 1.5},
        {"shape": (6, 6), "factor": 2, "kind": "nearest"},
    ],
    "tomography": [
        {"shape": (4, 4), "beam": "cone"},
        {"shape": (4, 4), "views": 0},
        {"shape": (4, 4), "angles": [0.0, math.nan]},
        {"shape": (4, 4), "pixel_size": -1},
        {"shape": (4, 4), "detectors": 2.5},
        {"shape": (4, 4), "beam": "fan", "source_distance": 2.0},
    ],
    "mri": [
        {"shape": (4,)},
        {"shape": (4, 4, 3)},
        {"shape": (4, 4), "coils": 0},
        {"shape": (4, 4), "acceleration": 0.5},
        {"shape": (4, 4), "sampled": np.zeros((4, 4), dtype=bool)},
        {"shape": (4, 4), "sampled": np.ones((3, 4), dtype=bool)},
        {"shape": (4, 4), "sensitivities": np.ones((2, 4, 5, 2))},
    ],
    **{
        name: [
            {"shape": (4,)},
            {"shape": (4, 4), "transmitters": 0},
            {"shape": (4, 4), "receivers": 1.5},
            {"shape": (4, 4), "wavelength": math.nan},
            {"shape": (4, 4), "pixel_size": 1.0, "radius": 2.0},
            {"shape": (4, 4), "contrast": 0},
        ]
        for name in ("born_scattering", "inverse_scattering")
    },
    "black_hole": [
        {"shape": (4,)},
        {"shape": (4, 4), "field_of_view": -1},
        {"shape": (4, 4), "declination": 91},
        {"shape": (4, 4), "declination": -80},
        {"shape": (4, 4), "last_hour": 0.0},
        {"shape": (4, 4), "stations": STATIONS[:, :2]},
        {"shape": (4, 4), "stations": STATIONS[:3]},
        {"shape": (4, 4), "sefd": [1.0, 2.0]},
    ],
    "burgers": [
        {"points": 7},
        {"points": 8, "subsampling": 3},
        {"points": 8, "viscosity": 0},
        {"points": 8, "duration": math.inf},
        {"points": 8, "steps": 0},
    ],
    "navier_stokes": [
        {"shape": (4,)},
        {"shape": (10, 5)},
        {"shape": (8, 10)},
        {"shape": (10, 10), "subsampling": 4},
        {"shape": (10, 10), "reynolds": 0},
        {"shape": (10, 10), "forcing": math.nan},
        {"shape": (10, 10), "steps": 2.5},
    ],
    "full_waveform": [
        {"shape": (4,)},
        {"shape": (4, 4), "slowest": 5.0},
        {"shape": (4, 4), "pixel_size": 50.0},
        {"shape": (4, 4), "frequency": -1},
        {"shape": (4, 4), "depth": 4},
        {"shape": (4, 4), "shots": 0},
        {"shape": (4, 4), "duration": math.nan},
    ],
    "hdr": [
        {"shape": (4,)},
        {"shape": (4, 4), "full_well": 0},
        {"shape": (4, 4), "kind": "hard"},
        {"shape": (4, 4), "fwhm": math.nan},
        {"shape": (4, 4), "psf": np.ones((2, 3))},
    ],
}

CASES = [
    pytest.param(make, id=f"{name}-{i}")
    for name, makers in INSTANCES.items()
    for i, make in enumerate(makers)
] + [
    pytest.param(
        lambda name=name: registry.operator_class(name).default((8, 6)),  # type: ignore[misc]
        id=name,
    )
    for name in ("blur+inpainting", "blur+super_resolution+hdr")
]
every_operator = pytest.mark.parametrize("make", CASES)


def draw(shape: tuple[int, ...], n: int, seed: int = 0, dtype: Any = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)


def dense(a: LinearOperator) -> torch.Tensor:
    """The matrix (y pixels, x pixels), column by column."""
    n = math.prod(a.x_shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *a.x_shape)
    return a(basis).flatten(1).T


def test_every_operator_in_the_folder_has_a_row() -> None:
    assert set(registry.names("operators")) == set(INSTANCES) == set(BAD)


@every_operator
def test_call_keeps_shape_dtype_and_stays_finite(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        y = a(draw(a.x_shape, 3, dtype=dtype))
        assert y.shape == (3, *a.y_shape)
        assert y.dtype is dtype
        assert y.isfinite().all()
        assert y.is_contiguous()
    assert a(draw(a.x_shape, 0)).shape == (0, *a.y_shape)
    torch.testing.assert_close(
        a(draw(a.x_shape, 3, dtype=torch.float32)).double(),
        a(draw(a.x_shape, 3)),
        rtol=1e-5,
        atol=2e-6,
    )


@every_operator
def test_item_does_not_depend_on_its_batch_mates(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    x = draw(a.x_shape, 17)
    y = a(x)
    for i in (0, 8, 16):
        torch.testing.assert_close(a(x[i : i + 1])[0], y[i], rtol=1e-12, atol=1e-13)
    x[3] = torch.nan
    torch.testing.assert_close(a(x)[4:], y[4:], rtol=0, atol=0)


@every_operator
def test_wrong_input_is_refused(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    with pytest.raises(ObservationError, match="shape"):
        a(torch.zeros(a.x_shape))
    with pytest.raises(ObservationError, match="shape"):
        a(torch.zeros(2, *a.x_shape, 1))
    with pytest.raises(ObservationError, match="dtype"):
        a(torch.zeros(2, *a.x_shape, dtype=torch.int64))


@every_operator
def test_gradients(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    x = draw(a.x_shape, 2).requires_grad_()
    assert torch.autograd.gradcheck(a, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: a(z) ** 2, x, fast_mode=True)
    if isinstance(a, LinearOperator):
        v = draw(a.y_shape, 2, seed=1)
        (gradient,) = torch.autograd.grad(a(x), x, v)
        torch.testing.assert_close(gradient, a.adjoint(v), rtol=0, atol=0)
        mapped = torch.func.vmap(a)(torch.stack([x, 2 * x]))
        torch.testing.assert_close(mapped[1], 2 * a(x))
        _, tangent = torch.func.jvp(a, (x,), (x,))
        torch.testing.assert_close(tangent, a(x))


@every_operator
def test_linearise_is_the_first_order_expansion(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    x, e = draw(a.x_shape, 3), draw(a.x_shape, 3, seed=1)
    mean, jacobian = a.linearise(x)
    torch.testing.assert_close(mean, a(x), rtol=0, atol=0)
    assert not mean.requires_grad
    tiny = 1e-6
    slope = (a(x + tiny * e) - a(x - tiny * e)) / (2 * tiny)
    torch.testing.assert_close(jacobian(e), slope, rtol=1e-6, atol=1e-7)
    assert_adjoint(jacobian)
    assert (jacobian.x_shape, jacobian.y_shape) == (a.x_shape, a.y_shape)


@every_operator
def test_adjoint_dot_product(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    if isinstance(a, LinearOperator):
        assert_adjoint(a)


def assert_adjoint(a: LinearOperator) -> None:
    x, v = draw(a.x_shape, 3), draw(a.y_shape, 3, seed=1)
    y, back = a(x), a.adjoint(v)
    scale = y.norm() * v.norm() + 1e-300
    assert abs(float((y * v).sum() - (x * back).sum()) / scale) < 1e-10


sizes = st.integers(1, 9)
odd = st.sampled_from([1, 3, 5])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(sizes, sizes), st.tuples(odd, odd), st.sampled_from(["periodic", "zero"]))
def test_blur_adjoint_for_any_shape(
    shape: tuple[int, int], kernel: tuple[int, int], border: str
) -> None:
    rng = np.random.default_rng(sum(shape))
    assert_adjoint(Blur(shape, kernel=rng.standard_normal(kernel), border=border))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    image=st.tuples(sizes, sizes),
    source=st.tuples(sizes, sizes),
    psf=st.none() | st.tuples(odd, odd),
    q=st.floats(0.05, 1.0),
    phi=st.floats(-4, 4),
    gamma=st.floats(1.05, 2.95),
    supersampling=st.integers(1, 3),
)
def test_lensing_adjoint_for_any_parameters(
    image: tuple[int, int],
    source: tuple[int, int],
    psf: tuple[int, int] | None,
    q: float,
    phi: float,
    gamma: float,
    supersampling: int,
) -> None:
    kernel = None if psf is None else np.random.default_rng(0).random(psf)
    lens = (EPL(0.5, q, phi, gamma, 0.1), SIE(0.3, q, -phi, s=0.1), Shear(0.1, 0.05))
    assert_adjoint(Lensing(lens, image, 0.2, source, 0.15, kernel, supersampling))


@every_operator
@pytest.mark.parametrize("kind", ["scalar", "map", "masked", "masked scalar"])
@pytest.mark.parametrize("per_item", [False, True])
def test_solve_is_the_dense_inverse(
    make: Callable[[], ForwardOperator], kind: str, per_item: bool
) -> None:
    a = make()
    if not isinstance(a, LinearOperator):
        pytest.skip("no solve: not linear")
    rng = np.random.default_rng(1)
    sigma = torch.from_numpy(rng.uniform(0.2, 1.0, a.y_shape)) if "scalar" not in kind else 0.4
    mask = torch.from_numpy(rng.random(a.y_shape) < 0.3) if "masked" in kind else None
    noise = Gaussian(sigma, mask)
    v = draw(a.y_shape, 3)
    r2 = torch.tensor([0.0, 0.3, 2.0]) if per_item else 0.7
    solved = a.solve(r2, noise, v, tolerance=1e-12).flatten(1)

    matrix, n = dense(a), math.prod(a.y_shape)
    keep = torch.ones(n, dtype=torch.bool) if mask is None else ~mask.flatten()
    variance = torch.as_tensor(sigma, dtype=torch.float64).expand(a.y_shape).flatten() ** 2
    for i, value in enumerate(torch.as_tensor(r2, dtype=torch.float64).expand(3)):
        full = value * matrix @ matrix.T + torch.diag(variance)
        expected = torch.zeros(n, dtype=torch.float64)
        expected[keep] = torch.linalg.solve(full[keep][:, keep], v[i].flatten()[keep])
        torch.testing.assert_close(solved[i], expected, rtol=1e-8, atol=1e-9)
    assert (solved[:, ~keep] == 0).all()


@every_operator
def test_solve_ignores_nan_under_the_mask_and_batch_mates(
    make: Callable[[], ForwardOperator],
) -> None:
    a = make()
    if not isinstance(a, LinearOperator):
        pytest.skip("no solve: not linear")
    mask = torch.zeros(a.y_shape, dtype=torch.bool)
    mask.view(-1)[0] = True
    noise = Gaussian(0.3, mask)
    v = draw(a.y_shape, 9)
    r2 = torch.linspace(0, 3, 9)
    dirty = torch.where(mask, torch.nan, v)
    dirty[2] = torch.nan
    together = a.solve(r2, noise, dirty)
    other_mates = torch.cat([100 * v[:7].flip(0), v[7:8], v[:1]])
    other_r2 = torch.cat([torch.zeros(7), r2[7:8], r2[:1]])
    again = a.solve(other_r2, noise, other_mates)
    torch.testing.assert_close(together[7], again[7], rtol=0, atol=0)
    # alone it may round differently (another FFT plan), which CG amplifies up to its tolerance
    exact = a.solve(r2, noise, dirty, tolerance=1e-13)
    alone = a.solve(float(r2[7]), noise, v[7:8], tolerance=1e-13)
    torch.testing.assert_close(exact[7], alone[0], rtol=1e-9, atol=1e-10)
    assert together[2][~mask].isnan().any(), "a broken item must show, not turn to zeros"
    assert a.solve(0.5, noise, v.float()).dtype is torch.float32


@every_operator
def test_solve_is_differentiable_in_v(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    if isinstance(a, LinearOperator):
        v = draw(a.y_shape, 2).requires_grad_()
        noise = Gaussian(0.5)
        assert torch.autograd.gradcheck(
            lambda u: a.solve(0.7, noise, u, tolerance=1e-13), v, fast_mode=True
        )


@every_operator
def test_svd_where_there_is_one(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    if not isinstance(a, LinearOperator):
        pytest.skip("no svd: not linear")
    if not a.has_svd:
        with pytest.raises(UnknownName, match="SVD"):
            a.svd()
        return
    svd, x = a.svd(), draw(a.x_shape, 3)
    assert (svd.values >= 0).all()
    torch.testing.assert_close(svd.u(svd.values * svd.vt(x)), a(x), rtol=1e-9, atol=1e-10)
    c = draw(svd.values.shape, 2)
    torch.testing.assert_close(svd.vt(svd.v(c)), c)
    torch.testing.assert_close(svd.ut(svd.u(c)), c)


@every_operator
def test_config_round_trip(make: Callable[[], ForwardOperator]) -> None:
    a = make()
    stored = a.config()
    arrays = {k: v for k, v in stored.items() if isinstance(v, np.ndarray)}
    through_json = json.loads(json.dumps({k: v for k, v in stored.items() if k not in arrays}))
    b = type(a).from_config({**through_json, **arrays})
    again = b.config()
    assert list(again) == list(stored)
    for key, value in stored.items():
        np.testing.assert_array_equal(again[key], value)
    x = draw(a.x_shape, 2)
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_default_and_class_facts(name: str) -> None:
    cls = registry.operator_class(name)
    shape = (12,) if name in ("linear", "burgers") else (12, 12)
    a = cls.default(shape)
    assert a.x_shape == shape
    assert a(draw(shape, 1)).isfinite().all()
    assert cls.default_prior
    assert "\n" not in cls.summary
    mask = a.data_mask
    assert mask is None or (mask.dtype is torch.bool and mask.shape == a.y_shape)


@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name, configs in BAD.items() for config in configs]
)
def test_bad_parameters_are_refused(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(ObservationError):
        registry.operator_class(name).from_config(config)


def test_parts_of_a_composition_must_fit() -> None:
    cls = registry.operator_class("blur+inpainting")
    assert cls is registry.operator_class("blur+inpainting") and cls.linear
    assert registry.name_of(cls) == "blur+inpainting"
    with pytest.raises(ObservationError, match="takes"):
        cls.from_config({"parts": [{"shape": (4, 4)}, {"shape": (4, 5)}]})
    with pytest.raises(ObservationError, match="needed 2"):
        cls.from_config({"parts": [{"shape": (4, 4)}]})
    with pytest.raises(ObservationError, match="did you mean 'fwhm'"):
        cls.from_config({"parts": [{"shape": (4, 4), "fwmh": 1}, {"shape": (4, 4)}]})
    with pytest.raises(ObservationError, match="needed Inpainting"):
        cls.from_config({"parts": [Blur((4, 4)), Blur((4, 4))]})
    with pytest.raises(UnknownName, match="did you mean 'inpainting'"):
        registry.operator_class("blur+inpaintin")
    blur, inpainting = Blur((4, 4), fwhm=2), Inpainting((4, 4))
    x = draw((4, 4), 2)
    a = cls.from_config({"parts": [blur, inpainting.config()]})
    torch.testing.assert_close(a(x), inpainting(blur(x)), rtol=0, atol=0)
    assert torch.equal(a.data_mask, inpainting.data_mask)  # type: ignore[arg-type]


def test_misspelt_and_missing_keys_are_named() -> None:
    with pytest.raises(ObservationError, match="did you mean 'fwhm'"):
        Blur.from_config({"shape": (4, 4), "fwmh": 2.0})
    with pytest.raises(ObservationError, match="needs the parameter shape"):
        Blur.from_config({})


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'lensing'.*inpainting"):
        registry.operator_class("lensin")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [2, 16])
def test_torch_path_equals_numba(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, batch: int
) -> None:
    a = INSTANCES["lensing"][0]()
    assert isinstance(a, LinearOperator)
    x, v = draw(a.x_shape, batch, dtype=dtype), draw(a.y_shape, batch, 1, dtype)
    numba = a(x), a.adjoint(v)
    monkeypatch.setattr(SparseMatrix, "times", SparseMatrix.times_torch)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-12
    for one, other in zip(numba, (a(x), a.adjoint(v)), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_inpainting_masks_what_it_drops() -> None:
    a = Inpainting((4, 4), box=(1, 0, 2, 3))
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:3, :3] = True
    assert torch.equal(a.data_mask, expected)
    assert torch.equal(a(torch.ones(1, 4, 4))[0] == 0, expected)
    assert int(Inpainting((10, 10), kind="random", fraction=0.3).data_mask.sum()) == 30


@pytest.mark.parametrize("border", ["periodic", "zero"])
def test_blur_is_a_convolution_not_a_correlation(border: str) -> None:
    kernel = np.zeros((3, 3))
    kernel[1, 2] = 1.0  # one pixel to the right of the centre: moves the image to the right
    x = torch.zeros(1, 5, 6)
    x[0, 2, 3] = 1.0
    y = Blur((5, 6), kernel=kernel, border=border)(x)
    torch.testing.assert_close(y, x.roll(1, dims=2), rtol=0, atol=1e-6)


def test_phase_retrieval_is_blind_to_shift_reflection_and_sign() -> None:
    assert PhaseRetrieval((50, 100), 1.1).y_shape == (55, 110)  # in floats a little more
    a = PhaseRetrieval((8, 6))
    x = draw((8, 6), 1)
    x[:, -1], x[:, :, -1] = 0.0, 0.0  # room to shift without wrapping
    y = a(x)
    for same in (-x, x.flip(1, 2), x.roll((1, 1), (1, 2))):
        torch.testing.assert_close(a(same), y)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    assert float(y[0, 8, 6]) == pytest.approx(abs(float(x.sum())) / math.sqrt(16 * 12))
    # twice oversampled magnitudes are the transform of the linear autocorrelation
    image = x[0].numpy()
    full = scipy.signal.correlate2d(image, image)
    power = np.abs(np.fft.fftshift(np.fft.fft2(full, (16, 12)))) / (16 * 12)
    np.testing.assert_allclose(y[0].square().numpy(), power, atol=1e-12)


def test_phase_retrieval_has_a_gradient_at_zero() -> None:
    a = PhaseRetrieval((4, 3))
    x = torch.zeros(2, 4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(a(x).sum(), x, create_graph=True)
    assert (gradient == 0).all()
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.isfinite().all()
    _, jacobian = a.linearise(x)
    assert (jacobian(draw((4, 3), 2)) == 0).all()
    assert (jacobian.adjoint(draw((8, 6), 2)) == 0).all()


def test_unconverged_conjugate_gradients_warn() -> None:
    matrix = torch.diag(torch.logspace(0, 16, 600, dtype=torch.float64))
    b = torch.ones(2, 600, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="2 of 2 items"):
        conjugate_gradients(lambda p: p @ matrix, b, None, 1e-12)


def test_a_chosen_limit_of_conjugate_gradients_does_not_warn(
    recwarn: pytest.WarningsRecorder,
) -> None:
    matrix = torch.diag(torch.logspace(0, 6, 30, dtype=torch.float64))
    conjugate_gradients(lambda p: p @ matrix, torch.ones(2, 30, dtype=torch.float64), 3, 1e-8)
    assert not recwarn.list


def test_solve_takes_any_covariance() -> None:
    x = np.random.default_rng(3).normal(size=(4, 6))
    operator, noise = Linear(x), Gaussian(torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64))
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = root @ root.T
    v = torch.ones(2, 4, dtype=torch.float64)
    a = torch.from_numpy(x)
    exact = torch.linalg.solve(a @ spread @ a.T + torch.diag(1 / noise.precision), v.T).T
    found = operator.solve(lambda u: u @ spread, noise, v, tolerance=1e-12)
    torch.testing.assert_close(found, exact)


def test_a_start_of_conjugate_gradients_is_continued() -> None:
    matrix = torch.diag(torch.logspace(0, 3, 30, dtype=torch.float64))
    b = draw((30,), 2)
    for guess in (draw((30,), 2, seed=1), torch.zeros(2, 30, dtype=torch.float64)):
        found = conjugate_gradients(lambda p: p @ matrix, b, None, 1e-12, guess)
        torch.testing.assert_close(found @ matrix, b)
    done = b @ matrix.inverse()
    assert torch.equal(conjugate_gradients(lambda p: p @ matrix, b, 5, 1e-12, done), done)
    operator, noise = Blur((5, 4), border="zero"), Gaussian(0.1)
    v = draw(operator.y_shape, 2)
    exact = operator.solve(0.5, noise, v, tolerance=1e-12)
    kept = operator.solve(0.5, noise, v, iterations=0, start=exact)
    torch.testing.assert_close(kept, exact)


@pytest.mark.parametrize("r2", [-1.0, math.nan, torch.ones(3)])
def test_bad_r2_is_refused(r2: float | torch.Tensor) -> None:
    with pytest.raises(ObservationError, match="r2"):
        Denoising((2,)).solve(r2, Gaussian(1.0), torch.ones(2, 2))


def test_fault_42_kernels_run_without_a_writable_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numba

    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(blocker / "cache"))

    def double(a: np.ndarray, out: np.ndarray) -> None:
        out[0] = 2 * a[0]

    out = np.zeros(1)
    compiled(double)(np.ones(1), out)
    assert out[0] == 2


def test_fault_43_damaged_cache_is_recompiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def triple(a: np.ndarray, out: np.ndarray) -> None:
        out[0] = 3 * a[0]

    out = np.zeros(1)
    compiled(triple)(np.ones(1), out)
    stored = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert stored
    for path in stored:
        path.write_bytes(path.read_bytes()[:20])
    compiled(triple)(np.full(1, 2.0), out)
    assert out[0] == 6


def test_import_operators_loads_no_torch() -> None:
    code = "import sys, operators; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_every_error_has_an_exit_code() -> None:
    codes = {e.__name__: e.exit_code for e in InvprobError.__subclasses__()}
    assert codes == {
        "ObservationError": 3,
        "UnknownName": 2,
        "NotDifferentiable": 2,
        "RunError": 1,
        "NumericalError": 5,
        "PeerLost": 6,
    }
