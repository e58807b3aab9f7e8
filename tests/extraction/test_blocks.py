"""`blocks`, `attention`, `mlp` and heads mean the same in every family of models."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexprobe.extraction.blocks import block_names
from convexprobe.extraction.extract import extract
from tests.extraction.families import (
    BLOCKS,
    FAMILIES,
    ROWS,
    TOKENS,
    Block,
    Stack,
    family,
)  # fmt: skip
from tests.extraction.networks import normal


def batch_of(name: str) -> dict[str, Any]:
    return FAMILIES[name][1]


def hidden_states(name: str) -> list[Tensor]:
    """What the family calls hidden states, of all stacks, without the embeddings."""
    with torch.no_grad():
        output = family(name)(**batch_of(name), output_hidden_states=True)
    if name == "CLIP":
        stacks = [output.text_model_output.hidden_states, output.vision_model_output.hidden_states]
    elif name in ("T5", "Bart"):
        stacks = [output.encoder_hidden_states, output.decoder_hidden_states]
    else:
        stacks = [output.hidden_states]
    return [state for stack in stacks for state in stack[1:]]


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_the_hidden_states_of_every_family(name: str) -> None:
    rows, _ = extract(family(name), [batch_of(name)], "blocks")
    assert len(rows) == BLOCKS.get(name, 3)
    if name == "Swin":  # whose hidden states are those of its stages
        return
    states = dict(zip(block_names(family(name)), hidden_states(name), strict=True))
    equal = [point for point, state in states.items() if torch.equal(rows[point], state.flatten(1))]
    # the last hidden state of a stack has gone through the norm behind the blocks in most families
    last = {point.rpartition(".")[0]: point for point in states}
    assert {*states} - {*equal} <= {*last.values()}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "Swin"])
def test_attention_is_the_projection_of_its_heads_and_blocks_are_read_one_by_one(name: str) -> None:
    model, batch = family(name), [batch_of(name)]
    unordered, _ = extract(model, batch, "blocks")
    blocks = {point: unordered[point] for point in block_names(model)}
    parts, _ = extract(model, batch, ["attention", "attention[head *]"])
    outputs = {n: x for n, x in parts.items() if "head" not in n}
    assert len(outputs) == len(blocks) and len(parts) == 5 * len(blocks)
    for point, written in outputs.items():
        projection = model.get_submodule(point)
        heads = [parts[f"{point}:input[head {i}]"].reshape(ROWS, -1, 4) for i in range(4)]
        with torch.no_grad():
            again = projection(torch.cat(heads, -1))
        torch.testing.assert_close(again.flatten(1), written)
    one, _ = extract(model, batch, ["blocks.1", "blocks.1.attention", "blocks.1.attention[head 2]"])
    assert set(one) == {"blocks.1", "blocks.1.attention", "blocks.1.attention[head 2]"}
    assert torch.equal(one["blocks.1"], [*blocks.values()][1])
    point = next(p for p in outputs if p.startswith([*blocks][1]))
    written = outputs[point]
    assert torch.equal(one["blocks.1.attention"], written)
    assert torch.equal(one["blocks.1.attention[head 2]"], parts[f"{point}:input[head 2]"])
    # the name of a result asks for the same again
    named, _ = extract(model, batch, f"{point}:input[head 2]")
    assert torch.equal(named[f"{point}:input[head 2]"], parts[f"{point}:input[head 2]"])


@pytest.mark.parametrize("name", FAMILIES)
def test_all_leaves_of_every_family_are_read_but_those_without_a_row_per_example(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows, _ = extract(family(name), [batch_of(name)])
    assert len(rows) >= 20 and len(caught) <= 1
    assert all("are left out, because they have no row" in str(w.message) for w in caught)
    left_out = {"Roberta": 0, "ViT": 0, "Dinov2": 0}  # whose positions are computed by row or added
    assert len(caught) == left_out.get(name, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_has_an_mlp(name: str) -> None:
    model, batch = family(name), [batch_of(name)]
    if name == "Mixtral":  # whose experts run as one module
        assert [*extract(model, batch, "mlp")[0]] == [f"layers.{i}.mlp" for i in range(3)]
        return
    rows, _ = extract(model, batch, "mlp")
    assert len(rows) == BLOCKS.get(name, 3)
    again, _ = extract(model, batch, "blocks.*.mlp")
    assert all(torch.equal(rows[point], again[point]) for point in rows)
    width = {"Swin": 8}.get(name, 16)
    assert all(x.shape[1] % width == 0 for x in rows.values())


@pytest.mark.parametrize("name", ["Bert", "Llama", "GPT2"])
def test_attention_and_mlp_sum_to_what_a_block_adds(name: str) -> None:
    model, batch = family(name), [batch_of(name)]
    rows, _ = extract(model, batch, ["blocks.0", "blocks.1", "blocks.1.attention", "blocks.1.mlp"])
    before, after, attention, mlp = (
        x.reshape(ROWS, TOKENS, 16)
        for x in (rows[n] for n in ("blocks.0", "blocks.1", "blocks.1.attention", "blocks.1.mlp"))
    )
    if name == "Bert":  # the norms stand behind the sums
        block = model.get_submodule("encoder.layer.1")
        with torch.no_grad():
            middle = block.attention.output.LayerNorm(before + attention)
            torch.testing.assert_close(block.output.LayerNorm(middle + mlp), after)
    else:
        torch.testing.assert_close(before + attention + mlp, after)


def test_blocks_of_torch_s_encoder_are_its_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    x = normal(4, 5, 8)
    rows, _ = extract(model, [x], "blocks")
    assert list(rows) == ["layers.0", "layers.1", "layers.2"]
    with torch.no_grad():
        for point, hand in rows.items():
            x = model.get_submodule(point)(x)
            torch.testing.assert_close(hand, x.flatten(1), rtol=1e-4, atol=1e-5)
    attention, _ = extract(model, [normal(4, 5, 8)], "attention")
    assert list(attention) == [f"layers.{i}.self_attn" for i in range(3)]
    assert list(extract(model, [x], "mlp")[0]) == [f"layers.{i}.linear2" for i in range(3)]
    with pytest.raises(ValueError, match=r"layer '.*self_attn': .* output projection that runs"):
        extract(model, [x], "attention[head 0]")


class Norm(nn.Sequential):
    """A layer with its norm, as torchvision writes it."""


class Stage(nn.Sequential):
    """Blocks, as torchvision's RegNet has them."""


