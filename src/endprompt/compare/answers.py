"""What evaluations left of a model, as a result's answers: (depth, value) by task and length."""

from __future__ import annotations

from endprompt.compare.results import Answers
from endprompt.record import Untaught, Window

NO_DEPTH = 1.0
"""Of what stands at the end, or everywhere."""
UNTAUGHT = {"untaught/": "right", "untaught-loss/": "nll"}
"""What precedes a task's name, and the value that it has there."""


def of_window(window: Window) -> dict[tuple[str, int], Answers]:
    """Losses, needles (nats per token, digit accuracy, exact match), recall of a window check.

    `text-loss` is of the whole text, bin by bin: at depth 0 stands its end, whose tokens have
    distances up to the length. Also losses on key tokens, where they were looked for.
    """
    answers: dict[tuple[str, int], Answers] = {}
    for length in window.lengths:
        needles = [needle for needle in window.needles if needle.length == length]
        answers |= {
            ("loss", length): [
                (NO_DEPTH, loss.nll) for loss in window.losses if loss.length == length
            ],
            ("text-loss", length): [
                (1 - (part.start + part.end) / 2 / length, part.nll)
                for part in window.curve
                if part.end <= length
            ],
            ("recall", length): [
                (NO_DEPTH, quote.nll) for quote in window.quotes if quote.length == length
            ],
            ("needle-loss", length): [(needle.depth, needle.nll_per_token) for needle in needles],
            ("needles", length): [(needle.depth, needle.digits_right) for needle in needles],
            ("hits", length): [(needle.depth, float(needle.hit)) for needle in needles],
        }
        if window.key_search is not None:
            answers["key-loss", length] = [
                (NO_DEPTH, key.nll) for key in window.key_tokens if key.length == length
            ]
    return answers


def text_losses(window: Window, length: int) -> list[float]:
    """Nats per token of the texts of a window check up to a length, bin by bin."""
    return [value for _, value in of_window(window)["text-loss", length]]


def of_untaught(untaught: Untaught) -> dict[tuple[str, int], Answers]:
    """Answers of each task that no row teaches, as `untaught/TASK` and `untaught-loss/TASK`."""
    answers: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in untaught.answers:
        for kind, key in UNTAUGHT.items():
            values = answers.setdefault((f"{kind}{row.task}", row.length), [])
            values.append((row.depth, getattr(row, key)))
    return dict(answers)
