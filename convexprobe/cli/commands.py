"""The commands; each returns its exit code."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np

from convexprobe._files import read_json, write_whole
from convexprobe._tables import aligned
from convexprobe.cli import options
from convexprobe.cli.config import CONFIG, read_config, write_config
from convexprobe.cli.demo import run_demo
from convexprobe.cli.factories import call_factory
from convexprobe.cli.feature_files import read_column, read_columns, read_features
from convexprobe.cli.output import DONE, UNCERTIFIED, say, to_json
from convexprobe.extraction.extract import extract as extract_activations
from convexprobe.probes.cost import estimate as estimate_cost
from convexprobe.probes.fit import fit_probes
from convexprobe.probes.probe_set import ProbeSet, load_probes
from convexprobe.report.report import write_report
from convexprobe.report.versions import versions
from convexprobe.solvers.solution import Status
from convexprobe.training.history import ProbeHistory, load_history
from convexprobe.training.sweep import probe_checkpoints

PROBES, SCORES, SETTINGS = "probes.safetensors", "scores.json", "settings.json"
"""Files of a RUN: what `fit` writes, what `evaluate` adds, and what only a sweep has."""

_CODES = """\b
Exit codes: 0 done; 1 refused, in a line that says why; 2 wrong usage; 3 done, but
a probe is not certified or a checkpoint could not be probed."""


def _example(line: str) -> str:
    """What stands at the end of a command's help."""
    return f"\b\nExample:\n  {line}\n\n{_CODES}"


@click.group(
    epilog=f"\b\nStart with:\n  convexprobe demo\n\n{_CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="convexprobe")
def cli() -> None:
    """Linear classifier probes, each with a proof of how far from optimal it can be."""


@cli.command(
    short_help="Fit a certified probe to every layer.",
    epilog=_example("convexprobe fit features.npz --labels y --out run"),
)
@options.features
@options.penalty
@click.option("--classes", type=options.words, metavar="A,B", help="All classes, in their order.")
@options.groups
@click.option("--class-weight", type=click.Choice(["balanced"]), help="Classes of equal weight.")
@click.option("--standardize", is_flag=True, help="Fit to standardized features.")
@options.tol
@options.seed
@options.work
@click.option("--out", metavar="RUN", help="A directory for the probes and these options.")
@options.config
@options.as_json
@click.pass_context
def fit(context: click.Context, features: str, labels: str | None, **given: Any) -> int:
    """Fit a certified probe to every layer of FEATURES: a file .npy, .npz, .pt, .safetensors or
    .h5, or a directory that extract wrote."""
    rows, y, others = read_features(features, labels, layers=given["layers"], needs_labels=True)
    groups = given["groups"]
    probes = fit_probes(
        rows,
        y,
        given["solver"],
        l2=_l2(given, y),
        tol=given["tol"],
        classes=_classes(given["classes"], y),
        class_weight=given["class_weight"],
        groups=None if groups is None else read_column("groups", groups, others),
        cv=given["cv"],
        standardize=given["standardize"],
        seed=given["seed"],
        device=given["device"],
        memory_limit=given["memory_limit"],
    )
    out = given["out"]
    if out is not None:
        run = Path(out)
        run.mkdir(parents=True, exist_ok=True)
        if (run / SETTINGS).exists():
            raise ValueError(f"out: {out!r} is of a sweep; take another directory")
        (run / SCORES).unlink(missing_ok=True)  # of other probes
        probes.save(run / PROBES)
        _record(run, context)
    if given["as_json"]:
        say(to_json({"out": out, "probes": probes.table()}))
    else:
        say(str(probes))
        if out is not None:
            say(f"\nwrote {run / PROBES}; next: convexprobe report {out} -o report.html")
    certified = all(probe.status is Status.CERTIFIED for probe in probes.values())
    return DONE if certified else UNCERTIFIED


@cli.command(
    short_help="Measure probes on other rows.",
    epilog=_example("convexprobe evaluate run test.npz --labels y --bootstrap 200"),
)
@click.argument("run")
@options.features
@options.groups
@click.option("--bootstrap", type=int, default=0, metavar="N", help="Samples for 95 % intervals.")
@options.seed
@options.config
@options.as_json
def evaluate(run: str, features: str, labels: str | None, **given: Any) -> int:
    """Measure the probes of RUN, what fit wrote, on the rows of FEATURES. A RUN that is a directory
    keeps the scores for its report."""
    probes = load_probes(_probes_file(Path(run)))
    rows, y, others = read_features(features, labels, layers=given["layers"], needs_labels=True)
    groups = given["groups"]
    scores = probes.evaluate(
        rows,
        y,
        groups=None if groups is None else read_column("groups", groups, others),
        bootstrap=given["bootstrap"],
        seed=given["seed"],
    )
    content = {
        "features": features,
        "labels": labels,
        "scores": {name: score.to_row() for name, score in scores.items()},
    }
    if Path(run).is_dir():
        write_whole(Path(run) / SCORES, to_json(content).encode())
    say(to_json(content) if given["as_json"] else str(scores))
    return DONE


@cli.command(
    short_help="Probe a network at every checkpoint.",
    epilog=_example("convexprobe sweep train.py:make_model checkpoints --data train.py:data"),
)
@options.model
@click.argument("checkpoints")
@click.option("--test", metavar="FACTORY", help="Like --data, of held-out rows.")
@click.option("--l2", type=options.penalties, default="auto", show_default=True, metavar="L2")
@options.tol
@options.seed
@options.work
@click.option("--out", metavar="RUN", help="A directory; the same command goes on where it was.")
@options.config
@options.as_json
@click.pass_context
def sweep(context: click.Context, model: str, checkpoints: str, **given: Any) -> int:
    """Probe a network at every file of CHECKPOINTS, a directory. MODEL:FACTORY is a function
    without arguments that returns the network: package.module:function or file.py:function."""
    network = call_factory("model", model)
    data = call_factory("data", given["data"])
    test = None if given["test"] is None else call_factory("test", given["test"])
    l2 = given["l2"]
    history = probe_checkpoints(
        network,
        checkpoints,
        *(data if _is_pair(data) else (data,)),
        layers=given["layers"],
        pool=given["pool"],
        test=test,
        out=given["out"],
        l2=l2 if isinstance(l2, str) else _single(l2),
        tol=given["tol"],
        solver=given["solver"],
        batch_size=given["batch_size"],
        seed=given["seed"],
    )
    if given["out"] is not None:
        _record(Path(given["out"]), context)
    if given["as_json"]:
        say(to_json({"failures": history.failures, "results": history.table()}))
    else:
        say(str(history))
        last = history.entries[-1]
        say(f"\nstep {last.step}:\n{aligned(last.cells(), left=(0,))}")
        if given["out"] is not None:
            say(f"\nnext: convexprobe report {given['out']} -o report.html")
    results = [result for entry in history.entries for result in entry.layers]
    certified = all(result.status is Status.CERTIFIED for result in results)
    return DONE if certified and not history.failures else UNCERTIFIED


@cli.command(
    short_help="Write the activations of a network.",
    epilog=_example("convexprobe extract train.py:make_model --data train.py:data --out acts"),
)
@options.model
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32", "float64"]),
              help="Of the rows that are written; each layer's own without.")  # fmt: skip
