"""The code of the tutorial and of the how-to pages runs as typed, each page in its own folder."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
import yaml

from convexprobe.cli.main import main

matplotlib.use("Agg")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("how_to/*.md")])


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, file name and code of each block; included files are tested by their own tests."""
    return re.findall(r'```(python|sh)(?: title="([\w.]+)")?\n(.*?)```', page.read_text(), re.S)


def run_line(line: str) -> None:
    """Run a line of a shell in this process."""
    program, *rest = shlex.split(line)
    if program == "python":
        runpy.run_path(rest[0], run_name="__main__")
    else:
        assert (program, main(rest)) == ("convexprobe", 0), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_typed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for language, file, code in blocks(page):
            if file:
                Path(file).write_text(code)
            elif language == "python":
                exec(compile(code, str(page), "exec"), names)
            else:
                for line in code.splitlines():
                    run_line(line)
    plt.close("all")
    for probes in (value for key, value in names.items() if key == "probes"):
        assert all(probe.gap <= 1e-3 * probe.label_entropy for probe in probes.values())


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry)
                for file in files(part)]  # fmt: skip

    text = (ROOT / "mkdocs.yml").read_text()
    listed = files(yaml.safe_load(text)["nav"])
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def test_links_between_pages_lead_to_files() -> None:
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    for page in pages:
        for target in re.findall(
            r"convexprobe/convexprobe/(?:blob/)?main/([\w./-]+)", page.read_text()
        ):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_reference_has_every_public_name() -> None:
    import convexprobe as cxp

    text = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    there = set(re.findall(r"^::: convexprobe\.(\w+)$", text, re.M))
    assert there | {"solvers"} == set(cxp.__all__)
    inside = set(re.findall(r"^::: convexprobe\.solvers\.(\w+)$", text, re.M))
    assert inside | there >= set(cxp.solvers.__all__)