def blocks(count: int) -> list[Block]:
    return [Block() for _ in range(count)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # as in timm: a Sequential called `blocks`, which runs itself
        (lambda: Stack(blocks=nn.Sequential(*blocks(3)), norm=nn.LayerNorm(8)),
         ["blocks.0", "blocks.1", "blocks.2"]),
        # as in torchvision: stages between other modules, which hold the blocks themselves
        (lambda: Stack(features=nn.Sequential(
            nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.Sequential(*blocks(2)),
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), nn.Sequential(*blocks(3)))),
         ["features.1.0", "features.1.1", "features.3.0", "features.3.1", "features.3.2"]),
        # stages with a part beside the list
        (lambda: Stack(layers=nn.ModuleList(
            Stack(blocks=nn.Sequential(*blocks(2)), down=nn.Linear(8, 8)) for _ in range(2))),
         ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1"]),
        # blocks that hold lists of one class, but not all of them
        (lambda: nn.Sequential(
            Stack(block=nn.Sequential(Block().mlp, Block().mlp)),
            Stack(block=nn.Sequential(Block().mlp, nn.Sigmoid(), Block().mlp))), ["0", "1"]),
        # stages that are subclasses of Sequential, beside a layer that is one
        (lambda: Stack(stem=Norm(nn.Linear(8, 8), nn.LayerNorm(8)),
                       body=nn.Sequential(Stage(*blocks(2)), Stage(*blocks(1)))),
         ["body.0.0", "body.0.1", "body.1.0"]),
        # experts in a block are no blocks, although there are more of them
        (lambda: Stack(h=nn.ModuleList(
            Stack(attn=Block().attn, moe=Stack(experts=nn.ModuleList(
                Block().mlp for _ in range(6)))) for _ in range(2))), ["h.0", "h.1"]),
        # without attention, the class of which there are most, between a stem and a head
        (lambda: Stack(a=nn.Sequential(Block().mlp, Block().mlp, nn.ReLU()),
                       b=nn.Sequential(*[Stack(fc=nn.Linear(8, 8)) for _ in range(3)])),
         ["b.0", "b.1", "b.2"]),
        # the layers of a deep perceptron
        (lambda: Stack(layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(4))),
         [f"layers.{i}" for i in range(4)]),
        (lambda: nn.Sequential(*blocks(2)), ["0", "1"]),
    ],
)  # fmt: skip
def test_blocks_are_found_by_structure(model: Any, expected: list[str]) -> None:
    net = model()
    assert block_names(net) == expected
    assert list(extract(net, [normal(3, 4, 8)], "blocks")[0]) == expected


