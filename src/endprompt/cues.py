"""Terminals: the tokens that stand at the far end of a row, and how each is weighed in the loss.

Fixed cues are the paper's (its figure 2): EP_1 and EP_3 are sentences, EP_2 is the tokenizer's
own end-of-turn token. They are learnt by heart within some hundred steps, and the long-range
signal goes with their loss; a recall terminal asks for what only the prefix can answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from endprompt import plugins
from endprompt.errors import RecipeError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

EP1 = "This is the end of text, please pay attention here"
EP3 = "End."
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endofturn|>", "[/INST]")

SENTENCE_ENDS = (".", "!", "?", "\n", ".\n")

NAMES = tuple(
    "Avon Birch Cedar Dover Elgin Fairfax Garnet Hazel Iris Juniper Kestrel Laurel Mercer Nettle "
    "Orchid Perry Quill Rowan Saxon Thistle Umber Vesper Walnut Yarrow Zephyr".split()
)
PLACES = tuple("bridge cellar court ferry gate harbour lodge mill quarry tower vault wharf".split())


class Tokenizer(Protocol):
    """What is needed of a tokenizer: a callable that gives `input_ids`, and its vocabulary."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...


class Recall(Protocol):
    """Settings of a recall terminal (`recipe.Recall`)."""

    @property
    def verbatim(self) -> int: ...
    @property
    def facts(self) -> int: ...
    @property
    def cue_tokens(self) -> tuple[int, int]: ...
    @property
    def answer_tokens(self) -> tuple[int, int]: ...
    @property
    def answers_only(self) -> bool: ...
    @property
    def planted_weight(self) -> float: ...


