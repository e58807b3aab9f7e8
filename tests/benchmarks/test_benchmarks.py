"""The benchmark harness: discovery, the clock, the judge, and that everybody solves one problem."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import precision, report, run, streaming
from benchmarks.harness.cases import Case, Judge, Settings, Task, multiclass
from benchmarks.harness.recorder import Arrived, OutOfTime, Recorder
from benchmarks.harness.table import Table
from benchmarks.peers import all_peers
from benchmarks.problems import all_cases
from convexprobe.solvers import SOLVERS
from tests.oracle import minimum, random_data

PEERS = all_peers()
SLOW = ("torch adam", "convexprobe adam", "convexprobe rmsprop", "cyanure-gpu catalyst")


def test_every_file_is_discovered(tmp_path: Path) -> None:
    folder = Path(run.__file__).parent
    peers = [path.stem for path in (folder / "peers").glob("[!_]*.py")]
    assert len(peers) == 11 and len({name.split()[0] for name in PEERS}) == 8
    assert {f"convexprobe {name}" for name in SOLVERS} <= set(PEERS)
    cases = all_cases(Settings(tmp_path))
    assert len(cases) == len({case.name for case in cases}) > 30
    assert not list(tmp_path.iterdir())  # nothing is loaded or trained to name them


# pytorch-minimize is compiled by torch when it is imported
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", PEERS)
def test_everybody_minimises_our_objective(name: str, k: int) -> None:
    data, l2 = random_data(300, 6, k, seed=k), 1e-2
    task, peer = Task(data.x, data.y, k, (l2,)), PEERS[name]
    if reason := peer.why_not(task):
        pytest.skip(reason)
    _, best = minimum(data, l2)
    judge = Judge(torch.from_numpy(data.x), torch.from_numpy(data.y), k)
    goal = 1e-2 if name.startswith(SLOW) or name.endswith(" plain") else 1e-5

    def value(c: np.ndarray) -> float:
        return judge.value(c.reshape(c.shape[-2:]) if c.ndim > 1 else c, l2) - best

    record = Recorder(20.0, value, goal, scale=1.0)
    with suppress(Arrived, OutOfTime):
        peer.run(task, record)
    reached = min(record.value(i) for i in range(len(record.points)))
    assert -1e-9 <= reached <= goal
    assert all(a.passes <= b.passes for a, b in zip(record.points, record.points[1:], strict=False))


def test_the_judge_agrees_with_the_oracle_and_knows_the_layouts() -> None:
    data = random_data(50, 3, 2)
    w, best = minimum(data, 0.1)
    judge = Judge(torch.from_numpy(data.x), torch.from_numpy(data.y), 2)
    both = np.concatenate([w[:6].reshape(2, 3), w[6:, None]], axis=1)
    assert judge.value(both, 0.1) == pytest.approx(best, abs=1e-12)
    assert judge.entropy == pytest.approx(data.label_entropy)
    difference = both[1:] - both[:1]  # the optimum has opposite rows, up to a common intercept
    assert judge.value(difference, 0.1) == pytest.approx(best, abs=1e-12)
    flat = np.arange(8.0)
    assert multiclass(flat, 2, 3).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_the_clock_stops_while_a_point_is_kept_and_judged() -> None:
    def slow(c: np.ndarray) -> float:
        time.sleep(0.05)
        return 1.0

    record = Recorder(10.0, slow)
    for _ in range(4):
        record._next = 0.0  # look at every point
        record(np.zeros(2), 1.0)
    assert record.points[-1].seconds < 0.04
    assert [p.passes for p in record.points] == [1.0, 2.0, 3.0, 4.0]


def test_a_run_ends_at_its_goal_or_its_limit() -> None:
    record = Recorder(10.0, lambda c: float(c[0]), goal=0.1)
    with pytest.raises(Arrived):
        record(np.array([0.1]))
    record = Recorder(0.0, lambda c: 1.0)
    with pytest.raises(OutOfTime):
        record(np.array([0.1]))
    record = Recorder(10.0, lambda c: 0.0, goal=0.1, certify=1e-4)
    record(np.zeros(1), gap=1e-3)  # near, but not yet certified
    record._next = 0.0
    with pytest.raises(Arrived):
        record(np.zeros(1), gap=1e-5)


def test_first_reached_bisects() -> None:
    evaluated = []

    def value(c: np.ndarray) -> float:
        evaluated.append(c[0])
        return float(c[0])

    record = Recorder(10.0, value)
    record._next = np.inf
    for i in range(1000):
        record(np.array([2.0**-i]))
    assert record.first_reached(2.0**-500) == 500
    assert len(evaluated) < 20
    assert record.first_reached(0.0) is None
    assert Recorder(1.0, value).first_reached(1.0) is None


class Links(HTMLParser):
    """Every tag closed, and what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def small_cases(settings: Settings) -> list[Case]:
    """A task and a path of three, of the same rows."""
    data = random_data(200, 5, 3)
    rows = torch.from_numpy(data.x).float(), torch.from_numpy(data.y)
    path = (0.1, 0.03, 0.01)
    return [Case("small", lambda: rows, (1e-2,), 3), Case("line", lambda: rows, path, 3)]