@click.option("--out", required=True, metavar="DIR", help="The directory to write.")
@options.config
@options.as_json
def extract(model: str, **given: Any) -> int:
    """Run a network over data and write the activations of its layers, which fit reads.
    MODEL:FACTORY is a function without arguments that returns the network."""
    network = call_factory("model", model)
    loader = call_factory("data", given["data"])
    if _is_pair(loader):
        inputs, size = loader, given["batch_size"]
        at = range(0, len(inputs[0]), size)
        loader = [(inputs[0][i : i + size], inputs[1][i : i + size]) for i in at]
    rows, labels = extract_activations(
        network,
        loader,
        given["layers"],
        pool=given["pool"],
        dtype=given["dtype"],
        out=given["out"],
    )
    _tell_arrays({**rows, **({} if labels is None else {"labels": labels})}, given["as_json"])
    if not given["as_json"]:
        say(f"\nnext: convexprobe fit {given['out']} --out run")
    return DONE


@cli.command(
    short_help="Write one HTML file that shows a run.",
    epilog=_example("convexprobe report run -o report.html"),
)
@click.argument("run")
@click.option("-o", "--out", default="report.html", show_default=True, metavar="FILE")
@options.as_json
def report(run: str, out: str, as_json: bool) -> int:
    """Write one HTML file that shows RUN, what fit or sweep wrote, or a file of probes. It opens
    without a network."""
    place = Path(run)
    scores, settings, repeat = None, None, None
    results: ProbeSet | ProbeHistory
    if (place / SETTINGS).is_file():
        results = load_history(place)
    else:
        results = load_probes(_probes_file(place))
        if (place / SCORES).is_file():
            scores = read_json(place / SCORES)["scores"]
    if (place / CONFIG).is_file():
        settings = read_config(place / CONFIG)
        command = next(name for name in settings if name != "versions")
        repeat = shlex.join(["convexprobe", command, "--config", str(place / CONFIG)])
    write_report(results, out, scores=scores, settings=settings, repeat=repeat)
    say(to_json({"report": out}) if as_json else f"wrote {out}")
    return DONE


