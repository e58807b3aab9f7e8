"""Activations on disk: what was extracted comes back, whatever interrupts or damages it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import convexprobe as cxp
from convexprobe import sinks
from convexprobe.checkpoints import digest
from convexprobe.manifest import MANIFEST
from convexprobe.pooling import random_features
from convexprobe.shards import Shards

Batches = list[tuple[Tensor, Tensor]]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def batches(rows: int = 60, size: int = 7, seed: int = 0) -> Batches:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 6, generator=g), torch.randint(3, (rows,), generator=g)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two batches: 14 rows of 8 + 8 + 5 features."""
    monkeypatch.setattr(sinks, "BLOCK", 600)


def same(directory: Path, expected: dict[str, Tensor], labels: Tensor | None) -> None:
    found, found_labels = cxp.open_activations(directory)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        assert found[name].shape == rows.shape and found[name].dtype == rows.dtype
        assert torch.equal(found[name].load(), rows), name
    assert (found_labels is None) == (labels is None)
    if labels is not None and found_labels is not None:
        assert torch.equal(found_labels, labels) and found_labels.dtype == labels.dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None])
def test_what_is_written_is_what_memory_would_hold(tmp_path: Path, dtype: str | None) -> None:
    expected, labels = cxp.extract(network(), batches(), dtype=dtype)
    written, again = cxp.extract(network(), batches(), dtype=dtype, out=tmp_path / "a" / "b")
    assert isinstance(written["0"], Shards) and torch.equal(again, labels)  # type: ignore[arg-type]
    same(tmp_path / "a" / "b", expected, labels)
    if dtype == "float32":  # the manifest, blocks of 14 rows, and no other file
        assert len(list((tmp_path / "a" / "b").iterdir())) == 1 + 5


def test_any_program_can_read_a_block(tmp_path: Path) -> None:
    expected, labels = cxp.extract(network(), batches())
    cxp.extract(network(), batches(), out=tmp_path)
    block = load_file(tmp_path / "00001.safetensors")
    assert torch.equal(block["activations/2"], expected["2"][14:28])
    assert torch.equal(block["labels"], labels[14:28])  # type: ignore[index]
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["complete"] and manifest["request"]["pool"] == {"*": "flatten"}
    assert [layer["width"] for layer in manifest["layers"]] == [8, 8, 5]


def test_two_names_of_one_point_are_stored_once(tmp_path: Path) -> None:
    found, labels = cxp.extract(
        network(), [x for x, _ in batches()], ["1", "1:output", "input"], out=tmp_path
    )
    assert labels is None and found["1"] is found["1:output"]
    assert list(found) == ["input", "1", "1:output"]
    assert len(load_file(tmp_path / "00000.safetensors")) == 2


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, Tensor]:
    """On disk and in memory."""
    path = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks, "BLOCK", 600)
        found = cxp.extract(network(), batches(), out=path, dtype="bfloat16")[0]["0"]
    return found, cxp.extract(network(), batches(), dtype="bfloat16")[0]["0"]


@given(index=st.lists(st.integers(0, 59), min_size=1, max_size=80))
def test_gathered_rows_are_those_of_the_matrix(
    one_layer: tuple[Shards, Tensor], index: list[int]
) -> None:
    shards, matrix = one_layer
    assert torch.equal(shards.gather(np.array(index)), matrix[torch.tensor(index)])


class Interrupted(nn.Module):
    """A network that fails in its `calls`-th forward pass; parameters and names are the same."""

    def __init__(self, inner: nn.Sequential, calls: int) -> None:
        super().__init__()
        # a list: attributes of the model are put back after extraction
        self.body, self.left = inner, [calls]

    @property
    def calls(self) -> int:
        return self.left[0]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.body(x)


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
sys.path.insert(0, {str(Path(__file__).parent)!r})
import convexprobe as cxp
from convexprobe import sinks
from test_shards import Interrupted, batches, network
sinks.BLOCK = 600
model = Interrupted(network(), 99)
def die(*args):
    if model.calls == 94:
        os._exit(9)
model.body[2].register_forward_hook(die)
cxp.extract(model, batches(), out={str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
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


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_changed_byte_is_found_and_its_block_named(tmp_path: Path, number: int) -> None:
    cxp.extract(network(), batches(), out=tmp_path)
    path = tmp_path / f"{number:05d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4  # of some layer
    path.write_bytes(bytes(data))
    found, _ = cxp.open_activations(tmp_path)
    assert sum(not loads(shards) for shards in found.values()) == 1
    with pytest.raises(ValueError, match=f"{number:05d}.safetensors': torn or changed"):
        cxp.fit_probes(cxp.open_activations(tmp_path)[0], torch.cat([y for _, y in batches()]))


def loads(shards: Shards) -> bool:
    try:
        shards.load()
    except ValueError as error:
        assert "torn or changed" in str(error)
        return False
    return True


def test_a_short_or_missing_block_is_named_and_redone(tmp_path: Path) -> None:
    expected, labels = cxp.extract(network(), batches())
    for damage in (lambda path: os.truncate(path, 100), os.remove):
        cxp.extract(network(), batches(), out=tmp_path)
        damage(tmp_path / "00002.safetensors")
        with pytest.raises(ValueError, match=r"00002.safetensors': expected .* torn or missing"):
            cxp.open_activations(tmp_path)
        cxp.extract(network(), batches(), out=tmp_path)
        same(tmp_path, expected, labels)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "other"}', '{"format": "convexprobe-activations-1", "blocks": 3}'],
)
def test_other_manifests_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=re.escape(MANIFEST)):
        cxp.open_activations(tmp_path)


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    cxp.extract(network(), batches(), out=tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    path.write_text(path.read_text().replace("00000.safe", "../00000.safe"))
    with pytest.raises(ValueError, match="another folder"):
        cxp.open_activations(tmp_path / "a")


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, labels = cxp.extract(network(), batches())
    whole, calls = sinks.write_whole, 0

    def full(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(sinks, "write_whole", full)
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
sys.path.insert(0, {str(Path(__file__).parent)!r})
import convexprobe as cxp
from test_shards import batches, network
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    cxp.extract(network(), batches(), out={str(tmp_path)!r})
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
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
    peaks = []
    for count in (8, 48):
        code = f"""
import resource, torch, convexprobe as cxp
from convexprobe import sinks
sinks.BLOCK = 8 << 20
def data():
    for i in range({count}):
        yield torch.full((1000, 1000), float(i)), torch.zeros(1000)
cxp.extract(torch.nn.Identity(), data(), "input", out={str(tmp_path / str(count))!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks  # MiB; the rows are 192 MB


def test_hashes_tell_models_apart() -> None:
    first = digest(network().state_dict())
    assert first == digest(network().state_dict()) and len(first) == 64
    changed = network()
    with torch.no_grad():
        changed[0].bias[3] += 1e-6
    assert digest(changed.state_dict()) != first
    assert digest(network().to(torch.bfloat16).state_dict()) != first
