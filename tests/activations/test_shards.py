"""Activations on disk: what was extracted comes back, and what is damaged is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import convexprobe as cxp
import convexprobe.extraction.writers as sinks
from convexprobe.activations.directory import DirectoryRows
from convexprobe.activations.manifest import MANIFEST
from tests.extraction.small import batches, network, same


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two batches: 14 rows of 8 + 8 + 5 features."""
    monkeypatch.setattr(sinks, "BLOCK", 600)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None])
def test_what_is_written_is_what_memory_would_hold(tmp_path: Path, dtype: str | None) -> None:
    expected, labels = cxp.extract(network(), batches(), dtype=dtype)
    written, again = cxp.extract(network(), batches(), dtype=dtype, out=tmp_path / "a" / "b")
    assert isinstance(written["0"], DirectoryRows) and torch.equal(again, labels)  # type: ignore[arg-type]
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


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[DirectoryRows, Tensor]:
    """On disk and in memory."""
    path = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks, "BLOCK", 600)
        found = cxp.extract(network(), batches(), out=path, dtype="bfloat16")[0]["0"]
    return found, cxp.extract(network(), batches(), dtype="bfloat16")[0]["0"]


@given(index=st.lists(st.integers(0, 59), min_size=1, max_size=80))
def test_gathered_rows_are_those_of_the_matrix(
    one_layer: tuple[DirectoryRows, Tensor], index: list[int]
) -> None:
    shards, matrix = one_layer
    assert torch.equal(shards.gather(np.array(index)), matrix[torch.tensor(index)])


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


def loads(shards: DirectoryRows) -> bool:
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
