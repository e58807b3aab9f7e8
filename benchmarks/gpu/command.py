"""Everything that needs a GPU, in under ten minutes, in one file and one table.

    make gpu                                             # or: python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --quick        # tiny sizes, to try the command itself
    python -m benchmarks.gpu --part scale                # one part of it

Needs torch with CUDA, what convexprobe needs, and no network. CuPy, cuML, cyanure-gpu, torchvision
and pytest are used where they are installed. The parts:

tests: the tests marked gpu.
scale: 20 probes of 1 281 167 x 2 048 rows in bfloat16 with 1 000 classes, or of as many rows as
    memory and time allow, cold and warm; torch.optim.LBFGS and cuML on the same rows.
regimes: cases of `benchmarks.regimes` with rows on the device, beside cuML, cyanure-gpu and
    torch.optim.LBFGS.
forward: the forward pass of Inception v3.

Each part is a process of its own with a limit on its time: one that fails, hangs or takes the
device down with it is reported, and the next one starts. `OUT/gpu.json` holds machine, versions and
the numbers of every part that has ended; `OUT/gpu_PART.json` those of the part that is running, and
`OUT/gpu_PART.log` what it printed. The exit status is 1 if there is no GPU or if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.parts import PARTS, ROOT, Skipped
from benchmarks.gpu.report import PUBLISHED, table
from benchmarks.harness.table import machine, versions
from benchmarks.scale.measure import Run
from convexprobe._files import write_whole

OPTIONAL = ("cupy", "cuml", "cyanure_gpu", "torchvision", "triton")
"""Modules whose versions are recorded if they are installed."""

LEAVING = 10.0
"""Seconds of a part's time in which it should not begin anything: it ends, and its process does."""


def run_part(name: str, options: list[str], out: Path, seconds: float) -> dict[str, Any]:
    """Run one part in a process of its own; return its status, reason, seconds and results.

    The process, and those that it started, are killed after `seconds`.
    """
    kept, log = out / f"gpu_{name}.json", out / f"gpu_{name}.log"
    kept.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(out), *options]
    started = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is None:  # also where this command is interrupted
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    spent = time.perf_counter() - started
    results = json.loads(kept.read_text()) if kept.exists() else {}
    kept.unlink(missing_ok=True)
    status, reason = outcome(code, results, log, seconds)
    return {
        "status": status, "reason": reason, "seconds": spent, "budget": seconds, "results": results,
    }  # fmt: skip


def outcome(
    code: int | None, results: dict[str, Any], log: Path, seconds: float
) -> tuple[str, str | None]:
    """Return the status of a part and its reason, given the exit code of its process, if any."""
    if code is None:
        during = f" during {results['running']}" if "running" in results else ""
        return "out of time", f"ended after {seconds:.0f} s{during}"
    if "skipped" in results:
        return "skipped", results["skipped"]
    failures = list(results.get("failures", []))
    if code != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        failures.append(lines[-1].strip()[:200] if lines else f"exit code {code}")
    return ("failed", "; ".join(failures)) if failures else ("done", None)


def work(name: str, device: str, out: Path, quick: bool) -> None:
    """Do one part in this process, and keep its results in `OUT/gpu_PART.json`."""
    part = PARTS[name]
    deadline = time.perf_counter() + part.seconds - LEAVING
    run = Run(device, deadline, out, f"gpu_{name}.json")
    try:
        part.work(run, quick)
    except Skipped as reason:
        run.keep("skipped", str(reason))


def describe(device: str) -> dict[str, Any]:
    """Return what a report says about this machine."""
    found = packages_distributions()
    more = {m: version(found[m][0]) for m in OPTIONAL if m in found}
    about: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"), "device": device, "machine": machine(),
        "versions": ", ".join([versions(), *(f"{m} {v}" for m, v in more.items())]),
    }  # fmt: skip
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about["device_bytes"] = properties.total_memory
        about["runtime"] = torch.version.cuda or torch.version.hip
    return about


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 if there is no GPU or if a part failed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--part", choices=[*PARTS], help="do only this one, in this process")
    settings = parser.parse_args(arguments)
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch sees no CUDA device", file=sys.stderr)
        return 1
    if settings.device == "cpu" and not settings.quick:
        parser.error("the sizes are a GPU's: add --quick to --device cpu")
    out = settings.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if settings.part is not None:
        work(settings.part, settings.device, out, settings.quick)
        return 0
    options = ["--device", settings.device, *(["--quick"] if settings.quick else [])]
    report = {**describe(settings.device), "quick": settings.quick, "published": PUBLISHED,
              "parts": {}}  # fmt: skip
    for name, part in PARTS.items():
        report["parts"][name] = found = run_part(name, options, out, part.seconds)
        write_whole(out / "gpu.json", json.dumps(report, indent=1).encode())
        print(f"{name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
    print("\n" + table(report))
    ended = {part["status"] for part in report["parts"].values()}
    return 0 if ended <= {"done", "skipped"} else 1
