"""`extract` and `sweep`: from a network to activations, or to probes of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from convexprobe._tables import aligned
from convexprobe.cli import options
from convexprobe.cli.factories import call_factory
from convexprobe.cli.options import example
from convexprobe.cli.output import DONE, UNCERTIFIED, say, tell_arrays, to_json
from convexprobe.cli.runs import record
from convexprobe.extraction.extract import extract as extract_activations
from convexprobe.solvers.solution import Status
from convexprobe.training.sweep import probe_checkpoints


@click.command(
    short_help="Write the activations of a network.",
    epilog=example("convexprobe extract train.py:make_model --data train.py:data --out acts"),
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
    tell_arrays({**rows, **({} if labels is None else {"labels": labels})}, given["as_json"])
    if not given["as_json"]:
        say(f"\nnext: convexprobe fit {given['out']} --out run")
    return DONE


@click.command(
    short_help="Probe a network at every checkpoint.",
    epilog=example("convexprobe sweep train.py:make_model checkpoints --data train.py:data"),
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
        record(Path(given["out"]), context)
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


def _is_pair(data: Any) -> bool:
    """Whether data are inputs and labels `(x, y)`, not a loader of batches."""
    return isinstance(data, tuple) and len(data) == 2


def _single(values: Sequence[float]) -> float:
    if len(values) > 1:
        raise ValueError(f'l2: a sweep has one penalty or "auto", found {values}')
    return values[0]
