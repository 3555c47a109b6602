"""The report: one file, nothing outside it, and nothing in it that could run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from invprob_cli.report import CAPTIONS, caption
from tests.conftest import document, invoke, refused

SMALL = "--steps 6 --width 8 --blocks 1 --warm-steps 2 --rtb-steps 1 --paths 4 --set bank=16"


def test_fault_44_a_report_shows_what_the_run_holds_and_escapes_it(folder: Path) -> None:
    """Fault 44: text of users and files is never markup."""
    invoke("simulate --operator denoising --prior random_field --size 8 --noise 0.3 --out obs.h5")
    invoke(f"train --obs obs.h5 --name one {SMALL}")
    facts = document("report --run one")
    assert facts["missing"] == ["diagnose", "compare"] and facts["figures"] == ["training"]
    manifest = json.loads(Path("runs/one/manifest.json").read_text())
    manifest["command"] = ["invprob", "<script>alert(1)</script>"]
    Path("runs/one/manifest.json").write_text(json.dumps(manifest))
    check = {
        "name": "<b>tarp</b>", "statistic": 0.5, "threshold": 1.0, "passed": True,
        "verdict": "regions & truths", "remedy": None,
    }  # fmt: skip
    Path("runs/one/diagnose.json").write_text(json.dumps({"checks": [check], "passed": True}))
    invoke("sample --run one --n 8")
    invoke("compare --run one --baselines dps:steps=3 --n 4")
    facts = document("report --run one --out shared.html")
    text = Path("shared.html").read_text()
    assert facts["missing"] == []
    assert facts["figures"] == ["posterior", "samples", "compare", "training"]
    assert text.count("data:image/png;base64,") == 4
    assert facts["verdict"] in text.replace("&#x27;", "'") and "<td>dps:steps=3" not in text
    assert "<th>dps:steps=3</th>" in text and "<td>crps</td>" in text
    assert "<th>4 samples of each, 1 observation</th>" in text and " ± " in text
    assert "<td>noise_sigma_range</td>" in text and "<td>parameters.shape</td>" in text
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "&lt;b&gt;tarp&lt;/b&gt;" in text and "regions &amp; truths" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "train.warm_steps" in text
    assert caption("two-1-samples") == f"{CAPTIONS['samples']}: observation two-1"
    shown = invoke("report --run one").stdout
    assert f"next: python -m webbrowser {Path('runs/one/report.html').resolve().as_uri()}" in shown
    refused("report --run none", 1, "no run 'none'")
    Path("runs/one/compare.json").write_text("{")
    refused("report --run one", 3, "compare.json is damaged")
