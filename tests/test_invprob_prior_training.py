"""Training of priors: simulators, images from files, the command, stopping and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from conftest import document, invoke, refused
from matplotlib.image import imsave

from invprob import prior_training
from invprob.prior_data import read, simulated, split
from invprob.prior_recipe import Recipe
from invprob.prior_statistics import validation
from invprob.prior_training import train_prior, untrained
from invprob.registry import load_prior, names
from operators.errors import NumericalError, ObservationError, RunError
from priors._autoencoder_training import AutoencoderTraining
from priors._folder import WEIGHTS
from priors.pixel import PixelConfig
from priors.training import Training, averaged, patch_of, unet

SIDE = 16
LIGHT = {"phantoms": (0.5, 2.0), "galaxies": (0.3, 3.0), "digits": (0.7, 1.01)}  # of the peak


def small(side: int, patch: int) -> torch.nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    made: torch.nn.Module = UNet2DModel(
        sample_size=side // patch,
        in_channels=patch**2,
        out_channels=patch**2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=2,
        add_attention=False,
    )
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network small and its measurements coarse: what is tested is their way."""
    monkeypatch.setattr(prior_training, "unet", small)
    monkeypatch.setattr(prior_training, "PixelConfig", partial(PixelConfig, steps=4))
    monkeypatch.setattr(prior_training, "SHOWN", 2)
    for module in ("quality", "statistics"):
        monkeypatch.setattr(f"invprob.prior_{module}.RHOS", (0.5, 2.0))
    monkeypatch.setattr("priors.base.RESIDUAL_TIMES", 3)
    monkeypatch.setattr("priors._residual_model.DRAWS", 8)

    monkeypatch.setattr(prior_training, "sheet", lambda *_, **__: None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).gamma(1.0, 0.1, (96, SIDE, SIDE)).astype(np.float32)
    np.save(tmp_path / "images.npy", x)
    return tmp_path / "images.npy"


@pytest.mark.parametrize("name", names("simulators"))
def test_simulators_are_reproducible_and_scaled(name: str) -> None:
    few, more = (simulated(name, n, seed=1, size=32) for n in (2, 24))
    assert np.array_equal(few, more[:2]) and not np.array_equal(more[0], more[1])
    assert more.dtype == np.float32 and more.min() >= 0
    if name == "blackhole":
        assert np.median(more.sum((1, 2))) == pytest.approx(1, rel=0.3)
    else:
        low, high = LIGHT[name]
        assert low < np.median(more.max((1, 2))) < high


def test_processes_draw_the_same_images() -> None:
    assert np.array_equal(simulated("phantoms", 80, 3, 16, 2), simulated("phantoms", 80, 3, 16))


def test_phantoms_do_not_depend_on_the_pixel_grid() -> None:
    """The same phantom on a finer grid, binned, is the phantom up to its soft edges."""
    coarse, fine = (simulated("phantoms", 8, seed=2, size=size) for size in (64, 192))
    binned = fine.reshape(8, 64, 3, 64, 3).mean((2, 4))
    assert np.abs(binned - coarse).mean() < 0.1 * coarse.mean()


def store(x: np.ndarray, form: str, folder: Path) -> Path:
    """Write images (n, H, W) in a form that priors are trained on."""
    path = folder / f"images.{form}"
    match form:
        case "npy":
            np.save(path, x)
        case "h5":
            with h5py.File(path, "w") as file:
                file["images"] = x
                file["labels"] = np.arange(len(x))
        case "fits":
            fits.writeto(path, x)
        case _:
            path = folder / form
            path.mkdir()
            for i, image in enumerate(x):
                name = path / f"{i:03d}.{form}"
                if form == "png":
                    imsave(name, np.repeat(np.rint(255 * image[::-1, :, None]), 3, 2).astype("u1"))
                else:
                    fits.writeto(name.with_suffix(".fits"), image)
    return path


