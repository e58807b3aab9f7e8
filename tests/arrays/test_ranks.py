"""A communicator of one rank, and lists dealt out over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexprobe import fit_probes, shard
from convexprobe.arrays.ranks import ALONE


def test_alone_a_sum_is_its_own() -> None:
    array = np.arange(3)
    assert ALONE.all_reduce(array)[0] is array and ALONE.all_gather(array) is array
    assert (ALONE.rank, ALONE.size, ALONE.span(5)) == (0, 1, (slice(0, 5), 5))
    with pytest.raises(ValueError, match="init_process_group"):
        fit_probes(np.ones((4, 2)), np.arange(4) % 2, process_group="world")


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shards_are_stretches_that_cover_the_list(parts: int) -> None:
    for items in (list(range(7)), tuple("abc"), range(2, 30)):
        found = [shard(items, f"{i}/{parts}") for i in range(parts)]
        assert [x for part in found for x in part] == list(items)
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 1 and {type(p) for p in found} == {type(items)}


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/2/3", "0/0", "0.5/2"])
def test_a_part_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='part: expected "i/n"'):
        shard([1, 2], text)


@pytest.mark.parametrize("part", [2, None, 0.5, (0, 2), b"0/2"])
def test_a_part_that_is_no_string_is_told_its_form(part: Any) -> None:
    with pytest.raises(TypeError, match=r'part: expected "i/n" with 0 <= i < n, found .*\('):
        shard([1, 2], part)


@pytest.mark.parametrize("items", [3, None, {1, 2}, {"a": 1}, iter([1, 2])])
def test_items_without_slices_are_refused(items: Any) -> None:
    with pytest.raises(TypeError, match="items: expected a list, tuple or range, found"):
        shard(items, "0/2")
