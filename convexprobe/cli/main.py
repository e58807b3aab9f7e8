"""`main`: runs a command; what it refuses is one line on standard error, never a traceback."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import click

from convexprobe.cli.commands import cli
from convexprobe.cli.output import FAILED, INTERRUPTED, warn

_REFUSALS = (OSError, TypeError, ValueError, OverflowError, ImportError, RuntimeError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `convexprobe`.

    Args:
        argv: the arguments behind the program's name; None takes those of the process.

    Returns:
        The exit code; see `convexprobe.cli.output`.
    """
    with warnings.catch_warnings():  # which puts `showwarning` back
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", UserWarning)  # ours: a line, and the work goes on
        try:
            return int(cli.main(argv, prog_name="convexprobe", standalone_mode=False) or 0)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f"; see {context.command_path} --help" if context is not None else ""
            warn(f"{error.format_message().rstrip('.')}{hint}")
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            warn("interrupted")
            return INTERRUPTED
        except _REFUSALS as error:
            warn(_told(error))
            return FAILED


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{str(error.filename)!r}: {error.strerror}"
    return str(error) or type(error).__name__


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    warn(f"warning: {message}")