@pytest.mark.parametrize(
    ("form", "error"), [("npy", 0), ("h5", 0), ("fits", 0), ("fits folder", 0), ("png", 0.003)]
)
def test_images_are_read_from(form: str, error: float, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((64, 8, 12)).astype(np.float32)
    assert np.abs(read(store(x, form, tmp_path)) - x).max() <= error


@pytest.mark.parametrize(
    ("dtype", "peak", "said"), [("f4", 1e3, 1e3), ("i4", 1e6, 1e6), ("u2", 6e4, 6e4 / 65535)]
)
def test_deep_tiffs_keep_their_numbers(
    dtype: str, peak: float, said: float, tmp_path: Path
) -> None:
    from PIL import Image

    x = np.linspace(0, peak, 12).reshape(3, 4).astype(dtype)
    for i in range(64):
        Image.fromarray(x[::-1].copy()).save(tmp_path / f"{i:02d}.tif")
    found = read(tmp_path)
    np.testing.assert_allclose(found[0], x * (said / peak), rtol=1e-6)


def test_images_are_those_of_the_hdu_asked_for(tmp_path: Path) -> None:
    first, other = np.random.default_rng(0).random((2, 64, 8, 8)).astype(np.float32)
    fits.HDUList([fits.PrimaryHDU(first), fits.ImageHDU(other)]).writeto(tmp_path / "a.fits")
    assert np.array_equal(read(tmp_path / "a.fits"), first)
    assert np.array_equal(read(tmp_path / "a.fits[1]"), other)


def test_images_are_binned_and_cut_to_size(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((64, 33, 40)))
    assert np.array_equal(read(tmp_path / "x.npy", 16), np.ones((64, 16, 16)))
    np.save(tmp_path / "x.npy", np.ones((64, 10, 20)))
    assert read(tmp_path / "x.npy", 16).sum() == 64 * 16 * 10


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((5, 16, 16)), "64 or more"),
        (np.zeros((64, 16)), r"\(n, H, W\)"),
        (np.full((64, 16, 16), np.nan), "image 0 .* not finite"),
    ],
)
def test_unfit_images_are_refused(x: np.ndarray, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ObservationError, match=said):
        read(tmp_path / "x.npy")


def test_held_out_images_are_none_of_those_trained_on(images: Path) -> None:
    parts = split(str(images), None, 0, 2048, seed=0)
    assert len(parts.held_out) == 9 and len(parts.train) == 87
    assert np.array_equal(
        np.sort(np.concatenate([parts.train, parts.held_out]), 0), np.sort(np.load(images), 0)
    )
    drawn = split("digits", 16, 4, 4, seed=0)
    assert not (drawn.train[:, None] == drawn.held_out).all((2, 3)).any()


@pytest.mark.parametrize(("side", "patch"), [(16, 1), (28, 1), (32, 2), (64, 4), (128, 8)])
def test_the_network_sees_at_least_16_pixels(side: int, patch: int) -> None:
    assert patch_of(side) == patch


def test_a_side_that_suits_no_network_is_refused() -> None:
    for side in (12, 30):
        with pytest.raises(ObservationError, match="multiple of 4"):
            patch_of(side)


def test_shipped_network_has_the_shape_of_its_input() -> None:
    z = torch.zeros(1, 16, 16, 16)
    assert unet(64, 4)(z, 0).sample.shape == z.shape


class Stop(Exception):
    pass


def stop(at: int) -> Callable[..., None]:
    def progress(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if stage == "train prior" and done == at:
            raise Stop

    return progress


def test_a_stopped_training_ends_with_the_same_folder(images: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        str(images), bank=4, training=Training(steps=6, batch=4, checkpoint_every=2, turns=False)
    )
    train_prior(recipe, tmp_path / "a", tmp_path / "work-a")
    with pytest.raises(Stop):
        train_prior(recipe, tmp_path / "b", tmp_path / "work-b", progress=stop(4))
    assert not (tmp_path / "b").exists()
    train_prior(recipe, tmp_path / "b", tmp_path / "work-b")
    for name in (WEIGHTS, "bank.safetensors", "invprob.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    rows = [json.loads(row) for row in (tmp_path / "work-b" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert set(rows[-1]["validation"]) == {"0.5", "2"}


@pytest.mark.parametrize(
    ("shape", "latent", "said"),
    [((16, 20), False, "--size"), ((18, 18), False, "multiple of 4"), ((24, 24), True, "of 16")],
)
def test_images_that_suit_no_network_leave_nothing_to_go_on_from(
    tmp_path: Path, shape: tuple[int, int], latent: bool, said: str
) -> None:
    np.save(tmp_path / "x.npy", np.ones((64, *shape)))
    coding = AutoencoderTraining() if latent else None
    recipe = Recipe(str(tmp_path / "x.npy"), training=Training(steps=2), autoencoder=coding)
    with pytest.raises(ObservationError, match=said):
        train_prior(recipe, tmp_path / "p", tmp_path / "w")
    fitted = replace(recipe, size=SIDE, autoencoder=None)
    with pytest.raises(Stop):
        train_prior(fitted, tmp_path / "p", tmp_path / "w", progress=stop(2))
    assert np.load(tmp_path / "w" / "train.npy").shape[1:] == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--set warmup=0", "warmup must be at least 1"),
        ("--set checkpoint_every=0", "checkpoint_every must be at least 1"),
        ("--set rho_centre=0", "rho_centre must be"),
        ("--latent --set autoencoder.report_every=0", "report_every must be at least 1"),
        ("--latent --set autoencoder.warmup=0", "warmup must be at least 1"),
    ],
)
def test_settings_that_train_nothing_are_refused(
    images: Path, tmp_path: Path, settings: str, said: str
) -> None:
    refused(f"prior train --data {images} --out {tmp_path / 'p'} {settings}", 3, said)


