"""What `endprompt eval run` can ask: prompts, how an answer is scored, and what decides both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import EvaluationError
from endprompt.eval import longbench, retrieval, ruler, untaught
from endprompt.eval.engine import Coder
from endprompt.eval.perplexity import Document
from endprompt.eval.results import Question
from endprompt.io.files import sha256_file, sha256_of


@dataclass(frozen=True)
class Suite:
    """A set of questions.

    total      how many there are
    settings   what decides them, JSON-able, hashes of data included
    notes      what a reader of the results has to know; asked when all questions were taken
    sizes      (length, tokens to generate) of every question, where they are known beforehand
    """

    name: str
    total: int
    questions: Callable[[], Iterator[Question]]
    score: Callable[[Question, str], dict[str, float]]
    settings: dict[str, Any]
    notes: Callable[[], Sequence[str]] = tuple
    sizes: Sequence[tuple[int, int]] = ()


def ruler_suite(
    coder: Coder,
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    seed: int,
    template: str = "base",
    files: dict[str, Path | None] | None = None,
) -> Suite:
    """RULER's tasks at each length; see `endprompt.eval.ruler`.

    Questions of a task that are too long for a length are left out, and the notes say so.
    """
    given = {what: path for what, path in (files or {}).items() if path is not None}
    data = ruler.Data(
        essays=given.get("essays"), squad=given.get("squad"), hotpotqa=given.get("hotpotqa")
    )
    counter = ruler.TokenCounter(coder.tokenizer)
    wrap = ruler.wrap_of(template, coder.tokenizer)
    cells = [
        ruler.Cell(ruler.find_task(task), length, samples, seed, counter, data, wrap)
        for length in lengths
        for task in tasks
    ]

    left_out: list[ruler.TooShort] = []

    def questions() -> Iterator[Question]:
        left_out.clear()
        for cell in cells:
            try:
                for sample in cell:
                    yield Question(
                        id=f"ruler/{cell.task.name}/{cell.length}/{sample.index}",
                        task=f"ruler/{cell.task.name}",
                        length=cell.length,
                        prompt=sample.prompt,
                        max_new_tokens=cell.task.tokens_to_generate,
                        references=sample.outputs,
                    )
            except ruler.TooShort as error:
                left_out.append(error)
                if len(left_out) == len(cells):
                    raise

    def score(question: Question, prediction: str) -> dict[str, float]:
        row = {"pred": prediction, "outputs": question.references}
        return {"score": ruler.score(question.task.removeprefix("ruler/"), [row]).per_sample[0]}

    def notes() -> list[str]:
        """Samples left out, and texts made up: a cell knows them once it has been drawn from."""
        return [f"some samples left out: {error}" for error in left_out] + sorted(
            {
                f"{cell.task.name}: {source.what} is {source.origin}, {ruler.NOT_COMPARABLE}"
                for cell in cells
                for source in cell.sources
                if not source.published
            }
        )

    return Suite(
        "ruler",
        samples * len(cells),
        questions,
        score,
        {
            "tasks": list(tasks),
            "lengths": list(lengths),
            "samples": samples,
            "seed": seed,
            "template": template,
            "data": {what: sha256_file(path) for what, path in given.items()},
        },
        notes,
        [(cell.length, cell.task.tokens_to_generate) for cell in cells for _ in range(samples)],
    )


def retrieval_suite(
    name: str,
    coder: Coder,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    seed: int,
    documents: Sequence[Document] = (),
) -> Suite:
    """`needle` (in documents), `passkey` or `key-value`. Raises EvaluationError for others."""
    settings = {"lengths": list(lengths), "depths": list(depths), "seed": seed}
    if name == "needle":
        texts = documents[:samples]
        if not texts:
            raise EvaluationError("needles need a text to be hidden in: give --text")

        def questions() -> Iterator[Question]:
            yield from retrieval.needles(coder, texts, lengths=lengths, depths=depths, seed=seed)

        settings["texts"] = [sha256_of(_plain(text)) for text in texts]
        count = len(texts)
    elif name in ("passkey", "key-value"):
        make = retrieval.passkeys if name == "passkey" else retrieval.values

        def questions() -> Iterator[Question]:
            yield from make(coder, lengths=lengths, depths=depths, samples=samples, seed=seed)

        settings["samples"] = samples
        count = samples
    else:
        raise EvaluationError(f"no retrieval task {name!r}: needle, passkey or key-value")
    total = count * len(lengths) * len(depths)
    return Suite(name, total, questions, retrieval.hit, settings)


def untaught_suite(
    name: str,
    coder: Coder,
    *,
    lengths: Sequence[int],
    asked: int,
    seed: int,
    text: Document,
) -> Suite:
    """A task that no training row teaches: `asked` questions about one context at each length."""
    sentences = untaught.sentences_of(coder.decode_answer(_plain(text)))

    def questions() -> Iterator[Question]:
        yield from untaught.questions(
            coder, name, lengths=lengths, asked=asked, seed=seed, sentences=sentences
        )

    settings = {
        "lengths": list(lengths),
        "asked": asked,
        "seed": seed,
        "text": sha256_of(_plain(text)),
    }
    return Suite(name, asked * len(lengths), questions, untaught.score, settings)


def longbench_suite(
    coder: Coder,
    *,
    datasets: Sequence[str],
    folder: Path | None,
    max_length: int,
    samples: int | None,
    chat: bool = False,
) -> Suite:
    """LongBench's data sets, prompts cut in the middle to max_length tokens.

    chat   wrap prompts in the tokenizer's chat template, but for the tasks that the original
           leaves bare
    """
    whole = {name: longbench.load_rows(name, folder) for name in datasets}
    rows = {name: rows_of_set[:samples] for name, rows_of_set in whole.items()}

    def partial() -> list[str]:
        partly_used = [name for name in rows if len(rows[name]) < len(whole[name])]
        return [f"only the first {samples} rows of {', '.join(partly_used)}"] if partly_used else []

    def questions() -> Iterator[Question]:
        for name, rows_of_set in rows.items():
            for number, row in enumerate(rows_of_set):
                text = longbench.cut_middle(
                    longbench.prompt(name, row), coder.tokenizer, max_length
                )
                if chat and name.removesuffix("_e") not in longbench.NO_CHAT:
                    text = coder.tokenizer.apply_chat_template(
                        [{"role": "user", "content": text}],
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                yield Question(
                    id=f"longbench/{name}/{number}",
                    task=f"longbench/{name}",
                    length=max_length,
                    prompt=text,
                    max_new_tokens=longbench.tokens_to_generate(name),
                    references=tuple(row["answers"]),
                    detail={
                        "all_classes": row.get("all_classes"),
                        "length": row.get("length"),
                    },
                )

    def score(question: Question, prediction: str) -> dict[str, float]:
        name = question.task.removeprefix("longbench/")
        classes = question.detail["all_classes"]
        return {"score": longbench.score(name, prediction, question.references, classes)}

    return Suite(
        "longbench",
        sum(map(len, rows.values())),
        questions,
        score,
        {
            "datasets": list(datasets),
            "max_length": max_length,
            "samples": samples,
            "chat": chat,
            "data": {name: sha256_of(rows_of_set) for name, rows_of_set in rows.items()},
        },
        partial,
    )


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value.tolist() if hasattr(value, "tolist") else value
