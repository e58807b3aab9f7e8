"""Names of a state dict that mean the model's, and those that tell of another network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexprobe.training import state_dicts
from convexprobe.training.matching import Matched, match

DIM = 4


class Block(nn.Module):
    """A block as transformers have them."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attention, self.mlp = nn.Linear(DIM, DIM, bias=bias), nn.Linear(DIM, DIM)


class Body(nn.Module):
    """An embedding and blocks."""

    def __init__(self, depth: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, DIM)
        self.layers = nn.ModuleList(Block(bias) for _ in range(depth))


class WithHead(nn.Module):
    """The body under a name of its family, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.head = Body(), nn.Linear(DIM, 7)
        self.head.weight = self.bert.embedding.weight


def state_of(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """Random values for every name; one value for tied weights."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, Tensor] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for tensor in named.values():
        drawn.setdefault(id(tensor), torch.randn(tensor.shape, generator=generator))
    return {name: drawn[id(tensor)] for name, tensor in named.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(found: Matched, state: dict[str, Tensor], left_out: list[str] | None = None) -> bool:
    equal = found.state.keys() == state.keys() and all(
        torch.equal(found.state[name], tensor) for name, tensor in state.items()
    )
    return equal and sorted(found.left_out) == sorted(left_out or [])


BODY = state_of(Body())
WHOLE = state_of(WithHead())
HEAD: dict[str, Tensor] = {"head.weight": torch.zeros(7, DIM), "head.bias": torch.zeros(7)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net.encoder."])
@pytest.mark.parametrize("middle", ["", "_orig_mod.", "_fsdp_wrapped_module.module."])
def test_prefixes_and_wrappers_around_or_inside_are_passed_over(prefix: str, middle: str) -> None:
    state = {
        prefix + name.replace("layers.1.", f"layers.1.{middle}"): t for name, t in BODY.items()
    }
    assert same(match(state, Body()), BODY)


def test_a_wrapped_model_takes_the_names_of_the_plain_one() -> None:
    wrapped = nn.DataParallel(Body())
    assert same(match(BODY, wrapped), under("module.", BODY))
    compiled: Any = torch.compile(Body(), backend="eager")
    assert same(match(under("module.", BODY), compiled), under("_orig_mod.", BODY))


def test_the_body_of_a_file_with_a_head_is_taken_and_the_head_told() -> None:
    for prefix in ("bert.", "model.", "module.bert."):
        found = match({**under(prefix, BODY), **HEAD}, Body())
        assert same(found, BODY, list(HEAD))
    assert same(match({**BODY, **HEAD}, Body()), BODY, list(HEAD))
    inside = nn.ModuleDict({"backbone": Body()})  # the model that is probed has it inside
    assert same(match({**BODY, **HEAD}, inside), under("backbone.", BODY), list(HEAD))


def test_old_buffers_and_whole_numbers_are_left_out() -> None:
    old = {
        "embedding.position_ids": torch.arange(7)[None],
        "layers.0.attention.mask": torch.ones(1) > 0,
        "layers.1.attention.masked_bias": torch.tensor(-1e4),
    }
    assert same(match({**BODY, **old}, Body()), BODY, list(old))


@pytest.mark.parametrize("left", ["bert.embedding.weight", "head.weight"])
def test_one_of_two_tied_weights_is_enough(left: str) -> None:
    state = {name: tensor for name, tensor in WHOLE.items() if name != left}
    assert same(match(state, WithHead()), WHOLE)
    assert same(match(under("module.", state), WithHead()), WHOLE)


def test_two_values_of_a_tied_weight_are_refused() -> None:
    state = {**WHOLE, "head.weight": WHOLE["head.weight"] + 1}
    with pytest.raises(ValueError, match=r"two values of the tied weights bert\.embedding.* head"):
        match(state, WithHead())


@pytest.mark.parametrize(
    ("extra", "model"),
    [
        ("layers.2.mlp.weight", Body()),  # one block more
        ("layers.0.cross.weight", Body()),  # a module that each block lacks
        ("layers.0.attention.bias", Body(bias=False)),
        ("5.weight", nn.Sequential(nn.Linear(2, 2))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_tells_of_another_network_is_refused(extra: str, model: nn.Module) -> None:
    state = {**state_of(model), extra: torch.zeros(DIM)}
    with pytest.raises(ValueError, match=f"does not fit the model: unexpected {extra}"):
        match(state, model)
    with pytest.raises(ValueError, match=f"does not fit the model: unexpected a.{extra}"):
        match(under("a.", state), model)


def test_a_missing_weight_is_named_with_what_was_found_instead() -> None:
    with pytest.raises(ValueError, match=r"missing head\.bias$"):
        match(BODY, WithHead())
    other = {**under("a.", BODY), "a.other": torch.zeros(1)}
    del other["a.layers.0.mlp.bias"]
    with pytest.raises(ValueError, match=r"missing layers.0.mlp.bias; found beside .* a\.other"):
        match(other, Body())


def test_parts_that_fit_equally_well_are_refused_by_name() -> None:
    both = {**under("student.", BODY), **under("teacher.", BODY)}
    with pytest.raises(ValueError, match=r"the parts student, teacher all do; pass \(step, func"):
        match(both, Body())
    plain = {**both, **BODY}
    assert same(match(plain, Body()), BODY, list(both))


def test_names_that_only_wrappers_tell_apart_stay_as_they_are() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    state = state_of(model)
    assert same(match(state, model), state)


@pytest.fixture(scope="module")
def families() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def test_what_save_pretrained_writes_of_gpt2_fits_with_and_without_the_head(
    families: Any, tmp_path: Path
) -> None:
    config = families.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=9)
    model = families.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    file = state_dicts.model_file(tmp_path)
    assert file is not None and file.name == "model.safetensors.index.json"
    state = state_dicts.state_in(state_dicts.read(file))
    assert "lm_head.weight" not in state  # it is tied
    assert same(match(state, families.GPT2LMHeadModel(config)), model.state_dict())
    assert same(match(state, families.GPT2Model(config)), model.transformer.state_dict())


def test_berts_with_other_heads_fit_each_other_where_no_weight_is_missing(families: Any) -> None:
    config = families.BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=9, vocab_size=5
    )
    masked, plain = families.BertForMaskedLM(config), families.BertModel(config)
    body = families.BertModel(config, add_pooling_layer=False)
    found = match(masked.state_dict(), body)
    assert same(found, masked.bert.state_dict(), [n for n in masked.state_dict() if "cls." in n])
    with pytest.raises(ValueError, match=r"missing pooler\.dense\.weight, .* found beside .* cls"):
        match(masked.state_dict(), plain)
    assert match(plain.state_dict(), body).left_out == ["pooler.dense.weight", "pooler.dense.bias"]
