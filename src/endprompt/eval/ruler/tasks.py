"""The 13 tasks of RULER and their settings, as published (NVIDIA's synthetic.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from endprompt.errors import EvaluationError, nearest

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Needles:
    """Needle tasks: what the haystack is, what keys and values are, and how many of each."""

    haystack: Haystack
    keys: Kind = "words"
    values: Kind = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


@dataclass(frozen=True)
class Tracking:
    """One chain of assignments hidden in noise."""

    hops: int = 4


@dataclass(frozen=True)
class CommonWords:
    """The most common words of a numbered list."""

    common_repeats: int = 30
    other_repeats: int = 3
    common: int = 10


@dataclass(frozen=True)
class FrequentWords:
    """The most frequent coded words, counts falling with the square of the rank."""

    word_length: int = 6


@dataclass(frozen=True)
class Questions:
    """A question whose documents stand among others."""

    source: Literal["squad", "hotpotqa"]


Settings = Needles | Tracking | CommonWords | FrequentWords | Questions


@dataclass(frozen=True)
class Task:
    """One task: settings, room for the answer in tokens, and how an answer is scored."""

    name: str
    settings: Settings
    tokens_to_generate: int
    best_reference: bool = False


def _needles(name: str, settings: Needles) -> Task:
    return Task(name, settings, tokens_to_generate=128)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _needles("niah_single_1", Needles("noise")),
        _needles("niah_single_2", Needles("essay")),
        _needles("niah_single_3", Needles("essay", values="uuids")),
        _needles("niah_multikey_1", Needles("essay", num_keys=4)),
        _needles("niah_multikey_2", Needles("needle")),
        _needles("niah_multikey_3", Needles("needle", keys="uuids", values="uuids")),
        _needles("niah_multivalue", Needles("essay", num_values=4)),
        _needles("niah_multiquery", Needles("essay", num_keys=4, num_queries=4)),
        Task("vt", Tracking(), tokens_to_generate=30),
        Task("cwe", CommonWords(), tokens_to_generate=120),
        Task("fwe", FrequentWords(), tokens_to_generate=50),
        Task("qa_1", Questions("squad"), tokens_to_generate=32, best_reference=True),
        Task("qa_2", Questions("hotpotqa"), tokens_to_generate=32, best_reference=True),
    )
}


def find_task(name: str) -> Task:
    """The task of that name. Raises EvaluationError with the nearest name."""
    if name not in TASKS:
        raise EvaluationError(
            f"RULER has no task {name!r}{nearest(name, TASKS)}: one of {', '.join(TASKS)}"
        )
    return TASKS[name]


def texts_of(task: Task) -> tuple[str, ...]:
    """The outside texts that a task is always made of, as `Data.source` names them."""
    match task.settings:
        case Needles(haystack="essay"):
            return ("essays", "sentences")
        case Questions(source=source):
            return (source,)
        case _:
            return ()


@dataclass(frozen=True)
class Sample:
    """One prompt, in NVIDIA's fields; the model is given `prompt`.

    index                   0, 1, 2, ... within a task and length
    input, answer_prefix    the prompt and the beginning of the answer
    outputs                 the references
    length                  tokens of the prompt plus tokens to generate
    token_position_answer   needle tasks: tokens before the first value in the text
    """

    index: int
    input: str
    outputs: tuple[str, ...]
    length: int
    answer_prefix: str
    token_position_answer: int | None = None

    @property
    def prompt(self) -> str:
        """What the model continues."""
        return self.input + self.answer_prefix

    def row(self) -> dict[str, object]:
        """The sample as a JSON object, in NVIDIA's order of fields."""
        row: dict[str, object] = {
            "index": self.index,
            "input": self.input,
            "outputs": list(self.outputs),
            "length": self.length,
            "answer_prefix": self.answer_prefix,
        }
        if self.token_position_answer is not None:
            row["token_position_answer"] = self.token_position_answer
        return row
