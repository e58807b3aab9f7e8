"""The callbacks of other libraries record what a monitor does, and change no training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexprobe as cxp
from tests.tiny import SETTINGS, network, rows

X, Y = rows()


class Classifier(nn.Module):
    """What Hugging Face's Trainer trains: keyword arguments in, loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(inputs)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def huggingface(callbacks: list[Any], directory: Any) -> list[bytes]:
    import transformers

    model = Classifier()
    arguments = transformers.TrainingArguments(
        output_dir=str(directory), max_steps=6, per_device_train_batch_size=25, report_to=[],
        disable_tqdm=True, save_strategy="no", use_cpu=True, logging_strategy="no", seed=3,
    )  # fmt: skip
    data = [{"inputs": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return [v.numpy().tobytes() for v in model.state_dict().values()]


@pytest.mark.filterwarnings("default")  # another library's
def test_a_hugging_face_training_is_recorded_and_stays_the_same(tmp_path: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    batches = [{"inputs": X[i : i + 50], "labels": Y[i : i + 50]} for i in range(0, 150, 50)]
    monitor = cxp.ProbeMonitor(batches, l2=1e-2, layers="body.*")
    callback = cxp.hugging_face_callback(monitor, every=2)
    assert huggingface([callback], tmp_path) == huggingface([], tmp_path)
    assert list(monitor.history) == [0, 2, 4, 6] and not monitor.history.failures
    assert monitor.history.layers == tuple(f"body.{i}" for i in range(5))
    with pytest.raises(ValueError, match="every"):
        cxp.hugging_face_callback(monitor, every=0)


@pytest.mark.filterwarnings("default")
def test_a_lightning_training_is_recorded_and_stays_the_same(tmp_path: Any) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 3e-2)

    def run(callbacks: list[Any]) -> list[bytes]:
        module = Module()
        with torch.random.fork_rng([]):
            torch.manual_seed(8)
            trainer = pl.Trainer(
                max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
                accumulate_grad_batches=2, default_root_dir=tmp_path,
            )  # fmt: skip
            loader = DataLoader(TensorDataset(X, Y), batch_size=25, shuffle=True)
            trainer.fit(module, loader)
        return [v.numpy().tobytes() for v in module.state_dict().values()]

    monitor = cxp.ProbeMonitor(X, Y, **{k: v for k, v in SETTINGS.items() if k != "progress"})
    assert run([cxp.lightning_callback(monitor, every=3)]) == run([])
    assert list(monitor.history) == [0, 3, 6] and not monitor.history.failures
    assert "body.4" in monitor.history.layers
