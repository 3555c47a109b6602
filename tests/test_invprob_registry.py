"""The folder is the registry: listing, loading, users' own files, and unknown names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invprob import registry
from operators.base import ForwardOperator
from operators.errors import ObservationError, UnknownName
from operators.linear import Linear

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from operators.denoising import Denoising

@dataclass(frozen=True, eq=False)
class Twice(Denoising):
    summary = "twice x"

    def _apply(self, x):
        return 2 * x

    _apply_adjoint = _apply

class Other(Twice):
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "my_instrument.py"
    file.write_text(OWN)
    return file


def test_names_are_the_files() -> None:
    assert {"denoising", "blur", "linear"} <= set(registry.names("operators"))
    assert {"gaussian", "gaussian_mixture"} <= set(registry.names("priors"))
    for kind, shared in registry.SHARED.items():
        listed = registry.names(kind)
        assert listed == tuple(sorted(listed))
        assert not shared & set(listed)
        assert not any(n.startswith("_") for n in listed)


@pytest.mark.parametrize("name", registry.names("operators"))
def test_every_operator_loads_and_has_the_summary_that_is_listed(name: str) -> None:
    cls = registry.operator_class(name)
    assert issubclass(cls, ForwardOperator)
    assert registry.summary("operators", name) == cls.summary != ""
    assert registry.name_of(cls) == name


@pytest.mark.parametrize("name", registry.names("baselines"))
def test_every_baseline_loads_and_has_a_summary(name: str) -> None:
    assert registry.name_of(registry.baseline_class(name)) == name
    assert registry.summary("baselines", name)


@pytest.mark.parametrize("name", registry.names("priors"))
def test_every_prior_has_a_summary(name: str) -> None:
    assert registry.summary("priors", name)


def test_dash_and_underscore_mean_the_same() -> None:
    assert registry.operator_class("linear") is Linear
    prior = registry.load_prior("gaussian-mixture", (4,))
    assert prior.x_shape == (4,)
    assert registry.load_prior("gaussian_mixture").x_shape == (8,)


@pytest.mark.parametrize("kind", ["operators", "priors"])
def test_fault_16_unknown_name_gives_the_list_and_the_nearest(kind: str) -> None:
    known = registry.names(kind)[0]
    with pytest.raises(UnknownName, match=f"did you mean '{known}'") as caught:
        registry.summary(kind, known + "x")
    assert all(name in str(caught.value) for name in registry.names(kind))
    assert caught.value.exit_code == 2


def test_fault_16_unknown_kind_and_baseline() -> None:
    with pytest.raises(UnknownName, match="operators, priors, baselines"):
        registry.names("lenses")
    with pytest.raises(UnknownName, match="no baseline named 'dpss'"):
        registry.summary("baselines", "dpss")


@pytest.mark.parametrize("name", ["google/ddpm-x", "./nowhere", "a/b/c"])
def test_fault_41_hub_name_is_refused_at_once(name: str) -> None:
    with pytest.raises(UnknownName, match=r"not downloaded.*local path"):
        registry.load_prior(name)


def test_fault_23_damaged_prior_folder_is_listed_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    for name, text in {
        "bad-64": "{",
        "good-64": json.dumps({"x_shape": [64, 64]}),
        "told-64": json.dumps({"x_shape": [64, 64], "summary": "told"}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "invprob.json").write_text(text)
    assert {"bad-64", "good-64", "told-64"} <= set(registry.names("priors"))
    assert registry.summary("priors", "bad_64").startswith("damaged")
    assert registry.summary("priors", "good_64") == "trained diffusion prior on 64 x 64 pixels"
    assert registry.summary("priors", "told-64") == "told"


def test_prior_folder_loads_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DModel

    from priors.pixel import Pixel, PixelConfig

    build: Any = UNet2DModel  # untyped in diffusers
    network = build(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=2,
        attention_head_dim=None,
    )  # fmt: skip
    config = PixelConfig(x_shape=(8, 8), scale=1.0, residuals=(0.1, 1.0))
    saved = Pixel(network, config, tuple(np.linspace(-4, 4, 10)))
    saved.save(tmp_path / "tiny-8")
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    for name in ("tiny-8", "tiny_8", tmp_path / "tiny-8"):
        assert registry.load_prior(name).x_shape == (8, 8)
    weights = tmp_path / "tiny-8" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ObservationError, match=r"is a link to .*elsewhere, out of the prior"):
        registry.load_prior("tiny-8")  # fault_37
    weights.unlink()
    for damaged, said in ((content[:-4], "corrupt"), (b"", "corrupt")):  # fault_23
        weights.write_bytes(damaged)
        with pytest.raises(ObservationError, match=said):
            registry.load_prior("tiny-8")


def test_own_file_runs_and_is_named_without_its_folder(own: Path) -> None:
    cls = registry.operator_class(f"{own}:Twice")
    assert cls.summary == "twice x"
    assert registry.name_of(cls) == "my_instrument.py:Twice"
    assert registry.operator_class(f"{own}:Other").__name__ == "Other"


def test_own_file_missing_class_or_broken_is_told(own: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'Twice'.*It has: Twice, Other"):
        registry.operator_class(f"{own}:Twise")
    with pytest.raises(UnknownName, match=r"did you mean 'my_instrument.py'"):
        registry.operator_class(f"{own.parent}/my_instument.py:Twice")
    own.write_text("1 / 0")
    with pytest.raises(UnknownName, match="does not run: ZeroDivisionError"):
        registry.operator_class(f"{own}:Twice")
    with pytest.raises(UnknownName, match="no Python file"):
        registry.operator_class("https://example.org/x:Twice")
