"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import numpy as np

from convexprobe.cli.config import read_config
from convexprobe.solvers import SOLVERS

UNRECORDED = ("config", "as_json")
"""Options that change no result."""

MOST = 10_000
"""Penalties of a path at most."""

CODES = """\b
Exit codes: 0 done; 1 refused, in a line that says why; 2 wrong usage; 3 done, but
a probe is not certified or a checkpoint could not be probed."""


def example(line: str) -> str:
    """What stands at the end of a command's help."""
    return f"\b\nExample:\n  {line}\n\n{CODES}"


def words(value: Any) -> list[str]:
    """Names between commas; or, from a file of options, a list of them."""
    found = value.split(",") if isinstance(value, str) else list(value)
    names = [str(word).strip() for word in found]
    if not names or not all(names):
        raise click.BadParameter(f"expected names between commas, found {value!r}")
    return names


def numbers(value: Any) -> list[float]:
    """Numbers between commas; or, from a file of options, one or a list of them."""
    found = value.split(",") if isinstance(value, str) else value
    try:
        return [float(part) for part in (found if isinstance(found, list) else [found])]
    except (TypeError, ValueError):
        message = f"expected numbers between commas, found {value!r}"
        raise click.BadParameter(message) from None


def penalties(value: Any) -> list[float] | str:
    """Numbers, or "auto"."""
    return value if value == "auto" else numbers(value)


def path(value: Any) -> list[float]:
    """The penalties of "LOW:HIGH:COUNT", evenly spaced in the logarithm; or a list of them."""
    if isinstance(value, list):
        return numbers(value)
    try:
        low, high, count = str(value).split(":")
        ends, number = (float(low), float(high)), int(count)
        if not (0 < ends[0] <= ends[1] < np.inf and 1 <= number <= MOST):
            raise ValueError
    except ValueError:
        message = f"expected LOW:HIGH:COUNT, such as 1e-6:1:7, found {value!r}"
        raise click.BadParameter(message) from None
    return np.geomspace(*ends, number).tolist()


def recorded(context: click.Context) -> dict[str, Any]:
    """The options of a command by name, as a file of options keeps them."""
    given = context.params.items()
    return {k: v for k, v in given if v is not None and v is not False and k not in UNRECORDED}


def _configure(context: click.Context, _: click.Parameter, file: str | None) -> None:
    """Take a file's table of the command as defaults: what is typed goes before it."""
    if file is None:
        return
    table = read_config(file, context.info_name)
    known = {p.name for p in context.command.params} - {*UNRECORDED, "help"}
    if other := sorted(table.keys() - known):
        raise click.UsageError(f"{file!r}: no option is called {other[0]!r}; known {sorted(known)}")
    context.default_map = table


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one, in the order of the help."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, no table.")

config = click.option(
    "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_configure,
    help="A TOML file of options, such as the config.toml of a RUN.",
)  # fmt: skip

features = together(
    click.argument("features"),
    click.option("--labels", metavar="Y", help="An array of FEATURES, a file, or FILE:NAME. "
                 "Without it, \"labels\" or \"y\" of FEATURES. Several arrays are concepts."),
    click.option("--layers", type=words, metavar="A,B", help="Layers of FEATURES; all without."),
)  # fmt: skip

penalty = together(
    click.option("--l2", type=penalties, metavar="L2", help='A number, several between commas, or '
                 '"auto", which is the default. The best on held-out rows is taken.'),
    click.option("--C", "C", type=numbers, metavar="C", help="scikit-learn's C, instead of l2."),
    click.option("--path", type=path, metavar="LOW:HIGH:N", help="N values of l2, instead of it."),
    click.option("--cv", type=int, metavar="K", help="Choose among several l2 in K folds."),
)  # fmt: skip

work = together(
    click.option("--solver", type=click.Choice(sorted(SOLVERS)), default="auto", metavar="NAME",
                 help=f"{', '.join(sorted(SOLVERS))}."),
    click.option("--device", metavar="DEVICE", help="A torch device, such as cuda."),
    click.option("--memory-limit", type=float, metavar="BYTES",
                 help="Of a layer's rows and the logits kept of them."),
)  # fmt: skip

model = together(
    click.argument("model", metavar="MODEL:FACTORY"),
    click.option("--data", required=True, metavar="FACTORY", help="A function like FACTORY that "
                 "returns inputs and labels (x, y), or a loader of batches."),
    click.option("--layers", type=words, metavar="A,B", help='Such as "blocks"; all without.'),
    click.option("--pool", default="flatten", show_default=True, metavar="POOL",
                 help="How activations become rows."),
    click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True,
                 help="Rows of a batch, of inputs that are no loader."),
)  # fmt: skip

groups = click.option("--groups", metavar="G", help="Which rows belong together; like --labels.")
seed = click.option("--seed", type=int, default=0, show_default=True, help="Of random draws.")
tol = click.option("--tol", type=float, default=1e-3, show_default=True, metavar="T",
                   help="Certified is: gap <= T * H(Y).")  # fmt: skip
