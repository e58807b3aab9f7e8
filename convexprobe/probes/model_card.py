"""The folder that a hub's repository is made of: probes, directions, and a card that tells both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_bytes

from convexprobe._arguments import check_path
from convexprobe._files import write_whole
from convexprobe.arrays.backend import to_numpy
from convexprobe.metrics.score import FORMATS, Score
from convexprobe.probes.probe import OBJECTIVE, Probe
from convexprobe.probes.probe_file import write_probes

CARD, PROBES, DIRECTIONS = "README.md", "probes.safetensors", "directions.safetensors"
"""The files of the folder; the card is written last."""

_MOST_CLASSES = 20
"""Classes that the card names of a probe."""

_FRONT = """---
library_name: convexprobe
tags:
- linear-probe
- interpretability
- logistic-regression
---
"""

_USE = """## How to use it

With convexprobe, which also has the certificates:

```python
import convexprobe as cxp

probes = cxp.load_probes("probes.safetensors")
probe = probes[{first}]
probe.predict(activations)  # rows (n, {width}) of that layer
probe.to_linear()  # a torch.nn.Linear that returns the logits
```

Without it, `probes.safetensors` has the arrays `N.weights` (classes, features) and `N.bias` of
probe N in the first table. `directions.safetensors` has for every layer by its name a unit vector
for each class, `(classes, features)`, along which the class's logit rises fastest above the mean of
the others'; it is 0 where a class has none. The classes stand in the first table, in the order of
the rows.

```python
import torch
from safetensors.torch import load_file

tensors = load_file("probes.safetensors")
linear = torch.nn.Linear({width}, {classes})
linear.load_state_dict({{"weight": tensors["0.weights"], "bias": tensors["0.bias"]}})
steering = load_file("directions.safetensors")[{first}][0]  # of the first class
```
"""


def write_folder(
    directory: str | os.PathLike[str],
    probes: Mapping[str, Probe],
    scores: Mapping[str, Score],
    description: str,
) -> None:
    """Write the folder; each file appears whole or not at all.

    Raises:
        TypeError: a class that cannot be saved, see `write_probes`.
        ValueError: no probes, or a score of a probe that is not there.
        OSError: the folder cannot be written.
    """
    if not probes:
        raise ValueError("probes: expected at least one to save, found none")
    if other := [name for name in scores if name not in probes]:
        raise ValueError(f"scores: there is no probe {other[0]!r}, found {list(probes)[:8]}")
    folder = check_path("directory", directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_probes(folder / PROBES, probes)
    vectors = {name: _directions(probe) for name, probe in probes.items()}
    write_whole(folder / DIRECTIONS, to_bytes(vectors))
    write_whole(Path(folder / CARD), _card(probes, scores, description).encode())


def _directions(probe: Probe) -> np.ndarray:
    """`Probe.direction` of every class, `(k, d)`; 0 for one that has none."""
    rows = np.zeros(tuple(probe.weights.shape), to_numpy(probe.weights).dtype)
    for i, name in enumerate(probe.classes):
        try:
            rows[i] = to_numpy(probe.direction(name))
        except ValueError:  # a class without rows, or weights that are all alike
            continue
    return rows


def _card(probes: Mapping[str, Probe], scores: Mapping[str, Score], description: str) -> str:
    first, probe = next(iter(probes.items()))
    solved = [["N", "layer", "features", "rows", "classes"]]
    proved = [["layer", "l2", "loss, nats", "gap, nats", "gap / H(Y)", "train error", "status"]]
    for i, (name, one) in enumerate(probes.items()):
        width = int(one.weights.shape[1])
        solved.append([str(i), name, str(width), f"{one.rows:g}", _classes(one)])
        share = f"{one.gap / one.label_entropy:.3%}"
        numbers = [f"{one.l2:.4g}", f"{one.loss:.4f}", f"{one.gap:.1e}", share]
        proved.append([name, *numbers, f"{one.train_error:.2%}", one.verdict])
    parts = [
        _FRONT,
        f"# {len(probes)} linear probe{'s' * (len(probes) > 1)}\n",
        f"{description}\n" if description else "",
        "## What was solved\n",
        f"The objective of each probe is {OBJECTIVE}.",
        "The penalty is on standardized features where `scale` is stored.\n"
        if any(one.scale is not None for one in probes.values())
        else "",
        _markdown(solved),
        "## How well it was solved\n",
        "The gap is a proof of how far above its optimum the objective is at most. Certified is a "
        "gap of at most tol times H(Y), the entropy of the labels; tol is 0.1 % by default.\n",
        _markdown(proved),
    ]
    if scores:
        rows = [["layer", "rows", *FORMATS]]
        for name, score in scores.items():
            row = [name, f"{score.rows:g}"]
            for measure, form in FORMATS.items():
                text = form.format(getattr(score, measure))
                if measure in score.samples:
                    low, high = (form.format(end) for end in score.interval(measure))
                    text = f"{text} ({low} to {high})"
                row.append(text)
            rows.append(row)
        parts += ["## Measures on other rows\n", _markdown(rows)]
    width, classes = int(probe.weights.shape[1]), len(probe.classes)
    # in a block of code: a name in quotes on one line, which no backticks can end
    named = json.dumps(first).replace("`", "\\u0060")
    parts.append(_USE.format(first=named, width=width, classes=classes))
    return "\n".join(part for part in parts if part)


def _classes(probe: Probe) -> str:
    names = [str(name) for name in probe.classes[:_MOST_CLASSES]]
    more = len(probe.classes) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _markdown(rows: list[list[str]]) -> str:
    """A table in Markdown, in which no cell can be markup."""
    head, *body = (["".join(map(_plain, cell)) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _plain(character: str) -> str:
    if character in "\\`*[]|~":
        return "\\" + character
    return " " if character in "\r\n" else escape(character)
