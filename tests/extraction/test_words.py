"""Labels of words become labels of tokens by a fast tokenizer's own alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convexprobe as cxp

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "dog", "cat", "run", "##s", "##ning", "is"]
SENTENCES = [["the", "dog", "runs"], ["cats", "is", "running", "fast"]]
LABELS = [[1, 2, 3], [2, 3, -100, 4]]


def tokenizer() -> Any:
    """A fast tokenizer of word pieces, made here."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(VOCABULARY)}
    inner = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )


def encoded(sentences: list[list[str]], **options: Any) -> Any:
    return tokenizer()(sentences, is_split_into_words=True, padding=True, **options)


def test_the_words_of_tokens_are_those_of_the_tokenizer() -> None:
    words = cxp.word_ids(encoded(SENTENCES, return_tensors="pt"))
    assert words.tolist() == [[-1, 0, 1, 2, 2, -1, -1, -1], [-1, 0, 0, 1, 2, 2, 3, -1]]
    first = cxp.token_labels(encoded(SENTENCES), LABELS)
    x = -100
    assert first.tolist() == [[x, 1, 2, 3, x, x, x, x], [x, 2, x, 3, x, x, 4, x]]
    every = cxp.token_labels(encoded(SENTENCES), LABELS, pieces="all")
    assert every.tolist() == [[x, 1, 2, 3, 3, x, x, x], [x, 2, 2, 3, x, x, 4, x]]
    for labels in ([np.array(LABELS[0]), torch.tensor(LABELS[1])], [tuple(row) for row in LABELS]):
        assert torch.equal(cxp.token_labels(encoded(SENTENCES), labels), first)


@given(st.lists(st.lists(st.sampled_from(["the", "cats", "running", "?!"]), min_size=1, max_size=4),
                min_size=1, max_size=3), st.sampled_from([None, 4, 6]))  # fmt: skip
def test_every_word_that_is_there_has_its_label_once(
    sentences: list[list[str]], length: int | None
) -> None:
    labels = [[10 * i + j for j in range(len(words))] for i, words in enumerate(sentences)]
    options = {} if length is None else {"truncation": True, "max_length": length}
    encoding = encoded(sentences, **options)
    first = cxp.token_labels(encoding, labels)
    for i, row in enumerate(first.tolist()):
        kept = [label for label in row if label != -100]
        assert kept == labels[i][: len(kept)]
        assert length is not None or kept == labels[i]
    every = cxp.token_labels(encoding, labels, pieces="all")
    assert torch.equal(every != -100, cxp.word_ids(encoding) >= 0)
    assert torch.equal(first[first != -100], every[first != -100])


def test_first_pieces_all_pieces_and_means_are_probed_alike() -> None:
    encoding = encoded(SENTENCES, return_tensors="pt")
    model = torch.nn.Sequential(torch.nn.Embedding(len(VOCABULARY), 3))
    batch = {"input": encoding["input_ids"], "word_ids": cxp.word_ids(encoding)}
    for pieces in ("first", "all"):
        labels = cxp.token_labels(encoding, LABELS, pieces)
        rows, given_labels = cxp.extract(
            model, [(batch, labels)], "0", pool="words", mask=lambda b: b["input"] > 0
        )
        assert given_labels is not None and given_labels.tolist() == [1, 2, 3, 2, 3, 4]
        x = model[0].weight.detach()
        torch.testing.assert_close(rows["0"][2], x[[7, 8]].mean(0))
        torch.testing.assert_close(rows["0"][3], x[[6, 8]].mean(0))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[1, 2], LABELS[1]], ValueError, "labels: sentence 0 has 2 labels and 3 words; tokenize"),
        ([LABELS[0], [1] * 5], ValueError, "labels: sentence 1 has 5 labels and 4 words; tokenize"),
        (LABELS[:1], ValueError, "labels: expected those of 2 sentences, found 1"),
        ([["DET", "NOUN", "VERB"], LABELS[1]], TypeError, "integers, found 'DET' .*word 0 of sent"),
        ([[1, 2, 2.5], LABELS[1]], TypeError, "found 2.5 .*for word 2 of sentence 0; number the"),
        ([[1, 2, True], LABELS[1]], TypeError, "found True"),
    ],
)
def test_words_that_do_not_align_are_refused_in_one_sentence(
    labels: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        cxp.token_labels(encoded(SENTENCES), labels)


def test_what_is_not_the_batch_of_a_fast_tokenizer_is_refused() -> None:
    ids = encoded(SENTENCES, return_tensors="pt")
    for odd in (ids["input_ids"], dict(ids), [1, 2], None):
        with pytest.raises(TypeError, match=r"expected a batch of a fast tokenizer, .* found"):
            cxp.word_ids(odd)
    ragged = tokenizer()(SENTENCES, is_split_into_words=True)
    with pytest.raises(ValueError, match=r"6 tokens in row 0 and 8 in row 1; .* padding=True"):
        cxp.word_ids(ragged)
    with pytest.raises(ValueError, match="pieces: expected one of first, all, found 'mean'"):
        cxp.token_labels(encoded(SENTENCES), LABELS, pieces="mean")
