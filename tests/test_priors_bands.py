"""Several bands: the chain, posterior and evidence are those of the bands one by one."""

from __future__ import annotations

import pytest
import torch

from invprob import registry
from invprob.comparison import parse
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.proximal import proximal_shift
from operators.denoising import Denoising
from operators.noise import Gaussian
from priors._bands import Bands
from tests.conftest import document


def test_a_prior_of_images_serves_bands() -> None:
    one = registry.load_prior("random_field", (6, 5))
    bands = registry.load_prior("random_field", (3, 6, 5))
    assert isinstance(bands, Bands)
    assert (bands.x_shape, bands.z_shape) == ((3, 6, 5), (3, 6, 5))
    z = bands.draw(2, 0)
    torch.testing.assert_close(z.flatten(0, 1), one.draw(6, 0))
    for i in range(3):
        torch.testing.assert_close(bands.denoise(z, 0.4)[:, i], one.denoise(z[:, i], 0.4))
        torch.testing.assert_close(bands.decode(z)[:, i], one.decode(z[:, i]))
    torch.testing.assert_close(bands.encode(bands.decode(z)), z)
    trained = registry.load_prior("digits-32", (2, 32, 32))
    assert trained.z_shape == (2 * 4, 16, 16)
    image = trained.decode(trained.draw(1, 0))
    assert image.shape == (1, 2, 32, 32)
    torch.testing.assert_close(trained.decode(trained.encode(image)), image)
    # pairs of real and imaginary parts are no bands
    assert trained.bank is not None  # stored: no chain of bands is run to simulate data
    assert registry.load_prior("gaussian", (3, 4, 2)).x_shape == (3, 4, 2)


@pytest.mark.parametrize("name", ["random_field", "digits-32", "galaxies-64-latent"])
def test_bands_take_the_baselines_of_one(name: str) -> None:
    one = registry.load_prior(name)
    bands = registry.load_prior(name, (2, *one.x_shape))
    noise = Gaussian(0.1)
    for method in map(parse, registry.names("baselines")):
        alone = method.lacks(one, Denoising(one.x_shape), noise)
        assert method.lacks(bands, Denoising(bands.x_shape), noise) == alone


def test_guidance_of_bands_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invprob.proximal.CG_TOLERANCE", 1e-6)  # usually both stop far sooner
    for name, size in (("random_field", 6), ("digits-32", 32)):
        one = registry.load_prior(name, (size, size))
        bands = registry.load_prior(name, (2, size, size))
        z = bands.draw(3, 1)
        clean = bands.denoise(z, 0.5)
        x, y = bands.decode(clean), bands.decode(bands.draw(1, 2))
        shift, *_ = proximal_shift(
            Likelihood(Denoising((2, size, size)), Gaussian(0.1), y),
            x,
            bands.covariance(z, 0.5, clean),
        )
        for i in range(2):
            states = z.reshape(3, 2, *one.z_shape)[:, i]
            likelihood = Likelihood(Denoising((size, size)), Gaussian(0.1), y[:, i])
            alone, *_ = proximal_shift(
                likelihood, x[:, i], one.covariance(states, 0.5, one.denoise(states, 0.5))
            )
            torch.testing.assert_close(shift[:, i], alone, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_a_lens_in_two_bands_goes_the_whole_way(folder: object) -> None:
    small = "--size 2x8x8 --set image_shape=[10,10] --set pixel_scale=0.4"
    document(f"simulate --operator lensing --prior random_field {small} --out bands.h5")
    observation = Observation.read("bands.h5")
    assert observation.operator.y_shape == (2, 10, 10)
    short = "--set steps=6 --set warm_steps=2 --set rtb_steps=1 --set paths=4 --set certified=4"
    document(f"train --obs bands.h5 {short} --set twins=2 --set width=8")
    assert document("sample --n 4")["n"] == 4
