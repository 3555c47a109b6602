"""Lensing against lenstronomy 1.14.2 (values stored here), its limits and its conventions."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from operators import _lens_conventions as conventions
from operators._lens_kernels import epl_terms
from operators._rays import ray_positions
from operators.errors import ObservationError
from operators.lensing import (
    EPL,
    NFW,
    SIE,
    SIS,
    Lensing,
    LensModel,
    Multipole,
    Shear,
    gaussian_psf,
)

X = np.array([1.3, -0.4, 0.02, 2.1, -1.7])
Y = np.array([0.2, 0.9, -0.01, -1.6, -0.3])
AT = {"x0": 0.05, "y0": -0.03}
CENTRE = {"center_x": 0.05, "center_y": -0.03}

# lenstronomy's NIE writes its core as s_scale = s sqrt(q)
MODELS: dict[str, tuple[LensModel, str, dict[str, float]]] = {
    "SIS": (SIS(1.1, **AT), "SIS", {"theta_E": 1.1, **CENTRE}),
    "SIE": (SIE(1.2, 0.7, 0.5, **AT), "SIE", {"theta_E": 1.2, "q": 0.7, "phi": 0.5, **CENTRE}),
    "core": (
        SIE(1.2, 0.7, 0.5, s=0.2 / math.sqrt(0.7), **AT),
        "NIE",
        {"theta_E": 1.2, "q": 0.7, "phi": 0.5, "s_scale": 0.2, **CENTRE},
    ),
    "EPL": (
        EPL(1.2, 0.6, 1.1, 2.2, **AT),
        "EPL",
        {"theta_E": 1.2, "q": 0.6, "phi": 1.1, "gamma": 2.2, **CENTRE},
    ),
    "EPL, shallow": (
        EPL(0.9, 0.85, -0.4, 1.7, **AT),
        "EPL",
        {"theta_E": 0.9, "q": 0.85, "phi": -0.4, "gamma": 1.7, **CENTRE},
    ),
    "shear": (Shear(0.03, -0.05), "SHEAR", {"gamma1": 0.03, "gamma2": -0.05}),
    "NFW": (NFW(0.8, 0.7, **AT), "NFW", {"Rs": 0.8, "alpha_Rs": 0.7, **CENTRE}),
    "multipole 3": (
        Multipole(3, -0.04, -0.2, **AT),
        "MULTIPOLE",
        {"m": 3, "a_m": -0.04, "phi_m": -0.2, **CENTRE},
    ),
    "multipole 4": (
        Multipole(4, 0.05, 0.3, **AT),
        "MULTIPOLE",
        {"m": 4, "a_m": 0.05, "phi_m": 0.3, **CENTRE},
    ),
}
DEFLECTIONS = {
    "SIS": [
        [1.081839063, -0.47911702091, -0.91525532377, 0.87330971386, -1.0871369497],
        [0.1990583876, 0.99017517656, 0.61017021585, -0.66882743939, -0.16772970082],
    ],
    "SIE": [
        [1.1312895242, -0.55958644854, -0.96392411075, 0.92364786516, -1.1378442361],
        [0.11525857882, 1.1276184704, 0.77347307264, -0.82980527292, -0.076502480016],
    ],
    "core": [
        [0.95854718374, -0.4688046965, -0.089484830122, 0.8535126702, -1.0105842233],
        [0.086535289191, 0.9411560962, 0.078285863528, -0.7751404, -0.058640750979],
    ],
    "EPL": [
        [1.1961422751, -0.68324909015, -2.1263691206, 0.87391083129, -1.1233297551],
        [0.063860118886, 1.0454251271, 1.3354667385, -0.61264618195, -0.031551913288],
    ],
    "EPL, shallow": [
        [0.95363656577, -0.3522462046, -0.2691142929, 0.91901106832, -1.0583059836],
        [0.23578252744, 0.86481639478, 0.18940247723, -0.75360661745, -0.22794415484],
    ],
    "shear": [
        [0.029, -0.057, 0.0011, 0.143, -0.036],
        [-0.071, -0.007, -0.0007, -0.057, 0.094],
    ],
    "NFW": [
        [0.69293583776, -0.30853121505, -0.14104793163, 0.49817168509, -0.6717352037],
        [0.12750019415, 0.63763117777, 0.094031954422, -0.38152660761, -0.10363914571],
    ],
    "multipole 3": [
        [0.0045001916716, 0.0030017116828, 0.0092875716865, 0.009747676275, 0.0044134861039],
        [-0.013067565685, 0.0066083258042, 0.010364908829, 0.011012936834, -0.012553548637],
    ],
    "multipole 4": [
        [-0.0018223017728, -0.0056069816317, -0.0054941224847, 0.0071212768002, 0.0016144314533],
        [-0.0065010234999, -0.0057637716598, -0.0027309746341, 0.0050105617026, 0.0077290329503],
    ],
}
# every 5th row from the 4th, every 6th column from the 3rd, and the sum of the whole image
IMAGE_ROWS, IMAGE_COLUMNS = slice(3, None, 5), slice(2, None, 6)
IMAGE = [
    [0.067514028629, 0.58589507892, 0.9696501532, 0.7693437074],
    [0.27281050815, 1.0433105133, 0.42599947966, 0.96750594393],
    [0.39974343962, 0.78394114702, 0.3019806335, 0.88336037537],
    [0.23257516329, 1.0384512231, 1.0726975679, 0.54096363487],
]
IMAGE_SUM = 320.516877187


def lenstronomy_deflection(name: str, parameters: dict[str, float]) -> Any:
    """The recipe of DEFLECTIONS."""
    from lenstronomy.LensModel.lens_model import LensModel as Theirs

    given = dict(parameters)
    if "q" in given:
        e, phi = (1 - given["q"]) / (1 + given.pop("q")), given.pop("phi")
        given |= {"e1": e * math.cos(2 * phi), "e2": e * math.sin(2 * phi)}
    return Theirs([name]).alpha(X, Y, [given])


def scene() -> tuple[Lensing, np.ndarray]:
    """A 22 x 26 image of a 20 x 16 source that is bright at its border; a very lopsided PSF."""
    y, x = np.mgrid[:20, :16]
    source = np.exp(-0.5 * (((x - 8.3) / 3) ** 2 + ((y - 8.1) / 4) ** 2)) + 0.3
    psf = np.arange(25.0).reshape(5, 5) ** 1.5
    lens = (SIE(1.1, 0.75, 0.7, 0.05, -0.04), Shear(0.03, -0.05))
    return Lensing(lens, (22, 26), 0.15, (20, 16), 0.08, psf / psf.sum(), 2), source


def lenstronomy_image() -> np.ndarray:
    """The recipe of IMAGE: the scene on a 30 x 30 canvas, cropped so that no edge matters."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel as Theirs
    from lenstronomy.LightModel.light_model import LightModel

    operator, source = scene()
    corner = -29 / 2 * 0.15
    data = ImageData(
        image_data=np.zeros((30, 30)),
        ra_at_xy_0=corner,
        dec_at_xy_0=corner,
        transform_pix2angle=0.15 * np.eye(2),
    )
    model = ImageModel(
        data,
        PSF("PIXEL", kernel_point_source=operator.psf, kernel_point_source_normalisation=False),
        Theirs(["SIE", "SHEAR"]),
        LightModel(["INTERPOL"]),
        kwargs_numerics={"supersampling_factor": 2, "supersampling_convolution": False},
    )
    e = (1 - 0.75) / (1 + 0.75)
    e1, e2 = e * math.cos(1.4), e * math.sin(1.4)
    lens = [
        {"theta_E": 1.1, "e1": e1, "e2": e2, "center_x": 0.05, "center_y": -0.04},
        {"gamma1": 0.03, "gamma2": -0.05},
    ]
    light = {"image": source, "amp": 1.0, "center_x": 0.0, "center_y": 0.0, "phi_G": 0.0}
    image = model.image(lens, [{**light, "scale": 0.08}])
    # lenstronomy integrates over the pixel's area; ours is the mean over it
    return np.asarray(image[4:-4, 2:-2]) / 0.15**2