def test_the_output_projection_is_not_a_perceptron_of_positions_behind_it() -> None:
    model = nn.Sequential(*blocks(2))
    for block in model:
        block.attn.positions = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    rows, _ = extract(model, [normal(3, 4, 8)], ["attention", "attention[head 1]"])
    assert list(rows) == [
        "0.attn.proj:input[head 1]", "0.attn.proj", "1.attn.proj:input[head 1]", "1.attn.proj",
    ]  # fmt: skip


def test_a_block_that_runs_several_times_has_a_point_for_each() -> None:
    block = Block()
    model = nn.ModuleList([block])
    model.forward = lambda x: block(block(x))  # type: ignore[method-assign]
    rows, _ = extract(model, [normal(3, 4, 8)], "blocks")
    assert list(rows) == ["0#0", "0#1"]


def test_modules_that_are_called_like_the_words_go_before_them() -> None:
    model = Stack(attention=nn.Linear(8, 8), mlp=nn.ReLU(), blocks=nn.Sequential(*blocks(3)))
    x = normal(3, 4, 8)
    for name in ("attention", "mlp", "blocks.1", "blocks.*.mlp", "blocks:output"):
        assert all(point.startswith(name[:6]) for point in extract(model, [x], name)[0])
    assert torch.equal(extract(model, [x], "mlp")[0]["mlp"], model.attention(x).relu().flatten(1))
    assert list(extract(model, [x], "blocks:output")[0]) == ["blocks:output"]
    assert list(extract(model, [x], "blocks")[0]) == ["blocks.0", "blocks.1", "blocks.2"]
    assert list(extract(model, [x], "blocks.1.attention")[0]) == ["blocks.1.attention"]
    inputs, _ = extract(Stack(h=nn.Sequential(*blocks(2))), [x], "blocks:input")
    assert list(inputs) == ["h.0:input", "h.1:input"]
    assert torch.equal(inputs["h.0:input"], x.flatten(1))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.3", "layer 'blocks.3': expected a block from 0 to 2, found 3"),
        (
            "blocks.0.attention[head 9]",
            r"layer .*\[head 9\]': expected a head from 0 to 3, found 9",
        ),
        ("pooler[head 0]", "layer 'pooler': expected attention with an output projection"),
        ("embeddings[head 0]", "layer 'embeddings': expected attention with an output projection"),
    ],
)
def test_blocks_and_heads_that_are_not_there_are_refused(layers: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(family("Bert"), [batch_of("Bert")], layers)


def test_a_model_without_blocks_is_refused_in_one_sentence() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    for layers in ("blocks", "attention", "mlp", "blocks.0", "blocks.*.mlp"):
        message = "layers: expected a model with blocks, .* found none in Sequential; choose layers"
        with pytest.raises(ValueError, match=message):
            extract(model, [normal(2, 3)], layers)
    model = nn.Sequential(*[Stack(fc=nn.Linear(3, 3)) for _ in range(2)])
    with pytest.raises(ValueError, match=r"'attention': expected blocks with attention, .*\(Stack"):
        extract(model, [normal(2, 3)], "attention")
