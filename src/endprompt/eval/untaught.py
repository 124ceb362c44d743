"""Long-context tasks that no training row teaches, made offline at any length.

task         what it asks                                         source
json-kv      a value of a JSON object that holds near copies of   Liu et al. 2023, "Lost in the
             its key                                              Middle"
facts-1      where a person went last, hidden in other text       BABILong qa1, Kuratov et al. 2024
facts-2      where a thing is that a person took along            BABILong qa2
mrcr         the i-th of several passages about one topic         MRCR, Vodrahalli et al. 2024
graphwalks   the parents of a node in a list of edges             GraphWalks, OpenAI 2025

A `Context` is one text with many questions. `ask_by_likelihood` reads it once and scores every
answer under teacher forcing, so that small models show differences long before their answers match;
`questions` gives each question a prompt of its own, for an engine or a server to answer in words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from endprompt import distances
from endprompt.errors import EvaluationError, nearest
from endprompt.eval.needle import NOUNS, split_answer
from endprompt.eval.perplexity import Progress, checked_lengths
from endprompt.eval.results import Question
from endprompt.eval.retrieval import largest
from endprompt.io.provenance import Computation
from endprompt.record import Exact

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder, Engine

SPARE_TOKENS = 16
"""Left free beside the longest question and answer: others may be a little longer."""
NEAR_KEYS = 3
"""Keys that differ from an asked one in a single digit."""
PEOPLE = (
    "Adam Alice Amos Anna Arthur Bella Boris Carol Cecil Clara Daniel David Diana Edith Edgar "
    "Elena Felix Flora Frank Grace Harold Helen Henry Irene Isaac James Jane Joan John Julia Karl "
    "Laura Leo Lucy Mark Martha Mary Miles Nancy Nora Oscar Oliver Paula Peter Ralph Rose Ruth "
    "Sandra Simon Stella Susan Thomas Victor Violet Walter William"
).split()
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
MOVES = ("went to", "moved to", "travelled to", "journeyed to", "went back to")
KINDS = ("poem", "riddle", "letter", "story")
COPIES = 4
"""Passages of one kind about one topic."""
PASSAGE_WORDS, ANSWER_WORDS = 48, 16


@dataclass(frozen=True)
class Ask:
    """A question about a reading.

    part      index of the part that the answer stands in; of several, of the farthest
    choices   the only possible answers, the right one among them; none: any text
    """

    question: str
    answer: str
    part: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """A context in parts, which are joined as they are, and what is asked about it."""

    parts: list[str]
    asks: list[Ask]

    @property
    def text(self) -> str:
        """The whole context."""
        return "".join(self.parts)


Builder = Callable[[int, int, int, Sequence[str]], Context]
"""Size in units of the task, number of questions, seed, sentences of other text."""


class Answer(Exact):
    """One question asked at one length.

    depth   where in the length the answer stands, from 0 (the start) to 1
    nll     nats per token of the answer
    right   part of the answer's tokens that are the likeliest, the ones before being given; with
            choices 1 where the right one is the likeliest of them, else 0
    """

    task: str
    length: int
    depth: float
    tokens: int
    nll: float
    right: float


class UntaughtCheck(Exact):
    """Every answer, with what it was made of."""

    model: str
    tasks: list[str]
    lengths: list[int]
    asked: int
    seed: int
    answers: list[Answer]
    computation: Computation

    def by_quarter(self, task: str, length: int, value: str = "right") -> list[float | None]:
        """Means of a task at a length by distance, farthest quarter first."""
        pairs = (
            (answer.depth, float(getattr(answer, value)))
            for answer in self.answers
            if (answer.task, answer.length) == (task, length)
        )
        return [float(np.mean(some)) if some else None for some in distances.by_quarter(pairs)]


def json_kv(size: int, asked: int, seed: int, sentences: Sequence[str]) -> Context:
    """`size` pairs of hexadecimal keys and values. Asked keys are spread evenly."""
    del sentences
    rng = np.random.default_rng([seed, 1])
    names = [f"{number:012x}" for number in rng.integers(16**11, 16**12, size=2 * size).tolist()]
    keys, values = names[:size], names[size:]
    places = _spread(size, asked)
    free = [place for place in range(size) if place not in set(places)]
    others = iter(np.random.default_rng([seed, 2]).permutation(free).tolist())
    for place in places:
        for _ in range(NEAR_KEYS):
            other = next(others, None)
            if other is not None:
                keys[other] = _near(keys[place], rng)
    lines = [f'"{key}": "{value}",\n' for key, value in zip(keys, values, strict=True)]
    asks = [
        Ask(f'\nThe value of "{keys[place]}" is "', f'{values[place]}"', place + 1)
        for place in places
    ]
    head = "Find the value of a key in the JSON object below.\n\n{\n"
    return Context([head, *lines, "}\n"], asks)


def facts_1(size: int, asked: int, seed: int, sentences: Sequence[str]) -> Context:
    """Each of `asked` persons goes to two places, the first of them anywhere before the second."""
    rng = np.random.default_rng([seed, 3])
    background = _background(sentences, size)
    facts: list[tuple[float, str]] = []
    asks: list[tuple[float, str, str]] = []
    for number, person in enumerate(_people(asked, rng)):
        first, last = (str(place) for place in rng.choice(PLACES, size=2, replace=False))
        late = (number + 0.5) / asked
        early = late * float(rng.random())
        facts += [(early, _moves(person, first, rng)), (late, _moves(person, last, rng))]
        asks.append((late, f"\nThe most recent location of {person} is the", last))
    head = (
        "The text below tells where persons are, hidden in some other text. Where a person was in "
        "several locations, the latest one counts.\n\n"
    )
    return _with_facts(head, background, facts, asks)


def facts_2(size: int, asked: int, seed: int, sentences: Sequence[str]) -> Context:
    """A person takes a thing and goes elsewhere with it; asked is where the thing is."""
    rng = np.random.default_rng([seed, 4])
    background = _background(sentences, size)
    things = [str(noun) for noun in rng.choice(NOUNS, size=asked, replace=False)]
    facts: list[tuple[float, str]] = []
    asks: list[tuple[float, str, str]] = []
    for number, (person, thing) in enumerate(zip(_people(asked, rng), things, strict=True)):
        first, last = (str(place) for place in rng.choice(PLACES, size=2, replace=False))
        took = (number + 0.5) / asked
        left = took + (1 - took) * float(rng.random())
        facts += [
            (took, f"{_moves(person, first, rng)} {person} took the {thing}."),
            (left, _moves(person, last, rng)),
        ]
        asks.append((took, f"\nThe {thing} is in the", last))
    head = (
        "The text below tells where persons go and what they take along, hidden in some other "
        "text. A thing is where the person who took it went last.\n\n"
    )
    return _with_facts(head, background, facts, asks)


def mrcr(size: int, asked: int, seed: int, sentences: Sequence[str]) -> Context:
    """`size` rounds in which a passage about a topic is asked for; `COPIES` of each asked kind."""
    rng = np.random.default_rng([seed, 5])
    wanted = [(str(rng.choice(KINDS)), topic) for topic in NOUNS]
    words = " ".join(sentences).split()
    if len(words) < PASSAGE_WORDS:
        raise EvaluationError(f"mrcr needs {PASSAGE_WORDS} words of text, got {len(words)}")
    rounds: list[tuple[str, str]] = [("", "")] * size
    places = _spread(size, asked)
    order = np.random.default_rng([seed, 6]).permutation(len(places))
    groups = -(-len(places) // COPIES)
    for number, place in enumerate(order.tolist()):
        rounds[places[place]] = wanted[number % groups]
    fillers = wanted[groups:]
    asks: list[Ask] = []
    seen: dict[tuple[str, str], int] = {}
    parts = ["A conversation. Each request is answered once.\n"]
    for number, (kind, topic) in enumerate(rounds):
        own = bool(topic)
        if not own:
            kind, topic = fillers[int(rng.integers(len(fillers)))]
        start = number * PASSAGE_WORDS % (len(words) - PASSAGE_WORDS + 1)
        passage = words[start : start + PASSAGE_WORDS]
        parts.append(f"\nUser: Write a {kind} about the {topic}.\nAssistant: {' '.join(passage)}\n")
        if own:
            count = seen[kind, topic] = seen.get((kind, topic), 0) + 1
            code = f"{int(rng.integers(10**9, 10**10))}"
            asks.append(
                Ask(
                    f"\nUser: Prepend {code} to the {_ordinal(count)} {kind} about the {topic}. "
                    f"Do not include any other text.\nAssistant: {code}",
                    " " + " ".join(passage[:ANSWER_WORDS]),
                    number + 1,
                )
            )
    return Context(parts, asks)


def graphwalks(size: int, asked: int, seed: int, sentences: Sequence[str]) -> Context:
    """`size` edges. Nodes asked for have one parent each, which is a parent of others too."""
    del sentences
    rng = np.random.default_rng([seed, 7])
    nodes = [f"{number:010x}" for number in rng.integers(16**9, 16**10, size=2 * size).tolist()]
    parents = [nodes[int(n)] for n in rng.integers(size // 2 + 1, size=size)]
    children = nodes[size:]  # each stands once
    lines = [f"{parent} -> {other}\n" for parent, other in zip(parents, children, strict=True)]
    asks = [
        Ask(
            f"\nOperation:\nFind the parents of node {children[place]}.\n\nFinal Answer: [",
            f"{parents[place]}]",
            place + 1,
        )
        for place in _spread(size, asked)
    ]
    head = (
        "Below is a graph as a list of directed edges, and an operation on it. The parents of a "
        "node are the nodes that have an edge to it.\n\nThe graph has the following edges:\n"
    )
    return Context([head, *lines], asks)


TASKS: dict[str, Builder] = {
    "json-kv": json_kv,
    "facts-1": facts_1,
    "facts-2": facts_2,
    "mrcr": mrcr,
    "graphwalks": graphwalks,
}
"""Every task by name. One more is one entry."""
ANSWER_TOKENS = {"json-kv": 32, "facts-1": 16, "facts-2": 16, "mrcr": 128, "graphwalks": 64}
"""What an answer in words may take."""
LEAST = 4
"""Units of the smallest context."""


def context_of(
    coder: Coder, task: str, length: int, *, asked: int, seed: int, sentences: Sequence[str]
) -> Context:
    """The largest context of a task that leaves room for its questions in a length.

    Raises EvaluationError for an unknown task, and a length that is too short.
    """
    if task not in TASKS:
        raise EvaluationError(f"no task {task!r}{nearest(task, TASKS)}: one of {', '.join(TASKS)}")
    build = TASKS[task]
    least = build(LEAST, asked, seed, sentences)
    longest = max(len(coder.encode(ask.question + ask.answer)) for ask in least.asks)
    limit = length - longest - SPARE_TOKENS - len(coder.start_ids)

    def tokens(more: int) -> int:
        return sum(map(len, pieces_of(coder, build(LEAST + more, asked, seed, sentences))))

    return build(LEAST + largest(tokens, limit), asked, seed, sentences)


def pieces_of(coder: Coder, plan: Context) -> list[list[int]]:
    """Token ids of each part of a context."""
    return [coder.encode(part) for part in plan.parts]


def check(
    engine: Engine,
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    sentences: Sequence[str],
    asked: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> UntaughtCheck:
    """All tasks at all lengths by likelihood: one prefill for each.

    asked      questions about a context, at even places
    sentences  of text, for the tasks that hide facts in it
    """
    lengths = checked_lengths(lengths, 1)
    total = len(tasks) * sum(engine.work(length) for length in lengths)
    answers: list[Answer] = []
    done = 0.0
    for length in lengths:
        for task in tasks:
            plan = context_of(engine, task, length, asked=asked, seed=seed, sentences=sentences)
            answers += ask_by_likelihood(engine, task, length, plan)
            done += engine.work(length)
            if progress is not None:
                progress(done / total)
    return UntaughtCheck(
        model=engine.name,
        tasks=list(tasks),
        lengths=lengths,
        asked=asked,
        seed=seed,
        answers=answers,
        computation=engine.computation,
    )


def ask_by_likelihood(engine: Engine, task: str, length: int, plan: Context) -> list[Answer]:
    """Read a context once and score every answer, and every choice, after its question."""
    pieces = pieces_of(engine, plan)
    ids = [*engine.start_ids, *(token for piece in pieces for token in piece)]
    starts = np.cumsum([len(engine.start_ids), *map(len, pieces)])
    context = engine.context()
    context.extend(ids)
    pairs = []
    for ask in plan.asks:
        for text in ask.choices or (ask.answer,):
            pairs.append(split_answer(engine, ask.question, f" {text}" * bool(ask.choices) or text))
    scores = iter(context.ask_all(pairs))
    answers = []
    for ask in plan.asks:
        if ask.choices:
            all_ = {text: next(scores) for text in ask.choices}
            score = all_[ask.answer]
            right = float(min(all_, key=lambda text: all_[text].total) == ask.answer)
        else:
            score = next(scores)
            right = float(score.right_T.mean())
        answers.append(
            Answer(
                task=task,
                length=length,
                depth=min(1.0, float(starts[ask.part]) / length),
                tokens=len(score.nll_T),
                nll=score.mean,
                right=right,
            )
        )
    return answers


def questions(
    coder: Coder,
    task: str,
    *,
    lengths: Sequence[int],
    asked: int,
    seed: int,
    sentences: Sequence[str],
) -> Iterator[Question]:
    """Each question with a prompt of its own."""
    for length in checked_lengths(lengths, 1):
        plan = context_of(coder, task, length, asked=asked, seed=seed, sentences=sentences)
        for number, ask in enumerate(plan.asks):
            yield Question(
                id=f"{task}/{length}/{number}",
                task=task,
                length=length,
                prompt=plan.text + ask.question,
                max_new_tokens=ANSWER_TOKENS[task],
                references=(ask.answer,),
            )


def score(question: Question, prediction: str) -> dict[str, float]:
    """As each task's authors score it.

    mrcr: ratio of `difflib.SequenceMatcher` over as much as was asked for; graphwalks: F1 of the
    set of nodes; the rest: whether the answer appears.
    """
    answer = question.references[0].strip()
    if question.task == "mrcr":
        start = " ".join(prediction.split())[: len(answer)]
        return {"ratio": difflib.SequenceMatcher(None, start, answer).ratio()}
    if question.task == "graphwalks":
        return {"f1": f1(nodes_of(prediction), nodes_of(answer))}
    return {"hit": float(answer.strip('"').lower() in prediction.lower())}


def nodes_of(text: str) -> set[str]:
    """Nodes of an answer that continues `Final Answer: [`."""
    inside = re.split(r"[\]\n]", text, maxsplit=1)[0]
    return {node.strip(" '\"") for node in inside.split(",") if node.strip(" '\"")}


def f1(answered: set[str], truth: set[str]) -> float:
    """Harmonic mean of precision and recall of a set.

    >>> f1({"a", "b"}, {"a"}), f1(set(), {"a"})
    (0.6666666666666666, 0.0)
    """
    shared = len(answered & truth)
    return 2 * shared / (len(answered) + len(truth)) if shared else 0.0


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, without line ends."""
    flat = " ".join(text.split())
    return [sentence for sentence in re.split(r"(?<=[.!?]) ", flat) if sentence]


