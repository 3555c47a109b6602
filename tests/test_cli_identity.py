"""What a run knows of its prior, its weights and its draws, so that none is taken for another."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from priors.random_field import RandomField
from tests.conftest import document, invoke, refused

SIMULATE = "simulate --operator denoising --size 16 --noise 0.2 --seed 3"
SMALL = "--steps 6 --width 8 --blocks 1 --warm-steps 2 --rtb-steps 1 --paths 4 --set bank=64"


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with two priors of one name, and a run of the first."""
    for place, slope in (("a", 2.5), ("b", 4.0)):
        RandomField((16, 16), slope=slope).save(Path(place, "field"))
    invoke(f"{SIMULATE} --prior a/field --out obs.h5")
    invoke(f"train --obs obs.h5 --name ours {SMALL}")
    return folder


def test_another_prior_of_the_same_name_is_not_the_runs_own(folder: Path) -> None:
    refused("sample --run ours --n 4 --prior b/field", 2, "another prior named a/field")
    refused("train --resume ours --prior b/field", 1, "prior_sha256: ")
    Path("a/field").rename("moved")
    Path("elsewhere").mkdir()
    Path("moved").rename("elsewhere/field")
    document("sample --run ours --n 4 --prior elsewhere/field")
    Path("elsewhere/field").rename("a/field")


def test_compare_takes_the_run_of_the_prior_that_is_meant(folder: Path) -> None:
    found = [
        {row["name"] for row in document(f"compare --obs obs.h5 --n 4 {options}")["methods"]}
        for options in ("--baselines dps:steps=4", "--baselines dps:steps=4 --prior b/field")
    ]
    assert len(found[0]) == len(found[1]) + 1


def test_fault_24_a_flipped_bit_in_a_policy_is_told(folder: Path) -> None:
    policy = Path("runs/ours/policy.safetensors")
    content = policy.read_bytes()
    policy.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    refused("sample --run ours --n 4", 1, "is corrupt: its sha256 is not that of posterior.json")
    policy.write_bytes(content)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in policy.parent.glob("*.*")}
    assert len(modes) == 1  # who may read one file of a run may read all


def test_what_cannot_be_trained_leaves_no_run(folder: Path) -> None:
    Path("ranges.toml").write_text('"noise.scale" = [0.5, 2.0]')
    before = Path("runs/latest").read_text()
    refused(
        f"train --obs obs.h5 --name never {SMALL} --set objective=rtb --amortize ranges.toml",
        3,
        "objective must be vargrad",
    )
    assert not Path("runs/never").exists() and Path("runs/latest").read_text() == before


def test_figures_lie_beside_the_file_that_they_show(folder: Path) -> None:
    document("sample --run ours --n 4")
    shown = Path("runs/ours/figures/posterior.png").stat().st_mtime_ns
    document("sample --run ours --n 4 --seed 9 --out away/other.h5")
    assert Path("away/figures/other-posterior.png").is_file()
    assert Path("runs/ours/figures/posterior.png").stat().st_mtime_ns == shown


@pytest.mark.slow
def test_a_training_goes_over_the_ranges_of_another(folder: Path) -> None:
    Path("ranges.toml").write_text('"noise.scale" = [0.5, 2.0]')
    invoke(f"train --obs obs.h5 --amortize ranges.toml --name wide {SMALL}")
    invoke(f"train --obs obs.h5 --amortize runs/wide --name wider {SMALL}")
    one, two = (json.loads(Path(f"runs/{n}/config.json").read_text()) for n in ("wide", "wider"))
    assert one["ranges"] == two["ranges"] == {"noise.scale": [0.5, 2.0]}
