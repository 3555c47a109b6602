"""The networks of a latent prior, and the training of the autoencoder that comes first.

    x (H, H)  ->  blocks of 4x4 px as 16 channels  ->  codes z (8, H/8, H/8)

The autoencoder is trained whole, then its codes are made to have mean 0 and variance 1, and then
their diffusion is trained as that of pixels is (`invprob.prior_training`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from operators.errors import ObservationError
from priors._autoencoder import FOLDER, Autoencoder
from priors._autoencoder_training import AutoencoderTraining, train_autoencoder, whiten
from priors._folder import WEIGHTS_FILE

if TYPE_CHECKING:
    from invprob.trajectory import Progress

PATCH, CODE = 4, 8  # side of the decoder's blocks, px; channels of the code
SIDE = 16  # px: images are multiples of it, so that the network of the codes can halve theirs
STEPS = 50  # of the chain
WHITENED = 4096  # images whose codes are made to have mean 0 and variance 1


def coder(size: int) -> Any:
    """Return the untrained autoencoder of images of `size` px, a multiple of 16, at least 32.

    0.7 M parameters, its decoder 3 ms for 64x64 pixels on one core; always the same.
    """
    from diffusers import AutoencoderKL

    if size % SIDE or size < 2 * SIDE:
        raise ObservationError(
            f"images of side {size} px suit no autoencoder; needed a multiple of {SIDE}, at least "
            f"{2 * SIDE}"
        )
    torch.manual_seed(0)
    return AutoencoderKL(  # type: ignore[no-untyped-call]  # diffusers
        in_channels=PATCH**2,
        out_channels=PATCH**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(48, 64),
        layers_per_block=1,
        latent_channels=CODE,
        norm_num_groups=8,
        sample_size=size // PATCH,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def network(size: int) -> Any:
    """Return the untrained network of the codes of images of `size` px: 2.3 M parameters."""
    from diffusers import UNet2DModel

    torch.manual_seed(1)
    return UNet2DModel(  # type: ignore[no-untyped-call]  # diffusers
        sample_size=size // (2 * PATCH),
        in_channels=CODE,
        out_channels=CODE,
        block_out_channels=(80, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
    )


def trained_coder(
    pool: NDArray[np.float32],
    scale: float,
    config: AutoencoderTraining,
    work: Path,
    progress: Progress | None = None,
) -> Autoencoder:
    """Return the autoencoder of images `pool` (n, H, H): the one in `work`, or a new one put there.

    A training that was stopped begins anew. `scale` is the rms of the images.
    """
    if not (work / FOLDER / WEIGHTS_FILE).exists():
        autoencoder = Autoencoder(coder(pool.shape[-1]), scale, PATCH)
        for step, error, nats in train_autoencoder(autoencoder, pool, config):
            if progress:
                progress("train autoencoder", step, config.steps, {"error": error, "KL": nats})
        whiten(autoencoder.cpu(), torch.from_numpy(pool[:WHITENED]))
        partial = work / "autoencoder.partial"  # whole or not there: it may be killed meanwhile
        for stale in (partial, work / FOLDER):
            shutil.rmtree(stale, ignore_errors=True)
        autoencoder.save(partial)
        (partial / FOLDER).replace(work / FOLDER)
        partial.rmdir()
    return Autoencoder.load(work, scale, PATCH)  # as it is kept: rounded to half precision
