"""Checksums of weights."""

from __future__ import annotations

import torch

from convexprobe._hashing import digest
from tests.tiny import network


def test_a_digest_sees_bits_dtypes_and_names_but_not_their_order() -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    same = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert digest(state) == digest(same)
    for name, other in [
        ("a", -torch.zeros(3)), ("a", torch.zeros(3, 1)), ("a", torch.zeros(3).double()),
        ("b", torch.ones(2, 2)),
    ]:  # fmt: skip
        assert digest(state) != digest({**state, name: other})
    assert digest(state) != digest({"c": state["a"], "b": state["b"]})


def test_hashes_tell_models_apart() -> None:
    first = digest(network().state_dict())
    assert first == digest(network().state_dict()) and len(first) == 64
    changed = network()
    with torch.no_grad():
        changed[0].weight[3, 0] += 1e-6
    assert digest(changed.state_dict()) != first
    assert digest(network().to(torch.bfloat16).state_dict()) != first
