"""The benchmark of the regimes: tiny data, every step from the search to the page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness.cases import Settings, Task
from benchmarks.harness.recorder import Meter, OutOfTime
from benchmarks.peers import all_peers
from benchmarks.regimes import data, default_job, report, run
from benchmarks.regimes.cases import RegimeCase, all_cases
from benchmarks.regimes.default_job import Job
from benchmarks.regimes.measure import TOL, Bench, Cache
from tests.oracle import minimum, random_data

LEAST = ("sklearn lbfgs", "sklearn newton-cholesky", "torch lbfgs")


def rows(n: int = 120, k: int = 3) -> data.Data:
    """A few random rows."""
    found = random_data(n, 5, k)
    return torch.from_numpy(found.x).float(), torch.from_numpy(found.y)


def tiny(settings: Settings, quick: bool = False) -> list[RegimeCase]:
    """A case of each of three regimes, and one whose data are not there."""
    cases = [RegimeCase(r, f"tiny {r}", 3, 1e-2, rows, inverse=r == "e") for r in "ace"]
    return [*cases, RegimeCase("b", "tiny b", 3, 1e-2, rows, lambda: "not installed: a BERT")]


def test_the_cases_have_names_of_their_own_and_a_third_is_quick(tmp_path: Path) -> None:
    cases = all_cases(Settings(tmp_path))
    assert len({case.title for case in cases}) == len(cases) > 200
    residual = [case for case in cases if case.regime == "a"]
    assert len(residual) == 180 and sum(case.quick for case in residual) == 60
    assert not list(tmp_path.iterdir())  # nothing is made to name them


def test_residual_rows_are_like_residual_streams() -> None:
    x, y = data.residual(600, 64, 2, True)
    assert x.dtype == torch.float32 and torch.bincount(y).tolist() == [300, 300]
    assert (x.mean(0).abs() > 40).sum() == data.MASSIVE
    plain, _ = data.residual(600, 64, 2, False)
    assert float(plain.var(0).mean()) == pytest.approx(1.0, rel=0.2)
    values = torch.linalg.eigvalsh(torch.cov(plain.T)).flip(0)
    assert 5 < float(values[0] / values[9]) < 20  # eigenvalues 1/j


@pytest.mark.parametrize("k", [2, 3])
def test_peers_that_stop_by_themselves_solve_our_problem(k: int, tmp_path: Path) -> None:
    case = RegimeCase("a", "tiny", k, 1e-2, partial(rows, k=k))
    bench = Bench(case, Cache(tmp_path / "cache.json"))
    found = random_data(120, 5, k)
    _, best = minimum(found, bench.l2)
    assert bench.optimum == pytest.approx(best, abs=2e-5)
    for name, peer in all_peers().items():
        if peer.fit is None or peer.why_not(bench.task("float32")):
            continue
        setting = bench.search(peer, 5.0)
        assert setting.passes > 0 and setting.setting < np.inf, (name, setting)
        _, _, coefficients = bench.spent(peer, setting.setting, setting.dtype, 5.0)
        assert bench.excess(coefficients) <= TOL, name
        looser = peer.settings.index(setting.setting) - 1
        if looser >= 0:
            _, _, coefficients = bench.spent(peer, peer.settings[looser], setting.dtype, 5.0)
            assert bench.excess(coefficients) > TOL, name


def test_a_run_that_takes_too_long_is_ended() -> None:
    x, y = rows()
    task = Task(x.numpy(), y.numpy(), 3, (1e-3,))
    with pytest.raises(OutOfTime):
        all_peers()["sklearn lbfgs"].fit(task, 1e-12, Meter(0.0))


def test_the_command_goes_on_where_it_was_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "all_cases", tiny)
    monkeypatch.setattr(run, "all_peers", lambda: {n: all_peers()[n] for n in LEAST})
    monkeypatch.setattr(
        default_job, "all_jobs", lambda s: [Job("tiny", 3, 120, partial(rows, 200))]
    )
    threads = torch.get_num_threads()
    try:
        run.main(["--out", str(tmp_path), "--only", "c"])
        run.main(["--out", str(tmp_path), "--before", str(tmp_path / "regimes.csv")])
        table = (tmp_path / "regimes.csv").read_text()
        run.main(["--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "regimes.csv").read_text() == table  # nothing was run again
    found = run.read(tmp_path / "regimes.csv")
    assert {row["regime"] for row in found} == set("acef")
    assert all(float(row["true"]) <= 2 * TOL for row in found if row["true"])
    page = (tmp_path / "regimes.md").read_text()
    assert "| (c) | no fit above 150 passes |" in page and "not installed: a BERT" in page
    assert (tmp_path / "regimes.png").stat().st_size > 5_000
    assert "skipped (b) tiny b" in capsys.readouterr().out


def test_targets_are_judged() -> None:
    def row(case: str, who: str, seconds: float, **more: object) -> dict:
        return {"regime": "a", "case": case, "who": who, "seconds": seconds, "passes": 10,
                "status": "CERTIFIED", "strength": 0.1, "k": 2, **more}  # fmt: skip

    found = [row("x", "convexprobe torch", 0.1), row("x", "sklearn lbfgs", 0.5),
             row("x", "torch lbfgs", 0.4), row("y", "convexprobe torch", 0.004),
             row("y", "sklearn lbfgs", 0.001), row("y", "torch lbfgs", np.inf)]  # fmt: skip
    cases = report.compared(found, "a")
    assert [c.ratio(c.best) for c in cases] == pytest.approx([4.0, 0.25])
    words = [v.word for v in report.verdicts("a", cases, {})]
    assert words == ["**missed**", "met", "**missed**", "met"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "z"], "invalid choice: 'z'"),
        (["--only"], "expected at least one argument"),
        (["--until", "25:99"], "expected a time such as 20:15, found '25:99'"),
        (["--before", "nowhere.csv"], "--before nowhere.csv: no such file"),
    ],
)
def test_a_mistake_ends_before_anything_is_measured(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(["--out", str(tmp_path), *given])
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_times_of_the_day_compare() -> None:
    assert run.parser().parse_args(["--until", "9:05"]).until == "09:05"
