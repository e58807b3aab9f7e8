"""Names, globs and predicates choose points; what they cannot mean is one clear error."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convexprobe.extraction.extract import extract
from convexprobe.extraction.layer_names import matches
from tests.extraction.networks import Recurrent, Text, Wrapped, normal, reused


def test_names_are_kept_as_asked_and_sides_are_told_apart() -> None:
    model, x = reused(), normal(6, 1, 4, 4)
    names = ["head:input", "fc:output", "fc", "relu#1:input", "input", "relu#1", "fc"]
    rows, _ = extract(model, [x], names)
    assert set(rows) == set(names)
    hand = model.by_hand(x)
    torch.testing.assert_close(rows["head:input"], hand["relu#1"])
    torch.testing.assert_close(rows["relu#1:input"], hand["fc"])
    torch.testing.assert_close(rows["fc:output"], hand["fc"])
    assert rows["fc"] is rows["fc:output"]
    assert torch.equal(rows["input"], x.flatten(1))


def test_a_glob_matches_modules_and_their_calls() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)), nn.Sequential(nn.ReLU()))
    x = normal(2, 3)
    assert list(extract(model, [x], "[13]")[0]) == ["1", "3"]
    assert list(extract(model, [x], "1[01]:input")[0]) == ["10:input", "11:input"]
    assert list(extract(model, [x], ["12*", "0"])[0]) == ["0", "12"]
    assert list(extract(model, [x], ["12**", "0"])[0]) == ["0", "12.0", "12"]
    assert list(extract(model, [x], "**.0")[0]) == list(extract(model, [x], "*.*")[0]) == ["12.0"]
    assert list(extract(reused(), [normal(2, 1, 4, 4)], "r*#1")[0]) == ["relu#1"]
    rows, _ = extract(Recurrent(), [normal(2, 5, 3)], "l*:output[0]", pool="last_token")
    assert list(rows) == ["lstm:output[0]"]


@given(
    st.lists(st.text("ab*?", max_size=3), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=3),
)
def test_a_star_matches_inside_one_part_of_a_dotted_name(
    globs: list[str], parts: list[str]
) -> None:
    globs = [glob.replace("**", "*") for glob in globs]
    each = len(globs) == len(parts) and all(map(fnmatchcase, parts, globs))
    assert matches(".".join(parts), ".".join(globs)) == each
    inside = ".".join(parts)
    assert matches(inside, f"**{parts[-1]}") and matches(inside, f"{parts[0]}**")


@given(st.text("a.*?[]!^-\\(", max_size=8), st.text("a.[-", max_size=4))
def test_any_text_is_a_glob(glob: str, name: str) -> None:
    assert matches(name, glob) in (True, False)
    assert matches(name, "**") and matches(name, "*") == ("." not in name)


def test_items_of_tuples_and_mappings_are_points() -> None:
    model, x = Recurrent(), normal(2, 5, 3)
    rows, _ = extract(model, [x], ["table[hidden]", "lstm[0]", "table:output[hidden]"])
    assert list(rows) == ["lstm[0]", "table[hidden]", "table:output[hidden]"]
    torch.testing.assert_close(rows["table[hidden]"], 2 * rows["lstm[0]"])


def test_a_module_named_like_the_grammar_is_itself() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.ReLU())
    model.add_module("a#1", nn.Identity())
    x = normal(2, 3)
    rows, _ = extract(model, [x], ["input", "a#1", "input:input"])
    assert torch.equal(rows["input"], x.clamp(min=0))
    assert torch.equal(rows["input:input"], x)


def test_shared_and_parametrized_modules_have_one_name() -> None:
    relu = nn.ReLU()
    fc = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    model = nn.Sequential(fc, relu, nn.Linear(3, 3), relu)
    assert list(extract(model, [normal(2, 3)])[0]) == ["0", "1#0", "2", "1#1"]
    with pytest.raises(ValueError, match=r"layer '3': .* 2 times .* '3#0', '3#1'"):
        extract(model, [normal(2, 3)], "3")


def test_pools_by_pattern_match_calls_and_modules() -> None:
    pool = {
        "relu#0": "spatial_mean",
        "relu": "flatten",
        "bn": lambda x: x[:, :, 0, 0],
        "**": "flatten",
    }
    rows, _ = extract(reused(), [normal(2, 1, 4, 4)], pool=pool)
    assert {name: layer.shape[1] for name, layer in rows.items()} == {
        "conv": 12, "bn": 3, "relu#0": 3, "fc": 5, "relu#1": 5, "head": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        ("relu", ValueError, "layer 'relu': .* 2 times .* 'relu#0', 'relu#1'"),
        ("relu:input", ValueError, "layer 'relu:input': .* 'relu#0:input', 'relu#1:input'"),
        ("relu#2", ValueError, "layer 'relu#2': .* 2 times .* 'relu#0', 'relu#1'"),
        ("rleu", ValueError, "layer 'rleu': .* nearest are 'relu'"),
        ("rleu[0]", ValueError, r"layer 'rleu\[0\]': .* nearest are 'relu'"),
        ("", ValueError, "layer '': "),
        ("conv\n", ValueError, "nearest are 'conv'"),
        (["fc", "transformer.*"], ValueError, r"layer 'transformer\.\*': "),
        ([], ValueError, "layers: .* found none"),
        (lambda name, module: False, ValueError, "layers: .* found none"),
        (["fc", 3], TypeError, "layers: expected names, found 3"),
        (3, TypeError, "layers: expected names or a predicate, found .* int"),
        ("fc[0]", ValueError, r"layer 'fc\[0\]', batch 0: .* found a tensor of shape \(2, 5\)"),
        ("input[x]", ValueError, r"layer 'input\[x\]', batch 0: "),
    ],
)
def test_layers_that_cannot_be_meant_are_refused(
    layers: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        extract(reused(), [normal(2, 1, 4, 4)], layers)


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        ("table[hiden]", ValueError, r"'table\[hiden\]', .* \[hidden\], \[places\], \[nothing\]"),
        ("table[places]", TypeError, r"layer 'table\[places\]', batch 0: .* found torch.int64"),
        ("table[nothing]", TypeError, r"layer 'table\[nothing\]', batch 0: .* NoneType"),
        ("lstm[1]", TypeError, r"layer 'lstm\[1\]', batch 0: .* found a tuple of \[0\] Tensor"),
    ],
)
def test_items_must_be_chosen(layers: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        extract(Recurrent(), [normal(2, 5, 3)], layers)


def test_of_a_tuple_or_a_mapping_the_first_tensor_with_a_row_per_example_is_meant() -> None:
    model, x = Recurrent(), normal(2, 5, 3)
    for layers in (None, ["lstm", "table"], "*", "**"):
        rows, _ = extract(model, [x], layers)
        chosen, _ = extract(model, [x], ["lstm[0]", "table[hidden]"])
        assert list(rows) == ["lstm", "table"]
        for mine, theirs in zip(rows.values(), chosen.values(), strict=True):
            assert torch.equal(mine, theirs)
    outputs = [None, torch.ones(2), torch.arange(3), torch.ones(1, 3), normal(3, 4), normal(3, 9)]
    model = Wrapped(lambda model, x: model.other(outputs))
    rows, _ = extract(model, [normal(3, 3)], "other")
    assert torch.equal(rows["other"], outputs[4])
    model = Wrapped(lambda model, x: model.other(outputs[:4]))
    message = r"layer 'other', batch 0: .* choose one of 'other:output\[1\]', 'other:output\[2\]'"
    with pytest.raises(ValueError, match=message):
        extract(model, [normal(3, 3)], "other")


class Rotary(nn.Module):
    """A model whose leaves have rows, positions without rows, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.positions, self.cosines, self.ids, self.turned = (
            nn.Linear(3, 3), *(nn.Identity() for _ in range(4))
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self.positions(torch.ones(1, x.shape[1], 3))
        self.cosines((torch.ones(1, 2), torch.ones(1, 2)))
        self.ids(torch.ones(len(x), dtype=torch.long))
        self.turned(x.transpose(0, 1))
        return self.fc(x)


@pytest.mark.parametrize("layers", [None, "**", lambda name, module: True])
@pytest.mark.parametrize("tokens", [3, 4])  # as many as rows, and more
def test_points_without_a_row_per_example_are_left_out_with_one_warning(
    layers: Any, tokens: int, tmp_path: Path
) -> None:
    x = normal(6, tokens, 3).split(3)
    for out in (None, tmp_path):
        with pytest.warns(UserWarning, match="layers '.*left out, .* no row per ex") as caught:
            rows, _ = extract(Rotary(), x, layers, out=out)
        assert list(rows) == ["fc"] and len(caught) == 1 and caught[0].filename == __file__
        told = str(caught[0].message)
        assert all(f"'{name}'" in told for name in ("positions", "cosines", "ids", "turned"))
    for name in ("positions", "cosines", "ids", "turned"):
        for choice in (name, ["fc", name], [name[:-1] + "*", "fc"]):
            with pytest.raises((TypeError, ValueError), match=f"layer '{name}', batch 0: expected"):
                extract(Rotary(), x, choice)


def test_modules_that_never_run_are_left_out_unless_they_were_named() -> None:
    model, x = Wrapped(lambda model, x: model.fc(x)), [normal(2, 3)]
    for layers in (None, "*", ["fc", "[fo]*"], lambda name, module: True):
        assert list(extract(model, x, layers)[0]) == ["fc"]
    for layers in ("other", ["fc", "other"], "o*", ["fc", "o*"], lambda name, _: name == "other"):
        with pytest.raises(ValueError, match=r"layers 'other': .* never"):
            extract(model, x, layers)
    blocks = nn.Module()
    blocks.list = nn.ModuleList([nn.ReLU()])
    blocks.forward = lambda x: blocks.list[0](x)
    with pytest.raises(ValueError, match=r"layers 'list': .* never"):
        extract(blocks, x, "list")
    assert list(extract(blocks, x, "l**")[0]) == ["list.0"]


def test_a_projection_that_attention_never_calls_is_left_out() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    rows, _ = extract(model, normal(4, 5, 4).split(2))
    assert [name for name in rows if name.startswith(("lin", "norm"))] == [
        "norm1", "linear1", "linear2", "norm2",
    ]  # fmt: skip
    assert not any("out_proj" in name for name in rows)
    with pytest.raises(ValueError, match=r"layers 'self_attn\.out_proj': .* never"):
        extract(model, [normal(2, 5, 4)], ["linear1", "self_attn.out_proj"])


def test_of_integer_and_keyword_inputs_one_has_to_be_chosen() -> None:
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"layer 'input', .*'input\[input_ids\]', 'input\[att"):
        extract(Text(), [batch], "input")
    with pytest.raises(TypeError, match=r"layer 'input\[input_ids\]', batch 0: .* torch.int64"):
        extract(Text(), [batch], "input[input_ids]")
    rows, _ = extract(Text(), [batch], "input[attention_mask]")
    assert rows["input[attention_mask]"].shape == (2, 3)
