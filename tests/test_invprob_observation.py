"""obs.h5: what goes in comes out, and every kind of bad file or data is told, not believed."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invprob import obs_file
from invprob.fits import read_fits_image, read_image
from invprob.observation import Observation, real_array
from operators.blur import Blur
from operators.denoising import Denoising
from operators.errors import InvprobError, ObservationError, RunError
from operators.inpainting import Inpainting
from operators.linear import Linear
from operators.noise import Gaussian, NoiseModel, Poisson, PoissonGaussian, StudentT

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((8, 6))
SHAPE = IMAGE.shape


def made(**changes: Any) -> Observation:
    fields: dict[str, Any] = {"operator": Denoising(SHAPE), "data": IMAGE, "noise_sigma": 0.1}
    return Observation(**fields | changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made().write(tmp_path / "obs.h5")
    return tmp_path / "obs.h5"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ObservationError) as caught:
        Observation.read(path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("own", [-1.0, float("nan"), "loud"])
def test_a_truth_has_a_noise_of_its_own_or_none(own: Any) -> None:
    with pytest.raises(ObservationError, match="truth_sigma"):
        made(truth_sigma=own)


def spoil(path: Path, key: str, **storage: Any) -> None:
    with h5py.File(path, "a") as h5:
        if key in h5:
            del h5[key]
        if storage:
            h5.create_dataset(key, **storage)


OPERATORS = [
    Denoising(SHAPE),
    Linear(RNG.standard_normal((3, 5))),
    Blur(SHAPE, kernel=RNG.random((3, 5)), border="zero"),
    Inpainting(SHAPE, box=(1, 2, 3, 2)),
    Inpainting(SHAPE, keep=RNG.random(SHAPE) > 0.3),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("n", [None, 3])
def test_read_inverts_write(tmp_path: Path, operator: Any, n: int | None) -> None:
    batch = () if n is None else (n,)
    data = RNG.standard_normal((*batch, *operator.y_shape))
    mask = np.zeros(operator.y_shape, bool)
    mask.flat[0] = True
    sigma = RNG.random(operator.y_shape) + 0.5
    truth = RNG.standard_normal((*batch, *operator.x_shape)).astype(np.float32)
    texts = ("gaussian", "[Jy/beam]", "{CTYPE = 'X'")
    saved = Observation(operator, data, sigma, mask, truth, *texts, truth_sigma=0.25)
    saved.write(tmp_path / "obs.h5")
    read = Observation.read(tmp_path / "obs.h5")
    for key in ("data", "noise_sigma", "mask", "truth"):
        before, after = getattr(saved, key), getattr(read, key)
        assert before.dtype == after.dtype
        assert (before == after).all()
    for key in ("prior", "unit", "wcs_header", "name", "truth_sigma"):
        assert getattr(saved, key) == getattr(read, key)
    x = torch.randn(2, *operator.x_shape)
    assert torch.equal(read.operator(x), operator(x))
    assert read.sha256() == saved.sha256()
    assert read.y.shape == (n or 1, *operator.y_shape)
    assert read.y.dtype == torch.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["obs.h5"]


NOISES = [
    Poisson(2.0, torch.full(SHAPE, 0.5)),
    PoissonGaussian(0.1, 0.2),
    StudentT(3.0, torch.full(SHAPE, 0.5), torch.eye(*SHAPE).bool()),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_read_inverts_write_for_any_noise(tmp_path: Path, noise: NoiseModel) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[5, 0] = True
    counts = RNG.integers(0, 9, SHAPE)
    saved = made(data=counts, noise_sigma=None, noise_model=noise, mask=mask)
    saved.write(tmp_path / "obs.h5")
    read = Observation.read(tmp_path / "obs.h5")
    assert read.sha256() == saved.sha256() != made(data=counts, mask=mask).sha256()
    assert read.noise_name == saved.noise_name
    united = mask if noise.mask is None else mask | noise.mask.numpy()
    mean = torch.rand(2, *SHAPE)
    for observation in (saved, read):
        assert observation.noise.kept(SHAPE).tolist() == (~united).tolist()
        expected = type(noise).from_config(noise.config(), torch.tensor(united))
        for y in (observation.y[0], torch.where(torch.tensor(united), torch.nan, observation.y[0])):
            assert torch.equal(observation.noise.log_prob(y, mean), expected.log_prob(y, mean))
    facts = obs_file.facts(tmp_path / "obs.h5")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["noise"] == saved.noise_name
    assert set(facts["noise_parameters"]) == set(noise.parameters())


@pytest.mark.parametrize("sigma", [0.1, np.full(SHAPE, 0.1)], ids=["number", "map"])
def test_a_gaussian_noise_model_is_its_sigma(tmp_path: Path, sigma: Any) -> None:
    mask = np.eye(*SHAPE, dtype=bool)
    given = made(noise_sigma=None, noise_model=Gaussian(sigma, torch.tensor(mask)))
    given.write(tmp_path / "obs.h5")
    sigma = np.where(mask, 1, sigma) if np.ndim(sigma) else sigma  # none is kept under the mask
    expected = made(noise_sigma=sigma, mask=mask).sha256()
    assert Observation.read(tmp_path / "obs.h5").sha256() == given.sha256() == expected
    assert given.noise_model is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise": "poison"}, "did you mean 'poisson'"),
        ({"noise": "evil.py:Noise"}, "names code, which is not run"),
        ({"noise": "student_t"}, "no parameter 'background'"),
        ({"exposure": -1.0}, "noise exposure is -1.0"),
        ({"exposure": "[1, 2"}, "noise exposure has dtype"),
        ({"exposure": None}, "has no parameter 'exposed'"),
        ({"data": IMAGE}, "no counts"),
        ({"data": IMAGE[:4]}, "crop or pad"),
        ({"noise_sigma": 0.1}, "both given"),
    ],
)
def test_a_stored_noise_is_believed_no_more_than_the_rest(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "obs.h5"
    made(data=RNG.integers(0, 9, SHAPE), noise_sigma=None, noise_model=Poisson(2.0)).write(path)
    with h5py.File(path, "a") as h5:
        for key, value in change.items():
            if key == "noise":
                h5.attrs[key] = value
            elif key == "exposure":
                h5["noise"].attrs[key if value is not None else "exposed"] = value or 1.0
            else:
                h5.pop(key, None)
                h5[key] = value
    with pytest.raises(InvprobError, match=said):
        Observation.read(path)


def test_a_noise_without_its_group_is_refused(file: Path) -> None:
    with h5py.File(file, "a") as h5:
        h5.attrs["noise"] = "poisson"
    refused(file, "no group /noise")


def test_files_are_written_with_checksums(file: Path) -> None:
    with h5py.File(file) as h5:
        assert h5["data"].fletcher32
        assert h5["data"].compression == "gzip"
        assert h5.attrs["version"] == 1
        assert h5.attrs["operator"] == "denoising"


def test_digest_sees_what_bears_on_inference_and_nothing_else() -> None:
    base = made().sha256()
    assert base == made(unit="Jy", truth=IMAGE, prior="p").sha256()
    mask = np.zeros(SHAPE, bool)
    mask[0, 0] = True
    for changes in (
        {"data": IMAGE + 1e-9}, {"noise_sigma": 0.2}, {"mask": mask}, {"operator": Blur(SHAPE)}
    ):  # fmt: skip
        assert made(**changes).sha256() != base
    assert made(operator=Blur(SHAPE)).sha256() != made(operator=Blur(SHAPE, fwhm=4.0)).sha256()


def test_digest_sees_parameters_that_are_called_as_the_observation_calls_its_own() -> None:
    @dataclass(frozen=True, eq=False)
    class Masked(Denoising):
        mask: float = 0.0
        noise_sigma: float = 0.0

    base = made(operator=Masked(SHAPE)).sha256()
    assert made(operator=Masked(SHAPE, mask=1.0)).sha256() != base
    assert made(operator=Masked(SHAPE, noise_sigma=1.0)).sha256() != base
    assert made(operator=Masked(SHAPE), noise_sigma=0.2).sha256() != base


def test_a_digest_stays_what_it_was() -> None:
    """Runs know their observation by it."""
    operator = Blur((2, 3), fwhm=2.0)
    digest = made(operator=operator, data=np.arange(6.0).reshape(2, 3)).sha256()
    assert digest == "c7458ade1f3473a343ce5f8d287083383287c357e05d4944cb424a59be0e7c16"


def test_mask_unites_with_that_of_the_operator_and_hides_nan() -> None:
    operator = Inpainting(SHAPE, box=(0, 0, 2, 2))
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 5] = 1
    data = IMAGE.copy()
    data[0, 0], data[5, 5] = np.nan, 1e39  # more than float32 holds
    observation = made(operator=operator, data=data, mask=mask)
    assert observation.noise.count(SHAPE) == IMAGE.size - 5
    assert bool(torch.isfinite(observation.y).all())
    assert bool(torch.isfinite(observation.noise.log_prob(observation.y, observation.y)).all())


def test_facts_are_json_able_and_run_nothing(file: Path) -> None:
    facts = obs_file.facts(file)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["operator"] == "denoising"
    assert facts["data_shape"] == [8, 6]
    assert facts["data_range"] == [IMAGE.min(), IMAGE.max()]
    with h5py.File(file, "a") as h5:
        h5.attrs["operator"] = "evil.py:Operator"
    assert obs_file.facts(file)["operator"] == "evil.py:Operator"


def test_fault_01_missing_file_names_the_nearest(file: Path) -> None:
    refused(file.with_name("obss.h5"), "no file", "did you mean", "obs.h5")
    refused(file.parent / "nowhere" / "obs.h5", "no file")
    refused(file.parent, "folder")


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n" * 200])
def test_fault_02_not_hdf5(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refused(file, "not an HDF5 file")


def test_fault_02_hdf5_of_another_format_or_version(file: Path) -> None:
    with h5py.File(file, "a") as h5:
        h5.attrs["version"] = 2
    refused(file, "format version 2", "reads 1")
    with h5py.File(file, "a") as h5:
        h5.attrs["format"] = "posterior"
    refused(file, "'posterior'", "invprob-observation")


def test_fault_03_truncated(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, f"truncated: {len(whole) // 2} of {len(whole)} bytes")


def test_fault_04_bit_flip_in_data_is_named(file: Path) -> None:
    with h5py.File(file) as h5:
        offset = h5["data"].id.get_chunk_info(0).byte_offset
    content = bytearray(file.read_bytes())
    content[offset + 40] ^= 1
    file.write_bytes(content)
    refused(file, "/data", "fletcher32 mismatch")


def test_fault_04_bit_flip_anywhere_is_refused_or_harmless(file: Path) -> None:
    whole, digest = file.read_bytes(), made().sha256()
    for position in range(0, len(whole), 41):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        file.write_bytes(content)
        with contextlib.suppress(InvprobError):
            assert Observation.read(file).sha256() == digest


def test_fault_05_bomb_is_refused_before_reading(file: Path) -> None:
    spoil(file, "data", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000), compression="gzip")
    assert file.stat().st_size < 20_000
    refused(file, "/data declares (1000000, 1000000)", "GiB")


def test_fault_06_external_storage_and_virtual_data_are_refused(file: Path) -> None:
    secret = file.with_name("secret")
    secret.write_bytes(bytes(8 * IMAGE.size))
    spoil(file, "data", shape=SHAPE, dtype="f8", external=[(str(secret), 0, 8 * IMAGE.size)])
    refused(file, "/data lies in another file")
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "data", shape=SHAPE)
    spoil(file, "data")
    with h5py.File(file, "a") as h5:
        h5.create_virtual_dataset("data", layout)
    refused(file, "/data lies in another file")


@pytest.mark.parametrize("key", ["data", "operator", "psf", "operator/kernel"])
def test_fault_07_links_are_refused_and_named(file: Path, key: str) -> None:
    for link, target in (
        (h5py.ExternalLink("/etc/other.h5", "/data"), "/etc/other.h5:/data"),
        (h5py.SoftLink("/nowhere"), "/nowhere"),
    ):
        spoil(file, key)
        with h5py.File(file, "a") as h5:
            h5[key] = link
        refused(file, f"/{key} is a link to {target}")


def test_fault_08_open_elsewhere(file: Path) -> None:
    with h5py.File(file, "a"):
        code = (
            "import sys; from invprob import obs_file; from operators.errors import InvprobError\n"
            "try: obs_file.facts(sys.argv[1])\n"
            "except InvprobError as e: sys.exit(str(e))"
        )
        command = [sys.executable, "-c", code, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
    assert "open elsewhere" in result.stderr
    assert result.returncode == 1


def test_fault_09_nan_is_counted_and_located() -> None:
    data = IMAGE.copy()
    data[2, 3] = data[4, 5] = np.nan
    with pytest.raises(ObservationError, match=r"data has 2 values.*\(2, 3\): mask them"):
        made(data=data)
    made(data=data, mask=np.isnan(data))
    with pytest.raises(ObservationError, match=r"first at \(1, 2, 3\)"):
        made(data=np.stack([IMAGE, data]))
    with pytest.raises(ObservationError, match="truth has 2 values"):
        made(truth=data)


@pytest.mark.parametrize("unit", [1e-20, 1e20, 1e39])
def test_what_single_precision_cannot_hold_is_refused(unit: float) -> None:
    """Inference would take these data for 0, or their noise for none or for infinite."""
    what = "data.*value" if unit > 1e38 else "noise_sigma.*sigma"
    with pytest.raises(ObservationError, match=rf"{what}.*float32.*flux-scale"):
        made(data=IMAGE * unit, noise_sigma=unit)
    made(data=IMAGE * min(unit, 1e30), noise_sigma=1.0)
    some = np.zeros(SHAPE, bool)
    some[2, 3] = True
    odd = {"data": np.where(some, unit, IMAGE), "noise_sigma": np.where(some, unit, 1.0)}
    made(**odd, mask=some)
    with pytest.raises(ObservationError, match="1 pixels have"):
        made(**odd)


def test_fault_10_all_masked_empty_constant() -> None:
    with pytest.raises(ObservationError, match="excludes every pixel"):
        made(mask=np.ones(SHAPE, bool))
    with pytest.raises(ObservationError, match="data is empty"):
        made(data=np.zeros((0, *SHAPE)))
    with pytest.raises(ObservationError, match=r"constant \(2\) at all 48"):
        made(data=np.full(SHAPE, 2.0))
    with pytest.raises(ObservationError, match="constant"):
        made(data=np.stack([IMAGE, np.zeros(SHAPE)]))
    made(operator=Linear(np.ones((1, 3))), data=np.ones(1))  # one number cannot vary


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        (0.0, "sigma is 0"),
        (-1, "sigma is -1"),
        (np.nan, "sigma is nan"),
        (np.where(IMAGE > 1, 0, 1.0), "noise sigma is 0"),
        (np.ones((3, 3)), r"noise sigma.*shape \(3, 3\)"),
        (None, "noise_sigma is missing"),
        ("0.1", "noise_sigma has dtype"),
    ],
)
def test_fault_11_bad_sigma_is_named(sigma: Any, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        made(noise_sigma=sigma)


def test_fault_11_file_without_noise(file: Path) -> None:
    spoil(file, "noise_sigma")
    refused(file, "noise_sigma is missing", "mandatory")


def test_fault_12_shapes_that_do_not_fit() -> None:
    with pytest.raises(ObservationError, match=r"\(5, 5\) but denoising gives \(8, 6\): crop"):
        made(data=np.eye(5))
    with pytest.raises(ObservationError, match=r"truth has shape \(2,\)"):
        made(truth=np.ones(2))
    with pytest.raises(ObservationError, match=r"mask has shape \(2,\)"):
        made(mask=np.ones(2, bool))


def test_fault_13_dtypes_are_converted_or_refused(file: Path) -> None:
    for dtype, kept in ((">f8", "f8"), (">f4", "f4"), (">i2", "f8"), ("f2", "f4"), ("u1", "f8")):
        array = (10 * IMAGE).astype(dtype)
        result = made(data=array).data
        assert result.dtype == np.dtype(kept)
        assert (result == array).all()
    for bad in (IMAGE.astype(complex), IMAGE.astype(object), IMAGE.astype(str)):
        with pytest.raises(ObservationError, match=r"data has dtype.*needed real numbers"):
            made(data=bad)
    with pytest.raises(ObservationError, match="mask has dtype float64"):
        made(mask=IMAGE)
    spoil(file, "data", data=IMAGE.astype(">f4"))
    assert (Observation.read(file).data == IMAGE.astype("f4")).all()
    spoil(file, "data", data=np.array([["a"]], object), dtype=h5py.string_dtype())
    refused(file, "/data has dtype object")
    spoil(file, "data", data=IMAGE.astype(complex))
    refused(file, "/data has dtype complex128")
    assert not real_array("x", IMAGE).flags.writeable


def test_a_file_never_makes_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own-1.py"
    own.write_text(
        "from operators.denoising import Denoising\nopen('ran', 'w')\nclass Own(Denoising): pass\n"
    )
    from invprob import registry

    cls = registry.operator_class("own-1.py:Own")
    made(operator=cls.default(SHAPE)).write("obs.h5")
    (tmp_path / "ran").unlink()
    refused(Path("obs.h5"), "own-1.py:Own", "--operator")
    assert not (tmp_path / "ran").exists()
    assert Observation.read("obs.h5", operator=f"{own}:Own").name == "own-1.py:Own"
    assert (tmp_path / "ran").exists()
    with pytest.raises(ObservationError, match=r"made with the operator own-1.py:Own, not blur"):
        Observation.read("obs.h5", operator="blur")
    made(prior="own-1.py:Prior").write("obs.h5")
    with caplog.at_level(logging.WARNING, "invprob"):
        assert Observation.read("obs.h5").prior == ""
    assert "own-1.py:Prior, which is ignored" in caplog.text
    caplog.clear()
    assert Observation.read("obs.h5", prior=f"{own}:Prior").prior == "" and not caplog.text


def test_unknown_operator_parameter_is_told(file: Path) -> None:
    with h5py.File(file, "a") as h5:
        h5["operator"].attrs["shap"] = 3
    refused(file, "no parameter 'shap'", "did you mean 'shape'")


def test_fault_31_unwritable_output_leaves_what_was_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    with pytest.raises(RunError, match="does not exist; create it"):
        made().write(file.parent / "nowhere" / "obs.h5")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(obs_file, "_fill", full)
    with pytest.raises(RunError, match=r"No space.*MB or more free"):
        made().write(file)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_fits_image_native_float64_and_header(tmp_path: Path) -> None:
    from astropy.io import fits

    path = tmp_path / "a.fits"
    header = fits.Header({"BUNIT": "Jy", "CTYPE1": "RA---TAN"})
    fits.PrimaryHDU(IMAGE.astype(">f4"), header).writeto(path)
    image, text = read_fits_image(path)
    assert image.dtype == np.dtype("=f8")
    assert (image == IMAGE.astype("f4")).all()
    assert fits.Header.fromstring(text, sep="\n")["CTYPE1"] == "RA---TAN"
    assert (read_image(path)[0] == image).all()


@pytest.mark.parametrize("dtype", ["i2", "u2", "u4"])
def test_blank_pixels_are_not_a_number(tmp_path: Path, dtype: str) -> None:
    from astropy.io import fits

    image = fits.PrimaryHDU(np.arange(6, dtype=dtype).reshape(2, 3) + np.array(9, dtype))
    zero = int(image.header.get("BZERO", 0))
    image.header["BLANK"] = 11 - zero  # before BZERO is added
    image.writeto(tmp_path / "a.fits")
    read, _ = read_fits_image(tmp_path / "a.fits")
    assert np.array_equal(read, [[9, 10, np.nan], [12, 13, 14]], equal_nan=True)


def test_fault_14_fits_states_what_it_assumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from astropy.io import fits

    path = tmp_path / "a.fits"
    scaled = fits.ImageHDU(np.arange(12, dtype="i2").reshape(3, 4))
    scaled.header["BSCALE"], scaled.header["BZERO"] = 2.0, 5.0
    cube = fits.ImageHDU(RNG.random((3, 4, 5)))
    deep = fits.ImageHDU(IMAGE[None])
    fits.HDUList([fits.PrimaryHDU(), scaled, cube, deep]).writeto(path)
    with caplog.at_level(logging.WARNING, "invprob"):
        image, _ = read_fits_image(path)
    assert (image == np.arange(12).reshape(3, 4) * 2 + 5).all()
    assert "no BUNIT" in caplog.text
    assert "HDU 1 taken of [1, 3]" in caplog.text
    assert (read_fits_image(f"{path}[3]")[0] == IMAGE).all()
    assert (read_fits_image(f"{path}[2,1]")[0] == cube.data[1]).all()
    for suffix, words in (("[0]", "in HDU 0"), ("[2]", "HDU,plane"), ("[9]", "HDU 9")):
        with pytest.raises(ObservationError, match=words):
            read_fits_image(f"{path}{suffix}")
    with pytest.raises(ObservationError, match="no plane 3"):
        read_fits_image(f"{path}[2,3]")


def test_a_cube_of_one_plane_has_that_plane(tmp_path: Path) -> None:
    from astropy.io import fits

    cube = np.arange(30.0).reshape(1, 5, 6)
    fits.PrimaryHDU(cube).writeto(tmp_path / "one.fits")
    assert np.array_equal(read_fits_image(f"{tmp_path}/one.fits[0,0]")[0], cube[0])
    with pytest.raises(ObservationError, match="no plane 1"):
        read_fits_image(f"{tmp_path}/one.fits[0,1]")
    fits.PrimaryHDU(cube.reshape(5, 6, 1, 1).repeat(2, 2)).writeto(tmp_path / "odd.fits")
    assert read_fits_image(f"{tmp_path}/odd.fits[0,4]")[0].shape == (6, 2)


def test_bad_image_files_are_refused(tmp_path: Path) -> None:
    from astropy.io import fits

    path = tmp_path / "a.fits"
    fits.PrimaryHDU(RNG.random((100, 100))).writeto(path)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ObservationError, match="not a readable FITS"):
        read_fits_image(path)
    path.write_text("hello")
    with pytest.raises(ObservationError, match="not a readable FITS"):
        read_fits_image(path)
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.ones(3))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    with pytest.raises(ObservationError, match="holds no images"):
        read_fits_image(path)
    with pytest.raises(ObservationError, match="did you mean"):
        read_fits_image(tmp_path / "b.fits")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ObservationError, match=r"not a plain .npy"):
        read_image(tmp_path / "o.npy")
    np.save(tmp_path / "v.npy", np.arange(3))
    assert read_image(tmp_path / "v.npy")[0].tolist() == [0, 1, 2]