def test_run_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "all_cases", small_cases)
    arguments = ["--out", str(tmp_path), "--limit", "2", "--peers", "newton-cg", "auto",
                 "svrg*", "cuml*", "sklearn lbfgs", "sklearn sag"]  # fmt: skip
    run.main(arguments)
    table = Table(tmp_path / "benchmark.csv")
    ours = [r for r in table.rows if r.peer == "convexprobe newton-cg" and r.case == "line"]
    assert ours[-1].suboptimality <= 1e-5 and ours[-1].m == 3 and ours[-1].gap >= 0
    theirs = [r for r in table.rows if r.peer == "sklearn lbfgs" and r.case == "line"]
    assert min(r.suboptimality for r in theirs) == 1e-5
    assert {r.status for r in table.rows if r.peer == "cuml qn"} == {"not installed: cuml"}

    before = (tmp_path / "benchmark.csv").read_bytes()
    run.main(arguments)
    assert (tmp_path / "benchmark.csv").read_bytes() == before  # nothing was run again
    run.main([*arguments, "--again", "--problems", "small"])
    assert len(Table(tmp_path / "benchmark.csv").rows) > 0

    capsys.readouterr()
    report.main(["--out", str(tmp_path)])
    assert "| target |" in capsys.readouterr().out
    page = (tmp_path / "benchmark.html").read_text()
    links = Links()
    links.feed(page)
    assert not links.open
    assert links.links and all(link.startswith(("data:", "#")) for link in links.links)
    assert not re.search(r"url\(|@import|<script", page)
    assert (tmp_path / "headline.png").stat().st_size > 5_000


def test_a_refusal_and_a_failure_are_words_in_the_table(tmp_path: Path) -> None:
    (case, _) = small_cases(Settings(tmp_path))
    bench = run.Bench(case, tmp_path / "optima.json")

    def broken(task: Task, record: Recorder) -> None:
        raise ValueError("no\nluck")

    row = run.run_one(bench, "x", replace(PEERS["sklearn sag"], run=broken), 1.0, 0)[0]
    assert row.status == "failed: ValueError: no luck" and np.isnan(row.seconds)
    refusing = replace(PEERS["sklearn sag"], refuses=lambda task: "not run: too large")
    assert run.run_one(bench, "x", refusing, 1.0, 0)[0].status == "not run: too large"


def test_a_small_run_over_streamed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streaming, "in_child", lambda work, *args: work(*args))
    streaming.run(tmp_path / "rows", 0.002, 64)
    out = capsys.readouterr().out
    assert "15625 x 64 bfloat16" in out and "fit: certified" in out
    assert out.count(" target ") == 3


def test_a_small_table_of_precisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["precision", "--rows", "400", "--features", "6"])
    monkeypatch.setattr(precision, "TOLS", (1e-2,))
    precision.main()
    out = capsys.readouterr().out
    assert out.count("| certified |") == len(precision.DTYPES)
