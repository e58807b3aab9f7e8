"""Small networks for extraction, each with something that a hook may stumble over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Reused(nn.Module):
    """conv, relu (in place), fc, relu again, head: the second relu is deeper than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3 * 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.head(self.relu(self.fc(x.flatten(1))))

    def by_hand(self, x: Tensor) -> dict[str, Tensor]:
        """Every point in order, without hooks and without in-place operations."""
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            values["conv"] = self.conv(x)
            values["bn"] = torch.nn.functional.batch_norm(
                values["conv"], self.bn.running_mean, self.bn.running_var,
                self.bn.weight, self.bn.bias, eps=self.bn.eps,
            )  # fmt: skip
            values["relu#0"] = values["bn"].clamp(min=0)
            values["fc"] = self.fc(values["relu#0"].flatten(1))
            values["relu#1"] = values["fc"].clamp(min=0)
            values["head"] = self.head(values["relu#1"])
        return {name: value.flatten(1) for name, value in values.items()}


def reused(seed: int = 0) -> Reused:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Reused()
        model.bn.running_mean.uniform_(-1, 1)
    return model


class Recurrent(nn.Module):
    """An LSTM, whose output is a tuple, and a module whose output is a dict with an integer."""

    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"hidden": x * 2, "places": x.argmax(-1), "nothing": None}

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.table = self.Table()

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.lstm(x)[0])["hidden"]


class Text(nn.Module):
    """Called by keywords, as Hugging Face models are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.block = nn.Linear(4, 4)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.block(self.embed(input_ids))


class Failing(nn.Module):
    """Passes its input on, and raises from the call `after` on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.calls = after, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] > self.after:
            raise RuntimeError("the deep module ran")
        return x


class Wrapped(nn.Module):
    """A module made of a function, beside a layer `fc` of width 3."""

    def __init__(self, function: Callable[[Wrapped, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.other = nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
