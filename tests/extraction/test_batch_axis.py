"""The axis of the batch can be told, and then nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexprobe.extraction.extract import extract
from tests.extraction.networks import Wrapped, normal

X = normal(5, 3, 8)  # tokens, rows, width


def encoder(*, batch_first: bool) -> nn.TransformerEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PADDING = torch.arange(5) >= torch.tensor([5, 3, 2])[:, None]


@pytest.mark.parametrize("pool", ["tokens", "token_mean", "last_token", "flatten"])
@pytest.mark.parametrize("tokens", [3, 5])  # as many as rows, and more
@pytest.mark.parametrize("by_keyword", [False, True])
def test_torch_s_encoder_is_read_alike_with_the_batch_on_either_axis(
    pool: str, tokens: int, by_keyword: bool, tmp_path: Path
) -> None:
    x = X[:tokens]

    def batches(*, batch_first: bool) -> list[Any]:
        inputs = x.transpose(0, 1) if batch_first else x
        labels = torch.arange(3)
        if pool == "tokens":
            labels = torch.arange(3 * tokens).reshape(3, tokens)
        if not by_keyword:
            return [(inputs, labels), (inputs + 1, labels)]
        mask = PADDING[:, :tokens] & (torch.arange(tokens) > 0)
        return [({"src_key_padding_mask": mask, "src": inputs}, labels)] * 2

    first, labels = extract(
        encoder(batch_first=True), batches(batch_first=True), "blocks", pool=pool
    )
    for out in (None, tmp_path):
        second, same_labels = extract(
            encoder(batch_first=False), batches(batch_first=False), "blocks", pool=pool,
            batch_axis=1, out=out,
        )  # fmt: skip
        for name, rows in first.items():
            given = second[name] if out is None else second[name].load()
            torch.testing.assert_close(given, rows, rtol=1e-4, atol=1e-5)
        assert torch.equal(labels, same_labels)
        if first.examples is not None:
            assert (first.examples == second.examples).all()
            assert (first.positions == second.positions).all()
    if pool == "flatten":
        with pytest.raises(ValueError, match="of another batch axis"):
            extract(encoder(batch_first=False), batches(batch_first=False), "blocks", out=tmp_path,
                    batch_axis={"**": 1, "x": 0})  # fmt: skip


def test_single_layers_have_their_own_axis() -> None:
    def turned(model: Wrapped, x: Tensor) -> Tensor:
        return model.other(model.fc(x).transpose(0, 1))

    for tokens in (2, 4):  # the former as many as rows
        x = normal(2, tokens, 3)
        model = Wrapped(turned)
        rows, _ = extract(model, [x], ["fc", "other"], batch_axis={"o*": 1}, pool="tokens")
        assert torch.equal(rows["fc"], rows["other"])
        with pytest.raises(ValueError, match=r"layer 'other', .*batch_axis= "):
            extract(model, [x], ["fc", "other"])


@pytest.mark.parametrize(
    ("axis", "kind", "message"),
    [
        (-1, ValueError, "batch_axis: expected an integer of at least 0, found -1"),
        ("1", TypeError, "batch_axis: expected an integer, found '1'"),
        ({"fc": 1.5}, TypeError, r"batch_axis\['fc'\]: expected an integer, found 1.5"),
        ({3: 1}, TypeError, "batch_axis: patterns must be strings, found 3"),
        (
            2,
            ValueError,
            r"layer '0', batch 0: expected activations of 8 rows on axis 2, one per",
        ),
        (3, TypeError, "batch 0: expected a tensor with rows"),
    ],
)
def test_an_axis_that_is_not_there_is_refused(
    axis: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        extract(nn.Sequential(nn.Flatten(0, 1)), [X], "0", batch_axis=axis)