def _spread(size: int, count: int) -> list[int]:
    """At most `count` places below `size`, evenly spread."""
    count = min(count, size)
    return [int((n + 0.5) * size / count) for n in range(count)]


def _near(key: str, rng: np.random.Generator) -> str:
    """A key that differs in one digit."""
    place = int(rng.integers(1, len(key)))
    other = (int(key[place], 16) + int(rng.integers(1, 16))) % 16
    return f"{key[:place]}{other:x}{key[place + 1 :]}"


def _people(count: int, rng: np.random.Generator) -> list[str]:
    if count > len(PEOPLE):
        raise EvaluationError(f"{count} questions, and there are {len(PEOPLE)} persons: ask fewer")
    return [str(name) for name in rng.choice(PEOPLE, size=count, replace=False)]


def _moves(person: str, place: str, rng: np.random.Generator) -> str:
    return f"{person} {MOVES[int(rng.integers(len(MOVES)))]} the {place}."


def _background(sentences: Sequence[str], size: int) -> list[str]:
    if not sentences:
        raise EvaluationError("facts are hidden in text, and there is none: give some")
    return [sentences[n % len(sentences)] for n in range(size)]


def _with_facts(
    head: str,
    background: list[str],
    facts: Sequence[tuple[float, str]],
    asks: Sequence[tuple[float, str, str]],
) -> Context:
    """Facts put between sentences at their depths; questions point at the fact of their depth."""
    count = len(background)
    marked = [(depth * count, 1, fact) for depth, fact in facts]
    marked += [(float(n), 0, sentence) for n, sentence in enumerate(background)]
    marked.sort(key=lambda mark: mark[:2])
    where = {depth: n + 1 for n, (depth, is_fact, _) in enumerate(marked) if is_fact}
    parts = [head, *(f" {text}" for _, _, text in marked)]
    return Context(
        parts,
        [Ask(question, answer, where[depth * count], PLACES) for depth, question, answer in asks],
    )


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")
