"""`invprob import`: every number of the observation follows from the files by the stated rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from invprob.flux_scale import scale_ratio
from invprob.observation import Observation
from invprob.registry import load_prior
from invprob.telescope import Stamp, circles, orientation, pixel_scale, sky
from operators.errors import ObservationError
from operators.linear import Linear
from tests.conftest import document, invoke, refused

RNG = np.random.default_rng(5)
SKY, SIGMA = 3.0, 0.1
IMAGE = SKY + SIGMA * RNG.standard_normal((40, 48))
IMAGE[18:24, 19:25] += 2 * np.outer(np.hanning(6), np.hanning(6))
REAL = Path(__file__).parents[2] / "shared/data/slacs0946+1006"
PLAIN = "--operator denoising --prior random_field"


def write(name: str, data: Any, **cards: Any) -> None:
    """Write a FITS image with header cards; a double underscore stands for a hyphen."""
    header = fits.Header({key.replace("__", "-"): value for key, value in cards.items()})
    fits.PrimaryHDU(data, header).writeto(name, overwrite=True)


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with an image, noise map, mask and PSF."""
    image, noise = IMAGE.copy(), np.full(IMAGE.shape, SIGMA)
    image[15, 20], noise[16, 21] = np.nan, 0.0
    write(
        "image.fits", image, BUNIT="electron/s", CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRPIX1=24.5,
        CRPIX2=20.5, CRVAL1=150.0, CRVAL2=2.0, CD1_1=-0.05 / 3600, CD2_2=0.05 / 3600,
    )  # fmt: skip
    write("noise.fits", noise)
    corner = (np.arange(40)[:, None] < 13) & (np.arange(48) < 14)
    write("mask.fits", corner.astype("u1"))
    write("psf.fits", np.outer(np.hanning(13), np.hanning(13)) * 0.9)
    return folder


def test_every_number_follows_from_the_files(folder: Path) -> None:
    facts = document(
        f"import image.fits {PLAIN} --noise noise.fits --mask mask.fits --centre 22,21 "
        "--size 20x24 --background 3 --flux-scale 2.5 --mask-circle 20,4,1.5 --out a.h5"
    )
    made = Observation.read("a.h5")
    rows, columns = slice(11, 31), slice(10, 34)  # 21 and 22 are numbers 10 and 12 of them
    kept = np.isfinite(made.data)
    assert np.allclose(made.data[kept], 2.5 * (IMAGE[rows, columns][kept] - 3), rtol=1e-12)
    assert np.allclose(np.asarray(made.noise_sigma)[kept][:5], 2.5 * SIGMA)
    expected = np.zeros((20, 24), bool)
    expected[:2, :4] = True  # the mask file
    expected[4, 10] = expected[5, 11] = True  # no datum, no noise
    expected[3:6, 19:22] = True  # the circle, pixels of the cut-out
    assert made.mask is not None and np.array_equal(made.mask, expected)
    header = fits.Header.fromstring(made.wcs_header, sep="\n")
    assert (header["CRPIX1"], header["CRPIX2"]) == (14.5, 9.5)
    assert (header["NAXIS1"], header["NAXIS2"]) == (24, 20)
    assert "3 subtracted, then times 2.5" in str(header["HISTORY"])
    assert made.unit == "0.4 electron/s" and made.flux_scale == 2.5
    assert facts["flux_scale"] == 2.5 and facts["background"] == 3
    assert facts["masked"] == expected.sum()
    assert document("inspect a.h5")["flux_scale"] == 2.5


def test_background_and_flux_are_found_where_asked(folder: Path) -> None:
    common = f"import image.fits {PLAIN} --noise {SIGMA} --size 24 --out b.h5"
    facts = document(f"{common} --background auto --flux-scale auto")
    assert facts["background"] == pytest.approx(SKY, abs=0.02)
    assert facts["peak_over_prior"] == pytest.approx(1)
    assert facts["sky_level"] == pytest.approx(0, abs=1e-9)
    assert facts["sky_scatter"] == pytest.approx(1, abs=0.15)
    shown = invoke(f"{common} --flux-scale 100")
    assert "the frame lies 30 sigma off zero" in " ".join(shown.stderr.split())


