"""`fit`, `evaluate` and `estimate`: from features in files to certified probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from convexprobe._files import write_whole
from convexprobe.cli import options
from convexprobe.cli.feature_files import read_column, read_features
from convexprobe.cli.options import example
from convexprobe.cli.output import DONE, UNCERTIFIED, say, to_json
from convexprobe.cli.runs import PROBES, SCORES, SETTINGS, probes_file, record
from convexprobe.probes.cost import estimate as estimate_cost
from convexprobe.probes.fit import fit_probes
from convexprobe.probes.probe_set import load_probes
from convexprobe.solvers.solution import Status


@click.command(
    short_help="Fit a certified probe to every layer.",
    epilog=example("convexprobe fit features.npz --labels y --out run"),
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
        record(run, context)
    if given["as_json"]:
        say(to_json({"out": out, "probes": probes.table()}))
    else:
        say(str(probes))
        if out is not None:
            say(f"\nwrote {run / PROBES}; next: convexprobe report {out} -o report.html")
    certified = all(probe.status is Status.CERTIFIED for probe in probes.values())
    return DONE if certified else UNCERTIFIED


@click.command(
    short_help="Measure probes on other rows.",
    epilog=example("convexprobe evaluate run test.npz --labels y --bootstrap 200"),
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
    probes = load_probes(probes_file(Path(run)))
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
    if given["as_json"]:
        say(to_json(content))
    else:
        say(str(scores))
        if Path(run).is_dir():
            say(f"\nnext: convexprobe report {run} -o report.html, which shows them, too")
    return DONE


@click.command(
    short_help="Predict what a fit takes.",
    epilog=example("convexprobe estimate features.npz --labels y --l2 1e-3"),
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
