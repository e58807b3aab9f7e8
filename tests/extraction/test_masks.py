"""Token pools use the mask of a layer's own tokens, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexprobe.extraction.extract import extract
from tests.extraction.networks import normal

N, T = 3, 6


def padding(*lengths: int, width: int = T) -> Tensor:
    """A mask (n, t): 1 for the first tokens of each row, 0 for the padding after them."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def token_means(x: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[kept].mean(0) for row, kept in zip(x, mask.bool(), strict=True)])


def recorded(model: nn.Module, batch: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    """Whole activations (n, t, d), flattened by extraction, of which tests take the means."""
    rows, _ = extract(model, [batch], names)
    return rows


class Named(nn.Module):
    """Takes a mask under any name, and uses none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)

    def forward(self, x: Tensor, **masks: Tensor) -> Tensor:
        return self.fc(x)


ATTENTION = padding(6, 2, 4)
CASES = [
    ("attention_mask", ATTENTION),
    ("attention_mask", ATTENTION.float()),
    ("attention_mask", ATTENTION.bool()),
    ("key_padding_mask", ATTENTION == 0),
    ("src_key_padding_mask", ATTENTION == 0),
    ("src_key_padding_mask", (1.0 - ATTENTION) * -1e38 * 10),
]


@pytest.mark.parametrize(("name", "mask"), CASES)
def test_padding_is_left_out_under_the_name_and_convention_of_each_library(
    name: str, mask: Tensor
) -> None:
    x = normal(N, T, 2)
    model = Named()
    rows, _ = extract(model, [{"x": x, name: mask}], pool="token_mean")
    torch.testing.assert_close(rows["fc"], token_means(model.fc(x).detach(), ATTENTION))


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("mask", ATTENTION.bool()),
        ("padding_mask", ATTENTION == 0),
        ("input_mask", ATTENTION),
        ("attention_mask", (1.0 - ATTENTION) * -1e9),
        ("attention_mask", ATTENTION[:, None, None, :]),
        ("x_mask", ATTENTION[:, :, None]),
    ],
)
def test_a_mask_that_may_mean_either_is_refused_with_the_names_that_are_clear(
    name: str, mask: Tensor
) -> None:
    batch = {"x": normal(N, T, 2), name: mask}
    message = f"layer 'fc', batch 0: cannot tell which tokens the batch's '{name}' keeps; .*'attent"
    with pytest.raises(ValueError, match=message):
        extract(Named(), [batch], pool="token_mean")
    extract(Named(), [batch])  # a pool that keeps all needs no mask
    extract(Named(), [batch], pool=lambda x: x.mean(1))
    batch["x"] = normal(N, 9, 2)
    extract(Named(), [{"x": normal(N, 9, 2), "mask": torch.ones(9, 9)}], pool="token_mean")


@pytest.mark.parametrize("nested", [False, True])
def test_torch_s_encoder_gets_and_gives_its_padding(nested: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

        def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
            return self.encoder(src, src_key_padding_mask=src_key_padding_mask)

    names = ["encoder.layers.0.linear1", "encoder.layers.1"]
    batch = {"src": normal(N, T, 4), "src_key_padding_mask": ATTENTION == 0}
    with torch.enable_grad():
        model = Model()
        model.encoder.layers[0].register_forward_hook(lambda *_: None)  # no fast path
        model.encoder.layers[1].register_forward_hook(lambda *_: None)
        whole = recorded(model, batch, names)
        rows, _ = extract(model, [batch], names, pool="token_mean")
    for name in names:
        x = whole[name].reshape(N, T, -1)
        torch.testing.assert_close(rows[name], token_means(x, ATTENTION))
    assert model.encoder.use_nested_tensor == nested


DECODER = padding(3, 6, 1)


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_a_decoder_s_tokens_are_pooled_with_the_decoder_s_mask(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "T5":
        config = transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        encoder = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1"]
        decoder = ["decoder.block.0.layer.0.SelfAttention.k", "decoder.block.1.layer.2"]
        memory = ["decoder.block.1.layer.1.EncDecAttention.k"]
        query = ["decoder.block.1.layer.1.EncDecAttention.q"]
        names = {"encoder.block.1": "encoder.block.1:output[0]"}
    else:
        config = transformers.BartConfig(
            vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=8,
            decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2,
            forced_eos_token_id=None,
        )  # fmt: skip
        model = transformers.BartForConditionalGeneration(config)
        encoder = ["model.encoder.layers.0.fc1", "model.encoder.layernorm_embedding"]
        decoder = ["model.decoder.layers.1.fc1", "model.decoder.layers.0.self_attn.v_proj"]
        memory = ["model.decoder.layers.1.encoder_attn.v_proj"]
        query = ["model.decoder.layers.1.encoder_attn.q_proj"]
        names = {}
    ids = torch.randint(3, 20, (N, T), generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": ids,
        "attention_mask": ATTENTION,
        "decoder_input_ids": ids.flip(1),
        "decoder_attention_mask": DECODER,
    }
    asked = {name: names.get(name, name) for name in encoder + decoder + memory + query}
    whole = recorded(model, batch, list(asked.values()))
    rows, _ = extract(model, [batch], list(asked.values()), pool="token_mean")
    for group, mask in ((encoder + memory, ATTENTION), (decoder + query, DECODER)):
        for name in group:
            x = whole[asked[name]].reshape(N, T, -1)
            torch.testing.assert_close(rows[asked[name]], token_means(x, mask), msg=name)
    # a head's tokens may be those of either: by their number, or not at all
    with pytest.raises(ValueError, match=r"layer 'lm_head', .* sequences with other padding"):
        extract(model, [batch], "lm_head", pool="token_mean")
    shorter = {**batch, "decoder_input_ids": ids[:, :4], "decoder_attention_mask": DECODER[:, :4]}
    head = recorded(model, shorter, ["lm_head"])["lm_head"].reshape(N, 4, -1)
    rows, _ = extract(model, [shorter], "lm_head", pool="token_mean")
    torch.testing.assert_close(rows["lm_head"], token_means(head, DECODER[:, :4]))
    # without a mask for the decoder, its padding is not known
    unmasked = {name: value for name, value in batch.items() if name != "decoder_attention_mask"}
    with pytest.raises(ValueError, match="sequence without a mask; give 'decoder_attention_mask'"):
        extract(model, [unmasked], asked[decoder[0]], pool="token_mean")
    extract(model, [unmasked], asked[encoder[0]], pool="token_mean")
    unmasked = {name: value for name, value in batch.items() if name != "attention_mask"}
    with pytest.raises(ValueError, match="sequence without a mask; give 'attention_mask'"):
        extract(model, [unmasked], asked[encoder[0]], pool="token_mean")


def test_equal_masks_of_two_sequences_need_no_choice() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 4)

        def forward(
            self, src: Tensor, tgt: Tensor, src_key_padding_mask: Tensor,
            tgt_key_padding_mask: Tensor | None = None,
        ) -> Tensor:  # fmt: skip
            return self.fc(tgt)

    x, mask = normal(N, T, 2), ATTENTION == 0
    batch = {"src": x, "tgt": x + 1, "src_key_padding_mask": mask, "tgt_key_padding_mask": mask}
    model = Two()
    rows, _ = extract(model, [batch], pool="token_mean")
    torch.testing.assert_close(rows["fc"], token_means(model.fc(x + 1).detach(), ATTENTION))
    batch["tgt_key_padding_mask"] = DECODER == 0
    with pytest.raises(ValueError, match="'src_key_padding_mask' and 'tgt_key_padding_mask'"):
        extract(model, [batch], pool="token_mean")
    del batch["tgt_key_padding_mask"]
    with pytest.raises(ValueError, match="mask; give 'decoder_attention_mask'"):
        extract(model, [batch], pool="token_mean")


def test_tokens_of_torch_s_decoder_and_of_its_memory_have_their_own_masks() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encode = nn.Linear(4, 4)
            self.decoder = nn.TransformerDecoder(layer, 1)

        def forward(
            self, src: Tensor, tgt: Tensor, src_key_padding_mask: Tensor,
            tgt_key_padding_mask: Tensor,
        ) -> Tensor:  # fmt: skip
            return self.decoder(
                tgt, self.encode(src), tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=src_key_padding_mask,
            )  # fmt: skip

    batch = {
        "src": normal(N, T, 4), "tgt": normal(N, T, 4, seed=1),
        "src_key_padding_mask": ATTENTION == 0, "tgt_key_padding_mask": DECODER == 0,
    }  # fmt: skip
    names = ["decoder.layers.0.linear1", "decoder.layers.0.norm1"]
    model = Model()
    whole = recorded(model, batch, names)
    rows, _ = extract(model, [batch], names, pool="token_mean")
    for name in names:
        x = whole[name].reshape(N, T, -1)
        torch.testing.assert_close(rows[name], token_means(x, DECODER))
    with pytest.raises(ValueError, match=r"layer 'encode', .* sequences with other padding"):
        extract(model, [batch], "encode", pool="token_mean")