@cli.command(short_help="Tell what is in a file.", epilog=_example("convexprobe info features.npz"))
@click.argument("file")
@options.as_json
def info(file: str, as_json: bool) -> int:
    """Tell what is in FILE: features, probes, or the directory of an extraction or a run."""
    place = Path(file)
    if (place / SETTINGS).is_file():
        history = load_history(place)
        say(to_json({"kind": "history", "results": history.table()}) if as_json else str(history))
        return DONE
    probes = None
    if (place / PROBES).is_file():
        probes = load_probes(place / PROBES)
    elif place.suffix == ".safetensors":
        with suppress(ValueError):
            probes = load_probes(place)
    if probes is not None:
        say(to_json({"kind": "probes", "probes": probes.table()}) if as_json else str(probes))
    else:
        _tell_arrays(read_columns(place), as_json)
    return DONE


@cli.command(
    short_help="Predict what a fit takes.",
    epilog=_example("convexprobe estimate features.npz --labels y --l2 1e-3"),
)
@options.features
@options.penalty
@options.work
@options.config
@options.as_json
def estimate(features: str, labels: str | None, **given: Any) -> int:
    """Predict the memory, passes and time of a fit, without fitting."""
    rows, y, _ = read_features(features, labels, layers=given["layers"], needs_labels=True)
    cost = estimate_cost(
        rows,
        y,
        given["solver"],
        l2=_l2(given, y),
        cv=given["cv"],
        device=given["device"],
        memory_limit=given["memory_limit"],
    )
    layers = {name: vars(layer) for name, layer in cost.layers.items()}
    say(to_json({"layers": layers, "total": vars(cost.total)}) if given["as_json"] else str(cost))
    return DONE


@cli.command(short_help="Probe a small network.", epilog=_example("convexprobe demo"))
@click.option("--out", default="out/demo", show_default=True, metavar="RUN")
@options.as_json
def demo(out: str, as_json: bool) -> int:
    """Probe a small network before and after its training, and tell how to read the output."""
    text, numbers = run_demo(Path(out))
    say(to_json(numbers) if as_json else text)
    return DONE


def _probes_file(run: Path) -> Path:
    return run / PROBES if run.is_dir() else run


def _record(run: Path, context: click.Context) -> None:
    """Write the options, so that `--config` repeats the command, and the versions beside them."""
    command = str(context.info_name)
    write_config(run / CONFIG, {command: options.recorded(context), "versions": versions()})


def _is_pair(data: Any) -> bool:
    """Whether data are inputs and labels `(x, y)`, not a loader of batches."""
    return isinstance(data, tuple) and len(data) == 2


def _single(values: Sequence[float]) -> float:
    if len(values) > 1:
        raise ValueError(f'l2: a sweep has one penalty or "auto", found {values}')
    return values[0]


def _l2(given: Mapping[str, Any], labels: Any) -> Any:
    """The penalties of `--l2`, `--C` or `--path`."""
    chosen = [name for name in ("l2", "C", "path") if given[name] is not None]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} say the same; give one of them")
    if not chosen:
        return "auto"
    if chosen != ["C"]:
        values = given[chosen[0]]
        return values if isinstance(values, str) or len(values) > 1 else values[0]
    concepts = list(labels.values()) if isinstance(labels, Mapping) else [labels]
    binary = {len(np.unique(column)) == 2 for column in concepts}
    if len(binary) > 1:
        raise ValueError(
            "C: scikit-learn's C is another l2 for two classes than for several; pass --l2"
        )
    if not all(value > 0 for value in given["C"]):
        raise ValueError(f"C: expected positive numbers, found {given['C']}")
    scale = (2.0 if binary == {True} else 1.0) / len(concepts[0])
    values = [scale / value for value in given["C"]]
    return values if len(values) > 1 else values[0]


def _classes(names: list[str] | None, labels: Any) -> list[Any] | None:
    """The classes as the labels have them: numbers where those are numbers."""
    if names is None or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biu":
        return names
    try:
        return [int(name) for name in names]
    except ValueError:
        raise ValueError(f"classes: the labels are integers, found {names}") from None


def _tell_arrays(arrays: Mapping[str, Any], as_json: bool) -> None:
    """A table of arrays: shapes, dtypes, and the classes of a column."""
    table = [["array", "shape", "dtype", "classes"]]
    content = []
    for name, x in arrays.items():
        shape, dtype = tuple(map(int, x.shape)), str(x.dtype).removeprefix("torch.")
        classes = ""
        if len(shape) == 1 and ((isinstance(x, np.ndarray) and x.dtype.kind in "biuSU")
                                or dtype.startswith(("int", "uint", "bool"))):  # fmt: skip
            values, counts = np.unique(np.asarray(x), return_counts=True)
            each = [f"{v}: {c}" for v, c in zip(values[:8], counts[:8], strict=True)]
            classes = ", ".join(each) + (f", ... ({len(values)})" if len(values) > 8 else "")
        content.append({"array": name, "shape": shape, "dtype": dtype, "classes": classes})
        table.append([name, "x".join(map(str, shape)) or "number", dtype, classes])
    say(to_json({"kind": "arrays", "arrays": content}) if as_json else aligned(table, left=(0, 3)))