@pytest.mark.parametrize("name", sorted(MODELS))
def test_deflection_equals_lenstronomy(name: str) -> None:
    np.testing.assert_allclose(
        MODELS[name][0].deflection(X, Y), DEFLECTIONS[name], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_stored_deflections_are_lenstronomys(name: str) -> None:
    pytest.importorskip("lenstronomy", reason="the stored values are compared instead")
    _, theirs, parameters = MODELS[name]
    found = lenstronomy_deflection(theirs, parameters)
    np.testing.assert_allclose(found, DEFLECTIONS[name], rtol=0, atol=1e-10)


def test_haloes_are_smooth_where_their_formula_is_not() -> None:
    x = np.concatenate([10.0 ** np.arange(-9, 2), 1e-2 * (1 + 1e-9 * np.arange(-1, 2))])
    x = np.concatenate([x, 1 + np.array([-1e-2, -1e-5, -1e-12, 0, 1e-12, 1e-5, 1e-2]) / 2])
    with mpmath.workdps(60):  # the formula, to so many digits that nothing cancels
        exact = [
            mpmath.re(mpmath.log(v / 2) + mpmath.acosh(1 / v) / mpmath.sqrt(1 - v**2)) / v
            if v != 1
            else 1 + mpmath.log(mpmath.mpf(1) / 2)
            for v in map(mpmath.mpf, x)
        ]
        exact = [float(v / (1 + mpmath.log(mpmath.mpf(1) / 2))) for v in exact]
    found = NFW(2.0, 0.3).deflection(2 * x, 0 * x)[0] / 0.3
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    assert NFW(2.0, 0.3).deflection(0, 0) == Multipole(3, 0.1, 0.2).deflection(0, 0) == (0, 0)


def test_lenses_add() -> None:
    models = tuple(MODELS[name][0] for name in ("SIE", "EPL", "shear"))
    beta = Lensing(models).source_position(X, Y)
    total = sum(np.array(DEFLECTIONS[name]) for name in ("SIE", "EPL", "shear"))
    np.testing.assert_allclose(beta, np.array([X, Y]) - total, rtol=0, atol=3e-7)


def test_image_equals_lenstronomy() -> None:
    operator, source = scene()
    image = operator(torch.from_numpy(source)[None])[0].numpy()
    found = image[IMAGE_ROWS, IMAGE_COLUMNS]
    np.testing.assert_allclose(found, IMAGE, rtol=1e-6)
    np.testing.assert_allclose(image.sum(), IMAGE_SUM, rtol=1e-7)


def test_stored_image_is_lenstronomys() -> None:
    pytest.importorskip("lenstronomy", reason="the stored values are compared instead")
    image = lenstronomy_image()
    np.testing.assert_allclose(image[IMAGE_ROWS, IMAGE_COLUMNS], IMAGE, rtol=1e-9)
    np.testing.assert_allclose(image.sum(), IMAGE_SUM, rtol=1e-9)


@pytest.mark.parametrize("q", [0.05, 0.3, 0.8, 0.999999, 1.0])
def test_isothermal_power_law_is_the_sie(q: float) -> None:
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 400))
    sie = SIE(1.3, q, 0.4, 0.1, -0.2).deflection(x, y)
    epl = EPL(1.3, q, 0.4, 2.0, 0.1, -0.2).deflection(x, y)
    np.testing.assert_allclose(sie, epl, rtol=0, atol=1e-12)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("gamma", [1.2, 2.0, 2.7])
