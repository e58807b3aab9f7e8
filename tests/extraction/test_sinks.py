"""Extraction to disk: whatever interrupts it, it resumes, and no row is lost or doubled."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import convexprobe as cxp
import convexprobe.activations.manifest as manifest
import convexprobe.extraction.writers as sinks
from convexprobe.activations.manifest import MANIFEST
from convexprobe.extraction.pooling import random_features
from tests.extraction.small import Interrupted, batches, network, same

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two batches: 14 rows of 8 + 8 + 5 features."""
    monkeypatch.setattr(sinks, "BLOCK", 600)


def test_two_names_of_one_point_are_stored_once(tmp_path: Path) -> None:
    found, labels = cxp.extract(
        network(), [x for x, _ in batches()], ["1", "1:output", "input"], out=tmp_path
    )
    assert labels is None and found["1"] is found["1:output"]
    assert list(found) == ["input", "1", "1:output"]
    assert len(load_file(tmp_path / "00000.safetensors")) == 2


@pytest.mark.parametrize("calls", range(9))
def test_an_interrupted_extraction_resumes(tmp_path: Path, calls: int) -> None:
    expected, labels = cxp.extract(Interrupted(network(), 99), batches())
    with pytest.raises(KeyboardInterrupt):
        cxp.extract(Interrupted(network(), calls), batches(), out=tmp_path)
    done = calls // 2 * 14
    if done:
        partial, _ = cxp.open_activations(tmp_path, partial=True)
        assert torch.equal(partial["body.2"].load(), expected["body.2"][:done])
        with pytest.raises(ValueError, match=f"interrupted after {done} rows"):
            cxp.open_activations(tmp_path)
    model = Interrupted(network(), 99)
    cxp.extract(model, batches(), out=tmp_path)
    assert model.calls == 99 - (9 - done // 7)  # what is done does not run again
    same(tmp_path, expected, labels)
    cxp.extract(model, batches(), out=tmp_path)  # and once complete, nothing does
    assert model.calls == 99 - (9 - done // 7)


def test_a_process_that_is_killed_resumes(tmp_path: Path) -> None:
    code = f"""
import os, sys
import convexprobe as cxp
import convexprobe.extraction.writers as sinks
from tests.extraction.small import Interrupted, batches, network
sinks.BLOCK = 600
model = Interrupted(network(), 99)
def die(*args):
    if model.calls == 94:
        os._exit(9)
model.body[2].register_forward_hook(die)
cxp.extract(model, batches(), out={str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 9
    expected, labels = cxp.extract(Interrupted(network(), 99), batches())
    model = Interrupted(network(), 99)
    cxp.extract(model, batches(), out=tmp_path)
    assert model.calls == 99 - 5
    same(tmp_path, expected, labels)


def test_resuming_with_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cxp.extract(Interrupted(network(), 4), batches(), out=tmp_path)
    for model, data, options, message in [
        (network(1), batches(), {}, "another model"),
        (network(), batches(), {"dtype": "float16"}, "another dtype"),
        (network(), batches(), {"pool": random_features(3)}, "another pool"),
        (network(), batches(), {"layers": "body.1"}, "another points"),
        (network(), batches(seed=1), {}, "00000.safetensors' was made of, found others"),
        (network(), batches()[:3], {}, "expected the 28 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            cxp.extract(Interrupted(model, 99), data, out=tmp_path, **options)  # type: ignore
    cxp.extract(Interrupted(network(), 99), batches(), out=tmp_path)  # and nothing was broken


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="found other files"):
        cxp.extract(network(), batches(), out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no activations here"):
        cxp.open_activations(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, labels = cxp.extract(network(), batches())
    whole, calls = manifest.write_whole, 0

    def full(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # the third block; every block is followed by a manifest
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(manifest, "write_whole", full)
    with pytest.raises(OSError, match="full after 28 rows") as error:
        cxp.extract(network(), batches(), out=tmp_path)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path)
    partial, partial_labels = cxp.open_activations(tmp_path, partial=True)
    assert torch.equal(partial["2"].load(), expected["2"][:28])
    assert torch.equal(partial_labels, labels[:28])  # type: ignore[arg-type,index]
    cxp.extract(network(), batches(), out=tmp_path)
    same(tmp_path, expected, labels)


def test_a_file_that_cannot_grow_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = f"""
import resource, sys
import convexprobe as cxp
from tests.extraction.small import batches, network
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    cxp.extract(network(), batches(), out={str(tmp_path)!r})
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "the disk is full after 0 rows" in done.stdout, done
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_overflow_is_refused_and_never_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "BLOCK", 84)  # every batch
    data = batches()
    data[5][0][2] = 3e5
    model = nn.Sequential(nn.Identity())
    with pytest.raises(OverflowError, match=r"layer '0', batch 5: 6 finite .* in row 37"):
        cxp.extract(model, data, out=tmp_path, dtype="float16")
    partial, _ = cxp.open_activations(tmp_path, partial=True)
    assert torch.equal(partial["0"].load(), torch.cat([x for x, _ in data[:5]]).half())


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = f"""
import resource, torch, convexprobe as cxp
import convexprobe.extraction.writers as sinks
sinks.BLOCK = 8 << 20
def data(count):
    for i in range(count):
        yield torch.full((1000, 1000), float(i)), torch.zeros(1000)
for count in (8, 48):
    cxp.extract(torch.nn.Identity(), data(count), "input", out={str(tmp_path)!r} + f"/{{count}}")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peaks = [int(line) / 1024 for line in done.stdout.split()]
    assert peaks[1] - peaks[0] < 40, peaks  # MiB; the rows are 192 MB
