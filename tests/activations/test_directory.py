"""Activations on disk: what was written comes back, and what is damaged is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import convexprobe as cxp
from convexprobe.activations.directory import DirectoryRows
from convexprobe.activations.manifest import MANIFEST
from tests.extraction.small import batches, network, same
from tests.storage import write_activations


def tensors(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """Three layers of 60 rows, and labels."""
    g = torch.Generator().manual_seed(0)
    layers = {
        n: torch.randn(60, d, generator=g).to(dtype) for n, d in (("0", 8), ("1", 8), ("2", 5))
    }
    return layers, torch.randint(3, (60,), generator=g)


@pytest.fixture
def five_blocks(tmp_path: Path) -> Path:
    """A directory with those layers, in blocks of 14 rows."""
    write_activations(tmp_path / "a", *tensors(), rows=14)
    return tmp_path / "a"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_is_written_is_what_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    layers, labels = tensors(dtype)
    write_activations(tmp_path, layers, labels, rows=14)
    same(tmp_path, layers, labels)
    assert len(list(tmp_path.iterdir())) == 1 + 5


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_what_is_extracted_to_disk_is_what_memory_would_hold(
    tmp_path: Path, dtype: str | None
) -> None:
    expected, labels = cxp.extract(network(), batches(), dtype=dtype)
    written, again = cxp.extract(network(), batches(), dtype=dtype, out=tmp_path / "a" / "b")
    assert isinstance(written["0"], DirectoryRows) and torch.equal(again, labels)  # type: ignore[arg-type]
    same(tmp_path / "a" / "b", expected, labels)


def test_any_program_can_read_a_block(five_blocks: Path) -> None:
    layers, labels = tensors()
    block = load_file(five_blocks / "00001.safetensors")
    assert torch.equal(block["activations/2"], layers["2"][14:28])
    assert torch.equal(block["labels"], labels[14:28])
    manifest = json.loads((five_blocks / MANIFEST).read_text())
    assert manifest["complete"] and [layer["width"] for layer in manifest["layers"]] == [8, 8, 5]


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[DirectoryRows, Tensor]:
    """On disk and in memory."""
    path, (layers, labels) = tmp_path_factory.mktemp("shared"), tensors(torch.bfloat16)
    write_activations(path, layers, labels, rows=14)
    return cxp.open_activations(path)[0]["0"], layers["0"]


@given(index=st.lists(st.integers(0, 59), min_size=1, max_size=80))
def test_gathered_rows_are_those_of_the_matrix(
    one_layer: tuple[DirectoryRows, Tensor], index: list[int]
) -> None:
    stored, matrix = one_layer
    assert torch.equal(stored.gather(np.array(index)), matrix[torch.tensor(index)])


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_changed_byte_is_found_and_its_block_named(five_blocks: Path, number: int) -> None:
    path = five_blocks / f"{number:05d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4  # of some layer
    path.write_bytes(bytes(data))
    rows, labels = cxp.open_activations(five_blocks)
    assert sum(not loads(stored) for stored in rows.values()) == 1
    with pytest.raises(ValueError, match=f"{number:05d}.safetensors': torn or changed"):
        cxp.fit_probes(cxp.open_activations(five_blocks)[0], labels)


def loads(stored: DirectoryRows) -> bool:
    try:
        stored.load()
    except ValueError as error:
        assert "torn or changed" in str(error)
        return False
    return True


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 100), os.remove])
def test_a_short_or_missing_block_is_named_and_redone(tmp_path: Path, damage: Any) -> None:
    expected, labels = cxp.extract(network(), batches())
    cxp.extract(network(), batches(), out=tmp_path)
    damage(tmp_path / "00000.safetensors")
    with pytest.raises(ValueError, match=r"00000.safetensors': expected .* torn or missing"):
        cxp.open_activations(tmp_path)
    cxp.extract(network(), batches(), out=tmp_path)
    same(tmp_path, expected, labels)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "other"}', '{"format": "convexprobe-activations-2", "blocks": 3}'],
)
def test_other_manifests_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=re.escape(MANIFEST)):
        cxp.open_activations(tmp_path)
