"""What a wheel would hold, read from the configuration; `make dist` builds one and tries it."""

from __future__ import annotations

import ast
import tomllib
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

import convexprobe

PACKAGE = Path(convexprobe.__file__).parent
ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


def configuration() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_a_module_is_a_package_that_is_found() -> None:
    find = configuration()["tool"]["setuptools"]["packages"]["find"]
    assert find["namespaces"] is False
    found = set(find_packages(str(ROOT), include=find["include"]))
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "convexprobe").rglob("*.py")}
    assert found == {".".join(folder.parts) for folder in folders}


def test_the_type_marker_is_shipped() -> None:
    data = configuration()["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["convexprobe"]
    assert (PACKAGE / "py.typed").is_file()


def test_the_style_and_script_of_reports_are_shipped() -> None:
    data = configuration()["tool"]["setuptools"]["package-data"]["convexprobe"]
    others = {str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.[cj]s*")}
    assert others == {"report/page.css", "report/page.js"} and others <= set(data)


def test_the_command_is_a_function_that_returns_its_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, name = configuration()["project"]["scripts"]["convexprobe"].split(":")
    assert getattr(import_module(place), name)(["--version"]) == 0
    assert convexprobe.__version__ in capsys.readouterr().out


def test_the_version_stands_in_one_place() -> None:
    whole = configuration()
    dynamic = whole["tool"]["setuptools"]["dynamic"]
    assert "version" not in whole["project"]
    assert dynamic["version"] == {"attr": "convexprobe.__version__"}
    assert version("convexprobe") == convexprobe.__version__, (
        "the installed version is another one than the source's: make it again (make clean)"
    )


def test_the_version_is_a_literal_that_a_build_reads_without_importing_torch() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert [type(value) for value in values] == [ast.Constant]


def test_scikit_learn_comes_with_an_ordinary_install() -> None:
    ordinary = [r for r in requires("convexprobe") or [] if "extra ==" not in r]
    assert any(r.startswith("scikit-learn") for r in ordinary)
