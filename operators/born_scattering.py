"""Inverse scattering to first order: y = G(chi u_in), the field of single scattering alone.

Born 1926, doi:10.1007/BF01397184; geometry, units and Green's function as `operators._scattering`
has them. It holds while the phase that the object adds is small, k * size * contrast / 2 << 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from operators._scattering import Scattering
from operators.base import LinearOperator

__all__ = ["BornScattering"]


@dataclass(frozen=True, eq=False)
class BornScattering(LinearOperator, Scattering):
    """Scattered fields (transmitters, receivers, 2), linear in the contrast; see `Scattering`."""

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "scattered waves of a weak contrast (Born), complex fields"

    def _apply(self, x: Tensor) -> Tensor:
        return self._radiated(self.contrast * x[:, None] * self._table("_incident", x))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        fields = torch.view_as_complex(y.contiguous())
        back = fields @ self._table("_to_receivers", y).conj()
        at_pixels = back.reshape(len(y), self.transmitters, *self.shape)
        return self.contrast * torch.sum(self._table("_incident", y).conj() * at_pixels, 1).real
