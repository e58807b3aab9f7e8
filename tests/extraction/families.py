"""Tiny random models of the families of transformers, each with a batch of inputs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROWS, TOKENS, VOCABULARY = 3, 6, 40
IDS = torch.randint(3, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(TOKENS) < torch.tensor([6, 4, 5])[:, None]).long()
IMAGES = torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(1))

TEXT: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
BOTH: dict[str, Any] = {**TEXT, "decoder_input_ids": IDS[:, :5]}
IMAGE: dict[str, Any] = {"pixel_values": IMAGES}

_BASE = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip
_WORDS = {**_BASE, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
_GROUPED = {**_WORDS, "num_key_value_heads": 2}
_VISION = {**_BASE, "image_size": 8, "patch_size": 4}
_STACKS = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}  # fmt: skip

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Bert": (_WORDS, TEXT),
    "Roberta": ({**_WORDS, "pad_token_id": 1}, TEXT),
    "Electra": ({**_WORDS, "embedding_size": 16}, TEXT),
    "DistilBert": ({"vocab_size": VOCABULARY, "dim": 16, "n_layers": 3, "n_heads": 4,
                    "hidden_dim": 24}, TEXT),
    "GPT2": ({"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 4}, TEXT),
    "GPTNeoX": (_WORDS, TEXT),
    "Llama": (_GROUPED, TEXT),
    "Mistral": (_GROUPED, TEXT),
    "Mixtral": ({**_GROUPED, "num_local_experts": 4}, TEXT),
    "Qwen2": (_GROUPED, TEXT),
    "T5": ({"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3,
            "num_heads": 4, "decoder_start_token_id": 0}, BOTH),
    "Bart": ({**_STACKS, "max_position_embeddings": 32}, BOTH),
    "ViT": (_VISION, IMAGE),
    "Dinov2": ({"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
                "mlp_ratio": 2, "image_size": 8, "patch_size": 4}, IMAGE),
    "Swin": ({"image_size": 8, "patch_size": 1, "embed_dim": 8, "depths": [2, 1],
              "num_heads": [2, 4], "window_size": 4}, IMAGE),
    "CLIP": ({"text_config": {**_WORDS, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2},
              "vision_config": {**_VISION, "projection_dim": 8}, "projection_dim": 8},
             {**TEXT, **IMAGE}),
}  # fmt: skip
"""The configuration and the batch of each."""

BLOCKS = {"T5": 6, "Bart": 5, "CLIP": 6}
"""How many blocks have those that have not three."""


@functools.cache
def family(name: str) -> nn.Module:
    """A model with random weights; the test is skipped where transformers has no such family."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        configuration = getattr(transformers, f"{name}Config")(**FAMILIES[name][0])
        model: nn.Module = getattr(transformers, f"{name}Model")(configuration)
    return model.eval()


class Block(nn.Module):
    """A block as timm writes it: attention with `qkv` and `proj`, and a `Mlp`."""

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads = heads
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            n, t, d = x.shape
            q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(mixed.transpose(1, 2).reshape(n, t, d))

    class Mlp(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x).relu())

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Block.Attention(width, heads), Block.Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    """A model of the given parts, one after another."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for each in part if isinstance(part, nn.ModuleList) else [part]:
                x = each(x)
        return x
