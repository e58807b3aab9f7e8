"""Merge the adapter in a folder that PEFT wrote (LoRA and such) into the weights of a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convexprobe._random_state import random_states_kept
from convexprobe.training.matching import Matched, listed

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"


def is_adapter(file: Path) -> bool:
    """Whether a file is an adapter's, which changes a model's weights instead of being them."""
    return file.name in ADAPTER_FILES


def merged(model: nn.Module, folder: Path) -> Matched:
    """The weights of the model with the adapter merged into them, by the model's own names.

    The model itself stays as it is: the adapter is merged into a copy.

    Args:
        model: the base model, with the weights that the adapter was trained on.
        folder: what `save_pretrained` of PEFT wrote.

    Raises:
        ValueError: peft is not installed, the model has adapters already, or the adapter does not
            fit the model or cannot be merged.
    """
    try:
        import peft
    except ImportError:
        raise ValueError(
            "it is a PEFT adapter, and peft is not installed; pip install peft"
        ) from None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"expected {CONFIG} beside the adapter, found none; copy it there")
    if isinstance(model, peft.PeftModel):
        raise ValueError("expected the model without adapters; pass model.get_base_model()")
    with random_states_kept():  # layers that are made are initialised before they are loaded
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        whole = peft.PeftModel(copy.deepcopy(model), config, low_cpu_mem_usage=True)
        weights = peft.utils.load_peft_weights(str(folder), device="cpu")
        wanted = peft.get_peft_model_state_dict(whole, save_embedding_layers=False)
        missing = [name for name in wanted if name not in weights]
        told: Any = peft.set_peft_model_state_dict(whole, weights, low_cpu_mem_usage=True)
        beside = [name for name in weights if name not in wanted and name in told.unexpected_keys]
        prefix = getattr(whole.base_model, "prefix", "")
        foreign = [name for name in told.unexpected_keys if prefix in name]
        if missing or foreign:
            what = f"missing {listed(missing)}" if missing else f"unexpected {listed(foreign)}"
            raise ValueError(
                f"the adapter does not fit the model: {what}; pass a model of the class that it "
                "was trained on"
            )
        if not hasattr(whole, "merge_and_unload"):
            raise ValueError(f"an adapter of the kind {config.peft_type} has no weights to merge")
        state: dict[str, Tensor] = whole.merge_and_unload().state_dict()
    return Matched(state, beside)
