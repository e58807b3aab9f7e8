"""Tokens and words as rows: which of a batch are rows, and the rows of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexprobe.activations.manifest import EXAMPLES, POSITIONS
from convexprobe.extraction.points import described

IGNORED = -100
"""The label of tokens that are left out, as in `torch.nn.functional.cross_entropy`."""

NO_WORD = -1
"""The word of tokens that belong to none."""


@dataclass(frozen=True)
class TokenRows:
    """The rows that the tokens (n, t) of a batch give, all of it on the host.

    Attributes:
        kept: which tokens the mask keeps, bool (n, t).
        tokens: the flat index of each token that is a row, or that is a piece of one, (m,).
        row: the row of each of those tokens, (m,); None if each is a row of its own.
        columns: examples and positions of the rows (r,), and their labels if there are any.
        start: examples before the batch.
    """

    kept: Tensor
    tokens: Tensor
    row: Tensor | None
    columns: dict[str, Tensor]
    start: int

    @classmethod
    def choose(
        cls, kept: Tensor, labels: Mapping[str, Tensor], words: Any, start: int
    ) -> TokenRows:
        """The rows of a batch.

        Args:
            kept: which tokens the mask keeps, bool (n, t).
            labels: of each token (n, t), by column; tokens that are `IGNORED` in all are no rows.
            words: the word of each token (n, t), `NO_WORD` for none: each word is one row, with the
                label and the position of its first piece. None makes each token a row; False says
                that the batch does not tell its words.
            start: examples before this batch.

        Raises:
            ValueError: labels or words of another shape, or words that are no integers.
        """
        for values in labels.values():
            if values.shape != kept.shape:
                raise ValueError(
                    f"expected labels of shape {tuple(kept.shape)}, one per token, found "
                    f"{tuple(values.shape)}"
                )
        if words is not None:
            words = _checked(words, kept)
        t = kept.shape[1]
        labelled = torch.zeros_like(kept) if labels else torch.ones_like(kept)
        for values in labels.values():
            labelled |= _labelled(values)
        row = None
        if words is None:
            tokens = first = (kept & labelled).flatten().nonzero()[:, 0]
        else:
            tokens = (kept & (words != NO_WORD)).flatten().nonzero()[:, 0]
            pairs = torch.stack([tokens // t, words.flatten()[tokens].long()])
            pairs, row = torch.unique(pairs, dim=1, return_inverse=True)
            first = tokens.new_zeros(pairs.shape[1]).scatter_reduce(
                0, row, tokens, "amin", include_self=False
            )
            known = labelled.flatten()[first]
            tokens, row, first = tokens[known[row]], row[known[row]], first[known]
            row = (known.cumsum(0) - 1)[row]  # counted anew
        columns = {EXAMPLES: start + first // t, POSITIONS: first % t}
        for column, values in labels.items():
            columns[column] = values.flatten()[first.to(values.device)]
        return cls(kept, tokens, row, columns, start)

    def rows(self, x: Tensor) -> Tensor:
        """The rows (r, d) of activations (n, t, d), which may share memory with them."""
        flat = x.reshape(-1, x.shape[2])
        if len(self.tokens) < len(flat):
            flat = flat.index_select(0, self.tokens.to(x.device))
        if self.row is None:
            return flat
        count = len(self.columns[EXAMPLES])
        row = self.row.to(x.device)
        total = flat.new_zeros(
            (count, x.shape[2]), dtype=torch.promote_types(x.dtype, torch.float32)
        )
        total.index_add_(0, row, flat.to(total.dtype))
        return total / torch.bincount(row, minlength=count)[:, None]

    def of_examples(self, values: Tensor) -> Tensor:
        """The value of each row's example, of values (n,) by example of the batch."""
        examples = self.columns[EXAMPLES]
        return values[(examples - self.start).to(values.device)]


def _checked(words: Any, kept: Tensor) -> Tensor:
    """The word of each token, if that is what it is."""
    if isinstance(words, Tensor) and words.shape == kept.shape and not words.is_floating_point():
        return words.cpu()
    raise ValueError(
        f"pool 'words' needs the word of each token as 'word_ids' in the batch, integers of shape "
        f"{tuple(kept.shape)} such as word_ids(encoding), found "
        f"{'none' if words is False else described(words)}"
    )


def _labelled(labels: Tensor) -> Tensor:
    """Which labels are not `IGNORED`, bool (n, t) on the host."""
    if not labels.dtype.is_signed:  # torch would take -100 for an unsigned number
        return torch.ones(labels.shape, dtype=torch.bool)
    return (labels != IGNORED).cpu()