def test_a_lens_takes_pixel_scale_and_psf_from_the_files(folder: Path) -> None:
    result = invoke(
        "import image.fits --operator lensing --prior random_field --noise 0.1 --psf psf.fits "
        "--background auto --set lens.0.theta_E=0.5 --out lens.h5"
    )
    lens: Any = Observation.read("lens.h5").operator
    assert lens.pixel_scale == pytest.approx(0.05) and lens.image_shape == (40, 48)
    assert lens.psf.shape == (13, 13) and lens.psf.sum() == pytest.approx(0.9 * 36)
    assert "defaults: lens.0.q=0.8" in result.stderr and "theta_E" not in result.stderr
    assert "next: invprob train --operator lensing --obs lens.h5" in result.stdout
    write("plain.fits", IMAGE)
    refused("import plain.fits --operator lensing --noise 1", 3, "--set pixel_scale=0.05")


@pytest.mark.parametrize("parity", [1, -1])
def test_a_position_angle_is_that_of_the_sky(folder: Path, parity: int) -> None:
    """North is 30 deg from up, counter-clockwise, and east a right angle on, or back (-1)."""
    a, lens = np.radians(30), '{"model":"SIE","theta_E":1,"q":0.5,"position_angle":20}'
    cd = np.array([[-parity * np.cos(a), -parity * np.sin(a)], [-np.sin(a), np.cos(a)]]) * 0.05
    cards = {f"CD{i + 1}_{j + 1}": cd[i, j] / 3600 for i in (0, 1) for j in (0, 1)}
    write(
        "turned.fits", IMAGE, CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRPIX1=24.5, CRPIX2=20.5,
        CRVAL1=0.0, CRVAL2=60.0, **cards,
    )  # fmt: skip
    common = "--operator lensing --prior random_field --noise 0.1 --background auto --out p.h5"
    told = invoke(f"import turned.fits {common} --set lens=[{lens}]").stderr
    assert f"north is 30.0 deg, east {30 + parity * 90:.1f} deg" in " ".join(told.split())
    made: Any = Observation.read("p.h5").operator
    assert np.degrees(made.lens[0].phi) == pytest.approx((90 + 30 + parity * 20) % 180)
    own = lens.replace("}", ',"cd":[[-1,0],[0,1]]}')
    assert "north" not in invoke(f"import turned.fits {common} --set lens=[{own}]").stderr
    made = Observation.read("p.h5").operator
    assert np.degrees(made.lens[0].phi) == pytest.approx(110)
    write("bare.fits", IMAGE)
    bare = f"import bare.fits {common} --set pixel_scale=0.05 --set lens=[{lens}]"
    assert "no celestial WCS, so position angles" in " ".join(invoke(bare).stderr.split())


