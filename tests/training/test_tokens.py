"""Tokens as rows at every checkpoint: the probes that are fitted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexprobe as cxp

N, T = 12, 5
G = torch.Generator().manual_seed(0)
IDS = torch.randint(1, 9, (N, T), generator=G)
MASK = (torch.arange(T) < torch.randint(2, T + 1, (N, 1), generator=G)).long()
LABELS = torch.randint(3, (N, T), generator=G)
LABELS[::3, 1] = -100
DATA = {"input_ids": IDS, "attention_mask": MASK}
KEPT = MASK.bool() & (LABELS != -100)


class Tagger(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed, self.fc = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.fc(self.embed(input_ids))


def losses(entry: Any) -> dict[str, float]:
    return {result.layer: result.loss for result in entry.layers}


def batches(size: int = 5) -> list[dict[str, Tensor]]:
    return [
        {name: x[i : i + size] for name, x in {**DATA, "labels": LABELS}.items()}
        for i in range(0, N, size)
    ]


def test_a_monitor_fits_the_probes_of_the_tokens() -> None:
    model = Tagger()
    activations, labels = cxp.extract(model, batches(), pool="tokens")
    assert labels is not None and torch.equal(labels, LABELS[KEPT])
    expected = cxp.fit_probes(activations, labels, l2=1e-2)
    for data, given in ((DATA, LABELS), (DATA, LABELS.numpy()), (batches(), None)):
        monitor = cxp.ProbeMonitor(data, given, pool="tokens", l2=1e-2, batch_size=5)
        entry = monitor.record(model, 0)
        for name, loss in losses(entry).items():
            assert loss == pytest.approx(expected[name].loss, abs=2e-3)
        assert entry is not None and entry.labels == monitor.history.entries[0].labels


def test_labels_of_tokens_may_be_strings_and_concepts_and_held_out() -> None:
    named = np.array(["DET", "NOUN", "VERB"], dtype=object)[LABELS.clamp(min=0)]
    named[LABELS == -100] = -100
    concepts = {"word class": named.tolist(), "first": (LABELS == 0) * 1 + 0 * LABELS}
    concepts["first"][LABELS == -100] = -100
    monitor = cxp.ProbeMonitor(DATA, concepts, pool="tokens", l2=1e-2, test=(DATA, concepts))
    entry = monitor.record(Tagger(), 0)
    assert entry is not None and {r.layer for r in entry.layers} == {
        "embed/word class", "embed/first", "fc/word class", "fc/first",
    }  # fmt: skip
    plain = cxp.ProbeMonitor(DATA, LABELS, pool="tokens", l2=1e-2).record(Tagger(), 0)
    assert losses(entry)["fc/word class"] == pytest.approx(losses(plain)["fc"], abs=2e-3)


def test_concepts_may_know_the_labels_of_other_tokens() -> None:
    first = torch.where(torch.arange(T) % 2 == 0, (LABELS > 0).long(), -100)
    concepts = {"class": LABELS, "first": first}
    loader = [
        ({name: x[i : i + 5] for name, x in DATA.items()},
         {name: y[i : i + 5] for name, y in concepts.items()})
        for i in range(0, N, 5)
    ]  # fmt: skip
    named = np.array(["DET", "NOUN", "VERB"], dtype=object)[LABELS.clamp(min=0)]
    named[LABELS == -100] = None
    for data, given in ((DATA, concepts), (loader, None), (DATA, {**concepts, "class": named})):
        monitor = cxp.ProbeMonitor(data, given, pool="tokens", l2=1e-2, test=None)
        entry = monitor.record(Tagger(), 0)
        assert entry is not None and {r.layer for r in entry.layers} == {
            "embed/class", "embed/first", "fc/class", "fc/first",
        }  # fmt: skip
        for name, values in concepts.items():
            alone = cxp.ProbeMonitor(DATA, values, pool="tokens", l2=1e-2).record(Tagger(), 0)
            assert losses(entry)[f"fc/{name}"] == pytest.approx(losses(alone)["fc"], abs=2e-3)
        known = MASK.bool() & (first != -100)
        assert monitor.history[0]["fc/first"].rows == int(known.sum())


def test_a_mask_and_a_batch_axis_reach_the_extraction() -> None:
    half = lambda batch: batch["attention_mask"] * (batch["input_ids"] > 4)  # noqa: E731
    some = torch.cat([MASK.bool() & (IDS > 4)])
    rows = some.any(1)
    data = {name: x[rows] for name, x in DATA.items()}
    monitor = cxp.ProbeMonitor(data, LABELS[rows], pool="tokens", mask=half, l2=1e-2)
    entry = monitor.record(Tagger(), 0)
    fc = Tagger()(**data)[some[rows] & (LABELS[rows] != -100)].detach()
    expected = cxp.fit_probes(
        {"fc": fc}, LABELS[rows][some[rows] & (LABELS[rows] != -100)], l2=1e-2
    )
    assert losses(entry)["fc"] == pytest.approx(expected["fc"].loss, abs=2e-3)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    x = torch.randn(T, N, 2, generator=torch.Generator().manual_seed(1))
    loader = [(x, LABELS)]
    turned = cxp.ProbeMonitor(loader, pool="tokens", batch_axis=1, l2=1e-2)
    front = cxp.ProbeMonitor([(x.transpose(0, 1), LABELS)], pool="tokens", l2=1e-2)
    torch.manual_seed(0)
    model = Turned()
    assert losses(turned.record(model, 0)) == pytest.approx(losses(front.record(model, 0)))
    with pytest.raises(ValueError, match="batch_axis: expected 0 for inputs beside labels"):
        cxp.ProbeMonitor(x, LABELS.T, pool="tokens", batch_axis=1)


def test_a_sweep_over_tokens_resumes_and_knows_another_mask(tmp_path: Path) -> None:
    states = [(step, Tagger(step).state_dict()) for step in range(3)]
    options: dict[str, Any] = {"pool": "tokens", "l2": 1e-2, "out": tmp_path, "progress": False}
    first = cxp.probe_checkpoints(Tagger(), states[:2], DATA, LABELS, **options)
    both = cxp.probe_checkpoints(Tagger(), states, DATA, LABELS, **options)
    assert len(both.entries) == 3
    assert [e.layers for e in both.entries[:2]] == [e.layers for e in first.entries]
    with pytest.raises(ValueError, match="mask"):
        cxp.probe_checkpoints(Tagger(), states, DATA, LABELS, mask="attention_mask", **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:, 0], r"labels: expected labels of shape \(12, t\), one per token, found \(12,\)"),
        (LABELS[:5], r"labels: expected labels of shape \(12, t\), .* found \(5, 5\); -100 leaves"),
        (torch.full_like(LABELS, -100), "labels: expected a token with a label other than -100"),
        ({"a": LABELS, "b": LABELS[:, :3]},
         r"labels: expected concepts of as many tokens, found shapes .*\(12, 5\).*\(12, 3\)"),
        ([[0, 1], [1]] * 6, "labels: expected .* found rows of different lengths, .* pad them"),
        ({}, "labels: expected a token"),
    ],
)  # fmt: skip
def test_labels_that_are_not_those_of_tokens_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cxp.ProbeMonitor(DATA, labels, pool="tokens")


def test_labels_of_other_tokens_than_the_model_s_are_a_failed_step() -> None:
    monitor = cxp.ProbeMonitor(DATA, LABELS[:, :4], pool="tokens", on_error="raise")
    with pytest.raises(ValueError, match=r"expected labels of shape \(12, 5\), .* found \(12, 4\)"):
        monitor.record(Tagger(), 0)
