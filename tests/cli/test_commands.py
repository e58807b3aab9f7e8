"""The command line, run in this process and as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import convexprobe as cxp
from convexprobe.cli.commands import cli
from convexprobe.cli.config import read_config, write_config
from convexprobe.cli.main import main
from tests.oracle import random_data
from tests.pages import Page
from tests.tiny import checkpoints

DATA = random_data(90, 5, 3)
ROWS = {"conv": DATA.x, "fc": DATA.x[:, :3]}

FACTORIES = """
from tests.tiny import network, rows

def make_model():
    return network(7)

def data():
    return rows()

def test():
    return rows(60, seed=2)

def broken():
    raise KeyError("no weights")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("features.npz", **ROWS, y=DATA.y, film=np.arange(90) // 3)
    Path("train.py").write_text(FACTORIES)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """Standard output of a command that has to end with this code."""
    capsys.readouterr()
    found = main(argv)
    out, err = capsys.readouterr()
    assert found == code, (out, err)
    return out if code in (0, 3) else err


def written(kind: str) -> None:
    """Write the features of one layer, and the labels, as files of this kind."""
    if kind == "npy":
        np.save("x.npy", DATA.x), np.save("y.npy", DATA.y)
    elif kind == "npz":
        np.savez("x.npz", x=DATA.x), np.savez("y.npz", y=DATA.y)
    elif kind == "pt":
        torch.save(torch.tensor(DATA.x), "x.pt"), torch.save({"y": torch.tensor(DATA.y)}, "y.pt")
    elif kind == "safetensors":
        save_file({"x": DATA.x}, "x.safetensors"), save_file({"y": DATA.y}, "y.safetensors")
    else:
        h5py = pytest.importorskip("h5py")
        for name, values in (("x", DATA.x), ("y", DATA.y)):
            with h5py.File(f"{name}.h5", "w") as file:
                file.create_dataset(f"group/{name}", data=values)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors", "h5"])
def test_fit_reads_every_kind_of_file(kind: str, here: Path, capsys: Any) -> None:
    written(kind)
    text = run(capsys, "fit", f"x.{kind}", "--labels", f"y.{kind}", "--l2", "0.01", "--json")
    (row,) = json.loads(text)["probes"]
    (probe,) = cxp.fit_probes(DATA.x, DATA.y, l2=0.01).values()
    assert row["loss"] == pytest.approx(probe.loss, rel=1e-6)
    assert row["status"] == "certified"


def test_a_run_is_fitted_evaluated_reported_and_repeated(here: Path, capsys: Any) -> None:
    fit = ("fit", "features.npz", "--path", "1e-3:1e-1:3", "--groups", "film", "--out", "run")
    assert "certified" in run(capsys, *fit)
    first = cxp.load_probes("run/probes.safetensors")
    assert [point.l2 for point in first["fc"].path] == pytest.approx([1e-3, 1e-2, 1e-1])
    scores = json.loads(
        run(capsys, "evaluate", "run", "features.npz", "--bootstrap", "9", "--json")
    )
    expected = first.evaluate(ROWS, DATA.y, bootstrap=9)
    assert scores["scores"]["fc"]["auroc_low"] == expected["fc"].interval("auroc")[0]
    run(capsys, "report", "run", "-o", "report.html")
    page = Page(Path("report.html").read_text())
    assert "convexprobe fit --config run/config.toml" in page.text
    assert "Measures on other rows" in page.text
    options = read_config("run/config.toml", "fit")
    assert options["features"] == "features.npz" and options["seed"] == 0
    Path("again").mkdir()
    run(capsys, "fit", "features.npz", "--config", "run/config.toml", "--out", "again")
    again = cxp.load_probes("again/probes.safetensors")
    assert all(np.array_equal(again[n].weights, p.weights) for n, p in first.items())
    run(capsys, "fit", "--config", "run/config.toml")
    assert not Path("run/scores.json").exists()  # they were of other probes
    assert "certified" in run(capsys, "info", "run")


@pytest.mark.parametrize("classes", [2, 3])
def test_C_is_scikit_learns(classes: int, here: Path, capsys: Any) -> None:
    y = DATA.y % classes
    np.savez("c.npz", x=DATA.x, labels=y)
    run(capsys, "fit", "c.npz", "--C", "0.3", "--out", "run")
    assert pytest.approx(0.3) == cxp.load_probes("run/probes.safetensors")["x"].C


def test_classes_and_concepts_are_taken_as_the_labels_have_them(here: Path, capsys: Any) -> None:
    run(capsys, "fit", "features.npz", "--l2", "1", "--classes", "2,1,0,7", "--out", "run")
    assert cxp.load_probes("run/probes.safetensors")["fc"].classes == (2, 1, 0, 7)
    np.savez("concepts.npz", even=DATA.y % 2, zero=DATA.y == 0)
    fit = ("fit", "features.npz", "--labels", "concepts.npz", "--layers", "fc", "--l2", "1")
    run(capsys, *fit, "--out", "run")
    assert list(cxp.load_probes("run/probes.safetensors")) == ["fc/even", "fc/zero"]
    run(capsys, "fit", "features.npz", "--labels", "concepts.npz:even", "--l2", "1", "--out", "run")
    assert list(cxp.load_probes("run/probes.safetensors")) == ["conv", "fc"]


def test_a_sweep_is_recorded_and_reported_and_goes_on(here: Path, capsys: Any) -> None:
    Path("ck").mkdir()
    for step, state in checkpoints(3):
        torch.save(state, f"ck/step_{step}.pt")
    sweep = ("sweep", "train.py:make_model", "ck", "--data", "train.py:data", "--test",
             "train.py:test", "--l2", "1e-2", "--out", "run")  # fmt: skip
    assert "certified: 15 of 15 probes" in run(capsys, *sweep)
    rows = json.loads(run(capsys, *sweep, "--json"))["results"]
    assert {row["step"] for row in rows} == {0, 3, 6} and rows[0]["test_error"] > 0
    run(capsys, "report", "run")
    assert "convexprobe sweep --config" in Page(Path("report.html").read_text()).text
    assert "3 checkpoints" in run(capsys, "info", "run")
    Path("ck/step_9.pt").write_bytes(b"broken")
    assert main(sweep) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convexprobe: warning: not probed: ck/step_9.pt")


def test_activations_are_extracted_told_estimated_and_fitted(here: Path, capsys: Any) -> None:
    extract = ("extract", "train.py:make_model", "--data", "train.py:data", "--layers", "0,4")
    assert "150x12" in run(capsys, *extract, "--out", "acts", "--batch-size", "40")
    told = json.loads(run(capsys, "info", "acts", "--json"))["arrays"]
    assert [one["array"] for one in told] == ["0", "4", "labels"]
    assert "seconds" in run(capsys, "estimate", "acts", "--l2", "1e-2")
    run(capsys, "fit", "acts", "--l2", "1e-2", "--layers", "4")


def test_a_budget_that_was_not_enough_is_told_by_the_exit_code(here: Path, capsys: Any) -> None:
    assert "uncertified" in run(
        capsys, "fit", "features.npz", "--l2", "0", "--layers", "fc", code=3
    )


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("fit missing.npz", 1, "'missing.npz': No such file"),
        ("fit features.npz --labels z", 1, "labels: expected a file or an array among"),
        ("fit features.npz --labels features.npz:z", 1, "has no array 'z'"),
        ("fit features.npz --layers z", 1, "layers: 'features.npz' has no layer 'z'"),
        ("fit features.npz --l2 a", 2, "expected numbers between commas, found 'a'"),
        ("fit features.npz --l2 -1", 1, "l2: expected finite penalties of at least 0"),
        ("fit features.npz --path 1:2", 2, "expected LOW:HIGH:COUNT"),
        ("fit features.npz --l2 1 --C 1", 2, "--l2 and --C say the same"),
        ("fit features.npz --C -1", 1, "C: expected positive numbers"),
        ("fit features.npz --classes a,b", 1, "classes: the labels are integers"),
        ("fit features.npz --config train.py", 1, "config: 'train.py' is not TOML"),
        ("fit features.npz --config other.toml", 2, "no option is called 'l3'"),
        ("fit train.py", 1, "or a file .npy"),
        ("fit pickled.npy --labels y", 1, "'pickled.npy': cannot be read"),
        ("fit pickled.pt --labels y", 1, "'pickled.pt': cannot be read as arrays"),
        ("fit cut.npz", 1, "'cut.npz': cannot be read"),
        ("fit", 2, "Missing argument 'FEATURES'"),
        ("frob", 2, "No such command 'frob'"),
        ("info empty", 1, "'empty/manifest.json': no such file"),
        ("report features.npz", 1, "not a file of probes"),
        ("sweep train.py:broken . --data train.py:data", 1, "raised KeyError: 'no weights'"),
        ("sweep train.py:none . --data train.py:data", 1, "has no function 'none'"),
        ("sweep no_module:f . --data train.py:data", 1, "model: 'no_module' cannot be imported"),
        ("sweep model . --data train.py:data", 1, "expected MODULE:FUNCTION"),
        ("sweep train.py:make_model .", 2, "Missing option '--data'"),
    ],
)
def test_what_is_refused_takes_one_line(
    argv: str, code: int, words: str, here: Path, capsys: Any
) -> None:
    np.save("pickled.npy", np.array([{}], dtype=object))
    torch.save(Path("a"), "pickled.pt")
    Path("cut.npz").write_bytes(Path("features.npz").read_bytes()[:300])
    Path("empty").mkdir()
    Path("other.toml").write_text("[fit]\nl3 = 1\n")
    text = run(capsys, *argv.split(), code=code)
    assert words in text and text.count("\n") == 1 and text.startswith("convexprobe: ")


