"""Sentences of a small grammar, whose words have their gold labels by construction.

`sentence` makes clauses such as "two old cats walked near the garden .", `statement` makes
judgements such as "these farmers were not friendly while a doctor watched .". Each word has its
part of speech, its number and its tense; a statement as a whole is negated or not, and good or bad:
"not friendly" is bad. So a statement's sentiment is told by two words together.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

WORDS = {
    "noun": "cat dog teacher student doctor river garden book letter window king farmer painter",
    "verb": "walk talk jump look smile play cook open paint follow watch help call visit",
    "adjective": "old young small large quiet happy green bright strange gentle careful",
    "adverb": "often quickly slowly rarely quietly happily suddenly",
    "preposition": "near behind under beside above with without",
    "name": "Paris London Rome Berlin Madrid Vienna",
    "pronoun": "they we",
    "number": "two three seven ten",
    "conjunction": "and but while",
    "negation": "not never",
}
GOOD = "kind brave friendly wise lovely pleasant wonderful honest clever cheerful"
BAD = "cruel rude dull nasty awful horrible selfish lazy clumsy dreadful"
COPULAS = {"present": ("is", "are"), "past": ("was", "were")}

TAGS = ("determiner", "adjective", "noun", "verb", "adverb", "preposition", "name", "number",
        "pronoun", "conjunction", "stop", "negation")  # fmt: skip
CONCEPTS = ("part of speech", "number", "tense", "sentiment", "negation")
"""What `Statement.labels` tells of every word."""

Inflect = Callable[[str, str], str]
"""Joins a word and its ending."""


class Word(NamedTuple):
    """A word, its part of speech, and its number and tense, "none" where it has none."""

    text: str
    tag: str
    number: str = "none"
    tense: str = "none"


class Statement(NamedTuple):
    """The words of a statement, whether it says something good, and whether it is negated."""

    words: list[Word]
    good: bool
    negated: bool

    def labels(self) -> dict[str, list[str]]:
        """The label of every word by concept; those of the statement are all words' alike."""
        whole = {
            "sentiment": "good" if self.good else "bad",
            "negation": "negated" if self.negated else "affirmed",
        }
        return {
            "part of speech": [word.tag for word in self.words],
            "number": [word.number for word in self.words],
            "tense": [word.tense for word in self.words],
            **{name: [label] * len(self.words) for name, label in whole.items()},
        }


def sentence(rng: random.Random) -> tuple[list[Word], bool]:
    """One or two clauses, and whether they are of the past; regular endings are only appended."""

    def appended(stem: str, ending: str) -> str:
        return stem + ending

    past = rng.random() < 0.5
    words = _clause(rng, past, appended)
    if rng.random() < 0.4:
        words += [_word(rng, "conjunction"), *_clause(rng, past, appended)]
    return [*words, Word(".", "stop")], past


def statement(rng: random.Random) -> Statement:
    """A judgement, and sometimes a clause beside it."""
    past = rng.random() < 0.5
    words, plural = _noun_phrase(rng, _spelled)
    tense = "past" if past else "present"
    number = "plural" if plural else "singular"
    words.append(Word(COPULAS[tense][plural], "verb", number, tense))
    negated, praise = rng.random() < 0.5, rng.random() < 0.5
    if negated:
        words.append(_word(rng, "negation"))
    if rng.random() < 0.3:
        words.append(Word("very", "adverb"))
    words.append(Word(rng.choice((GOOD if praise else BAD).split()), "adjective"))
    if rng.random() < 0.5:
        words += [_word(rng, "conjunction"), *_clause(rng, past, _spelled)]
    return Statement([*words, Word(".", "stop")], praise != negated, negated)


def statements(count: int, seed: int) -> list[Statement]:
    """So many statements, all different."""
    rng, distinct = random.Random(seed), {}
    while len(distinct) < count:
        made = statement(rng)
        distinct[" ".join(word.text for word in made.words)] = made
    return list(distinct.values())


def _word(
    rng: random.Random, tag: str, number: str = "none", tense: str = "none", ending: str = "",
    inflect: Inflect | None = None,
) -> Word:  # fmt: skip
    text = rng.choice(WORDS[tag].split())
    return Word(inflect(text, ending) if inflect else text, tag, number, tense)


def _noun_phrase(rng: random.Random, inflect: Inflect) -> tuple[list[Word], bool]:
    """The words of a noun phrase, and whether it is plural."""
    plural = rng.random() < 0.5
    number = "plural" if plural else "singular"
    first = rng.choice(["the", "these", "some"] if plural else ["the", "a", "this"])
    words = [Word(first, "determiner", number)]
    if plural and rng.random() < 0.3:
        words = [_word(rng, "number", number)]
    words += [_word(rng, "adjective") for _ in range(rng.choice([0, 1, 1, 2]))]
    noun = _word(rng, "noun", number, ending="s" if plural else "", inflect=inflect)
    return [*words, noun], plural


def _clause(rng: random.Random, past: bool, inflect: Inflect) -> list[Word]:
    words, plural = _noun_phrase(rng, inflect)
    if rng.random() < 0.2:
        words, plural = [_word(rng, "pronoun", "plural")], True
    if rng.random() < 0.4:
        words.append(_word(rng, "adverb"))
    ending = "ed" if past else "" if plural else "s"
    number, tense = "plural" if plural else "singular", "past" if past else "present"
    words.append(_word(rng, "verb", number, tense, ending, inflect))
    if rng.random() < 0.7:
        words += [_word(rng, "preposition"), *_noun_phrase(rng, inflect)[0]]
    if rng.random() < 0.3:
        words += [Word("in", "preposition"), _word(rng, "name")]
    return words


def _spelled(stem: str, ending: str) -> str:
    """A regular form as it is written: smiled, watches, and not smileed, watchs."""
    if ending == "ed" and stem.endswith("e"):
        return stem + "d"
    return stem + ("es" if ending == "s" and stem.endswith("ch") else ending)
