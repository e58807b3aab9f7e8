"""The command for a machine with a GPU, at tiny sizes on the CPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import command, parts, report
from benchmarks.regimes.cases import RegimeCase
from benchmarks.scale.measure import TOL, Run

QUICK = ["--device", "cpu", "--quick"]

SUITE = """
import pytest

@pytest.mark.gpu
def test_passes(): pass

@pytest.mark.gpu
def test_fails(): assert 1 == 2

@pytest.mark.gpu
@pytest.mark.skip(reason="no CuPy")
def test_skips(): pass

def test_is_another(): raise AssertionError
"""


def run_in(folder: Path) -> Run:
    """A run with a minute."""
    return Run("cpu", time.perf_counter() + 60.0, folder, "gpu_part.json")


def kept(folder: Path) -> dict[str, Any]:
    """What a run has written."""
    return json.loads((folder / "gpu_part.json").read_text())


def test_tests_are_counted_and_those_that_failed_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "TESTS", ("test_device.py", "test_needs_more.py"))
    markers = 'markers = ["gpu: needs a CUDA device"]'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{markers}\n")
    (tmp_path / "test_device.py").write_text(SUITE)
    (tmp_path / "test_needs_more.py").write_text("import a_module_that_is_not_there")
    parts.tests(run_in(tmp_path), True)
    results = kept(tmp_path)
    outcomes = results["outcomes"]
    assert [outcomes[word] for word in ("passed", "failed", "skipped")] == [1, 2, 1]
    assert outcomes["names"] == ["test_needs_more.py", "test_device.py::test_fails"]
    assert results["failures"] == ["tests that failed: 2"] and "running" not in results
    assert command.outcome(0, results, tmp_path, 9.0) == ("failed", "tests that failed: 2")


def test_tests_without_their_libraries_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "NEEDED", ("pytest", "a_module_that_is_not_there"))
    with pytest.raises(parts.Skipped, match="not installed: a_module_that_is_not_there"):
        parts.tests(run_in(tmp_path), True)


def test_probes_that_were_not_solved_are_extrapolated(tmp_path: Path) -> None:
    parts.scale(run_in(tmp_path), True)
    results = kept(tmp_path)
    assert [probe["start"] for probe in results["probes"]] == ["cold", "warm"]
    assert all(p["solved"] == p["certified"] == 2 for p in results["probes"])
    assert not any(probe["extrapolated"] for probe in results["probes"])
    solves = [parts.Measurement(**m) for m in results["solves"]]
    assert all(m.itemsize == 2 and m.gap <= TOL for m in solves)
    assert results["torch_lbfgs"]["at_most_above_optimum"] <= TOL
    assert "not run" in results["cuml"]
    cold = [m.seconds for m in solves if m.start == "cold"]
    twenty = parts.summary(solves, "cold", 20)
    assert twenty["extrapolated"] and twenty["seconds"] == pytest.approx(10 * sum(cold))


def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> parts.data.Data:
        raise OSError("no such rows")

    def cases(letter: str, name: str, *rest: Any, **more: Any) -> RegimeCase:
        load = gone if letter == "d" else rest[2]
        return RegimeCase(letter, name, rest[0], rest[1], load)

    monkeypatch.setattr(parts, "RegimeCase", cases)
    parts.regimes(run_in(tmp_path), True)
    results = kept(tmp_path)
    assert len(results["failures"]) == 1 and "OSError: no such rows" in results["failures"][0]
    found = {entry["who"]: entry for entry in results["cases"]}
    assert list(found) == ["convexprobe, torch", "torch lbfgs", *parts.PEERS]
    assert found["convexprobe, torch"]["status"] == "certified"
    assert all(found[who]["true"] <= TOL for who in ("convexprobe, torch", "torch lbfgs"))
    for who in parts.PEERS:
        entry = found[who]
        assert entry["seconds"] is None or entry["true"] <= TOL, entry


def test_the_cases_are_those_of_the_regimes(tmp_path: Path) -> None:
    known = [case.title for case in parts.all_cases(parts.Settings(tmp_path))]
    assert set(parts.CASES) <= set(known)
    assert {title[1] for title in parts.CASES} == {"a", "d"}
    assert sum(part.seconds for part in parts.PARTS.values()) <= 570


def test_a_part_that_ends_badly_is_reported_with_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(command.sys, "executable", str(program))

    def behave(script: str) -> dict[str, Any]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return command.run_part("scale", QUICK, tmp_path, 5.0 if "sleep" not in script else 0.5)

    has = f"""echo '{{"running": "a solve"}}' > {tmp_path}/gpu_scale.json"""
    hung = behave(f"{has}; sleep 60 & wait")
    assert (hung["status"], hung["reason"]) == ("out of time", "ended after 0 s during a solve")
    assert hung["results"] == {"running": "a solve"} and hung["seconds"] < 5.0
    crashed = behave(f"{has}; echo 'CUDA error: an illegal memory access'; kill -9 $$")
    assert crashed["status"] == "failed" and "illegal memory" in crashed["reason"]
    assert crashed["results"] == {"running": "a solve"}
    silent = behave("exit 3")
    assert (silent["status"], silent["reason"], silent["results"]) == ("failed", "exit code 3", {})
    assert behave("exit 0")["status"] == "done"
    assert not (tmp_path / "gpu_scale.json").exists()


def test_a_table_and_a_file_have_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_part(name: str, options: list[str], out: Path, seconds: float) -> dict[str, Any]:
        assert options == QUICK
        results = {
            "tests": {"outcomes": {"passed": 3, "failed": 1, "names": ["the one that failed"]}},
            "scale": {"ceilings": {"flops": 1e12}, "peak_bytes": 16e9, "cuml": "not run: no cuml",
                      "probes": [{"start": "warm", "probes": 20, "solved": 5, "extrapolated": True,
                                  "seconds": 12.0, "passes": 3.0, "gap": 9e-4, "certified": 5,
                                  "flops": 5e11, "size": [1_281_167, 2_048, 1_000]}]},
            "regimes": {},
            "forward": {"inception": {"images_per_second": 100.0, "extrapolated_seconds": 12_812}},
        }  # fmt: skip
        failed = name == "regimes"
        return {"status": "failed" if failed else "done", "reason": "it broke" if failed else None,
                "seconds": 1.0, "budget": seconds, "results": results[name]}  # fmt: skip

    monkeypatch.setattr(command, "run_part", run_part)
    assert command.main([*QUICK, "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == ["tests", "scale", "regimes", "forward"]
    assert (
        found["published"]["hardware"] == "RTX 6000 Ada" and torch.__version__ in found["versions"]
    )
    text = capsys.readouterr().out
    for words in ("3 passed, 1 failed", "the one that failed", "failed: it broke",
                  "20 probes warm, 1281167 x 2048 x 1000", "extrapolated from 5 solved",
                  "target 15 s", "16.0 GB", "not run: no cuml", "100 images/s"):  # fmt: skip
        assert words in text, words
    assert text.count("others' hardware: RTX 6000 Ada") == len(report.PUBLISHED["solves"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "no GPU: torch sees no CUDA device\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--out", str(tmp_path)])
    assert "add --quick" in capsys.readouterr().err


def test_a_part_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = command.run_part("forward", QUICK, tmp_path, 60.0)
    assert found["status"] in ("done", "skipped"), found
    if found["status"] == "skipped":
        assert "torchvision" in found["reason"]
