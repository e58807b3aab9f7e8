"""`report`, `info` and `demo`: what is in a file, and what it shows."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

import click

from convexprobe._files import read_json
from convexprobe.cli import options
from convexprobe.cli.config import CONFIG, read_config
from convexprobe.cli.demo import run_demo
from convexprobe.cli.feature_files import read_columns
from convexprobe.cli.options import example
from convexprobe.cli.output import DONE, say, tell_arrays, to_json
from convexprobe.cli.runs import PROBES, SCORES, SETTINGS, probes_file
from convexprobe.probes.probe_set import ProbeSet, load_probes
from convexprobe.report.report import write_report
from convexprobe.training.history import ProbeHistory, load_history


@click.command(
    short_help="Write one HTML file that shows a run.",
    epilog=example("convexprobe report run -o report.html"),
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
        results = load_probes(probes_file(place))
        if (place / SCORES).is_file():
            scores = read_json(place / SCORES)["scores"]
    if (place / CONFIG).is_file():
        settings = read_config(place / CONFIG)
        command = next(name for name in settings if name != "versions")
        repeat = shlex.join(["convexprobe", command, "--config", str(place / CONFIG)])
    write_report(results, out, scores=scores, settings=settings, repeat=repeat)
    say(to_json({"report": out}) if as_json else f"wrote {out}")
    return DONE


@click.command(
    short_help="Tell what is in a file.", epilog=example("convexprobe info features.npz")
)
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
        tell_arrays(read_columns(place), as_json)
    return DONE


@click.command(short_help="Probe a small network.", epilog=example("convexprobe demo"))
@click.option("--out", default="out/demo", show_default=True, metavar="RUN")
@options.as_json
def demo(out: str, as_json: bool) -> int:
    """Probe a small network before and after its training, and tell how to read the output."""
    text, numbers = run_demo(Path(out))
    say(to_json(numbers) if as_json else text)
    return DONE