@pytest.mark.parametrize("frame", ["galactic", "barycentricmeanecliptic"])
def test_north_is_the_equator_s_in_any_system(
    frame: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The offsets of pixels that astropy itself finds; where no system is known it is told."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs import WCS

    letter = "G" if frame == "galactic" else "E"
    step, path = 0.05 / 3600, tmp_path / "a.fits"
    cards = {
        "CTYPE1": f"{letter}LON-TAN", "CTYPE2": f"{letter}LAT-TAN", "CRPIX1": 24.5, "CRPIX2": 20.5,
        "CRVAL1": 120.0, "CRVAL2": 40.0, "CDELT1": -step, "CDELT2": step,
    }  # fmt: skip
    write(str(path), IMAGE, **cards)
    stamp = Stamp.read(path)
    found, wcs = orientation(stamp), WCS(cards)
    ny, nx = IMAGE.shape
    x, y = (nx - 1) / 2, (ny - 1) / 2
    ends = wcs.wcs_pix2world([(x, y), (x + 1, y), (x, y + 1)], 0)
    there = SkyCoord(ends[:, 0], ends[:, 1], unit="deg", frame=frame).icrs
    away = [[o.deg for o in there[0].spherical_offsets_to(end)] for end in there[1:]]
    assert found is not None
    np.testing.assert_allclose(found, np.transpose(away), atol=1e-3 * step)
    assert abs(found[0, 1]) > 0.1 * step  # its own north is another
    write(str(path), IMAGE, **cards | {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"})
    with caplog.at_level("WARNING", "invprob"):
        orientation(Stamp.read(path))
    assert "north is its own" in caplog.text


def test_what_is_not_known_is_not_warned_of(folder: Path) -> None:
    """Neither the scatter of a frame that is masked, nor a PSF that an operator has itself."""
    frame = np.ones(IMAGE.shape, "u1")
    frame[6:-6, 6:-6] = 0
    write("frame.fits", frame)
    common = "--prior random_field --mask frame.fits --noise 0.1 --background 3 --out f.h5"
    told = invoke(f"import image.fits --operator hdr {common}").stderr
    assert "nan" not in told and "sharp" not in told and "fwhm=2" in told
    told = invoke(f"import image.fits --operator lensing {common}").stderr
    assert "perfectly sharp" in told


def test_counts_keep_their_noise(folder: Path) -> None:
    write("counts.fits", RNG.poisson(IMAGE), BUNIT="count")
    own = "--noise poisson --set noise.background=3 --set noise.exposure=10"
    facts = document(f"import counts.fits {PLAIN} {own} --out c.h5")
    assert facts["noise"] == "poisson" and facts["peak_snr"] is None
    made = Observation.read("c.h5").noise_model
    assert made is not None and made.config()["exposure"] == 10
    refused(f"import counts.fits {PLAIN} {own} --flux-scale 2", 3, "leave --background")


def test_gaussian_noise_by_its_name_is_that_of_its_number(folder: Path) -> None:
    common = f"import image.fits {PLAIN} --background 3 --flux-scale 2"
    document(f"{common} --noise {SIGMA} --out number.h5")
    facts = document(f"{common} --noise gaussian --set noise.sigma={SIGMA} --out name.h5")
    assert facts["noise"] == "gaussian" and facts["peak_snr"] > 0
    assert Observation.read("name.h5").sha256() == Observation.read("number.h5").sha256()


def test_fault_14_and_15_unknown_unit_and_other_scale_are_told(folder: Path) -> None:
    write("bare.fits", 1e4 * (IMAGE - SKY))
    shown = " ".join(invoke(f"import bare.fits {PLAIN} --noise 1e3 --out d.h5").stderr.split())
    assert "bare.fits[0] has no BUNIT: its unit is unknown" in shown
    assert "times what this prior and operator give" in shown
    small = "--steps 2 --width 8 --blocks 1 --warm-steps 0 --rtb-steps 0 --set bank=64"
    assert "e+0" in shown.partition("peak at ")[2][:12]
    trained = invoke(f"train --obs d.h5 {small} --set certified=2 --set twin_paths=2 --set twins=2")
    assert "times what this prior and operator give" in " ".join(trained.stderr.split())


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{PLAIN} --noise other.fits", 3, "no file 'other.fits'"),
        (f"{PLAIN} --noise gausian", 2, "gaussian"),
        (f"{PLAIN} --noise -1", 3, "sigma is -1"),
        (f"{PLAIN} --noise 1 --set noise.scale=2", 2, "belongs to --noise NAME"),
        (f"{PLAIN} --noise psf.fits", 3, "(13, 13) but the image (40, 48)"),
        (f"{PLAIN} --noise 1 --mask noise.fits", 3, "values other than 0 and 1"),
        (f"{PLAIN} --noise 1 --size 41", 3, "smaller --size"),
        (f"{PLAIN} --noise 1 --size 4x", 2, "needed N, or NYxNX"),
        (f"{PLAIN} --noise 1 --size 4x5x6", 2, "two sides"),
        (f"{PLAIN} --noise 1 --centre 3", 2, "needed 2 numbers"),
        (f"{PLAIN} --noise 1 --flux-scale 0", 3, "flux_scale is 0"),
        (f"{PLAIN} --noise 1 --background auto --mask-circle 0,0,99", 3, "--background LEVEL"),
        (f"{PLAIN} --noise 1 --psf psf.fits", 2, "no point spread function"),
        ("--operator denoising --prior galaxies-64 --noise 1", 3, "--size 64x64"),
        ("--operator mri --prior random_field --noise 1", 3, "invprob.Observation(...).write"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, command: str, code: int, said: str) -> None:
    refused(f"import image.fits {command} --out no.h5", code, said)
    assert not Path("no.h5").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("./image.fits", "replace what is read"),
        ("noise.fits", "replace what is read"),
        ("psf.fits", "replace what is read"),
        ("obs.png", "its figure takes that name"),
    ],
)
def test_an_input_is_not_replaced(folder: Path, out: str, said: str) -> None:
    given = {name: Path(name).read_bytes() for name in ("image.fits", "noise.fits", "psf.fits")}
    command = "--noise noise.fits[0] --psf psf.fits --operator lensing --prior random_field"
    refused(f"import image.fits[0] {command} --out {out}", 2, said)
    assert given == {name: Path(name).read_bytes() for name in given}
    truth = "simulate --operator lensing --prior random_field --truth image.fits --psf psf.fits"
    if out != "noise.fits":
        refused(f"{truth} --out {out}", 2, said)


def test_parts(tmp_path: Path) -> None:
    inside = circles((5, 7), 0.5, [(1.0, -0.5, 0.1), (-1.5, 1.0, 0.51)])
    assert np.argwhere(inside).tolist() == [[1, 5], [3, 0], [4, 0], [4, 1]]
    level, scatter = sky(np.where(IMAGE > 3.5, np.nan, IMAGE))
    assert level == pytest.approx(SKY, abs=0.02) and scatter == pytest.approx(SIGMA, rel=0.1)
    assert pixel_scale("") is None
    write(str(tmp_path / "a.fits"), IMAGE, CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CDELT1=1, CDELT2=2)
    stamp = Stamp.read(tmp_path / "a.fits", None, (11,))
    assert stamp.corner == (19, 15) and stamp.data.shape == (11, 11)
    with pytest.raises(ObservationError, match="needed squares"):
        pixel_scale(stamp.header)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -1, "CDELT2": 1})
    for axis in (1, 2):
        header[f"CPDIS{axis}"] = header[f"D2IMDIS{axis}"] = "LOOKUP"
        header[f"DP{axis}"] = "EXTVER: 1.0"
        header[f"DP{axis}"] = "NAXES: 2.0"
    text = header.tostring(sep="\n", endcard=False)
    assert pixel_scale(text) == pytest.approx(3600)  # tables of distortion lie in other HDUs
    with pytest.raises(ObservationError, match=r"--set pixel_scale=0.05"):
        pixel_scale(text.replace("DEC--TAN", "DEC--ABC"))


def test_the_peak_expected_is_that_of_the_pixels_kept() -> None:
    prior = load_prior("gaussian", (2,))
    whole = Observation(Linear(np.diag([100.0, 1.0])), np.ones(2), 0.1, np.array([True, False]))
    alone = Observation(Linear(np.array([[0.0, 1.0]])), np.ones(1), 0.1)
    assert scale_ratio(whole, prior) == pytest.approx(scale_ratio(alone, prior))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real lens lies beside the project, not in it")
def test_a_real_lens(folder: Path) -> None:
    facts = document(
        f"import {REAL}/data.fits --noise {REAL}/noise_map.fits --psf {REAL}/psf.fits "
        f"--mask {REAL}/mask_extra_galaxies.fits --operator lensing --set pixel_scale=0.05 "
        "--size 101 --mask-circle 0,0,0.7 --background auto --flux-scale auto --out real.h5"
    )
    assert facts["y_shape"] == [101, 101]
    assert 30 < facts["peak_snr"] < 40
    lens: Any = Observation.read("real.h5").operator
    assert lens.psf.shape == (21, 21) and lens.psf.sum() == pytest.approx(0.95636, abs=1e-5)