def test_a_sweep_is_not_overwritten_by_a_fit(here: Path, capsys: Any) -> None:
    Path("run").mkdir()
    Path("run/settings.json").write_text("{}")
    assert "is of a sweep" in run(capsys, "fit", "features.npz", "--out", "run", code=1)


def test_the_demo_writes_reports_and_says_how_to_read_it(here: Path, capsys: Any) -> None:
    text = run(capsys, "demo", "--out", "demo")
    assert "How to read it" in text and text.rstrip().endswith("-o report.html")
    assert Page(Path("demo/trained.html").read_text()).count("figure") == 4


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_that_parses(name: str, capsys: Any) -> None:
    text = run(capsys, name, "--help")
    (example,) = (line.split() for line in text.splitlines() if f"  convexprobe {name}" in line)
    command = cli.commands[name]
    command.make_context(name, example[2:])  # an option that is not there is an error


def test_options_come_back_from_toml_as_they_were(tmp_path: Path) -> None:
    table = {"a": 'x"\\\n\x7f\t😀', "b": [1e-06, 1.0], "c": 3, "d": True, "e": float("inf")}
    write_config(tmp_path / "c.toml", {"fit": {**table, "none": None}, "versions": {"x-y": "1"}})
    assert read_config(tmp_path / "c.toml", "fit") == table
    with pytest.raises(ValueError, match=r"no table \[sweep\], found \['fit', 'versions'\]"):
        read_config(tmp_path / "c.toml", "sweep")


def test_the_module_runs_as_a_program() -> None:
    argv = [sys.executable, "-m", "convexprobe", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and cxp.__version__ in done.stdout
