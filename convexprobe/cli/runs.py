"""The files of a RUN, a directory that `fit` or `sweep` wrote."""

from __future__ import annotations

from pathlib import Path

import click

from convexprobe.cli import options
from convexprobe.cli.config import CONFIG, write_config
from convexprobe.report.versions import versions

PROBES, SCORES, SETTINGS = "probes.safetensors", "scores.json", "settings.json"
"""What `fit` writes, what `evaluate` adds, and what only a sweep has."""


def probes_file(run: Path) -> Path:
    """The probes of a RUN, which may also be the file itself."""
    return run / PROBES if run.is_dir() else run


def record(run: Path, context: click.Context) -> None:
    """Write the options, so that `--config` repeats the command, and the versions beside them."""
    command = str(context.info_name)
    write_config(run / CONFIG, {command: options.recorded(context), "versions": versions()})
