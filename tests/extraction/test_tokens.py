"""Tokens and words as rows: which they are, whose, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convexprobe as cxp
from convexprobe.extraction.extract import extract, extract_in_blocks
from convexprobe.extraction.tokens import TokenRows
from tests.extraction.families import BOTH, IDS, MASK, TEXT, family
from tests.extraction.networks import normal


class Reader(nn.Module):
    """An embedding and a layer, which take ids and a mask and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(40, 5), nn.Linear(5, 4)
        self.first = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        self.first(x[:, 0])
        return self.fc(x)


def reader() -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader()


@st.composite
def token_batches(draw: Callable[[Any], Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, masks with a token in each row, and labels of which some are -100, of each batch."""
    batches = []
    for _ in range(draw(st.integers(1, 3))):
        n, t = draw(st.integers(1, 3)), draw(st.integers(1, 5))
        seed = draw(st.integers(0, 99))
        g = torch.Generator().manual_seed(seed)
        mask = torch.rand(n, t, generator=g) < 0.7
        mask[:, draw(st.integers(0, t - 1))] = True
        labels = torch.randint(-1, 3, (n, t), generator=g)
        labels[labels == -1] = -100
        batches.append((torch.randint(40, (n, t), generator=g), mask, labels))
    return batches


def by_hand(model: Reader, batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[list[Any]]:
    """Row, label, example and position of every token that is kept."""
    found, start = [], 0
    for ids, mask, labels in batches:
        for i in range(len(ids)):
            x = model(ids[i : i + 1])[0].detach()
            for j in range(ids.shape[1]):
                if mask[i, j] and labels[i, j] != -100:
                    found.append([x[j], int(labels[i, j]), start + i, j])
        start += len(ids)
    return found


@given(token_batches(), st.booleans())
def test_every_token_that_mask_and_labels_keep_is_a_row(
    batches: list[tuple[Tensor, Tensor, Tensor]], with_labels: bool
) -> None:
    model = reader()
    if not with_labels:
        batches = [(ids, mask, torch.zeros_like(ids)) for ids, mask, _ in batches]
    expected = by_hand(model, batches)
    loader = [
        ({"input_ids": ids, "attention_mask": mask.long()}, labels if with_labels else None)
        for ids, mask, labels in batches
    ]
    if not expected:
        with pytest.raises(ValueError, match=r"expected at least one row, .* -100 alone"):
            extract(model, loader, "fc", pool="tokens")
        return
    rows, labels = extract(model, loader, ["fc", "embed"], pool="tokens")
    assert rows["embed"].shape == (len(expected), 5)
    torch.testing.assert_close(rows["fc"], torch.stack([row for row, *_ in expected]))
    assert rows.examples is not None and rows.positions is not None
    assert rows.examples.dtype == rows.positions.dtype == np.int64
    assert rows.examples.tolist() == [example for *_, example, _ in expected]
    assert rows.positions.tolist() == [position for *_, position in expected]
    if labels is not None:
        assert labels.tolist() == [label for _, label, *_ in expected]
    assert (labels is not None) == with_labels


def loader_of(count: int = 6, labels: bool = True) -> list[Any]:
    g = torch.Generator().manual_seed(2)
    batches = []
    for i in range(count):
        t = 3 + i % 3
        ids = torch.randint(40, (2, t), generator=g)
        mask = (torch.arange(t) < torch.tensor([t, 2])[:, None]).long()
        y = torch.randint(3, (2, t), generator=g)
        y[0, 1] = -100
        if i == 1:
            y[:] = -100  # a batch that gives no rows
        batches.append(
            {"input_ids": ids, "attention_mask": mask, **({"labels": y} if labels else {})}
        )
    return batches


def test_a_directory_keeps_examples_and_positions_and_an_interrupted_extraction_resumes(
    tmp_path: Path,
) -> None:
    loader = loader_of()
    expected, labels = extract(reader(), loader, "fc", pool="tokens")
    assert expected.examples is not None and 2 not in expected.examples  # of the batch without rows

    def interrupted() -> Any:
        yield from loader[:4]
        raise KeyboardInterrupt

    options: dict[str, Any] = {"pool": "tokens", "out": tmp_path, "block": 100}
    with pytest.raises(KeyboardInterrupt):
        extract_in_blocks(reader(), interrupted(), "fc", **options)
    partial, _ = cxp.open_activations(tmp_path, partial=True)
    assert 0 < partial["fc"].shape[0] < len(expected["fc"])
    for _ in range(2):  # the second call finds it complete
        stored, stored_labels = extract_in_blocks(reader(), loader, "fc", **options)
        assert torch.equal(stored["fc"].load(), expected["fc"])
        assert np.array_equal(stored.examples, expected.examples)
        assert np.array_equal(stored.positions, expected.positions)
        assert torch.equal(stored_labels, labels)
    for mask in ("attention_mask", lambda batch: batch["input_ids"] > 3):
        with pytest.raises(ValueError, match="has the activations of another mask"):
            extract_in_blocks(reader(), loader, "fc", mask=mask, **options)
    with pytest.raises(ValueError, match="has the activations of another pool"):
        extract_in_blocks(reader(), loader_of(labels=False), "fc", out=tmp_path, pool="token_max")


def test_rows_that_are_examples_have_no_index() -> None:
    rows, _ = extract(reader(), loader_of(labels=False), "fc", pool="token_max")
    assert rows.examples is None and rows.positions is None and isinstance(rows, dict)


@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama", "T5"])
def test_tokens_of_every_block_are_those_of_its_hidden_state(name: str) -> None:
    model = family(name)
    batch = {**BOTH, "decoder_attention_mask": MASK[:, :5]} if name == "T5" else TEXT
    layers = "encoder.block.*" if name == "T5" else "blocks"
    rows, _ = extract(model, [batch], layers, pool="tokens")
    whole, _ = extract(model, [batch], layers)
    for point, x in rows.items():
        assert torch.equal(x, whole[point].reshape(*IDS.shape, -1)[MASK.bool()])
    assert rows.examples.tolist() == MASK.nonzero()[:, 0].tolist()
    if name == "T5":  # the decoder's tokens are others, and have a mask of their own
        rows, _ = extract(model, [batch], "decoder.block.*", pool="tokens")
        assert rows.positions.tolist() == MASK[:, :5].nonzero()[:, 1].tolist()
        message = (
            r"layer 'decoder.block.0', batch 0: expected the tokens of layer 'encoder.block.0', 15 "
            r"of shape \(3, 6\), found 14 of shape \(3, 5\); extract layers of different tokens in"
        )
        with pytest.raises(ValueError, match=message):
            extract(model, [batch], "blocks", pool="tokens")


def test_a_leaf_without_tokens_is_left_out_unless_it_was_named() -> None:
    batch = [{"input_ids": IDS, "attention_mask": MASK}]
    with pytest.warns(UserWarning, match=r"layers 'first' are left out.* needs shape \(n, t, d\)"):
        assert list(extract(reader(), batch, pool="tokens")[0]) == ["embed", "fc"]
    with pytest.raises(ValueError, match=r"layer 'first', batch 0: pool 'tokens' needs shape"):
        extract(reader(), batch, ["fc", "first"], pool="tokens")


@pytest.mark.parametrize(
    "mask",
    [
        "attention_mask", "keep", "odd_padding",
        lambda batch: batch["keep"].bool(), lambda batch: (batch["odd_padding"] == 0).numpy(),
        lambda batch: [[1, 0, 1, 0, 1, 0]] * 3,
    ],
)  # fmt: skip
@pytest.mark.parametrize("pool", ["tokens", "token_mean", "last_token"])
def test_a_mask_is_any_item_or_function_of_the_batch(mask: Any, pool: str) -> None:
    keep = torch.tensor([[1, 0, 1, 0, 1, 0]]).expand(3, 6)
    batch = {"input_ids": IDS, "keep": keep, "odd_padding": 1.0 - keep}
    if mask == "attention_mask":
        batch = {"input_ids": IDS, "attention_mask": keep}
    rows, _ = extract(reader(), [batch], "fc", pool=pool, mask=mask)
    x = reader()(IDS).detach()
    expected = {
        "tokens": x[keep.bool()], "token_mean": x[:, ::2].mean(1), "last_token": x[:, 4],
    }[pool]  # fmt: skip
    torch.testing.assert_close(rows["fc"], expected)


def test_words_are_the_means_of_their_pieces() -> None:
    words = torch.tensor([[-1, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1], [0, 0, 0, 1, 2, -1]])
    labels = torch.tensor(
        [[-100, 4, 9, 5, -100, 9], [-100, 1, 2, 9, -100, -100], [3, 9, 9, 3, 6, 9]]
    )
    batch = {"input_ids": IDS, "attention_mask": MASK, "word_ids": words}
    rows, given_labels = extract(reader(), [(batch, labels)], ["fc", "embed"], pool="words")
    x = reader()(IDS).detach()
    expected = torch.stack([
        x[0, 1:3].mean(0), x[0, 3], x[1, 1], x[1, 2:4].mean(0), x[2, :3].mean(0), x[2, 3], x[2, 4],
    ])  # fmt: skip
    torch.testing.assert_close(rows["fc"], expected)
    assert given_labels is not None and given_labels.tolist() == [4, 5, 1, 2, 3, 3, 6]
    assert rows.examples.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert rows.positions.tolist() == [1, 3, 1, 2, 0, 3, 4]
    rows, nothing = extract(reader(), [batch], "fc", pool="words")
    assert nothing is None and len(rows["fc"]) == 8  # with the word that had no label
    whole = {**batch, "word_ids": torch.arange(6).expand(3, 6)}
    each, _ = extract(reader(), [whole], "fc", pool="words")
    torch.testing.assert_close(each["fc"], x[MASK.bool()])


@given(st.data())
def test_words_are_grouped_as_a_loop_would(data: st.DataObject) -> None:
    n, t = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    words = torch.randint(-1, 3, (n, t), generator=g)  # pieces of a word may be apart
    kept = torch.rand(n, t, generator=g) < 0.8
    labels = torch.randint(0, 3, (n, t), generator=g)
    labels[torch.rand(n, t, generator=g) < 0.3] = -100
    x = normal(n, t, 2).double()
    expected = []
    for i in range(n):
        for word in range(3):
            places = [j for j in range(t) if kept[i, j] and words[i, j] == word]
            if places and labels[i, places[0]] != -100:
                expected.append(
                    [10 + i, places[0], int(labels[i, places[0]]), x[i, places].mean(0)]
                )
    rows = TokenRows.choose(kept, {"labels": labels}, words, 10)
    got = rows.columns
    assert [list(c) for c in zip(*(got[k].tolist() for k in ("examples", "positions", "labels")),
                                 strict=True)] == [e[:3] for e in expected]  # fmt: skip
    means = torch.stack([e[3] for e in expected]) if expected else torch.zeros(0, 2).double()
    torch.testing.assert_close(rows.rows(x), means)


def test_half_precision_words_are_summed_in_full() -> None:
    x = torch.full((1, 512, 2), 200.0, dtype=torch.float16)
    rows = TokenRows.choose(torch.ones(1, 512) > 0, {}, torch.zeros(1, 512, dtype=torch.int32), 0)
    assert torch.equal(rows.rows(x), torch.full((1, 2), 200.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int8, torch.float32])
def test_labels_of_any_type_are_compared_with_the_ignored_one(dtype: torch.dtype) -> None:
    labels = torch.tensor([[156, 1, 0]]).to(dtype)
    rows = TokenRows.choose(torch.ones(1, 3) > 0, {"labels": labels}, None, 0)
    # 156 is -100 in eight bits with a sign, and only there
    assert len(rows.columns["labels"]) == (2 if dtype == torch.int8 else 3)


ONE = {"input_ids": IDS, "attention_mask": MASK}
ZERO = {"input_ids": IDS, "attention_mask": MASK * torch.tensor([1, 0, 1])[:, None]}


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ((ONE, torch.zeros(3)), {}, r"batch 0: expected labels of shape \(3, t\), one per token, "
         r"found \(3,\); -100 leaves a token out"),
        ((ONE, torch.zeros(3, 5)), {}, r"layer 'fc', batch 0: expected labels of shape \(3, 6\), "
         r"one per token, found \(3, 5\)"),
        ((ONE, torch.zeros(3, 6)), {"pool": "token_mean"},
         r"batch 0: expected labels of shape \(3,\), .* found \(3, 6\); .* need pool='tokens'"),
        (ZERO, {}, "'fc', batch 0: pool 'tokens': the attention mask keeps no token in row 1"),
        (ZERO, {"pool": "token_max"}, "pool 'token_max': the attention mask keeps no token in"),
        (ONE, {"pool": "words"}, r"'fc', batch 0: pool 'words' needs the word of each token as "
         r"'word_ids' in the batch, integers of shape \(3, 6\) .* found none"),
        ({**ONE, "word_ids": torch.zeros(3, 5).long()}, {"pool": "words"},
         r"'word_ids' .* found a tensor of shape \(3, 5\)"),
        ({**ONE, "word_ids": MASK.float()}, {"pool": "words"}, r"'word_ids' .* integers"),
        (ONE, {"pool": {"fc": "tokens", "**": "flatten"}}, "pool: expected rows of one kind for "
         "all layers, found examples and tokens; extract them in two calls"),
        (ONE, {"mask": "keep"}, "mask, batch 0: expected the mask 'keep' in the batch, found "
         "'input_ids', 'attention_mask'"),
        (ONE, {"mask": "input_ids"}, r"mask, batch 0: expected a mask \(n, t\) with 1 for a token "
         r"and 0 for padding, found shape \(3, 6\) and values from \d+ to \d+"),
        (ONE, {"mask": lambda batch: MASK[0]}, r"mask, batch 0: .* found shape \(6,\)"),
        (ONE, {"mask": lambda batch: MASK[:, :5]}, r"layer 'fc', batch 0: pool 'tokens' needs an "
         r"attention mask of shape \(3, 6\), found \(3, 5\)"),
        (IDS, {"mask": "keep"}, "expected the mask 'keep' in the batch, found no names"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_rows_are_refused_in_one_sentence(
    batch: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extract(reader(), [batch], "fc", **{"pool": "tokens", **options})


def test_masks_that_are_none_are_refused_before_any_work() -> None:
    with pytest.raises(TypeError, match=r"mask: expected the name of an item or a function, found"):
        extract(reader(), iter([]), mask=torch.ones(3, 6))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"mask, batch 0: expected a mask \(n, t\), found "):
        extract(reader(), [ONE], "fc", pool="tokens", mask=lambda batch: "all")


def test_a_token_that_overflows_is_told_by_example_and_position() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.ones(3, 4, 2)
    x[2, 1] = 1e6
    message = "finite activations overflow torch.float16, first in example 5, position 1"
    with pytest.raises(OverflowError, match=message):
        extract(model, [torch.ones(3, 4, 2), x], pool="tokens", dtype="float16")
