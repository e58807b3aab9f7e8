"""Labels of words as labels of tokens, by the alignment of a fast tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from convexprobe._arguments import check_choice, shown
from convexprobe.extraction.tokens import IGNORED, NO_WORD


def word_ids(encoding: Any) -> Tensor:
    """The word of each token, int64 `(n, t)`; -1 for special tokens and padding, which have none.

    Put it into the batch as `"word_ids"` for `extract(..., pool="words")`, whose rows are words,
    the means of their pieces.

    Args:
        encoding: what a fast tokenizer of transformers returns for a padded batch. For sentences
            that are split into words already call it with `is_split_into_words=True`.

    Raises:
        TypeError: it does not align tokens with words.
        ValueError: its sequences have different lengths.
    """
    try:
        align = encoding.word_ids  # first: what has it is a batch of a tokenizer
        rows = [align(i) for i in range(len(encoding["input_ids"]))]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TypeError(
            f"encoding: expected a batch of a fast tokenizer, which has word_ids(), found "
            f"{type(encoding).__name__} ({error}); load the tokenizer with use_fast=True"
        ) from None
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        odd = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise ValueError(
            f"encoding: expected sequences of one length, found {lengths[0]} tokens in row 0 and "
            f"{lengths[odd]} in row {odd}; tokenize with padding=True"
        )
    return torch.tensor([[NO_WORD if word is None else word for word in row] for row in rows])


def token_labels(encoding: Any, labels: Sequence[Sequence[int]], pieces: str = "first") -> Tensor:
    """The labels of tokens `(n, t)`, made of those of words; -100 for tokens that are left out.

    Pass them to `extract(..., pool="tokens")`, or to `pool="words"` for the mean of each word's
    pieces.

    Args:
        encoding: as for `word_ids`.
        labels: a list of integers for each sentence, one for each of its words; -100 leaves a word
            out. A sentence that was truncated may have more.
        pieces: "first" gives the label of a word to its first piece alone, "all" to all pieces.

    Raises:
        TypeError: the encoding does not align tokens with words, or a label is no integer.
        ValueError: a sentence has fewer labels than words, or more without being truncated; or
            there are more or fewer sentences.
    """
    check_choice("pieces", pieces, ("first", "all"))
    words = word_ids(encoding)
    if len(labels) != len(words):
        raise ValueError(f"labels: expected those of {len(words)} sentences, found {len(labels)}")
    out = torch.full_like(words, IGNORED)
    for i, row in enumerate(words.tolist()):
        known = [_integer(label, i, j) for j, label in enumerate(labels[i])]
        count = max(row, default=NO_WORD) + 1
        truncated = bool(encoding.encodings[i].overflowing)
        if len(known) < count or (len(known) > count and not truncated):
            raise ValueError(
                f"labels: sentence {i} has {len(known)} labels and {count} words; tokenize its "
                "list of words with is_split_into_words=True, and give a label to each word"
            )
        for place, word in enumerate(row):
            if word != NO_WORD and (pieces == "all" or word not in row[:place]):
                out[i, place] = known[word]
    return out


def _integer(label: Any, sentence: int, word: int) -> int:
    if isinstance(label, Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(
            f"labels: expected integers, found {shown(label)} for word {word} of sentence "
            f"{sentence}; number the classes first"
        )
    return int(label)
