"""Extraction to a directory resumes whatever interrupts it, and no row is lost or doubled."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import convexprobe as cxp
from convexprobe.activations import manifest
from convexprobe.activations.manifest import MANIFEST
from convexprobe.extraction.pools import random_features
from tests.extraction.small import ROOT, Interrupted, batches, extract_to, network, same
from tests.processes import end, start


def test_two_names_of_one_point_are_stored_once(tmp_path: Path) -> None:
    names = ["1", "1:output", "input"]
    layers, labels = extract_to(tmp_path, network(), [x for x, _ in batches()], names)
    assert labels is None and layers["1"] is layers["1:output"]
    assert list(layers) == ["input", "1", "1:output"]
    assert len(load_file(tmp_path / "00000.safetensors")) == 2


@pytest.mark.parametrize("calls", range(9))
def test_an_interrupted_extraction_resumes(tmp_path: Path, calls: int) -> None:
    expected, labels = cxp.extract(Interrupted(network(), 99), batches())
    with pytest.raises(KeyboardInterrupt):
        extract_to(tmp_path, Interrupted(network(), calls), batches())
    done = calls // 2 * 14
    if done:
        partial, _ = cxp.open_activations(tmp_path, partial=True)
        assert torch.equal(partial["body.2"].load(), expected["body.2"][:done])
        with pytest.raises(ValueError, match=f"interrupted after {done} rows"):
            cxp.open_activations(tmp_path)
    model = Interrupted(network(), 99)
    extract_to(tmp_path, model, batches())
    assert model.calls == 99 - (9 - done // 7)  # what is done does not run again
    same(tmp_path, expected, labels)
    extract_to(tmp_path, model, batches())  # and once complete, nothing does
    assert model.calls == 99 - (9 - done // 7)


def extract_and_die(out: Path) -> None:
    def dying() -> Iterator[Any]:
        for index, batch in enumerate(batches()):
            if index == 5:
                os._exit(9)
            yield batch

    extract_to(out, Interrupted(network(), 99), dying())


def test_a_process_that_is_killed_resumes(tmp_path: Path) -> None:
    assert end(start(extract_and_die, tmp_path)) == 9
    expected, labels = cxp.extract(Interrupted(network(), 99), batches())
    model = Interrupted(network(), 99)
    extract_to(tmp_path, model, batches())
    assert model.calls == 99 - 5
    same(tmp_path, expected, labels)


def test_resuming_with_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_to(tmp_path, Interrupted(network(), 4), batches())
    for model, data, options, message in [
        (network(1), batches(), {}, "another model"),
        (network(), batches(), {"dtype": "float16"}, "another dtype"),
        (network(), batches(), {"pool": random_features(3)}, "another pool"),
        (network(), batches(), {"layers": "body.1"}, "another choice of layers"),
        (network(), batches(seed=1), {}, "00000.safetensors' was made of, found others"),
        (network(), batches()[:3], {}, "expected the 28 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            extract_to(tmp_path, Interrupted(model, 99), data, **options)  # type: ignore
    extract_to(tmp_path, Interrupted(network(), 99), batches())  # and nothing was broken


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
        extract_to(tmp_path, network(), batches())
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path)
    partial, partial_labels = cxp.open_activations(tmp_path, partial=True)
    assert torch.equal(partial["2"].load(), expected["2"][:28])
    assert torch.equal(partial_labels, labels[:28])  # type: ignore[arg-type,index]
    extract_to(tmp_path, network(), batches())
    same(tmp_path, expected, labels)


def extract_to_a_small_disk(out: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    with pytest.raises(OSError, match="the disk is full after 0 rows"):
        cxp.extract(network(), batches(), out=out)


def test_a_file_that_cannot_grow_leaves_nothing_half_written(tmp_path: Path) -> None:
    assert end(start(extract_to_a_small_disk, tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_overflow_is_refused_and_never_stored(tmp_path: Path) -> None:
    data = batches()
    data[5][0][2] = 3e5
    model = nn.Sequential(nn.Identity())
    with pytest.raises(OverflowError, match=r"layer '0', batch 5: 6 finite .* in row 37"):
        extract_to(tmp_path, model, data, dtype="float16", block=84)  # of one batch
    partial, _ = cxp.open_activations(tmp_path, partial=True)
    assert torch.equal(partial["0"].load(), torch.cat([x for x, _ in data[:5]]).half())


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = f"""
import resource, torch
from pathlib import Path
from tests.extraction.small import extract_to
def data(count):
    for i in range(count):
        yield torch.full((1000, 1000), float(i)), torch.zeros(1000)
for count in (8, 48):
    out = Path({str(tmp_path)!r}, str(count))
    extract_to(out, torch.nn.Identity(), data(count), "input", block=8 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peaks = [int(line) / 1024 for line in done.stdout.split()]
    assert peaks[1] - peaks[0] < 80, peaks  # MiB; half of what there are more rows; the heap varies