def test_epl_series_has_enough_terms(
    q: float, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 200))
    model = EPL(1.0, q, 0.4, gamma)
    few = np.array(model.deflection(x, y))
    terms = 4 * epl_terms(q)
    monkeypatch.setattr("operators._lens_kernels.epl_terms", lambda _: terms)
    np.testing.assert_allclose(few, model.deflection(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("core", [0.0, 0.1])
def test_the_round_limit_is_smooth(core: float) -> None:
    limit = np.array(SIE(1.1, 1.0, 0.3, s=core).deflection(X, Y))
    for gap in (1e-15, 1e-12, 1e-9, 1e-7, 1e-6):
        near = np.array(SIE(1.1, 1 - gap, 0.3, s=core).deflection(X, Y))
        assert np.abs(near - limit).max() < 2 * gap + 1e-14
    if core == 0:
        np.testing.assert_allclose(limit, SIS(1.1).deflection(X, Y), rtol=1e-14)


@pytest.mark.parametrize(
    "model",
    [
        SIS(1.0, 0.1, 0.2),
        SIE(1.0, 0.6, 0.3, 0.1, 0.2),
        SIE(1.0, 1.0, 0.3, 0.1, 0.2),
        SIE(1.0, 0.6, 0.3, 0.1, 0.2, s=0.1),
        EPL(1.0, 0.6, 0.3, 2.5, 0.1, 0.2),
        EPL(1.0, 0.6, 0.3, 1.5, 0.1, 0.2),
    ],
)
def test_no_nan_at_the_centre(model: LensModel) -> None:
    assert model.deflection(0.1, 0.2) == (0.0, 0.0)
    tiny = model.deflection(0.1 + 1e-16, [0.2, 0.2 + 1e-15])
    assert np.isfinite(tiny).all()
    odd_grid = Lensing((SIE(1.0, 0.8, 0.0),), (5, 5), 0.3, (5, 5), 0.3, None, 1)
    assert odd_grid(torch.ones(1, 5, 5)).isfinite().all()


def test_psf_is_convolved_not_correlated_and_keeps_its_sum() -> None:
    psf = np.zeros((5, 3))
    psf[4, 2] = 0.7  # up by two, right by one
    lens = (Shear(0.0, 0.0),)
    plain = Lensing(lens, (9, 8), 0.1, (9, 8), 0.1, None, 1)
    moved = Lensing(lens, (9, 8), 0.1, (9, 8), 0.1, psf, 1)
    x = torch.rand(1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(x), x)
    expected = torch.zeros_like(x)
    expected[:, 2:, 1:] = 0.7 * x[:, :-2, :-1]
    torch.testing.assert_close(moved(x), expected)


def test_light_from_beyond_the_image_enters_through_the_psf() -> None:
    psf = np.ones((3, 3)) / 9
    operator = Lensing((Shear(0, 0),), (4, 4), 0.1, (12, 12), 0.1, psf, 2)
    torch.testing.assert_close(operator(torch.ones(1, 12, 12)), torch.ones(1, 4, 4))


def test_source_fades_over_one_pixel_beyond_its_outer_centres() -> None:
    """A constant source seen on a grid four times finer: bilinear with zeros outside."""
    operator = Lensing((Shear(0, 0),), (1, 20), 0.1, (3, 3), 0.4, None, 1)
    row = operator(torch.ones(1, 3, 3, dtype=torch.float64))[0, 0]
    x, _ = ray_positions((1, 20), 0.1, 1)
    expected = np.clip((0.4 + 0.4 - np.abs(x[0])) / 0.4, 0, 1)
    np.testing.assert_allclose(row, expected, atol=1e-12)


def test_axes_are_y_x_with_origin_lower() -> None:
    """A lens at the origin images a source at +x, +y into the upper right, further out."""
    operator = Lensing((SIS(0.5),), (41, 31), 0.1, (21, 11), 0.1, None, 2)
    x = torch.zeros(1, 21, 11, dtype=torch.float64)
    x[0, 18, 7] = 1.0  # beta = (0.2, 0.8): outside the Einstein radius, one image beyond it
    y = operator(x)[0].numpy()
    rows, columns = np.nonzero(y > 0.5 * y.max())
    theta = np.array([(columns.mean() - 15) * 0.1, (rows.mean() - 20) * 0.1])
    beta = np.array([0.2, 0.8])
    np.testing.assert_allclose(theta, beta * (1 + 0.5 / np.hypot(*beta)), atol=0.06)


def test_supersampling_is_the_mean_of_finer_pixels() -> None:
    lens = (SIE(0.5, 0.7, 0.3),)
    coarse = Lensing(lens, (6, 8), 0.2, (7, 5), 0.1, None, 3)
    fine = Lensing(lens, (18, 24), 0.2 / 3, (7, 5), 0.1, None, 1)
    x = torch.rand(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(fine(x), 3)
    torch.testing.assert_close(coarse(x), pooled)


def test_default_keeps_the_field_of_view() -> None:
    for shape in ((64, 64), (16, 16), (32, 16)):
        operator = Lensing.default(shape)
        assert max(shape) * operator.source_pixel_scale == pytest.approx(1.92)
        assert operator.psf is not None
        assert operator.psf.sum() == pytest.approx(1)


def test_other_conventions() -> None:
    q, phi = 0.6, 0.9
    e = (1 - q) / (1 + q)
    model = SIE.from_ellipticity(1.0, e * math.cos(2 * phi), e * math.sin(2 * phi))
    assert (model.q, model.phi) == (pytest.approx(q), pytest.approx(phi))
    epl = EPL.from_ellipticity(1.0, 0.0, 0.1, 2.1)
    assert epl.phi == pytest.approx(math.pi / 4)
    # east of north, east to the left: north is +y, north-east is up and to the left
    assert SIE.from_position_angle(1.0, q, 0.0).phi == pytest.approx(math.pi / 2)
    assert EPL.from_position_angle(1.0, q, 45.0, 2.0).phi == pytest.approx(3 * math.pi / 4)
    # a detector whose +x points north and +y east
    cd = [[0.0, 1.0], [1.0, 0.0]]
    assert conventions.from_position_angle(30.0, cd) == pytest.approx(math.radians(30))
    shear = Shear.from_polar(0.1, math.pi / 4)
    assert (shear.gamma1, shear.gamma2) == (pytest.approx(0), pytest.approx(0.1))


def test_a_config_may_state_a_lens_in_other_ways() -> None:
    q, phi = 0.6, 0.9
    e = (1 - q) / (1 + q)
    by_e = {"e1": e * math.cos(2 * phi), "e2": e * math.sin(2 * phi)}
    by_angle = {"q": q, "position_angle": math.degrees(phi) - 90}
    for stated in (by_e, by_angle, by_angle | {"velocity_dispersion": 300.0}):
        operator = Lensing([{"model": "SIE", "theta_E": 1.1, **stated}])  # type: ignore[arg-type]
        (model,) = operator.lens
        assert isinstance(model, SIE)  # theta_E given directly wins
        assert (model.theta_E, model.q, model.phi) == pytest.approx((1.1, q, phi))
    polar = Lensing([{"model": "Shear", "gamma": 0.1, "phi": 0.3}])  # type: ignore[arg-type]
    assert polar.lens == (Shear.from_polar(0.1, 0.3),)


def test_a_velocity_dispersion_is_recorded_with_its_redshifts_and_cosmology() -> None:
    cosmology = pytest.importorskip("astropy.cosmology")
    lens = [{"model": "SIS", "velocity_dispersion": 250.0}]
    given = {"z_lens": 0.5, "z_source": 2.0}
    for name, model in (
        ("Planck15", cosmology.Planck15),
        ("H0=70, Om0=0.3", cosmology.FlatLambdaCDM(H0=70, Om0=0.3)),
    ):
        operator = Lensing(lens, cosmology=name, **given)  # type: ignore[arg-type]
        radius = conventions.einstein_radius(250, 0.5, 2.0, model)
        assert operator.lens == (SIS(radius),)
        stored = operator.config()
        assert {key: stored[key] for key in given} == given and stored["cosmology"] == name
        assert Lensing.from_config(stored).lens == operator.lens


def test_bands_go_through_one_lens_and_each_its_own_psf() -> None:
    lens = (SIE(0.5, 0.7, 0.3), Shear(0.03, 0.02))
    psf = np.random.default_rng(0).random((3, 5, 3))
    x = torch.rand(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kernels in (psf, psf[:1].repeat(3, 0), None):
        shared = None if kernels is None else kernels[0] if kernels is not psf else psf
        found = Lensing(lens, (9, 8), 0.15, (3, 7, 6), 0.1, shared)(x)
        for band in range(3):
            kernel = None if kernels is None else kernels[band]
            alone = Lensing(lens, (9, 8), 0.15, (7, 6), 0.1, kernel)(x[:, band])
            torch.testing.assert_close(found[:, band], alone)


def test_units_are_converted_or_refused() -> None:
    units = pytest.importorskip("astropy.units")
    model = SIE(1200 * units.mas, 0.8, 30 * units.deg)
    assert (model.theta_E, model.phi) == (pytest.approx(1.2), pytest.approx(math.pi / 6))
    with pytest.raises(ObservationError, match="theta_E"):
        SIE(1.0 * units.kg, 0.8, 0.0)


def test_einstein_radius_from_velocity_dispersion() -> None:
    cosmology = pytest.importorskip("astropy.cosmology")
    flat = cosmology.FlatLambdaCDM(H0=70, Om0=0.3)
    # Einstein-de Sitter distances are closed form: D ~ (1 - (1+z)^-1/2), whatever H0
    eds = cosmology.FlatLambdaCDM(H0=50, Om0=1.0, Tcmb0=0)
    near, far = 1 - 1 / math.sqrt(1.5), 1 - 1 / math.sqrt(3.0)
    ratio = (far - near) / far
    expected = math.degrees(4 * math.pi * (250 / 299792.458) ** 2 * ratio) * 3600
    assert conventions.einstein_radius(250, 0.5, 2.0, eds) == pytest.approx(expected, rel=1e-6)
    model = SIE.from_velocity_dispersion(250, 0.5, 2.0, 0.8, 0.0, cosmology=flat)
    assert 1.0 < model.theta_E < 1.4
    with pytest.raises(ObservationError, match="z_source"):
        conventions.einstein_radius(250, 0.5, 0.4)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SIE(0.0, 0.8, 0.0), "theta_E"),
        (lambda: SIE(1.0, 0.0, 0.0), "q"),
        (lambda: SIE(1.0, 1.1, 0.0), "q"),
        (lambda: SIE(1.0, 0.8, math.nan), "phi"),
        (lambda: SIE(1.0, 0.8, 0.0, s=-0.1), "s"),
        (lambda: SIS(1.0, x0=math.inf), "x0"),
        (lambda: EPL(1.0, 0.8, 0.0, 1.0), "gamma"),
        (lambda: EPL(1.0, 0.8, 0.0, 3.0), "gamma"),
        (lambda: Shear(math.nan, 0.0), "gamma1"),
        (lambda: SIE.from_ellipticity(1.0, 0.8, 0.8), "ellipticity"),
        (lambda: gaussian_psf(0.1, 0.1, 4), "odd"),
        (lambda: conventions.from_position_angle(0.0, [[1, 1], [1, 1]]), "cd"),
    ],
)
def test_bad_lenses_are_refused_by_name(make: Any, name: str) -> None:
    with pytest.raises(ObservationError, match=name):
        make()
