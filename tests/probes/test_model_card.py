"""The folder for a hub: others read its arrays, and its card says what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convexprobe as cxp
from tests.probes.sets import DATA, small_set

HOSTILE = "a|b`\n# <script>alert(1)</script>"


def test_torch_alone_makes_the_probe_of_the_folder(tmp_path: Path) -> None:
    probes = small_set()
    probes.save_pretrained(tmp_path / "hub")
    tensors = load_file(tmp_path / "hub" / "probes.safetensors")
    directions = load_file(tmp_path / "hub" / "directions.safetensors")
    for i, (name, probe) in enumerate(probes.items()):
        linear = torch.nn.Linear(probe.weights.shape[1], len(probe.classes)).double()
        linear.load_state_dict({"weight": tensors[f"{i}.weights"], "bias": tensors[f"{i}.bias"]})
        x = DATA.x[:, : probe.weights.shape[1]]
        logits = linear(torch.tensor(x, dtype=torch.float64)).detach().numpy()
        assert np.allclose(logits, probe.logits(x), atol=1e-5)
        if probe.weights.any():
            for row, c in zip(directions[name].numpy(), probe.classes, strict=True):
                assert np.array_equal(row, probe.direction(c))
    loaded = cxp.load_probes(tmp_path / "hub" / "probes.safetensors")
    assert str(loaded) == str(probes)


def test_the_card_says_what_was_solved_with_which_gap_and_measures(tmp_path: Path) -> None:
    probes = small_set()
    scores = probes.evaluate({"out": 3 * DATA.x}, DATA.y, bootstrap=9)
    probes.save_pretrained(tmp_path, scores=scores, description="Of a random network.")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: convexprobe\n") and "Of a random network." in card
    assert f"{probes['out'].gap:.1e}" in card and f"{scores['out'].auroc:.4f} (" in card
    code = card.split("```python\n")[2].split("```")[0]
    compile(code, "card", "exec")


def test_names_are_no_markup_of_the_card(tmp_path: Path) -> None:
    cxp.fit_probes({HOSTILE: DATA.x}, DATA.y, l2=1.0).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    tables = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) == 2
    outside = "".join(card.split("```")[::2])
    assert "<script>" not in outside and card.count("```") == 4 and "\n# <" not in card


def test_a_class_without_rows_has_no_direction(tmp_path: Path) -> None:
    cxp.fit_probes({"fc": DATA.x}, DATA.y, l2=1.0, classes=[0, 1, 2, 9]).save_pretrained(tmp_path)
    rows = load_file(tmp_path / "directions.safetensors")["fc"].numpy()
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-6)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one to save"):
        cxp.ProbeSet({}).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="there is no probe 'other'"):
        small_set().save_pretrained(tmp_path / "a", scores={"other": None})  # type: ignore[dict-item]
    assert not (tmp_path / "a").exists()
