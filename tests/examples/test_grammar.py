"""The grammar's words have the labels that a reader would give them."""

from __future__ import annotations

import random

from benchmarks.regimes import data
from examples.grammar import BAD, CONCEPTS, GOOD, TAGS, WORDS, sentence, statement, statements


def test_every_word_of_a_sentence_has_a_known_tag() -> None:
    assert set(WORDS) <= set(TAGS)
    words, past = sentence(random.Random(0))
    assert {word.tag for word in words} <= set(data.TAGS) and isinstance(past, bool)
    assert " ".join(word.text for word in words).endswith(" .")


def test_labels_of_statements_agree_with_their_words() -> None:
    for made in statements(300, seed=1):
        words = [word.text for word in made.words]
        labels = made.labels()
        assert tuple(labels) == CONCEPTS and {len(x) for x in labels.values()} == {len(words)}
        negated = bool({"not", "never"} & set(words))
        (judged,) = set(words) & {*GOOD.split(), *BAD.split()}
        assert set(labels["negation"]) == {"negated" if negated else "affirmed"}
        assert set(labels["sentiment"]) == {"good" if (judged in GOOD) != negated else "bad"}
        for word in made.words:
            assert (word.tense == "none") == (word.tag != "verb")
            if word.text in ("is", "are", "was", "were"):
                assert word.number == ("singular" if word.text in ("is", "was") else "plural")
                assert word.tense == ("past" if word.text in ("was", "were") else "present")
        assert len({word.tense for word in made.words}) == 2  # none, and one for all verbs


def test_statements_are_distinct_spelled_and_the_same_for_a_seed() -> None:
    made = statements(200, seed=0)
    texts = [" ".join(word.text for word in one.words) for one in made]
    assert len(set(texts)) == 200 and made == statements(200, seed=0)
    assert not any("eed" in text or "chs" in text for text in texts)
    assert statement(random.Random(3)) == statement(random.Random(3))
