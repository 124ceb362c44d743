"""RULER's prompts: how much distraction fits a length, then sample after sample.

The sizes are searched exactly as the published generator searches them, since every try draws
random numbers. Where it would try for ever (a length below its smallest step), smaller sizes are
tried, down to the fixed parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import EvaluationError
from endprompt.eval.ruler.build import (
    ROOM_PER_WORD,
    Builder,
    CommonWordsBuilder,
    Draft,
    FrequentWordsBuilder,
    NeedleBuilder,
    QuestionBuilder,
    TrackingBuilder,
    Unlucky,
    Wrap,
)
from endprompt.eval.ruler.counting import TokenCounter
from endprompt.eval.ruler.data import Data, Source
from endprompt.eval.ruler.tasks import (
    CommonWords,
    FrequentWords,
    Needles,
    Questions,
    Sample,
    Task,
    Tracking,
    find_task,
)
from endprompt.models.tokenizer import load_tokenizer

PATIENCE = 20
"""Draws at the smallest published size before smaller sizes are tried."""

DEMONSTRATION_TOKENS = 500
"""Length of the demonstration of `vt`."""

MANY_WORDS = 4096
"""Words of the list on which `cwe` estimates the tokens of a word."""


def samples(
    task: str,
    length: int,
    num_samples: int = 500,
    seed: int = 42,
    tokenizer: Any = None,
    data: Data | None = None,
    template: str = "base",
) -> Iterator[Sample]:
    """The prompts of one task at one length, equal to those of NVIDIA's generator.

    task          one of the 13 names in `TASKS`
    length        tokens of the prompt and of the answer together (NVIDIA's max_seq_length)
    num_samples   how many (published: 500)
    seed          the same seed, tokenizer and data give the same prompts
    tokenizer     a Transformers tokenizer, its folder or name, or a `TokenCounter`
    data          essays, SQuAD and HotpotQA; None: from the hub, else a stand-in
    template      'base': no chat template; 'chat': that of the tokenizer

    Yields samples one by one; memory does not grow with their number.
    Raises EvaluationError for an unknown task, a length too short for the task's fixed parts
    (the message names the shortest), or more samples than there are questions.
    """
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    if loaded is None:
        raise EvaluationError("RULER needs a tokenizer to size its prompts: give one")
    counter = loaded if isinstance(loaded, TokenCounter) else TokenCounter(loaded)
    wrap = wrap_of(template, loaded)
    cell = Cell(find_task(task), length, num_samples, seed, counter, data or Data(), wrap)
    return iter(cell)


def wrap_of(template: str, tokenizer: Any) -> Wrap:
    """What stands before and behind the question: 'base' nothing, 'chat' the tokenizer's own.

    Raises EvaluationError for another name or a tokenizer without chat template.
    """
    if template == "base":
        return Wrap()
    if template != "chat":
        raise EvaluationError(f"no template {template!r}: base or chat")
    if not getattr(tokenizer, "chat_template", None):
        raise EvaluationError("the tokenizer has no chat template: use --template base")
    mark = "RULER-QUESTION"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = text.partition(mark)
    return Wrap(head, tail)


class TooShort(EvaluationError):
    """A length that a task's fixed parts don't fit in."""


@dataclass
class Cell:
    """One task at one length. Iterate over it for its samples.

    `sources` names the texts that the samples are made of, as soon as the first has been drawn.
    """

    task: Task
    length: int
    num_samples: int
    seed: int
    counter: TokenCounter
    data: Data
    wrap: Wrap

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise EvaluationError(f"{self.num_samples} samples asked for: at least 1")
        self._builder: Builder | FrequentWordsBuilder | None = None

    @property
    def sources(self) -> list[Source]:
        return self._builder.sources if self._builder else []

    def __iter__(self) -> Iterator[Sample]:
        kind = _Frequent if isinstance(self.task.settings, FrequentWords) else _Stepped
        sized = kind(self)
        self._builder = sized.builder
        for index, (draft, tokens) in enumerate(sized.drafts()):
            if index == 0 and not self._exact(draft, tokens):
                self.counter.distrust()
                yield from self
                return
            yield self._sample(index, draft, tokens)

    def _exact(self, draft: Draft, tokens: int) -> bool:
        """Whether counting by words gave the number that tokenising the whole prompt gives."""
        return not self.counter.words_apart or self.counter.whole(draft.text) == tokens

    def _sample(self, index: int, draft: Draft, tokens: int) -> Sample:
        position = None
        if isinstance(self.task.settings, Needles):
            position = self.counter.count(draft.body[: draft.body.find(draft.outputs[0])])
        return Sample(
            index=index,
            input=draft.body,
            outputs=draft.outputs,
            length=tokens + self.task.tokens_to_generate,
            answer_prefix=draft.answer_prefix,
            token_position_answer=position,
        )

    def too_short(self, needed: int) -> TooShort:
        """The error that names the shortest length, in tokens."""
        return TooShort(
            f"{self.task.name} at length {self.length} cannot hold its fixed parts: "
            f"it needs at least {needed} tokens with this tokenizer, raise --length"
        )


class _Stepped:
    """Tasks whose size is searched by halves: all but `fwe`."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._count = cell.counter.count
        self.builder = _builder(cell)

    def drafts(self) -> Iterator[tuple[Draft, int]]:
        cell, builder = self._cell, self.builder
        if isinstance(builder, QuestionBuilder) and cell.num_samples > builder.available:
            raise EvaluationError(
                f"{cell.task.name} has {builder.available} questions, {cell.num_samples} samples "
                "asked for: lower --num-samples"
            )
        room = cell.length - cell.task.tokens_to_generate
        if isinstance(builder, TrackingBuilder):
            shown = self._demonstration(builder)
            builder.demonstration = shown
            shown_tokens = self._count(shown)
            size = self._search(builder.measured, builder.step, cell.length, room - shown_tokens)
        else:
            size = self._search(
                lambda size: builder.build(size, 0), builder.step, cell.length, room
            )
        for index in range(cell.num_samples):
            draft, tokens, used = self._fit(index, size, room)
            if used is not None:
                size = used
            yield draft, tokens

    def _demonstration(self, builder: TrackingBuilder) -> str:
        step = 5
        size = self._search(builder.demonstrating, step, DEMONSTRATION_TOKENS, DEMONSTRATION_TOKENS)
        while True:
            try:
                draft = builder.demonstrating(size)
                if self._count(draft.text) <= DEMONSTRATION_TOKENS or size <= step:
                    return f"{draft.text} {' '.join(draft.outputs)}\n"
            except Unlucky:
                pass
            size = max(size - step, step)

    def _search(self, build: Callable[[int], Draft], step: int, length: int, room: int) -> int:
        """The largest size found to fit, or one step: the published search."""
        first = MANY_WORDS if isinstance(self.builder, CommonWordsBuilder) else step
        per_unit = self._tokens(build, first) / first
        if isinstance(self.builder, CommonWordsBuilder):
            most = int(length // per_unit) * 2
        else:
            most = int((length / per_unit) * 3)
        low, high = step, max(most, step * 2)
        best = step
        while low <= high:
            middle = (low + high) // 2
            if self._tokens(build, middle) <= room:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best

    def _tokens(self, build: Callable[[int], Draft], size: int) -> int:
        while True:
            try:
                return self._count(build(size).text)
            except Unlucky:
                continue

    def _fit(self, index: int, size: int, room: int) -> tuple[Draft, int, int | None]:
        """A prompt that fits, and its tokens, drawn in the published order.

        Also the size from which to start the next sample, where the published order would not
        have ended.
        """
        step, floor = self.builder.step, self.builder.floor(index)
        lowest = 1 if isinstance(self.builder, CommonWordsBuilder) else floor
        patience = PATIENCE
        below = False
        while True:
            try:
                draft = self.builder.build(size, index)
                tokens = self._count(draft.text)
                if tokens <= room:
                    return draft, tokens, size if below else None
            except Unlucky:
                pass
            if size > step:
                size = max(size - step, lowest)
            elif patience:
                patience -= 1
            elif size > floor:
                below = True
                size = max(size - max(step // 10, 1), floor)
            else:
                raise self._cell.too_short(self._shortest(index))

    def _shortest(self, index: int) -> int:
        """Tokens that the longest of the smallest prompts needs."""
        if isinstance(self.builder, QuestionBuilder):
            tries = range(self._cell.num_samples)
        else:
            tries = [index] * PATIENCE
        most = max(
            self._tokens(lambda size, at=at: self.builder.build(size, at), self.builder.floor(at))
            for at in tries
        )
        return most + self._cell.task.tokens_to_generate


class _Frequent:
    """`fwe`: its size in words is searched upwards once, then lowered for each sample."""

    RANKS = 4
    LEAST = 27
    """Coded words, and words of the text, below which the third answer does not occur."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._room = cell.length - cell.task.tokens_to_generate
        settings = cell.task.settings
        assert isinstance(settings, FrequentWords)
        self.builder = FrequentWordsBuilder(settings, self._room, cell.seed, cell.wrap)

    def drafts(self) -> Iterator[tuple[Draft, int]]:
        builder, room, step = self.builder, self._room, self._room // 32
        if builder.vocabulary_size < self.RANKS:
            raise self._cell.too_short(self._shortest())
        vocabulary = builder.vocabulary()
        words = room // 6
        while self._tokens(words, vocabulary) < room:
            words += step
        words -= step
        for _ in range(self._cell.num_samples):
            vocabulary = builder.vocabulary()
            size = words
            while (tokens := self._tokens(size, vocabulary)) > room:
                if size <= self.LEAST:
                    raise self._cell.too_short(self._shortest())
                size = max(size - step, self.LEAST)
            yield builder.build(size, vocabulary), tokens

    def _shortest(self) -> int:
        """Tokens that the longest of some prompts of the fewest words needs."""
        self.builder.vocabulary_size = self.RANKS
        room = max(self._tokens(self.LEAST, self.builder.vocabulary()) for _ in range(PATIENCE))
        return max(room, self.RANKS * ROOM_PER_WORD) + self._cell.task.tokens_to_generate

    def _tokens(self, size: int, vocabulary: list[str]) -> int:
        return self._cell.counter.count(self.builder.build(size, vocabulary).text)


def _builder(cell: Cell) -> Builder:
    settings = cell.task.settings
    rest = (cell.length, cell.seed, cell.wrap, cell.data)
    match settings:
        case Needles():
            return NeedleBuilder(settings, *rest)
        case Tracking():
            return TrackingBuilder(settings, *rest)
        case CommonWords():
            return CommonWordsBuilder(settings, *rest)
        case Questions():
            return QuestionBuilder(settings, *rest)
        case _:
            raise AssertionError(settings)
