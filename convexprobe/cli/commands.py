"""The command `convexprobe` and its subcommands; each returns its exit code."""

from __future__ import annotations

import click

from convexprobe.cli.fitting import estimate, evaluate, fit
from convexprobe.cli.networks import extract, sweep
from convexprobe.cli.options import CODES
from convexprobe.cli.showing import demo, info, report


@click.group(
    epilog=f"\b\nStart with:\n  convexprobe demo\n\n{CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="convexprobe")
def cli() -> None:
    """Linear classifier probes, each with a proof of how far from optimal it can be."""


for command in (fit, evaluate, estimate, extract, sweep, report, info, demo):
    cli.add_command(command)