def test_the_folder_one_stands_in_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    shown = invoke("prior train --data nothing.npy --out .", 3).stderr
    assert str(tmp_path / "mine.training") in " ".join(shown.split())


def test_a_folder_of_other_files_is_kept(images: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(RunError, match="no prior"):
        train_prior(Recipe(str(images)), tmp_path, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_training_learns_what_noise_hides(images: Path, tmp_path: Path) -> None:
    """Of one image alone, up to 1% in brightness, that a network can know behind any noise."""
    image = simulated("phantoms", 1, 0, SIDE)
    np.save(images, image * np.linspace(0.99, 1.01, 80, dtype=np.float32)[:, None, None])
    config = Training(steps=60, batch=8, rate=5e-3, warmup=5, ema=0.9, checkpoint_every=60)
    recipe = Recipe(str(images), bank=4, training=replace(config, turns=False))
    learned = train_prior(recipe, tmp_path / "p", tmp_path / "w").denoising_error["2"]
    held_out = np.load(tmp_path / "w" / "held_out.npy").astype(float)
    start = untrained(held_out.shape[1:], load_prior(tmp_path / "p").scale, recipe)
    assert learned < 0.3 and validation(start, held_out)["2"] > 0.6


def test_a_loss_that_is_not_finite_keeps_the_last_state(images: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        str(images), bank=4, training=Training(steps=8, batch=4, checkpoint_every=2, warmup=1)
    )
    with pytest.raises(Stop):
        train_prior(recipe, tmp_path / "p", tmp_path / "w", progress=stop(2))
    np.save(tmp_path / "w" / "train.npy", np.full((8, SIDE, SIDE), np.inf, np.float32))
    with pytest.raises(NumericalError, match="lower `rate`"):
        train_prior(recipe, tmp_path / "p", tmp_path / "w")
    kept = averaged(tmp_path / "w" / "ckpt.pt")
    assert all(value.isfinite().all() for value in kept.values())


@pytest.mark.slow
def test_command_trains_a_prior_that_inference_takes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "prior train --data images.npy --out mine --steps 2 --batch 4 --bank 32 --unit Jy"
    found = document(command)
    assert found["folder"] == "mine" and set(found["denoising_error"]) == {"0.5", "2"}
    again = document("prior check mine")
    assert again["checks"] == found["checks"] and again["data"] == "images.npy, held out"
    assert not again["passed"]  # two steps teach nothing
    invoke("prior check mine --strict", 4)
    (tmp_path / "mine" / "training.json").unlink()
    refused("prior check mine", 2, "give --data")
    assert document("prior check mine --data phantoms --n 64")["data"] == "phantoms"
    prior = load_prior("mine")
    assert prior.x_shape == (SIDE, SIDE) and prior.unit == "Jy"
    assert prior.decode(prior.draw(3, seed=0)).shape == (3, SIDE, SIDE)
    facts = document("inspect mine")
    assert facts["turns"] is False
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "--data images.npy" in card and "--steps 2 --batch 4" in card
    assert "wrote mine" in invoke(command).stdout  # nothing is left to train
    refused(f"{command} --seed 1", 1, "another training (seed 0, now 1")
    refused(command.replace("images.npy", "phantom"), 2, "did you mean 'phantoms'")
    misspelt = command.replace("images.npy", "image.npy").replace("mine", "other")
    refused(misspelt, 3, "did you mean 'images.npy'")
