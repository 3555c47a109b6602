"""Arrows between the packages point one way, imports are light, and only the CLI prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {
    "operators": {"operators"},
    "priors": {"priors", "operators.errors"},
    "invprob": {"invprob", "operators", "priors"},
    "invprob_cli": {"invprob_cli", "invprob", "operators", "priors"},
}


def imports(tree: ast.AST) -> list[str]:
    """Return the full names that a module imports, wherever in it."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_down(package: str) -> None:
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        for name in imports(ast.parse(file.read_text())):
            ours = any(within(name, p) for p in ALLOWED)
            if ours and not any(within(name, p) for p in ALLOWED[package]):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_a_wrong_arrow_is_seen() -> None:
    tree = ast.parse("def f():\n    from invprob.run import Run\n    import priors.base")
    assert imports(tree) == ["invprob.run.Run", "priors.base"]


@pytest.mark.parametrize("package", ["operators", "priors", "invprob"])
def test_only_the_command_line_prints(package: str) -> None:
    printing = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert printing == []


def test_light_modules_load_no_torch() -> None:
    code = (
        "import sys, invprob, invprob.registry as r, invprob.run, invprob.observation\n"
        "import invprob.fits\n"
        "for kind in r.PACKAGES:\n"
        "    [r.summary(kind, name) for name in r.names(kind)]\n"
        "assert invprob.__version__ and invprob.ObservationError\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["operators.py", "priors.py", "operators/"])
def test_a_file_that_shadows_a_package_is_named_and_not_run(tmp_path: Path, name: str) -> None:
    if name.endswith("/"):  # it comes before packages that an editable install finds
        (tmp_path / name).mkdir()
        code = (
            "import importlib.util as u, sys\n"
            f"sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if 'python' in p]\n"
            f"spec = u.spec_from_file_location('invprob', {str(ROOT / 'invprob/__init__.py')!r})\n"
            "spec.loader.exec_module(u.module_from_spec(spec))"
        )
    else:
        (tmp_path / name).write_text("raise SystemExit('it ran')")
        code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import invprob"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ImportError" in result.stderr
    assert "rename it" in result.stderr
    assert str(tmp_path / name) in result.stderr
    assert "it ran" not in result.stderr


def test_every_public_name_resolves() -> None:
    import invprob

    assert set(invprob.__all__) <= set(dir(invprob))
    assert all(callable(getattr(invprob, name)) for name in invprob.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Posteriors'"):
        _ = invprob.Posteriors


def test_no_module_hides_a_public_name() -> None:
    import invprob

    # importing invprob.x sets the attribute `x` of invprob to the module, whatever it was before
    hidden = [name for name in invprob.__all__ if (ROOT / "invprob" / f"{name}.py").exists()]
    assert hidden == []
