"""The layers of the package, kept by reading its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convexprobe

PACKAGE = Path(convexprobe.__file__).parent

ORDER: list[set[str]] = [
    {"_array"},
    {"_files", "_progress", "_random_state", "family", "softmax", "sources", "store"},
    {"communicator", "manifest", "streaming"},
    {"shards"},
    {"linear_model"},
    {"objective"},
    {"sample"},
    {"certificate", "preconditioner"},
    {"solvers.base"},
    {"solvers.stochastic", "solvers.adaptive"},
    {"solvers.*"},
    {"solvers"},
    {"solve"},
    {"warm_start", "measures", "plots", "inputs", "row_space"},
    {"probes", "folds"},
    {"validation", "remembered"},
    {"path"},
    {"choice"},
    {"fit"},
    {"estimate"},
    {"points", "datasets", "checkpoints"},
    {"pooling", "batches"},
    {"sinks"},
    {"extract"},
    {"records", "movie"},
    {"history", "loaders"},
    {"monitor"},
    {"sweep", "integrations"},
    {""},
]
"""A file imports only from the rows above its own; "" is the package itself."""

MAY_IMPORT_TORCH = {
    "_array", "_random_state", "communicator", "store", "manifest", "shards", "streaming", "probes",
    "estimate", "points", "datasets", "checkpoints", "pooling", "batches", "sinks", "extract",
    "loaders", "monitor", "sweep",
}  # fmt: skip


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


FILES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def row(name: str) -> int:
    exact = [i for i, names in enumerate(ORDER) if name in names]
    if exact:
        return exact[0]
    if name.startswith("solvers."):
        return next(i for i, names in enumerate(ORDER) if "solvers.*" in names)
    raise AssertionError(f"{name} has no place in the order: give it one")


def imports(name: str) -> set[str]:
    """Every module that the file names in an import, wherever it stands; none is relative."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            base = node.module or ""
            found |= {base} | {
                f"{base}.{a.name}" for a in node.names if submodule(f"{base}.{a.name}")
            }
    return found


def submodule(name: str) -> bool:
    return name.startswith("convexprobe.") and name.removeprefix("convexprobe.") in FILES


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_above(name: str) -> None:
    for target in imports(name):
        if target.split(".")[0] != "convexprobe":
            continue
        inside = target.removeprefix("convexprobe").removeprefix(".")
        assert row(inside) < row(name), f"{name} imports {target}, which is not above it"


def test_the_check_finds_the_files_and_their_imports() -> None:
    assert {"_array", "objective", "solvers", "solvers.base", "fit", ""} <= set(FILES)
    assert {"convexprobe.objective", "convexprobe.solvers.base", "numpy"} <= imports("solve")
    assert row("solvers.lbfgs") == row("solvers.adam") > row("solvers.base")


@pytest.mark.parametrize("name", FILES)
def test_array_libraries_are_named_in_one_file(name: str) -> None:
    roots = {target.split(".")[0] for target in imports(name)}
    if name != "_array":
        assert not roots & {"cupy", "array_api_compat"}
    if name not in MAY_IMPORT_TORCH:
        assert "torch" not in roots


@pytest.mark.parametrize("name", FILES)
def test_nothing_prints(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name}, line {node.lineno}"


def test_importing_the_package_stays_light_and_silent() -> None:
    heavy = ["sklearn", "pandas", "matplotlib.pyplot"]
    code = f"import convexprobe, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_every_public_name_exists() -> None:
    assert sorted(set(convexprobe.__all__)) == sorted(convexprobe.__all__)
    for name in convexprobe.__all__:
        assert getattr(convexprobe, name).__doc__, name
