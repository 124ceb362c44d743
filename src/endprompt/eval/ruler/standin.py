"""Made-up text in the formats of RULER's data, for machines that have none of it.

Everything is drawn with a fixed seed from wonderwords' lists: the same on every machine. Scores
on it cannot be compared with published ones, and every output says so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from endprompt.eval.ruler.words import word_list

NAME = "made-up text (endprompt stand-in 1)"

_FRAMES = (
    "The {a} {n} was never meant to stand beside the {n2}.",
    "Most people who keep a {n} will tell you that the {n2} comes first.",
    "It is easy to mistake a {a} {n} for a {a2} one.",
    "When I first saw the {n}, I thought of a {a} {n2} and of nothing else.",
    "There are two ways to look after a {n}, and both of them ask for a {a} {n2}.",
    "Nobody plans for a {a} {n}; it arrives with the {n2} and stays.",
    "A good {n} costs more than a {n2}, yet it lasts three times as long.",
    "What surprised me was how {a} the {n} had become.",
    "If you ask the owner of a {n} what matters, the answer is seldom the {n2}.",
    "Some years later the same {n} was sold together with a {a} {n2}.",
    "The trouble with every {n} is that it looks {a} from a distance.",
    "I have come to believe that the {n} explains the {n2}, and not the other way round.",
    "In a small town, a {a} {n} is news for a week.",
    "We wrote down what the {n} did, and after a month the pattern was {a}.",
    "One learns to {v} before one learns to own a {n}.",
    "Those who {v} too early lose the {n}; those who wait lose the {n2}.",
    "Of course, the {n2} had its own reasons, which were {a} enough.",
    "Such a {n} needs little: some light, a {a2} {n2}, and time.",
    "So the question is not whether the {n} works but for whom.",
    "That is why a {a} {n} is worth more than it seems.",
)
_PLACES = ("Arlen", "Brisk", "Corvale", "Dunmere", "Eastby", "Farrow", "Galt", "Hexley", "Istra")
_SURNAMES = tuple("Aldous Benck Corley Dray Estrand Fenn Gorst Hale Ivers Jarrow Kemp Lund".split())
_FIRST = tuple("Ada Boris Clara Dirk Elsa Felix Greta Hugo Ines Jonas Karin Leo".split())


def essays(sentences: int = 16_000) -> dict[str, str]:
    """Prose in the format of PaulGrahamEssays.json: one key, `text` (about 1.1 MB)."""
    draw = random.Random("essays")
    words = _vocabulary()
    text = []
    for at in range(sentences):
        frame = draw.choice(_FRAMES)
        text.append(_sentence(draw, words, frame))
        text.append("\n\n" if at % 9 == 8 else " ")
    return {"text": "".join(text)}


def squad(titles: int = 60, paragraphs: int = 20) -> dict[str, Any]:
    """Articles, paragraphs and questions in the format of SQuAD 2.0's dev-v2.0.json."""
    draw = random.Random("squad")
    words = _vocabulary()
    articles = []
    for _ in range(titles):
        title = words["n"](draw).title()
        written = []
        for number in range(paragraphs):
            fact = _Fact(draw, words, f"{title} number {number + 1}")
            qas = [
                {"question": question, "is_impossible": False, "answers": _answers(answers)}
                for question, answers in fact.questions()
            ]
            qas.append(
                {"question": f"Who sold the {fact.name}?", "is_impossible": True, "answers": []}
            )
            written.append({"context": fact.paragraph(draw, words), "qas": qas})
        articles.append({"title": title, "paragraphs": written})
    return {"version": NAME, "data": articles}


def hotpotqa(questions: int = 600) -> list[dict[str, Any]]:
    """Questions over ten paragraphs each, in the format of hotpot_dev_distractor_v1.json."""
    draw = random.Random("hotpotqa")
    words = _vocabulary()
    items = []
    for number in range(questions):
        facts = [_Fact(draw, words, f"House {number * 10 + at + 1}") for at in range(10)]
        first, second = facts[:2]
        context = [(fact.name, fact.sentences(draw, words)) for fact in facts]
        context[0][1].append(f" It was built by the founder of the {second.name}.")
        draw.shuffle(context)
        items.append(
            {
                "question": f"Who built the {first.name}?",
                "answer": f"{second.founder}",
                "context": context,
            }
        )
    return items


def english_words() -> dict[str, str]:
    """Made-up words in the format of RULER's english_words.json (210,000 of three syllables)."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = [a + b + c for a in syllables for b in syllables for c in syllables[:44]]
    random.Random("english words").shuffle(words)
    return {str(number): word for number, word in enumerate(words)}


class _Fact:
    """One made-up house, with what is said and asked of it."""

    def __init__(self, draw: random.Random, words: _Words, name: str) -> None:
        self.name = name
        self.founder = f"{draw.choice(_FIRST)} {draw.choice(_SURNAMES)}"
        self.year = draw.randint(1500, 1990)
        self.place = f"{words['a'](draw).title()} {draw.choice(_PLACES)}"

    def sentences(self, draw: random.Random, words: _Words) -> list[str]:
        filler = (
            " " + _sentence(draw, words, draw.choice(_FRAMES)) for _ in range(draw.randint(2, 5))
        )
        return [
            f"The {self.name} stands in {self.place}.",
            f" It was founded by {self.founder} in {self.year}.",
            *filler,
        ]

    def paragraph(self, draw: random.Random, words: _Words) -> str:
        return "".join(self.sentences(draw, words))

    def questions(self) -> list[tuple[str, list[str]]]:
        return [
            (f"Who founded the {self.name}?", [self.founder, self.founder.split()[1]]),
            (f"In which year was the {self.name} founded?", [str(self.year)]),
            (f"Where does the {self.name} stand?", [self.place, f"in {self.place}"]),
        ]


def _sentence(draw: random.Random, words: _Words, frame: str) -> str:
    filled = frame.format(**{name: pick(draw) for name, pick in words.items()})
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled)


def _answers(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


_Words = dict[str, Callable[[random.Random], str]]


def _vocabulary() -> _Words:
    """Pickers of nouns, adjectives and verbs, keyed as the frames name them."""
    nouns, adjectives, verbs = (
        [word for word in word_list(kind) if word.isalpha() and word.islower() and len(word) < 12]
        for kind in ("noun", "adjective", "verb")
    )
    lists = {"n": nouns, "n2": nouns, "a": adjectives, "a2": adjectives, "v": verbs}
    return {name: (lambda draw, words=words: draw.choice(words)) for name, words in lists.items()}
