"""Write the shipped prior `vorticity-64`: the random field from which flows are set off.

    python examples/make_vorticity.py --out priors/weights/vorticity-64

N(0, c (-laplacian + 49)^-2.5) on the unit square of Li et al. 2021, arXiv:2010.08895 (section 5.3),
is N(0, c (-laplacian + (7 / 2 pi)^2)^-2.5) on the square of side 2 pi of `navier_stokes`. Nothing
is trained; the card says how near the chain's draws are to exact ones.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from invprob.prior_card import report
from invprob.prior_statistics import sheet
from invprob.prior_training import SHEET, check_exact, draw_chain
from priors.random_field import RandomField

TAU, SLOPE = 7.0, 2.5  # of the unit square
SUMMARY = "vorticity at time 0 of a periodic 2-D flow: exact Gaussian random field of 64x64 px"
CARD = """\
# vorticity-64

Vorticity at time 0 on the periodic square of side 2 pi, 64x64 pixels: the Gaussian random field
N(0, c (-laplacian + tau^2)^-{slope}), tau = 7 / 2 pi = {tau:.4g}, that Li et al. 2021
(arXiv:2010.08895, section 5.3) start from on the unit square. Every field has mean 0, as the
vorticity of a periodic flow does; their paper and their code differ in c, here it is such that the
standard deviation is 1, which sets the unit of time. Denoiser and covariance are exact; nothing was
trained. Made by

    python examples/make_vorticity.py --out priors/weights/vorticity-64

The chain has {steps} steps. Its draws are on the left of the sheet `samples.png`, exact ones on the
right.
"""


def main() -> None:
    """Write folder, card and sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    out = parser.parse_args().out
    turnover = TAU / (2 * math.pi)  # waves across either square
    field = RandomField((64, 64), 1.0, turnover, SLOPE, centred=True, unit="1 / unit of time")
    field.save(out, SUMMARY)
    prior = RandomField.load(out)
    card = CARD.format(slope=SLOPE, tau=turnover, steps=prior.steps)
    (out / "README.md").write_text("\n".join([card, *report(check_exact(prior))]) + "\n")
    exact = prior.decode(prior.draw(SHEET, seed=1)).double().numpy()
    sheet(draw_chain(prior, SHEET).double().numpy(), exact, out / "samples.png")


if __name__ == "__main__":
    main()
