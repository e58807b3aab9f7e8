"""The folders of the package: who imports whom, what the documents name, what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

import convexprobe

PACKAGE = Path(convexprobe.__file__).parent
DOCS = PACKAGE.parent / "docs"

FOLDERS = [
    "arrays", "activations", "extraction", "problem", "solvers", "metrics", "plotting", "probes",
    "sklearn", "training", "datasets", "report", "cli",
]  # fmt: skip
"""A folder imports only from those above it."""

APART = {"extraction": {"problem", "solvers", "probes"}, "probes": {"extraction"}}
"""Folders that do not import each other, whatever their order."""

ENTRIES = ("__init__", "__main__")
"""Files from which the package is entered: they stand beside the folders and import from them."""

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(name: str) -> set[str]:
    """Every module that a file names in an import, wherever it stands; none is relative."""
    modules = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            base = node.module or ""
            inside = {f"{base}.{alias.name}" for alias in node.names}
            modules |= {base} | {m for m in inside if own(m) in FILES or own(m) in FOLDERS}
    return modules


def own(module: str) -> str:
    """A module's name inside the package; empty for the package itself and all others."""
    return module.removeprefix("convexprobe.") if module.startswith("convexprobe.") else ""


def folder(module: str) -> str:
    """The folder a module is in; empty for the files beside the folders."""
    return module.split(".")[0] if module.split(".")[0] in FOLDERS else ""


def test_every_folder_has_its_place_and_its_sentence() -> None:
    table = dict(
        re.findall(r"^\| `(\w+)/` \| (.*) \|$", (DOCS / "architecture.md").read_text(), re.M)
    )
    assert list(table) == FOLDERS
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FOLDERS)
    for name in FOLDERS:
        docstring = import_module(f"convexprobe.{name}").__doc__ or ""
        assert docstring.strip(), name


@pytest.mark.parametrize("name", [n for n in FILES if n not in ENTRIES])
def test_a_folder_imports_only_from_those_above_it(name: str) -> None:
    here = folder(name)
    for target in filter(None, map(own, imports(name))):
        there = folder(target)
        if not here:
            assert not there, f"{name} serves every folder, and imports {target}"
        elif there and there != here:
            assert FOLDERS.index(there) < FOLDERS.index(here), f"{name} imports {target}"
            assert there not in APART.get(here, set()), f"{name} imports {target}"


@pytest.mark.parametrize("here", ["", *FOLDERS])
def test_files_of_a_folder_import_each_other_without_cycles(here: str) -> None:
    def file(module: str) -> str:
        return module if module in FILES else f"{module}.__init__"

    files = [name for name in FILES if folder(name) == here and name not in ENTRIES]
    graph = {n: {file(own(m)) for m in imports(n) if own(m)} & set(files) for n in files}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_check_finds_the_files_and_their_imports() -> None:
    assert {"arrays.backend", "solvers.__init__", "probes.fit", "__init__"} <= set(FILES)
    assert {"convexprobe.problem.objective", "numpy"} <= imports("solvers.loop")


@pytest.mark.parametrize("name", FILES)
def test_array_libraries_are_named_in_one_folder(name: str) -> None:
    roots = {target.split(".")[0] for target in imports(name)}
    if folder(name) != "arrays":
        assert not roots & {"cupy", "array_api_compat"}
    if folder(name) in ("problem", "solvers", "metrics", "plotting"):
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


def test_the_package_shows_its_public_names_and_nothing_else() -> None:
    assert sorted(dir(convexprobe)) == sorted([*convexprobe.__all__, "__version__"])
    for name in convexprobe.__all__:
        assert getattr(convexprobe, name).__doc__, name


def test_what_a_solver_of_ones_own_needs_is_public_and_told() -> None:
    told = set(re.findall(r"`(\w+)`", convexprobe.solvers.__doc__ or ""))
    for name in convexprobe.solvers.__all__:
        assert getattr(convexprobe.solvers, name) is not None
        if name not in convexprobe.__all__ and name != "Array":
            assert name in told, f"convexprobe.solvers says nothing of {name}"
    example = ast.parse((PACKAGE.parent / "examples" / "write_a_solver.py").read_text())
    modules = {n.module for n in ast.walk(example) if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("convexprobe")} == {"convexprobe.solvers"}


@pytest.mark.parametrize("document", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_files_and_functions_that_a_document_names_exist(document: Path) -> None:
    beside = [PACKAGE, PACKAGE.parent, PACKAGE.parent / "examples"]
    for file, name in re.findall(r"`([\w/]+\.py)`(?:: `(\w+(?:\.\w+)?)`)?", document.read_text()):
        assert any((place / file).exists() for place in beside), f"{document.name} names {file}"
        inside = PACKAGE / file
        if name and inside.exists():
            value = import_module("convexprobe." + file.removesuffix(".py").replace("/", "."))
            for part in name.split("."):
                value = getattr(value, part)


def test_probe_checkpoints_takes_what_the_monitor_takes() -> None:
    sweep = signature(convexprobe.probe_checkpoints).parameters
    monitor = signature(convexprobe.ProbeMonitor).parameters
    assert set(sweep) == set(monitor) | {"model", "checkpoints", "progress"}
    for name, parameter in monitor.items():
        assert sweep[name].default == parameter.default, name
        assert sweep[name].annotation == parameter.annotation, name


def test_a_set_of_probes_is_evaluated_with_what_a_probe_is() -> None:
    one = list(signature(convexprobe.Probe.evaluate).parameters.values())[2:]
    several = list(signature(convexprobe.ProbeSet.evaluate).parameters.values())[2:]
    assert several == one  # behind self and the rows, of one layer or of several