class Terminal(Protocol):
    """Settings of a terminal (`recipe.Terminal`)."""

    @property
    def cue(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def pool(self) -> tuple[str, ...]: ...
    @property
    def recall(self) -> Recall: ...
    @property
    def tokens(self) -> int: ...
    @property
    def anchors(self) -> int: ...
    @property
    def weight(self) -> float: ...


@dataclass(frozen=True)
class Segment:
    """Tokens int[S] of a terminal and the loss weight float[S] of predicting each."""

    tokens: Ints
    weights: Floats


@dataclass(frozen=True)
class Content:
    """A row's text int[P] (facts planted) and its terminals, not yet placed.

    weights_P  float[P], loss weights of the text as multiples of the prefix's; None: all 1
    """

    prefix_P: Ints
    terminals: list[Segment]
    weights_P: Floats | None = None


log = logging.getLogger(__name__)
Fact = tuple[Ints, Ints, Ints]
"""A statement to plant, the question that asks for it, and its answer."""
Span = tuple[int, int]
"""Tokens of a quote that are given, and tokens that are asked."""


class CueWriter:
    """Writes the terminals of a recipe with a model's tokenizer.

    `text` given to `write` is a stretch of T tokens; prefix and terminals together fill T, so
    that every row of every recipe has the same number of physical tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Ints] = {}
        self._said_short = False

    def encode(self, text: str) -> Ints:
        """Token ids int[n] without special tokens; fixed words are encoded once."""
        if text not in self._known:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            self._known[text] = np.asarray(ids, dtype=np.int64)
        return self._known[text]

    def end_of_turn(self) -> int:
        """Id of the tokenizer's end-of-turn token (EP_2), its end of sequence if it has none."""
        vocabulary = self._tokenizer.get_vocab()
        for token in END_OF_TURN:
            if token in vocabulary:
                return int(vocabulary[token])
        if self._tokenizer.eos_token_id is None:
            raise RecipeError("cue 'ep2' needs an end-of-turn token, and the tokenizer has none")
        return int(self._tokenizer.eos_token_id)

    def sentence_ends(self) -> Ints:
        """Ids int[k] of the tokens that end a sentence or a line, as LongRecipe splits text."""
        words = self.encode("a")
        ends = [self.encode("a" + mark)[len(words) :] for mark in SENTENCE_ENDS]
        return np.unique(np.concatenate([ids[-1:] for ids in ends]))

    def write(self, terminal: Terminal, text_T: Ints, rng: np.random.Generator) -> Content:
        """Prefix and terminals of a row that is cut out of `text_T`, int[T].

        Raises RecipeError when the terminals leave no prefix that they could ask about.
        """
        known = CUES.get(terminal.cue)
        write = known.write if known else plugins.find("endprompt.cue", terminal.cue)
        if write is None:
            raise RecipeError(f"no installed package has the cue {terminal.cue!r} any more")
        return write(self, terminal, text_T, rng)

    def recall(self, terminal: Terminal, text_T: Ints, rng: np.random.Generator) -> Content:
        """Facts are planted first, then every anchor asks its share of facts and new quotes.

        A row too short for all of them asks fewer, one of each anchor at least.
        """
        recall = terminal.recall
        anchors = range(terminal.anchors)
        things = rng.permutation(len(NAMES) * len(PLACES))  # no two facts of a row share one
        facts = [
            [self._fact(int(things[n * recall.facts + k]), rng) for k in range(recall.facts)]
            for n in anchors
        ]
        spans = [
            [
                (int(rng.integers(*_closed(recall.cue_tokens))),
                 int(rng.integers(*_closed(recall.answer_tokens))))
                for _ in range(recall.verbatim)
            ]
            for _ in anchors
        ]  # fmt: skip
        opening, closing = self.encode('\n"...'), self.encode('..."')
        marks = len(opening) + len(closing)
        self._fit(facts, spans, marks, len(text_T))
        planted = [statement for group in facts for statement, _, _ in group]
        P = prefix_length(
            len(text_T), _terminal_tokens(facts, spans, marks), least=_least_prefix(facts, spans)
        )
        prefix_P, planted_P = plant(text_T[: P - sum(map(len, planted))], planted, rng)

        segments = []
        for n in anchors:
            parts: list[tuple[Ints, bool]] = []
            for _, question, answer in facts[n]:
                parts += [(question, False), (answer, True)]
            for cue, answer in spans[n]:
                start = int(rng.integers(P - cue - answer + 1))
                quoted = prefix_P[start : start + cue + answer]
                parts += [(opening, False), (quoted[:cue], False)]
                parts += [(quoted[cue:], True), (closing, False)]
            segments.append(_segment(parts, terminal.weight, recall))
        weights_P = np.where(planted_P, recall.planted_weight, 1).astype(np.float32)
        return Content(prefix_P, segments, weights_P)

    def _fit(
        self, facts: list[list[Fact]], spans: list[list[Span]], marks: int, row_tokens: int
    ) -> None:
        """Leave out what the row can't hold, and say so once."""
        wanted, needed = sum(map(len, facts + spans)), _recall_tokens(facts, spans, marks)
        while _recall_tokens(facts, spans, marks) > row_tokens and _drop_one(facts, spans):
            pass
        held = sum(map(len, facts + spans))
        fits = _recall_tokens(facts, spans, marks) <= row_tokens  # else an error follows
        if fits and held < wanted and not self._said_short:
            self._said_short = True
            log.warning(
                "rows of %d tokens hold %d of the %d questions of the recall terminal: "
                "rows.tokens %d holds all", row_tokens, held, wanted, needed,
            )  # fmt: skip

    def _fact(self, which: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """A statement to plant, the question that asks for it, and its answer."""
        answer = str(rng.integers(10**5, 10**6))
        thing = f"the lock of the {NAMES[which % len(NAMES)]} {PLACES[which // len(NAMES)]}"
        statement = self.encode(f" The number that opens {thing} is {answer}.")
        question = self.encode(f"\nWhich number opens {thing}?")
        return statement, question, self.encode(f" {answer}")


Writer = Callable[[CueWriter, Terminal, Ints, np.random.Generator], Content]
"""Makes prefix and terminals of a row out of a stretch of text; a cue of a package is one too."""


@dataclass(frozen=True)
class Cue:
    """How terminals with a cue are written.

    what   in a few words
    needs  settings of a terminal that it can't be without
    """

    what: str
    write: Writer
    needs: tuple[str, ...] = ()


def worded(words: Callable[[CueWriter, Terminal, np.random.Generator], Ints]) -> Writer:
    """A cue of words alone: behind the text, once for each anchor; all words are trained."""

    def write(
        writer: CueWriter, terminal: Terminal, text_T: Ints, rng: np.random.Generator
    ) -> Content:
        parts = [words(writer, terminal, rng) for _ in range(terminal.anchors)]
        return _behind(text_T[: prefix_length(len(text_T), sum(map(len, parts)))], parts, terminal)

    return write


def fixed(sentence: str) -> Cue:
    """A cue that is the same sentence in every row."""
    return Cue(f"“{sentence}”", worded(lambda writer, *_: writer.encode(sentence)))


def _end_of_turn(writer: CueWriter, *_: Any) -> Ints:
    return np.array([writer.end_of_turn()], dtype=np.int64)


def _text(writer: CueWriter, terminal: Terminal, _: np.random.Generator) -> Ints:
    return writer.encode(terminal.text or "")


def _of_pool(writer: CueWriter, terminal: Terminal, rng: np.random.Generator) -> Ints:
    return writer.encode(terminal.pool[int(rng.integers(len(terminal.pool)))])


def _continuation(
    writer: CueWriter,  # noqa: ARG001
    terminal: Terminal,
    text_T: Ints,
    rng: np.random.Generator,  # noqa: ARG001
) -> Content:
    P = prefix_length(len(text_T), terminal.tokens * terminal.anchors)
    return _behind(text_T[:P], np.split(text_T[P:], terminal.anchors), terminal)


CUES: dict[str, Cue] = {
    "ep1": fixed(EP1),
    "ep2": Cue("the tokenizer's end-of-turn token", worded(_end_of_turn)),
    "ep3": fixed(EP3),
    "text": Cue("the words of `terminal.text`", worded(_text), ("text",)),
    "pool": Cue("one of `terminal.pool`, drawn for each row", worded(_of_pool), ("pool",)),
    "recall": Cue("questions about the prefix, and their answers", CueWriter.recall),
    "continuation": Cue("the text's next `terminal.tokens` tokens", _continuation),
}
"""What `rows.kinds.terminal.cue` may name."""


def prefix_length(row_tokens: int, terminal_tokens: int, least: int = 1) -> int:
    """Tokens P of the prefix beside its terminals. Raises RecipeError where it has too few."""
    P = row_tokens - terminal_tokens
    if least > P:
        raise RecipeError(
            f"rows of {row_tokens} tokens leave {max(P, 0)} for the prefix beside terminals "
            f"of {terminal_tokens}, and it needs {least}: raise rows.tokens to "
            f"{terminal_tokens + least} or shorten the cue"
        )
    return P


def _behind(prefix_P: Ints, parts: list[Ints], terminal: Terminal) -> Content:
    """A prefix with terminals of which every token is trained."""
    return Content(
        prefix_P,
        [Segment(part, np.full(len(part), terminal.weight, np.float32)) for part in parts],
    )


def _terminal_tokens(facts: list[list[Fact]], spans: list[list[Span]], marks: int) -> int:
    """Tokens of all questions with their answers; `marks` are those around a quote."""
    asked = sum(len(question) + len(answer) for group in facts for _, question, answer in group)
    return asked + sum(cue + answer + marks for group in spans for cue, answer in group)


def _least_prefix(facts: list[list[Fact]], spans: list[list[Span]]) -> int:
    """Tokens of the statements planted in the prefix, and of the longest quote."""
    longest = max((cue + answer for group in spans for cue, answer in group), default=1)
    return sum(len(statement) for group in facts for statement, _, _ in group) + longest


def _recall_tokens(facts: list[list[Fact]], spans: list[list[Span]], marks: int) -> int:
    """Tokens of the shortest row that holds these."""
    return _terminal_tokens(facts, spans, marks) + _least_prefix(facts, spans)


def _drop_one(facts: list[list[Fact]], spans: list[list[Span]]) -> bool:
    """Leave out a quote or a fact of the anchor that asks most; False where each asks one thing."""
    asks = [len(group) + len(quotes) for group, quotes in zip(facts, spans, strict=True)]
    n = max(range(len(asks)), key=asks.__getitem__)
    if asks[n] <= 1:
        return False
    (facts[n] if len(facts[n]) >= len(spans[n]) else spans[n]).pop()
    return True


def plant(
    text: Ints, statements: list[Ints], rng: np.random.Generator
) -> tuple[Ints, NDArray[np.bool_]]:
    """Put statements into a text at random places, int[n] and k of int[m] to int[n + k m].

    Second: which of the tokens are a statement's.
    """
    places = rng.integers(len(text) + 1, size=len(statements))
    order = np.argsort(places, kind="stable")
    at = np.repeat(places[order], [len(statements[k]) for k in order])
    tokens = np.concatenate([statements[k] for k in order]) if statements else text[:0]
    return np.insert(text, at, tokens), np.insert(np.zeros(len(text), bool), at, True)


def _closed(span: tuple[int, int]) -> tuple[int, int]:
    return span[0], span[1] + 1


def _segment(parts: list[tuple[Ints, bool]], weight: float, recall: Recall) -> Segment:
    """Join questions and answers; questions weigh nothing where only answers are trained."""
    weights = [
        np.full(len(tokens), weight if is_answer or not recall.answers_only else 0.0, np.float32)
        for tokens, is_answer in parts
    ]
    return Segment(np.concatenate([tokens for tokens, _ in parts]), np.concatenate(weights))
