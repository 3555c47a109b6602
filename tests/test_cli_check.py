"""`invprob check`: operators that keep the contract pass, and each way to break it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import document, invoke, refused

OWN = """
from dataclasses import dataclass
import torch
from operators.base import ForwardOperator, LinearOperator
from operators.denoising import Denoising

@dataclass(frozen=True, eq=False)
class Right(Denoising):
    def _apply(self, x): return 2 * x
    def _apply_adjoint(self, y): return 2 * y

@dataclass(frozen=True, eq=False)
class WrongAdjoint(Denoising):
    def _apply(self, x): return x.roll(1, -1)
    def _apply_adjoint(self, y): return y.roll(1, -1)

@dataclass(frozen=True, eq=False)
class Affine(Right):
    def _apply(self, x): return 2 * x + 1

@dataclass(frozen=True, eq=False)
class Curved(ForwardOperator):
    shape: tuple
    default_prior = "random_field"
    summary = "exponential"
    x_shape = property(lambda self: tuple(self.shape))
    y_shape = x_shape
    @classmethod
    def default(cls, x_shape): return cls(x_shape)
    def _forward(self, x): return torch.exp(x)

@dataclass(frozen=True, eq=False)
class BatchNorm(Curved):
    def _forward(self, x): return x / x.std()

@dataclass(frozen=True, eq=False)
class Detached(Curved):
    def _forward(self, x): return x * torch.exp(x.detach())

@dataclass(frozen=True, eq=False)
class Infinite(Curved):
    def _forward(self, x): return torch.log(x)

@dataclass(frozen=True, eq=False)
class Transposed(Curved):
    def _forward(self, x): return x[..., 1:]

@dataclass(frozen=True, eq=False)
class Raising(Curved):
    def _forward(self, x): return x @ x.new_zeros(3, 3)

@dataclass(frozen=True, eq=False)
class Rounded(Curved):
    def _forward(self, x): return (1e9 + x) - 1e9

@dataclass(frozen=True, eq=False)
class Forgetful(Curved):
    def __post_init__(self): object.__setattr__(self, "gain", torch.rand(()).item())
    def _forward(self, x): return self.gain * x
"""
BROKEN = {
    "WrongAdjoint": "adjoint",
    "Affine": "linear",
    "BatchNorm": "batches",
    "Detached": "gradient",
    "Infinite": "shapes",
    "Transposed": "shapes",
    "Raising": "shapes",
    "Rounded": "precision",
    "Forgetful": "config",
}


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with a user's own operators."""
    (folder / "mine.py").write_text(OWN)
    return folder


def checked(name: str) -> dict[str, Any]:
    command = f"check --operator mine.py:{name} --prior random_field --size 8"
    facts: dict[str, Any] = document(command)
    return facts


def test_operators_that_keep_the_contract_pass(folder: Path) -> None:
    names = {"shapes", "batches", "precision", "config", "gradient", "derivative", "speed"}
    curved = checked("Curved")
    assert curved["passed"] and {c["name"] for c in curved["checks"]} == names
    right = checked("Right")
    assert right["passed"]
    assert {c["name"] for c in right["checks"]} == names | {"linear", "adjoint"}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_operator_is_found(folder: Path, name: str) -> None:
    facts = checked(name)
    assert not facts["passed"]
    failed = {c["name"]: c for c in facts["checks"] if not c["passed"]}
    assert BROKEN[name] in failed
    assert all(c["remedy"] for c in failed.values())


def test_the_likelihood_of_an_observation_is_checked(folder: Path) -> None:
    own = "--operator mine.py:Curved"
    invoke(f"simulate {own} --prior random_field --size 8 --out own.h5")
    shown = invoke(f"check --obs own.h5 {own} --strict")
    assert "likelihood" in shown.stdout and "keeps the contract" in shown.stdout
    invoke("simulate --operator hdr --prior random_field --size 8 --out hdr.h5")
    refused("check --obs hdr.h5 --operator blur", 3, "made with the operator hdr, not blur")
    invoke("check --obs hdr.h5 --size 9", 2)
    facts = document("check --obs hdr.h5")
    assert facts["passed"] and facts["operator"] == "hdr"
    assert "likelihood" in {c["name"] for c in facts["checks"]}


def test_strict_and_usage(folder: Path) -> None:
    broken = "check --operator mine.py:Affine --prior random_field --size 8"
    assert "checks fail" in invoke(broken).stdout
    invoke(f"{broken} --strict", 4)
    refused("check --operator lensin", 2, "did you mean 'lensing'")
    invoke("check", 2)


def test_every_command_takes_a_user_s_operator(folder: Path) -> None:
    """No file is trusted to name the code that is run, so each command is told, and tells it."""
    own = "--operator mine.py:Right"
    invoke(f"simulate {own} --prior random_field --size 8 --out right.h5")
    small = "--steps 8 --warm-steps 2 --rtb-steps 1 --paths 4 --width 8 --set pairs=0"
    shown = invoke(f"train {own} --obs right.h5 --name right {small}").stdout
    assert f"{own}" in shown.rpartition("next:")[2]
    assert own in invoke(f"sample --run right --n 32 {own}").stdout.rpartition("next:")[2]
    shown = invoke(f"compare --run right --baselines dps:steps=5 --n 4 {own}").stdout
    assert own in shown.rpartition("next:")[2]
    invoke(f"diagnose --run right --observations 8 --n 9 {own}")
    invoke(f"train {own} --obs right.h5 --name on --from right --rtb-steps 1 --paths 4")
    refused("sample --run right", 3, "if you trust that code, pass --operator")
